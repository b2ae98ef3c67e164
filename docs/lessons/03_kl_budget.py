"""What a nat of KL buys: the Boltzmann family is the frontier of reward against KL, and β is the exchange rate."""

# %% [markdown]
# # 3. Policy shift under a KL budget
#
# **Question.** A policy may move away from its reference by a given KL divergence, no further. How much reward can it gain, and which
# policy gains it?
#
# **Expectation.** Of all laws with the same KL to the reference, ref·e^(r/β)/Z has the most reward. Along this family β is a price: the
# last nat of KL bought β units of reward, dE[r] / dKL = β.
#
# A careless picture of the penalty, "maximise r − β r²", is no KL penalty at all; for a Gaussian policy shifted by s, KL is s²/2 and the
# best shift under reward s is 1/β. Here everything is enumerated instead: one prompt, forty answers.

# %%
import numpy as np

from prefopt import exact

rng = np.random.default_rng(3)
answers = 40
ref = rng.dirichlet(np.full(answers, 0.7))
reward = rng.normal(size=answers)

betas = np.geomspace(0.05, 50, 400)
laws = [exact.boltzmann(ref, reward, beta) for beta in betas]
nats = np.array([exact.kl(law, ref) for law in laws])
gain = np.array([law @ reward for law in laws])
for beta in (10.0, 1.0, 0.5, 0.2, 0.1):
    law = exact.boltzmann(ref, reward, beta)
    print(f"β = {beta:<5} KL {exact.kl(law, ref):.3f} nats, mean reward {law @ reward:+.3f}")
print(
    f"best answer: reward {reward.max():+.3f}, always giving it costs KL = -log ref = {-np.log(ref[reward.argmax()]):.3f} nats"
)

# %% [markdown]
# **The price.** The slope of the curve, by differences, against β:

# %%
slopes = np.diff(gain) / np.diff(nats)
middle = np.sqrt(betas[1:] * betas[:-1])
print(f"largest relative distance of the slope from β: {np.abs(slopes / middle - 1).max():.4f}")

# %% [markdown]
# **Nothing beats it.** Rivals at the same KL: best of n samples; a coin between the reference and the best answer; and twenty thousand
# random laws. Each is compared with the Boltzmann law of equal KL.


# %%
def frontier(budget: float) -> float:
    """The reward of the Boltzmann law with this KL."""
    return float(np.interp(budget, nats[::-1], gain[::-1]))


rivals = {
    "best of n": [exact.best_of_n(ref, reward, n) for n in (2, 3, 4, 6, 8, 12, 16, 24, 32)]
}
top = np.eye(answers)[reward.argmax()]
rivals["coin"] = [(1 - share) * ref + share * top for share in np.linspace(0.05, 0.95, 15)]
tilts = rng.normal(size=(20_000, answers)) * rng.uniform(0, 3, size=(20_000, 1))
wild = ref * np.exp(tilts)
rivals["random"] = list(wild / wild.sum(1, keepdims=True))
short = {}
for name, family in rivals.items():
    lost = np.array([frontier(float(exact.kl(law, ref))) - law @ reward for law in family])
    short[name] = lost
    print(
        f"{name:<10} {len(family):>5} laws, loses {lost.min():.3f} to {lost.max():.3f} of reward to the Boltzmann law of equal KL"
    )
bon = rivals["best of n"]
bound = [exact.best_of_n_kl_bound(n) for n in (2, 3, 4, 6, 8, 12, 16, 24, 32)]
print(
    f"KL of best of 32: {exact.kl(bon[-1], ref):.3f}, below its bound log n - (n-1)/n = {bound[-1]:.3f}"
)

# %% [markdown]
# A budget is kept by finding the β that spends it. KL falls as β grows, so bisection does:

# %%
budget = 1.0
low, high = 1e-3, 1e3
for _ in range(100):
    beta = np.sqrt(low * high)
    low, high = (
        (beta, high)
        if exact.kl(exact.boltzmann(ref, reward, beta), ref) > budget
        else (low, beta)
    )
spent = exact.kl(exact.boltzmann(ref, reward, beta), ref)
print(
    f"a budget of 1 nat is spent at β = {beta:.4f}: KL {spent:.6f}, reward {exact.boltzmann(ref, reward, beta) @ reward:+.3f}"
)

# %% plot
from plot import Plot

p = Plot("Mean reward against KL to the reference", x="KL, nats", y="reward").line(
    "Boltzmann", nats[::-1], gain[::-1]
)
for name in ("best of n", "coin"):
    p.points(
        name,
        [exact.kl(law, ref) for law in rivals[name]],
        [law @ reward for law in rivals[name]],
    )
some = [law for law in rivals["random"][:200] if exact.kl(law, ref) < 3]
p.points("random", [exact.kl(law, ref) for law in some], [law @ reward for law in some]).save(
    "03"
)

# %% [markdown]
# **Found.** The Boltzmann family is the frontier, and its slope is β. The first nats are cheap and the last ones dear. Best of n
# loses at most {{short["best of n"].max():.3f}} of reward to it, and needs no training at all; that makes it the baseline to beat.
#
# **Where it ends.** The curve is of the reward that was optimized. If that is a learned proxy, the true reward bends down somewhere along
# it (lessons 2 and 24), and a KL budget is the usual guard (lesson 20).

# %%
assert np.abs(slopes / middle - 1).max() < 0.01
assert all(lost.min() > -1e-3 for lost in short.values())
assert short["best of n"].max() < 0.15 * (reward.max() - ref @ reward)
assert all(exact.kl(law, ref) <= b for law, b in zip(bon, bound, strict=True))
assert abs(spent - budget) < 1e-6
