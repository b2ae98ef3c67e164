"""Against over-optimization of a proxy: a KL penalty, an ensemble's doubt, a budget that is kept, and their limits."""

# %% [markdown]
# # 20. Reward-hacking controls
#
# **Question.** The policy maximises a reward model that is wrong in places. What keeps the true reward from falling?
#
# **Expectation.** The errors are largest where there were few data. Three things keep the policy from there: a KL penalty or budget (stay
# where the reference goes), an ensemble of reward models (where they disagree, believe the worst), and stopping early. None helps
# against an error that all members share.
#
# The world of lesson 24: a hundred answers, a decent reference, a thousand noisy comparisons of its samples. Five reward models are fitted,
# each to its own resample of the comparisons.

# %%
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt import exact
from prefopt.losses.kl import KLBudget
from prefopt.model.reading import Reading

rng = np.random.default_rng(20)
answers, comparisons, members = 100, 1000, 5
ref = rng.dirichlet(np.full(answers, 0.5)) + 1e-4
ref /= ref.sum()
truth = 0.5 * np.log(ref * answers) + rng.normal(0, 0.7, answers)
truth -= ref @ truth


def fit(pairs: np.ndarray, seed: int) -> np.ndarray:
    """A member: rewards from pairs (winner, loser), drawn towards its own random start where the pairs say nothing."""
    start = np.random.default_rng(seed).normal(0, 1.0, answers)
    w, rejected = pairs.T

    def loss(r: np.ndarray) -> tuple[float, np.ndarray]:
        push = -expit(r[rejected] - r[w])
        slope = np.bincount(w, push, answers) - np.bincount(rejected, push, answers)
        return -log_expit(r[w] - r[rejected]).sum() + 0.025 * (
            (r - start) ** 2
        ).sum(), slope + 0.05 * (r - start)

    r = minimize(loss, start, jac=True).x
    return r - ref @ r


def world(seed: int) -> np.ndarray:
    """The scores of five members [answers, members] from one data set."""
    own = np.random.default_rng(seed)
    drawn = np.array([own.choice(answers, 2, replace=False, p=ref) for _ in range(comparisons)])
    first = own.random(comparisons) < expit(truth[drawn[:, 0]] - truth[drawn[:, 1]])
    pairs = np.where(first[:, None], drawn, drawn[:, ::-1])
    return np.stack(
        [
            fit(pairs[own.integers(comparisons, size=comparisons)], 10 * seed + m)
            for m in range(members)
        ],
        axis=1,
    )


worlds = [world(seed) for seed in range(8)]
rules = {
    "one model": lambda scores: scores[:, 0],
    "mean of 5": Reading(outputs=tuple("abcde"), rule="mean"),
    "mean - 2 sd": Reading(outputs=tuple("abcde"), rule="lower_bound", k=2.0),
    "worst of 5": Reading(outputs=tuple("abcde"), rule="min"),
}
betas = np.geomspace(0.05, 10, 40)
paths = {}
for name, rule in rules.items():
    laws = [[exact.boltzmann(ref, rule(scores), beta) for beta in betas] for scores in worlds]
    paths[name] = (
        np.array([[float(exact.kl(law, ref)) for law in row] for row in laws]).mean(0),
        np.array([[law @ truth for law in row] for row in laws]).mean(0),
    )
    nats, gold = paths[name]
    top = gold.argmax()
    print(
        f"{name:<12} best true reward {gold[top]:+.3f} at KL {nats[top]:.2f}; at β = 0.05 {gold[0]:+.3f} with KL {nats[0]:.2f}"
    )
known = [exact.boltzmann(ref, truth, beta) @ truth for beta in betas]
print(f"with the true reward at β = 0.05 {known[0]:+.3f}; the reference {abs(ref @ truth):.3f}")

# %% [markdown]
# The ensemble lifts the whole curve: where the single model is fooled the members disagree, and doubt counts against an answer. It does
# not remove the fall: at a small β the policy finds the answer on which all five happen to be wrong.
#
# **A budget.** Instead of a fixed β: `KLBudget` raises the coefficient as the policy nears 1 nat, and lowers it below. A step that goes beyond
# is pulled back on the line to the reference. Policy gradient on the single model, with and without it:

# %%


def policy(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The distribution of these logits and its KL to the reference."""
    p = np.exp(x - x.max())
    return p / p.sum(), float(exact.kl(p / p.sum(), ref))


def climb(
    scores: np.ndarray, budget: KLBudget | None, rounds: int = 150
) -> list[tuple[float, float]]:
    """(KL, true reward) after each round of exact policy gradient on the score."""
    x, beta, path = np.log(ref), 0.05, []
    for _ in range(rounds):
        p, nats = policy(x)
        if budget:
            before = nats if budget.beyond(nats, 0.0) else None
            if before:
                x = np.log(ref) + (budget.share(before) or 0.0) * (x - np.log(ref))
                p, nats = policy(x)
            beta = budget.update(nats, 64, before=before)
        path.append((nats, float(p @ truth)))
        shaped = scores - beta * np.log(p / ref)
        x = x + 0.2 / (1 + beta) * (shaped - p @ shaped)  # natural gradient: the tilt itself
    return path


free = np.mean([climb(scores[:, 0], None) for scores in worlds], axis=0)
kept = np.mean([climb(scores[:, 0], KLBudget(1.0, initial=0.05)) for scores in worlds], axis=0)
print(
    f"without a budget: KL {free[-1, 0]:.2f}, true reward {free[-1, 1]:+.3f} (its best on the way {free[:, 1].max():+.3f})"
)
print(
    f"with 1 nat:       KL {kept[-1, 0]:.2f}, true reward {kept[-1, 1]:+.3f}, largest KL of the last hundred rounds {kept[50:, 0].max():.2f}"
)

# %% [markdown]
# **What no ensemble sees.** Give every annotator a taste for one worthless answer (flattery, say): all members learn it.

# %%
flattery = int(np.argsort(truth * (ref > 0.005))[0])
shared = [scores + 4.0 * np.eye(answers)[flattery][:, None] for scores in worlds]
fooled = {
    name: np.mean([exact.boltzmann(ref, rules[name](scores), 0.3) @ truth for scores in shared])
    for name in ("one model", "worst of 5")
}
trusted = np.mean(
    [exact.boltzmann(ref, rules["worst of 5"](scores), 0.3) @ truth for scores in worlds]
)
print(
    f"at β = 0.3: one model {fooled['one model']:+.3f}, worst of five {fooled['worst of 5']:+.3f}; without the shared error {trusted:+.3f}"
)

# %% plot
from plot import Plot

p = Plot("True reward against KL, by what is optimized", x="KL, nats", y="true reward")
for name in ("one model", "mean of 5", "worst of 5"):
    p.line(name, paths[name][0][::-1], paths[name][1][::-1])
p.line("1-nat budget", kept[::3, 0], kept[::3, 1], dash=True).save("20")

# %% [markdown]
# **Found.** At β = 0.05 the single model ends at {{paths["one model"][1][0]:+.2f}}, the worst of five at {{paths["worst of 5"][1][0]:+.2f}}. The budget held
# KL at {{kept[-1, 0]:.2f}} and kept {{kept[-1, 1]:+.2f}} of true reward where the free run ended at {{free[-1, 1]:+.2f}}.
#
# **Where it ends.** Against an error that everybody shares only new data help: look at what the policy writes, have it compared, fit again.

# %%
assert paths["one model"][1].max() > paths["one model"][1][0] + 0.2
assert paths["worst of 5"][1][0] > paths["mean of 5"][1][0] > paths["one model"][1][0]
assert kept[50:, 0].max() < 1.1
assert kept[-1, 1] > free[-1, 1] + 0.2
assert fooled["worst of 5"] < trusted - 0.3
