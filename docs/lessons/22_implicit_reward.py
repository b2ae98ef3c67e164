"""β log π/ref is the reward up to a constant per prompt: an interval scale within a prompt, nothing across prompts."""

# %% [markdown]
# # 22. The implicit reward
#
# **Question.** A policy trained by DPO is said to be "secretly a reward model", with reward β log π/ref. What can be read off it?
#
# **Expectation.** At the optimum β log π*/ref = r − β log Z(x). Within a prompt the constant cancels, so differences of implicit rewards
# are differences of rewards. Across prompts Z(x) differs, so a comparison of two prompts' answers may come out either way.

# %%
import numpy as np

from prefopt import exact
from prefopt.verify import claims
from prefopt.verify.learn import learn

beta = 0.5
pairs = claims.bradley_terry()
trained = learn("dpo", pairs, {"beta": beta}, "table", patience=2)
reward = pairs.world.rewards
implicit = exact.implicit_rewards(trained.probs, trained.ref, beta)
offset = reward - implicit
predicted = beta * exact.log_partition(trained.ref, reward, beta)
for p in range(2):
    spread = offset[p].max() - offset[p].min()
    print(
        f"prompt {p + 1}: r - implicit = {offset[p].mean():+.4f} for all answers (spread {spread:.5f}); β log Z = {predicted[p]:+.4f}"
    )

# %% [markdown]
# The difference is the same number for all fifteen answers of a prompt, and it is β log Z. "DPO learns a ranking" says too little: it
# learns an interval scale, with the unit of the logistic. A margin of 1.1 means that the better answer wins three times in four.

# %%
gaps = (implicit[:, :, None] - implicit[:, None, :]).ravel()
true_gaps = (reward[:, :, None] - reward[:, None, :]).ravel()
print(f"largest error of a gap in reward within a prompt: {np.abs(gaps - true_gaps).max():.5f}")

# %% [markdown]
# **Across prompts.** Give the second prompt five units more of reward, for every answer. No comparison within a prompt changes, so no data
# can tell; the trained policy is the same policy, and its implicit rewards too.

# %%
shifted = reward + np.array([[0.0], [5.0]])
same = exact.boltzmann(trained.ref, shifted, beta)
moved = exact.total_variation(same, exact.boltzmann(trained.ref, reward, beta)).max()
later = exact.implicit_rewards(same, trained.ref, beta)
wrong = ((later[0][:, None] - later[1]) * (shifted[0][:, None] - shifted[1]) < 0).mean()
plain = ((implicit[0][:, None] - implicit[1]) * (reward[0][:, None] - reward[1]) < 0).mean()
print(
    f"the policy moved by {moved:.1e}; its best implicit reward on prompt 1 is {later[0].max():+.3f}, on prompt 2 {later[1].max():+.3f}"
)
print(
    f"comparisons across the prompts that come out wrong: {wrong:.0%} after the shift, {plain:.0%} before it"
)

# %% [markdown]
# **Half of it is no reward.** log π alone, without the reference, is sometimes taken for the score: it says which answers are likely.


# %%
def right(score: np.ndarray) -> float:
    """Share of pairs within a prompt that a score orders as the reward does; pairs of equal reward are left out."""
    d, t = score[:, :, None] - score[:, None, :], reward[:, :, None] - reward[:, None, :]
    return float(((d > 0) == (t > 0))[t != 0].mean())


scores = {"β log π/ref": implicit, "log π": np.log(trained.probs)}
found = {name: right(score) for name, score in scores.items()}
for name, share in found.items():
    print(f"{name:<12} orders {share:.0%} of pairs rightly")

# %% plot
from plot import Plot

p = Plot("Implicit reward against reward, two prompts", x="reward", y="β log π/ref")
p.points("prompt 1", reward[0], implicit[0]).points("prompt 2", reward[1], implicit[1])
lines = np.array([reward.min(), reward.max()])
p.line("r − β log Z, prompt 1", lines, lines - predicted[0], dash=True).line(
    "r − β log Z, prompt 2", lines, lines - predicted[1], dash=True
)
p.save("22")

# %% [markdown]
# **Found.** Within a prompt the implicit reward equals the reward up to {{np.abs(gaps - true_gaps).max():.0e}} after a constant is taken off;
# across prompts {{wrong:.0%}} of comparisons came out wrong once the prompts differed in level.
#
# **Where it ends.** At the optimum. A policy stopped early has moved part of the way, and its implicit rewards are a mixture of β, learning
# rate and steps. `prefopt score` gives implicit rewards within a prompt, where they mean something.

# %%
assert (offset.max(1) - offset.min(1)).max() < 2e-3
assert np.abs(offset.mean(1) - predicted).max() < 2e-3
assert np.abs(gaps - true_gaps).max() < 2e-3
assert moved < 1e-12
assert wrong > 0.4
assert found["β log π/ref"] == 1.0
assert found["log π"] < 0.9
