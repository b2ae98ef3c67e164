"""With finite data the frontier bends down: β trades what the pairs know against what they only seem to know."""

# %% [markdown]
# # 24. The β trade-off as a frontier
#
# **Question.** In theory a smaller β always gives more reward (lesson 3). In practice a smaller β makes a policy worse at some point. Where
# does that point come from, and does more data move it?
#
# **Expectation.** Pairs are sampled from the reference, so rare answers are compared a few times only and their rewards are known badly.
# The policy cannot tell error from truth; it tilts by (r + error)/β. At large β it moves along what is known well; at small β the
# largest error wins: a rare answer that was lucky once. So true reward rises, peaks and falls, and with more data the best β is smaller.
#
# One prompt, a hundred answers; the reference is a decent one, so rare answers are mostly worse. Rewards are fitted to Bradley-Terry
# labels by maximum likelihood with a trace of ridge (0.01, so that an answer that always won stays finite), which is DPO's own optimum
# for a table (lesson 4).

# %%
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt import exact

rng = np.random.default_rng(24)
answers = 100
ref = rng.dirichlet(np.full(answers, 0.5)) + 1e-4
ref /= ref.sum()
reward = 0.5 * np.log(ref * answers) + rng.normal(0, 0.7, answers)
reward -= ref @ reward


def fitted(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rewards from n comparisons of two samples of the reference each."""
    pair = np.array([rng.choice(answers, 2, replace=False, p=ref) for _ in range(n)])
    first_wins = rng.random(n) < expit(reward[pair[:, 0]] - reward[pair[:, 1]])
    w, rejected = np.where(first_wins, pair.T, pair.T[::-1])

    def loss(r: np.ndarray) -> tuple[float, np.ndarray]:
        gap = r[w] - r[rejected]
        push = -expit(-gap)
        slope = np.bincount(w, push, answers) - np.bincount(rejected, push, answers)
        return -log_expit(gap).sum() + 0.005 * (r @ r), slope + 0.01 * r

    return minimize(loss, np.zeros(answers), jac=True).x


betas = np.geomspace(0.05, 10, 50)
sizes = (200, 1000, 5000)
paths = {}
for n in sizes:
    fits = [fitted(n, rng) for _ in range(10)]
    laws = [[exact.boltzmann(ref, fit, beta) for beta in betas] for fit in fits]
    gold = np.array([[law @ reward for law in row] for row in laws]).mean(0)
    seen = np.array(
        [[law @ (fit - ref @ fit) for law in row] for row, fit in zip(laws, fits, strict=True)]
    ).mean(0)
    nats = np.array([[float(exact.kl(law, ref)) for law in row] for row in laws]).mean(0)
    paths[n] = (gold, nats, seen)
    top = gold.argmax()
    print(
        f"{n:>5} pairs: best β {betas[top]:.2f} at KL {nats[top]:.2f}: true reward {gold[top]:.3f}; at β = 0.05: {gold[0]:.3f}"
    )
true = np.array([exact.boltzmann(ref, reward, beta) @ reward for beta in betas])
true_nats = np.array(
    [float(exact.kl(exact.boltzmann(ref, reward, beta), ref)) for beta in betas]
)
print(f"reference {ref @ reward:.3f}, always the best answer {reward.max():.3f}")

# %% [markdown]
# The reward that the policy BELIEVES in keeps rising all the while:

# %%
for n in sizes:
    gold, nats, seen = paths[n]
    top = gold.argmax()
    print(
        f"{n:>5} pairs, from the best β down to 0.05: fitted gain {seen[top]:.2f} -> {seen[0]:.2f}, true gain",
        f"{gold[top] - ref @ reward:.2f} -> {gold[0] - ref @ reward:.2f}",
    )

best = [betas[paths[n][0].argmax()] for n in sizes]

# %% plot
from plot import Plot

p = Plot("True reward against KL, one curve a data size", x="KL, nats", y="true reward")
p.line("known reward", true_nats[::-1], true[::-1], dash=True)
for n in sizes:
    p.line(f"{n} pairs", paths[n][1][::-1], paths[n][0][::-1])
p.save("24")

# %% [markdown]
# **Found.** The same family of policies, ever further out: with {{sizes[0]}} pairs the true reward peaks at β = {{best[0]:.2f}}, with
# {{sizes[1]}} at {{best[1]:.2f}}, with {{sizes[-1]}} at {{best[2]:.2f}}. What the fit promises beyond the peak is not there; more data alone did not
# remove the fall. Direct methods over-optimize as RL does (Rafailov et al. 2024, arXiv 2406.02900).
#
# **Where it ends.** The peak can be found only with something that knows the truth a little better: held-out preferences, people, a
# larger judge. On the training pairs the smallest β always looks best.

# %%
for n in sizes:
    gold, nats, seen = paths[n]
    assert gold.max() > gold[0] + 0.02
    assert (np.diff(seen) < 1e-9).all()
    assert gold.max() < np.interp(nats[gold.argmax()], true_nats[::-1], true[::-1])
assert best[0] > best[1] > best[2]
assert paths[200][0].max() < paths[1000][0].max() < paths[5000][0].max()
