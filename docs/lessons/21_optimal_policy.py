"""ref·e^(r/β)/Z computed, checked against gradient ascent, and followed to both ends of β."""

# %% [markdown]
# # 21. The KL-constrained optimal policy
#
# **Question.** Which policy maximises E[r] − β KL(π‖ref), what is it worth, and what does it do as β goes to 0 and to ∞?
#
# **Expectation.** π* = ref·e^(r/β)/Z, worth β log Z. β → ∞ gives the reference; β → 0 gives the reference CONDITIONED on the best answers.
#
# The smallest example that shows everything: two answers, ref = (0.6, 0.4), rewards 0 and 2.

# %%
import numpy as np

from prefopt import exact

ref, reward = np.array([0.6, 0.4]), np.array([0.0, 2.0])
law = exact.boltzmann(ref, reward, beta=2.0)
log_z = float(exact.log_partition(ref, reward, beta=2.0))
print(f"π* at β = 2: {law[0]:.4f}, {law[1]:.4f}")
print(
    f"log Z = {log_z:.6f}; β log Z = {2 * log_z:.6f}; E[r] - β KL = {float(exact.objective(law, ref, reward, 2.0)):.6f}"
)

# %% [markdown]
# Lecture notes give this example as 0.355 and 0.645, a double rounding of the numbers above.
#
# **Nothing is better.** Gradient ascent on two logits of the objective itself, which knows nothing of the formula:

# %%
logits = np.log(ref)
for _ in range(2000):
    p = np.exp(logits - logits.max())
    p /= p.sum()
    slope = p * (reward - p @ reward) - 2.0 * exact.kl_gradient(p, ref)
    logits = logits + 0.2 * slope
climbed = exact.total_variation(p, law)
print(
    f"after gradient ascent {p.round(6)}, total variation to the formula {float(climbed):.1e}"
)

# %% [markdown]
# **Reward and KL fall as β grows; entropy does not.** "The entropy of π* decreases towards 0 with β" is often said. The reference here
# prefers the WORSE answer, so on the way to the better one the law passes the uniform one, where entropy is largest: at β = 2/ln 1.5.

# %%
betas = np.geomspace(0.1, 100, 301)
laws = [exact.boltzmann(ref, reward, beta) for beta in betas]
mean = np.array([p @ reward for p in laws])
nats = np.array([exact.kl(p, ref) for p in laws])
entropy = np.array([exact.entropy(p) for p in laws])
top = betas[entropy.argmax()]
print(
    f"entropy: reference {exact.entropy(ref):.4f}, largest {entropy.max():.4f} at β = {top:.2f} (2/ln 1.5 = {2 / np.log(1.5):.2f}),",
    end=" ",
)
print(f"at β = 2 {exact.entropy(law):.4f}, at β = 0.1 {entropy[0]:.4f}")

# %% [markdown]
# **The limit β → 0 is not always one answer.** With ties, the law becomes the reference among the tied best; its entropy need not be 0.
# And an answer that the reference never gives stays at 0 whatever its reward.

# %%
tied = exact.boltzmann([0.1, 0.3, 0.6], [1.0, 1.0, 0.0], beta=1e-3)
unseen = exact.boltzmann([0.5, 0.5, 0.0], [0.0, 1.0, 99.0], beta=0.5)
print(
    f"ref (0.1, 0.3, 0.6), the first two tied: {tied.round(4)}, entropy {exact.entropy(tied):.4f}"
)
print(f"ref (0.5, 0.5, 0), reward 99 on the last: {unseen.round(4)}")

# %% plot
from plot import Plot

p1 = (
    Plot("π* as β grows", x="β", y="nats", log=True)
    .line("entropy", betas, entropy)
    .line("KL", betas, nats)
)
p1.rule(x=2 / np.log(1.5), label="uniform")
p2 = Plot("and its mean reward", x="β", y="reward", log=True).line("E[r]", betas, mean)
p1.save("21", p2)

# %% [markdown]
# **Found.** The optimum is {{law[0]:.4f}} and {{law[1]:.4f}}; ascent agrees to {{float(climbed):.0e}}. From β = ∞ down, entropy first RISES from
# {{exact.entropy(ref):.4f}} to {{entropy.max():.4f}} and only then falls. E[r] and KL never increase with β.
#
# **Where it ends.** This is the optimum for the penalty KL(π‖ref) with weight β on whole answers. A penalty on other divergences has
# another optimum (`exact.tilted`), and PPO, TRPO or SAC with other regularisers do not all share this one.

# %%
assert law.round(4).tolist() == [0.3556, 0.6444]
assert abs(2 * log_z - float(exact.objective(law, ref, reward, 2.0))) < 1e-12
assert climbed < 1e-9
assert (np.diff(mean) < 0).all()
assert (np.diff(nats) < 0).all()
assert entropy.max() > exact.entropy(ref) > exact.entropy(law) > entropy[0]
assert abs(top - 2 / np.log(1.5)) < 0.1
assert tied.round(4).tolist() == [0.25, 0.75, 0.0]
assert unseen[2] == 0
