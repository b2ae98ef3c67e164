"""σ(score gap) read as a probability: how to measure whether it comes true, two ways to fool oneself, and one number that mends it."""

# %% [markdown]
# # 14. Reward calibration
#
# **Question.** A reward model says that answer a beats b with probability σ(r_a − r_b). When it says 80%, is it right 80% of the time? And does
# that matter, as long as it ranks well?
#
# **Expectation.** A model fitted to few pairs is too sure: it has learned their noise. Accuracy does not show it, since only the sign of the
# gap counts there. A single temperature T repairs most of it. In RL it matters: a score twice too large is a β twice too small.
#
# Answers with forty features, a known linear reward, Bradley-Terry labels; a linear reward model fitted by maximum likelihood to 120 pairs.

# %%
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt import exact
from prefopt.stats import brier, expected_calibration_error, fit_temperature, reliability_curve

rng = np.random.default_rng(14)
width = 40
weights = rng.normal(0, 0.25, width)


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Feature gaps of n pairs in random order, and 1 where the first answer won."""
    x = rng.normal(size=(n, width))
    return x, (rng.random(n) < expit(x @ weights)).astype(int)


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bradley-Terry by maximum likelihood, with a trace of ridge."""
    signed = np.where(y[:, None] == 1, x, -x)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = signed @ w
        return -log_expit(z).sum() + 0.05 * (w @ w), -(signed.T @ expit(-z)) + 0.1 * w

    return minimize(loss, np.zeros(width), jac=True).x


models = {n: fit(*pairs(n)) for n in (120, 600, 6000)}
held, label = pairs(20_000)
true = expit(held @ weights)
print(f"best possible accuracy on these labels {np.maximum(true, 1 - true).mean():.1%}")
for n, w in models.items():
    p = expit(held @ w)
    told = f"accuracy {((p > 0.5) == label).mean():.1%}, ECE {expected_calibration_error(p, label):.4f}, Brier {brier(p, label):.4f}"
    print(f"{n:>5} pairs: {told}, says on average {np.maximum(p, 1 - p).mean():.1%}")

# %% [markdown]
# The model of 120 pairs is right less often and far surer than the one of 6000. Its curve:

# %%
few = held @ models[120]
curve = reliability_curve(expit(few), label, bins=10)
for b in curve:
    print(f"says {b.mean_prob:.2f} ({b.n:>5} pairs): comes true {b.frequency.value:.2f}")

# %% [markdown]
# **Two ways to fool oneself.** Held-out pairs are usually stored with the better answer first. Then every label is 1, and "frequency" is 1
# in every bin: the number printed measures how far from certain the model is, nothing else. A model that says 99.9% about everything would
# look perfect if it were right. Use both orders, or a random one. The second way is to judge the fit on the training pairs.

# %%
first = np.where(label == 1, few, -few)  # the winner always first
always = expected_calibration_error(expit(first), np.ones(len(first), dtype=int))
both = expected_calibration_error(
    expit(np.concatenate([few, -few])), np.concatenate([label, 1 - label])
)
shouting = expected_calibration_error(expit(50 * first), np.ones(len(first), dtype=int))
print(
    f"ECE, random order {expected_calibration_error(expit(few), label):.4f}; both orders {both:.4f}; winner always first {always:.4f}"
)
print(
    f"the same model with scores × 50, winner always first: {shouting:.4f}; both orders: {expected_calibration_error(expit(50 * few), label):.4f}"
)

# %% [markdown]
# **One number mends it.** T > 0 is fitted on a thousand held-out pairs; no decision changes.

# %%
small, rest = slice(0, 1000), slice(1000, None)
temperature = fit_temperature(few[small], label[small])
cooled = few / temperature
for name, z in (("as fitted", few), ("divided by T", cooled)):
    p = expit(z[rest])
    told = f"accuracy {((p > 0.5) == label[rest]).mean():.2%}, ECE {expected_calibration_error(p, label[rest]):.4f}"
    print(
        f"{name:<13} {told}, mean loss {-log_expit(np.where(label == 1, z, -z)[rest]).mean():.4f}"
    )
print(
    f"T = {temperature:.3f} for 120 pairs; for 6000 pairs {fit_temperature(held[small] @ models[6000], label[small]):.3f}"
)

# %% [markdown]
# **In RL.** The KL-constrained optimum depends on r/β. A score T times too large is the same as a β T times too small, and the policy
# over-optimizes although β "is 0.5".

# %%
answers = rng.normal(size=(30, width)) / 2
ref, gold = np.full(30, 1 / 30), answers @ weights
for name, score in (
    ("as fitted", answers @ models[120]),
    ("divided by T", answers @ models[120] / temperature),
):
    law = exact.boltzmann(ref, score, 0.5)
    print(
        f"{name:<13} at β = 0.5: true reward {law @ gold:+.3f}, KL {exact.kl(law, ref):.3f}, value E[r] - β KL {law @ gold - 0.5 * exact.kl(law, ref):+.3f}"
    )
value = [
    float(exact.objective(exact.boltzmann(ref, answers @ models[120] / t, 0.5), ref, gold, 0.5))
    for t in (1.0, temperature)
]

# %% plot
from plot import Plot

chart = Plot("Reliability", x="the model says", y="comes true").line(
    "perfect", [0, 1], [0, 1], dash=True
)
chart.line("120 pairs", [b.mean_prob for b in curve], [b.frequency.value for b in curve])
mended = reliability_curve(expit(cooled[rest]), label[rest], bins=10)
chart.points(
    "after T", [b.mean_prob for b in mended], [b.frequency.value for b in mended]
).save("14")

# %% [markdown]
# **Found.** ECE fell from {{expected_calibration_error(expit(few[rest]), label[rest]):.3f}} to
# {{expected_calibration_error(expit(cooled[rest]), label[rest]):.3f}} with T = {{temperature:.2f}} and not one decision changed.
#
# **Where it ends.** One T for everything. A model that is too sure about harmful requests and too timid about sums needs calibration by
# slice, and labels to do it with. κ, ECE and accuracy answer three questions; none replaces another.

# %%
ece = {n: expected_calibration_error(expit(held @ w), label) for n, w in models.items()}
assert ece[120] > 2 * ece[600] > 2 * ece[6000]
assert temperature > 1.3
assert ((few > 0) == (cooled > 0)).all()
assert expected_calibration_error(
    expit(cooled[rest]), label[rest]
) < 0.3 * expected_calibration_error(expit(few[rest]), label[rest])
assert shouting < always
assert expected_calibration_error(expit(50 * few), label) > ece[120]
assert abs(both - ece[120]) < 0.01
assert value[1] > value[0]
