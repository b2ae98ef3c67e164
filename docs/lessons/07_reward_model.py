"""A reward model's score: what comparisons fix (gaps within a prompt, with their unit) and what they leave open."""

# %% [markdown]
# # 7. The reward model
#
# **Question.** A reward model gives each answer a number. Which properties of that number come from the data, and which are accidents?
#
# **Expectation.** Comparisons are made within a prompt, and Bradley-Terry sees differences. So gaps within a prompt are fixed, unit
# included; the level of each prompt is free. It is often said that scores are "meaningful up to a monotone transformation". That is too
# little for RL: a rescaled score is another policy.

# %%
import numpy as np

from prefopt import exact
from prefopt.verify import claims
from prefopt.verify.learn import learn

pairs = claims.bradley_terry()
truth = pairs.world.rewards
fits = {
    "table": learn("reward", pairs, {}, "table", patience=2),
    "transformer": learn("reward", pairs, {}, "transformer"),
    "table, centering": learn("reward", pairs, {"centering": 0.01}, "table", patience=2),
}
for name, fit in fits.items():
    offset = fit.scores - truth
    levels = ", ".join(f"{level:+.1f}" for level in offset.mean(1))
    gaps = np.abs(offset - offset.mean(1, keepdims=True)).max()
    print(
        f"{name:<17} score - log strength: prompt levels {levels}; error of the gaps {gaps:.4f}"
    )

# %% [markdown]
# Two models, the same gaps, other levels: subtracting scores of two prompts means nothing. With `centering` (0.01 · (r_w + r_l)²) each
# prompt's level is drawn to 0, at the cost of a small error in the gaps: scores of different checkpoints get comparable, prompts still do not.
#
# **The unit matters.** Multiply the scores by three. Accuracy on pairs does not change, best of n does not change, the RL optimum does.

# %%
scores = fits["table, centering"].scores
ref = np.full(15, 1 / 15)
for factor in (1.0, 3.0):
    r = factor * scores[0]
    beats = (r[:, None] > r).mean()
    bon = exact.best_of_n(ref, r, 4)
    tilted = exact.boltzmann(ref, r, 0.5)
    told = f"best of 4 reaches {bon @ truth[0]:.4f}, RL at β = 0.5 reaches {tilted @ truth[0]:.4f} with KL {exact.kl(tilted, ref):.3f}"
    print(f"scores × {factor:g}: {told}")
bon_same = np.abs(
    exact.best_of_n(ref, scores[0], 4) - exact.best_of_n(ref, 3 * scores[0], 4)
).max()
rl_moved = exact.total_variation(
    exact.boltzmann(ref, scores[0], 0.5), exact.boltzmann(ref, 3 * scores[0], 0.5)
)
half = exact.total_variation(
    exact.boltzmann(ref, 3 * scores[0], 1.5), exact.boltzmann(ref, scores[0], 0.5)
)
print(
    f"best of 4 moved by {bon_same:.1e}, the RL optimum by {rl_moved:.3f}; with 3β it is back: {half:.1e}"
)

# %% [markdown]
# **The unit means something.** σ(score gap) is the probability of winning. If the model is right, its accuracy is limited by the noise of
# the judges, and the limit can be computed: the mean of max(p, 1 − p).

# %%
p = exact.bradley_terry(truth)
compared = claims.compared(pairs.world) > 0
differs = p != 0.5
accuracy = np.mean(
    [np.where(p[k] > 0.5, p[k], 1 - p[k])[compared & differs[k]].mean() for k in range(2)]
)
learned = exact.bradley_terry(fits["transformer"].scores)
error = np.abs(learned - p)[:, compared].max()
print(
    f"a perfect model is right on {accuracy:.1%} of these labels; largest error of a predicted probability {error:.4f}"
)

# %% plot
from plot import Plot

plot = Plot("Score against log strength, prompt 1", x="log strength", y="score")
for name, fit in fits.items():
    plot.points(name, truth[0], fit.scores[0])
plot.save("07")

# %% [markdown]
# **Found.** Gaps agree with the truth, and between a table and a transformer; levels do not. A perfect reward model is right on
# {{accuracy:.0%}} of these noisy labels: more accuracy on them would be memory.
#
# **Where it ends.** On answers nobody compared a score is extrapolation; there begins lesson 2.

# %%
for name, fit in fits.items():
    offset = fit.scores - truth
    assert np.abs(offset - offset.mean(1, keepdims=True)).max() < (
        0.15 if "centering" in name else 0.02
    )
assert np.abs((fits["table"].scores - fits["transformer"].scores).mean(1)).max() > 0.1
assert np.abs(fits["table, centering"].scores.mean(1)).max() < 0.3
assert bon_same == 0
assert rl_moved > 0.1
assert half < 1e-9
assert 0.6 < accuracy < 0.8
