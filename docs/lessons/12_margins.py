"""Margins: asked for in a loss, given by the data, and γ in the wrong place, where it cancels."""

# %% [markdown]
# # 12. Reward margins
#
# **Question.** "Margin" names three things: the gap r_w − r_l that training reports, a margin m that the DATA give a pair ("much better"),
# and a target margin γ that the LOSS asks of every pair. What does each do to what is learned?
#
# **Expectation.** −log σ(r_w − r_l − m) fits a gap that is m larger than the labels say. With m in the data, consistent over pairs, the
# model learns r plus those margins. With one γ for all pairs it learns larger gaps where labels agree. Put into the REWARD instead of the
# difference, γ cancels.

# %%
from itertools import pairwise

import numpy as np
import torch
from scipy.special import expit, logit

from prefopt.losses import bradley_terry, ipo, simpo
from prefopt.verify import claims
from prefopt.verify.learn import learn

population = claims.with_margins()
plain = learn("reward", claims.bradley_terry(), {}, "table", patience=2).scores
margins = learn("reward", population, {}, "table", patience=2).scores


def centred(x: np.ndarray) -> np.ndarray:
    """Without the level of each prompt."""
    return x - x.mean(1, keepdims=True)


added = centred(margins) - centred(plain)
print("margin of each answer of prompt 1:", population.margin[0].tolist())
print("added to its score              :", (added[0] - added[0].min()).round(3).tolist())

# %% [markdown]
# The scores took on the data's margins, one for one, in the unit of the scores: a margin of 1 is a factor e in the odds. Margins of 1, 2,
# 3 for "slightly, clearly, much better" are therefore no small matter; Llama 2 used up to 3 for its clearest pairs.
#
# **One γ for every pair.** Good beats bad with probability p. Where the mean loss is least, by search:

# %%
z = torch.linspace(-2, 8, 100_001, dtype=torch.float64)
shares, gammas = (0.6, 0.75, 0.9), (0.0, 0.5, 1.0, 2.0)
zeros = torch.zeros_like(z)
best = {}
for p in shares:
    for gamma in gammas:
        m = torch.full_like(z, gamma)
        mean = p * bradley_terry(z, zeros, margin=m) + (1 - p) * bradley_terry(
            zeros, z, margin=m
        )
        best[p, gamma] = float(z[mean.argmin()])
    row = ", ".join(f"{best[p, gamma]:.3f}" for gamma in gammas)
    print(f"p = {p:<5} gap learned at γ = 0, 0.5, 1, 2: {row}   (log-odds {logit(p):.3f})")

# %% [markdown]
# At γ = 0 the gap is the log-odds: calibrated. At γ > 0 it is more, but not γ more: the same γ is asked when the labels come out the other
# way round, so the gain is least for p near ½ and tends to γ for p near 1. A margin makes a reward model overconfident on purpose.
#
# **γ in the wrong place.** SimPO is −log σ(β L̄_w − β L̄_l − γ), L̄ the mean log-prob per token. Some notes give its reward as
# "L̄ + γ", β missing and γ inside. A constant in both rewards cancels:

# %%
chosen, rejected = torch.tensor([-12.0, -30.0]), torch.tensor([-14.0, -36.0])
chosen_len, rejected_len = torch.tensor([10, 20]), torch.tensor([10, 20])
values = {
    gamma: simpo(chosen, rejected, chosen_len, rejected_len, beta=2.0, gamma=gamma).tolist()
    for gamma in (0.0, 0.5, 2.0)
}
for gamma, value in values.items():
    print(f"SimPO, β = 2, γ = {gamma}: {[round(v, 4) for v in value]}")
mean_w, mean_l = chosen / chosen_len, rejected / rejected_len
inside = [
    (-torch.nn.functional.logsigmoid((mean_w + g) - (mean_l + g))).tolist()
    for g in (0.0, 0.5, 2.0)
]
print("γ inside the reward   :", [[round(v, 4) for v in value] for value in inside])
need = ((2.0, 0.5), (0.1, 0.5))
for beta, gamma in need:
    print(
        f"β = {beta}, γ = {gamma}: the margin asked for is γ/β = {gamma / beta:g} nats per TOKEN"
    )

# %% [markdown]
# **A margin in nats is a matter of length.** IPO asks for a margin too, D = 1/(2β), "to reduce length bias" according to some. The summed form
# of the paper does nothing of the kind: an answer ten times as long reaches the same sum with a tenth of the change per token, and goes
# past it with the same. The averaged form (`length_normalized=true`) asks per token.

# %%
per_token = (
    0.05  # nats by which each token's log-prob was raised (chosen) or lowered (rejected)
)
n = torch.tensor([20.0, 200.0])
up, down, none = per_token * n, -per_token * n, torch.zeros(2)
summed = ipo(up, down, none, none, beta=0.1)
averaged = ipo(
    up, down, none, none, beta=5.0, chosen_len=n, rejected_len=n, length_normalized=True
)
print(
    "the same change per token, answers of 20 and 200 tokens; target 5 nats (summed), 0.1 (averaged)"
)
print(
    "IPO summed  ",
    [round(v, 4) for v in summed.tolist()],
    " averaged",
    [round(v, 4) for v in averaged.tolist()],
)

# %% plot
from plot import Plot

fine = np.linspace(0.5, 0.99, 99)


def gap(p: float, gamma: float) -> float:
    """The same by its equation, p σ(γ - z) = (1 - p) σ(z + γ)."""
    grid = np.linspace(-1, 12, 20_001)
    return float(grid[np.abs(p * expit(gamma - grid) - (1 - p) * expit(grid + gamma)).argmin()])


chart = Plot("Gap learned when good beats bad a share p of the time", x="p", y="gap")
for gamma in (0.0, 1.0, 2.0):
    chart.line(f"γ = {gamma:g}", fine, [gap(p, gamma) for p in fine])
chart.save("12")

# %% [markdown]
# **Found.** The data's margins are added to the scores; a γ for all adds {{best[0.6, 1.0] - best[0.6, 0.0]:.2f}} at p = 0.6 and
# {{best[0.9, 1.0] - best[0.9, 0.0]:.2f}} at p = 0.9 for γ = 1; in the reward it adds nothing.
#
# **Where it ends.** `rewards/margins` in the log is the first of the three. It may grow because a few pairs become very sure: read it
# beside `rewards/accuracies`.

# %%
assert np.abs(centred(added) - centred(population.margin.astype(float))).max() < 0.02
for p in shares:
    assert abs(best[p, 0.0] - logit(p)) < 1e-3
    assert all(best[p, a] < best[p, b] < best[p, a] + (b - a) for a, b in pairwise(gammas))
assert best[0.9, 1.0] - best[0.9, 0.0] > 2 * (best[0.6, 1.0] - best[0.6, 0.0])
assert values[0.0] < values[0.5] < values[2.0]
assert inside[0] == inside[1] == inside[2] or np.allclose(inside[0], inside[2], atol=1e-6)
assert torch.allclose(summed, torch.tensor([9.0, 225.0]))
assert torch.allclose(averaged[0], averaged[1], atol=1e-6)
assert abs(gap(0.9, 1.0) - best[0.9, 1.0]) < 2e-3
