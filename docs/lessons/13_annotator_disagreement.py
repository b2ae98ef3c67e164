"""Disagreement that is noise, disagreement that is taste, and what a model learns from each."""

# %% [markdown]
# # 13. Annotator disagreement
#
# **Question.** Two annotators agree on 80% of pairs. Is that much? Is the rest noise that more labels average out, or do they want
# different things? What does a model trained on both together learn?
#
# **Expectation.** Agreement has to be compared with chance: Cohen's κ. Noise and taste can be told apart by asking the same person twice.
# A model trained on a mixture learns the mixture's log-odds, which nobody holds; and preferences may even run in a circle, where no reward fits.

# %%
import numpy as np
from scipy.special import expit, logit

from prefopt import exact
from prefopt.stats import cohen_kappa
from prefopt.world import Annotator, World

world, rng = World(0), np.random.default_rng(13)
brisk = Annotator(scale=4.0, brevity=2.0, careless=0.05, group="brisk")
polite = Annotator(scale=4.0, courtesy=3.0, careless=0.05, group="polite")
requests = world.requests(1500, seed=13)
drafts = [(world.draft(q, rng), world.draft(q, rng)) for q in requests]


def labels(who: Annotator) -> np.ndarray:
    """What an annotator prefers of every pair: 0 for the first, 1 for the second."""
    return np.array(
        [
            int(who.prefer(q.meta, a, b, rng) == "b")
            for q, (a, b) in zip(requests, drafts, strict=True)
        ]
    )


first, again, other = labels(brisk), labels(brisk), labels(polite)
for name, x, y in (("brisk, asked twice", first, again), ("brisk and polite", first, other)):
    print(
        f"{name:<19} agreement {(x == y).mean():.1%}, κ {cohen_kappa(x.tolist(), y.tolist()):.3f}"
    )

# %% [markdown]
# Neither agrees with himself all the time: that part is noise. They agree with each other less than with themselves: that part is taste,
# and more labels will not remove it.
#
# **κ corrects for chance, and has a paradox.** When nearly all labels are alike, chance agreement is high, and 80% may be worth nothing:

# %%
rare = np.array([0] * 80 + [0] * 10 + [1] * 10), np.array([0] * 80 + [1] * 10 + [0] * 10)
even = (
    np.array([0] * 40 + [1] * 40 + [0] * 10 + [1] * 10),
    np.array([0] * 40 + [1] * 40 + [1] * 10 + [0] * 10),
)
kappas = [cohen_kappa(x.tolist(), y.tolist()) for x, y in (rare, even)]
print(f"80% agreement, one label in ten is 'b':  κ = {kappas[0]:+.3f}")
print(f"80% agreement, labels half and half:     κ = {kappas[1]:+.3f}")

# %% [markdown]
# In preference data the order of the two answers should be drawn at random, which makes the labels even and κ comparable.
#
# **The ceiling.** No model can agree with an annotator more often than his own probabilities allow. The world knows them:

# %%
p_brisk, p_polite = (
    np.array([who.probabilities(q.meta, *d).b for q, d in zip(requests, drafts, strict=True)])
    for who in (brisk, polite)
)
mixed = (p_brisk + p_polite) / 2
ceilings = {
    name: np.maximum(p, 1 - p).mean()
    for name, p in (
        ("brisk alone", p_brisk),
        ("polite alone", p_polite),
        ("both together", mixed),
    )
}
for name, ceiling in ceilings.items():
    print(f"best possible accuracy on labels of {name:<14} {ceiling:.1%}")

# %% [markdown]
# **What the mixture teaches.** Where brisk prefers a with 95% and polite with 10%, the pooled label is a with 52.5%; a model learns its
# log-odds, near zero: indifference, held by nobody. The mean of the two rewards is something else:

# %%
a, b = 0.95, 0.10
pooled, averaged = logit((a + b) / 2), (logit(a) + logit(b)) / 2
print(f"log-odds of the pooled label {pooled:+.3f}; mean of the two log-odds {averaged:+.3f}")
split = np.abs(p_brisk - p_polite) > 0.5
print(
    f"{split.mean():.0%} of the pairs split the two by more than 50 points; pooled, their labels are on average {np.maximum(mixed, 1 - mixed)[split].mean():.0%} to one side"
)

# %% [markdown]
# **In a circle.** Three people, three answers: x>y>z, y>z>x, z>x>y. Each pair is won 2 to 1, and there is no best answer (Condorcet, 1785).
# Whatever reward is fitted, DPO's loss stays at ln 2, above the entropy of its labels. IPO, which assumes no reward, also ends at
# indifference; it just does not pretend.

# %%
p = np.full((3, 3), 0.5)
p[0, 1] = p[1, 2] = p[2, 0] = 2 / 3
p[1, 0] = p[2, 1] = p[0, 2] = 1 / 3
flat, every = np.full(3, 1 / 3), 1 - np.eye(3)
loss, floor = exact.dpo_loss(flat, flat, p, every, 1.0), exact.dpo_minimum(p, every)
pull = np.abs(exact.ipo_log_ratios(p, every, 0.1)).max()
print(
    f"best DPO loss {loss:.4f}, entropy of the labels {floor:.4f}; IPO's log-ratios at the optimum {pull:.4f}"
)

# %% plot
from plot import Plot

edges = np.linspace(0, 1, 21)
middle = (edges[1:] + edges[:-1]) / 2
chart = Plot(
    "How sure the labels of a pair are", x="P(second is preferred)", y="share of pairs"
)
for name, values in (("brisk", p_brisk), ("polite", p_polite), ("pooled", mixed)):
    chart.line(
        name, middle, np.histogram(values, edges)[0] / len(values), dash=name != "pooled"
    )
chart.save("13")

# %% [markdown]
# **Found.** κ is {{cohen_kappa(first.tolist(), again.tolist()):.2f}} for a person with himself and {{cohen_kappa(first.tolist(), other.tolist()):.2f}} between the two tastes.
# Pooling costs accuracy that no model can win back: a ceiling of {{ceilings["both together"]:.0%}} where each alone allows
# {{ceilings["brisk alone"]:.0%}} and {{ceilings["polite alone"]:.0%}}.
#
# **Where it ends.** Record who said what. With names one can train a model per group, weigh people, or show the disagreement; pooled
# labels cannot be taken apart again.

# %%
assert abs(kappas[0] + 0.111) < 5e-4
assert abs(kappas[1] - 0.6) < 1e-9
assert (first == again).mean() > (first == other).mean() + 0.1
assert ceilings["both together"] < min(ceilings["brisk alone"], ceilings["polite alone"]) - 0.03
assert abs(pooled - logit(0.525)) < 1e-12
assert averaged > pooled + 0.2
assert loss == np.log(2)
assert floor < loss - 0.05
assert pull < 1e-9
assert expit(pooled) < 0.53
