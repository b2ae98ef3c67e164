"""Fitting a reward model and then tilting the reference, or DPO on the same pairs: one optimum, under conditions that can be listed."""

# %% [markdown]
# # 4. DPO: no reward model, the same optimum
#
# **Question.** RLHF fits a reward model to preferences and then maximises E[r] − β KL(π‖ref). DPO trains the policy on the pairs at once.
# Do they end at the same policy?
#
# **Expectation.** The optimum of the second stage is ref·e^(r/β)/Z, so r_w − r_l = β(log π/ref of w − log π/ref of l): the partition
# function cancels in a difference. DPO puts that into the Bradley-Terry likelihood. With preferences that ARE Bradley-Terry's, data that
# connect all answers and a policy free to be anything, both roads lead to one law.

# %%
import numpy as np

from prefopt import exact
from prefopt.verify import claims
from prefopt.verify.learn import learn

beta = 0.5
pairs = claims.bradley_terry()
scored = learn("reward", pairs, {}, "table", patience=2)  # stage one of RLHF
direct = learn("dpo", pairs, {"beta": beta}, "table", patience=2)
tilted = exact.boltzmann(direct.ref, scored.scores, beta)  # stage two, solved exactly
truth = exact.boltzmann(direct.ref, pairs.world.rewards, beta)
apart = exact.total_variation(direct.probs, tilted).max()
print(f"total variation, DPO to reward model + RL {apart:.6f}")
print(
    f"total variation, DPO to the true optimum  {exact.total_variation(direct.probs, truth).max():.6f}"
)
print(
    f"total variation, start to the optimum     {exact.total_variation(direct.ref, truth).max():.4f}"
)

# %% [markdown]
# One law. "With infinite data DPO gives the same solution" needs the conditions, though. Take them away one at a time.
#
# **1. Data that do not connect.** Six answers; 0, 1, 2 are compared among themselves, 3 and 4 with each other, 5 with none. DPO's loss
# cannot tell apart policies that differ only in how much mass each island gets.

# %%
rng = np.random.default_rng(4)
ref, reward = rng.dirichlet(np.ones(6)), np.array([1.0, 0.0, -1.0, 0.5, -0.5, -3.0])
w = np.zeros((6, 6))
for i, j in ((0, 1), (1, 2), (3, 4)):
    w[i, j] = w[j, i] = 1
islands = exact.components(w)
preferences, best = exact.bradley_terry(reward), exact.boltzmann(ref, reward, beta)
rows = []
for masses in (np.bincount(islands, weights=best), [0.3, 0.3, 0.4], [0.01, 0.01, 0.98]):
    law = exact.recombine(best, islands, masses)
    rows.append((exact.dpo_loss(law, ref, preferences, w, beta), law @ reward))
    told = ", ".join(f"{m:.2f}" for m in masses)
    print(
        f"masses of the islands {told}: DPO loss {rows[-1][0]:.6f}, mean reward {rows[-1][1]:+.3f}"
    )

# %% [markdown]
# The same loss to the last digit, and a mean reward anywhere between good and terrible: answer 5, which nobody compared, may get
# almost everything. RL with the reward model would have sampled answer 5 and scored it (rightly or not).
#
# **2. Preferences that no reward explains.** Three answers that beat each other in a circle, 9 times in 10. Both roads fit the best
# reward there is, which is none.

# %%
cycle = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
flat, every = np.full(3, 1 / 3), 1 - np.eye(3)
stuck = exact.dpo_loss(flat, flat, cycle, every, 1.0)
print(
    f"DPO at the reference {stuck:.4f} (ln 2 = {np.log(2):.4f}); entropy of the labels {exact.dpo_minimum(cycle, every):.4f}"
)
print(
    f"slope there {np.abs(exact.dpo_gradient(flat, flat, cycle, every, 1.0)).max():.1e}: it stays"
)

# %% [markdown]
# **3. Finitely many labels.** When w beat l every time it was asked, no finite margin is the best: the loss only tends to 0.

# %%
two, always = np.array([0.5, 0.5]), np.array([[0.5, 1.0], [0.0, 0.5]])
ladder = [0.9, 0.99, 0.999, 0.999999]
falling = [exact.dpo_loss([p, 1 - p], two, always, 1 - np.eye(2), beta) for p in ladder]
print("π(w)", ladder, "loss", np.round(falling, 5))

# %% plot
from plot import Plot

p = Plot(
    "What training did to each answer of prompt 2",
    x="answer",
    y="log π/ref",
    names=[str(k) for k in range(15)],
)
p.bars("DPO", direct.ratio[1]).bars("RM + RL", np.log(tilted[1] / direct.ref[1])).save("04")

# %% [markdown]
# **Found.** On full support the two agree to {{apart:.1e}} in total variation. Off the support DPO constrains nothing; without a reward
# behind the preferences both stay above the entropy of the labels; with labels that never vary there is no optimum but the edge.
#
# **Where it ends.** A real policy is no table: what it learns of one answer moves its neighbours, for better or worse. The islands are
# then held together by the network, not by the loss.

# %%
assert apart < 1e-3
assert exact.total_variation(direct.probs, truth).max() < 1e-3
assert exact.total_variation(direct.ref, truth).max() > 0.1
assert max(abs(loss - rows[0][0]) for loss, _ in rows) < 1e-12
assert rows[0][1] - rows[-1][1] > 2
assert stuck == np.log(2)
assert exact.dpo_minimum(cycle, every) < 0.5 * stuck
assert (np.diff(falling) < 0).all()
assert falling[-1] > 0
