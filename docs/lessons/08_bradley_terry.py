"""Noise of one shape makes the logistic law: where the σ of every preference loss comes from."""

# %% [markdown]
# # 8. Bradley-Terry: from Gumbel noise to the logistic
#
# **Question.** Almost every loss in this package contains σ(r_w − r_l). Why the logistic function, and not some other S-shaped curve?
#
# **Expectation.** Suppose a judge sees each answer's quality r through noise, r + G, and names the answer that looks better. If G has
# Gumbel's law (the law of the largest of many small errors), the difference of two noises is logistic, so the judge prefers i to j with
# probability exactly σ(r_i − r_j). With other noise it is not.

# %%
import numpy as np
from scipy.special import expit, ndtr

from prefopt import exact

rewards = np.array([1.2, 0.5, 0.0, -0.8])
rng = np.random.default_rng(8)
draws = 400_000

seen = rewards + rng.gumbel(size=(draws, 4))
counted = np.array(
    [[(seen[:, i] > seen[:, j]).mean() if i != j else 0.5 for j in range(4)] for i in range(4)]
)
predicted = exact.bradley_terry(rewards)
print("counted P(i beats j):")
print(counted.round(3))
print(f"largest distance to σ(r_i - r_j): {np.abs(counted - predicted).max():.4f}")

# %% [markdown]
# The counts agree with σ to within the noise of counting. The same noise says more: the best of all four at once follows softmax(r),
# and a whole ranking follows Plackett-Luce. One assumption serves pairs, choices and rankings, which is why their losses are one family.

# %%
winners = np.bincount(exact.gumbel_winners(rewards, draws, rng), minlength=4) / draws
softmax = np.exp(rewards) / np.exp(rewards).sum()
order = [0, 1, 2, 3]
ranked = (np.argsort(-seen, axis=1) == order).all(1).mean()
print("best of four, counted:", winners.round(3), " softmax:", softmax.round(3))
print(
    f"ranking 0 > 1 > 2 > 3, counted {ranked:.4f}, Plackett-Luce {exact.plackett_luce(rewards, order):.4f}"
)

# %% [markdown]
# **How much does the shape matter?** Thurstone (1927) took normal noise, which gives Φ in place of σ. Scaled to the same slope at 0 the
# two curves are close in the middle and far apart in the tails: a normal judge errs on a clear case much less often.

# %%
gaps = np.linspace(-6, 6, 121)
logistic = expit(gaps)
normal = ndtr(gaps * np.sqrt(2 * np.pi) / 4)  # the same slope, 1/4, at 0
middle = np.abs(gaps) <= 1
print(f"largest distance for gaps up to 1: {np.abs(logistic - normal)[middle].max():.3f}")
print(
    f"upsets at a gap of 5: logistic {expit(-5):.4f}, normal {ndtr(-5 * np.sqrt(2 * np.pi) / 4):.4f}"
)
upsets = expit(-5) / ndtr(-5 * np.sqrt(2 * np.pi) / 4)

# %% plot
from plot import Plot

pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
p = Plot("P(i beats j) against the gap in reward", x="r_i − r_j", y="probability").line(
    "logistic", gaps, logistic
)
p.line("normal", gaps, normal, dash=True)
p.points(
    "counted", [rewards[i] - rewards[j] for i, j in pairs], [counted[i, j] for i, j in pairs]
).save("08")

# %% [markdown]
# **Found.** Under Gumbel noise the preference law is σ of the reward gap, nothing else. At a gap of 5 the logistic judge
# errs {{upsets:.0f}} times as often as the normal one.
#
# **Where it ends.** Only differences enter: adding a constant to every reward changes no probability. Multiplying them does: the
# SCALE of a reward is how sure the judge is. "Scores are meaningful up to a monotone transformation" is therefore wrong; they are
# meaningful up to a constant per prompt. And real judges need not have any reward at all: lesson 13 shows preferences that run in a circle.

# %%
assert np.abs(counted - predicted).max() < 4 * 0.5 / np.sqrt(draws)
assert np.abs(winners - softmax).max() < 4 * 0.5 / np.sqrt(draws)
assert abs(ranked - exact.plackett_luce(rewards, order)) < 4 * 0.5 / np.sqrt(draws)
assert np.allclose(exact.bradley_terry(rewards + 7), predicted)
assert not np.allclose(exact.bradley_terry(3 * rewards), predicted, atol=0.05)
assert upsets > 5
