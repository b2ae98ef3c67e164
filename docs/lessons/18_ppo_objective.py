"""PPO's clipped surrogate: the same gradient as REINFORCE at the start, no incentive beyond the clip, and no trust region."""

# %% [markdown]
# # 18. The PPO objective
#
# **Question.** −min(ρA, clip(ρ, 1−ε, 1+ε)A): what does the clip do? One reads that it "keeps the ratio within 1 ± ε", "prevents a step from
# exploding", "is a trust region".
#
# **Expectation.** It takes away the INCENTIVE to go further, nothing else. The ratio of a clipped sample still moves when other samples,
# or an optimizer's momentum, push the shared weights. And for A < 0 with ρ > 1 there is no clip at all.

# %%
import numpy as np
import torch

from prefopt import exact
from prefopt.losses import ppo_clip, reinforce
from prefopt.losses.advantages import gae

rho = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5, 4.0], dtype=torch.float64)
zero = torch.zeros_like(rho)
print("ratio ρ                ", rho.tolist())
grads = {}
for sign in (1.0, -1.0):
    logps = rho.log().requires_grad_()
    loss = ppo_clip(logps, zero, torch.full_like(rho, sign))
    (slope,) = torch.autograd.grad(loss.sum(), logps)
    grads[sign] = slope
    print(f"A = {sign:+.0f}: loss            ", [round(v, 3) for v in loss.tolist()])
    print(f"A = {sign:+.0f}: slope on log π  ", [round(v + 0.0, 3) for v in slope.tolist()])
capped = ppo_clip(rho.log(), zero, -torch.ones_like(rho), dual_clip=3.0)
print("A = -1 with dual clip 3:", [round(v, 3) for v in capped.tolist()])

# %% [markdown]
# At ρ = 1 the slope is −A, REINFORCE's. For A > 0 it vanishes above 1.2, for A < 0 below 0.8. But at A = −1 and ρ = 4 the loss is 4 and
# still has its slope: the answer became likelier although it is bad, and the pull back is as strong as the ratio is large. (Dual clip
# bounds that pull at the price of ignoring it.)
#
# **Does the ratio stay within 1 ± 0.2?** One batch of samples, many epochs of Adam on it, a softmax over twenty answers whose logits are
# a linear map of five features, so that answers share weights.

# %%
rng = np.random.default_rng(18)
answers = 20
features = torch.tensor(rng.normal(size=(answers, 5)))
theta0 = torch.tensor(rng.normal(size=5) * 0.3)
reward = torch.tensor(rng.normal(size=answers))
old = (features @ theta0).log_softmax(0)
batch = torch.multinomial(
    old.exp(), 64, replacement=True, generator=torch.Generator().manual_seed(0)
)
advantage = reward[batch] - reward[batch].mean()


def epochs(clip: bool, n: int = 200) -> tuple[list[float], list[float]]:
    """Largest ratio of the batch and KL(old‖new) after each epoch."""
    theta = theta0.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.02)
    largest, moved = [], []
    for _ in range(n):
        logps = (features @ theta).log_softmax(0)
        taken, before = logps[batch], old[batch]
        loss = (
            ppo_clip(taken, before, advantage) if clip else (taken - before).exp() * -advantage
        )
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
        with torch.no_grad():
            logps = (features @ theta).log_softmax(0)
            largest.append(float((logps[batch] - old[batch]).exp().max()))
            moved.append(float((old.exp() * (old - logps)).sum()))
    return largest, moved


clipped, plain = epochs(True), epochs(False)
for n in (1, 4, 20, 200):
    print(
        f"after {n:>3} epochs: largest ratio {clipped[0][n - 1]:.3f} clipped, {plain[0][n - 1]:.3f} not; KL {clipped[1][n - 1]:.4f}, {plain[1][n - 1]:.4f}"
    )
first = next(n for n, r in enumerate(clipped[0], 1) if r > 1.2)

# %% [markdown]
# The clip slows the drift by far; it does not stop at 1.2, which was passed after {{first}} epochs. What bounds a step is few epochs, a small
# learning rate, and a KL that is watched.
#
# **One advantage for all tokens?** With the reward on the last token, γ = λ = 1 and no critic, every token has the whole reward as its
# advantage. With any of these changed, it has not:

# %%
rewards, lengths = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([4])
values = torch.tensor([0.2, 0.4, 0.6, 0.8])
same = gae(rewards, torch.zeros(4), lengths, gamma=1.0, lam=1.0).advantages
critic = gae(rewards, values, lengths, gamma=1.0, lam=1.0).advantages
short = gae(rewards, torch.zeros(4), lengths, gamma=1.0, lam=0.95).advantages
for name, a in (
    ("V = 0, λ = 1", same),
    ("V = 0.2 to 0.8, λ = 1", critic),
    ("V = 0, λ = 0.95", short),
):
    print(f"{name:<22} advantages {[round(x, 4) for x in a.tolist()]}")

# %% [markdown]
# **Where it goes.** With r − β log(π/ref) as the reward of each answer, PPO by exact expectations ends at the KL-constrained optimum.

# %%
ref = torch.tensor(rng.dirichlet(np.ones(6)))
r, beta = torch.tensor([1.0, 0.5, 0.0, 0.0, -0.5, -1.0], dtype=torch.float64), 0.5
logits, path = ref.log().clone(), []
target = exact.boltzmann(ref.numpy(), r.numpy(), beta)
for _ in range(300):
    sampled = logits.log_softmax(0)
    shaped = r - beta * (sampled - ref.log())
    a = shaped - (sampled.exp() * shaped).sum()
    for _ in range(4):
        x = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            (sampled.exp() * ppo_clip(x.log_softmax(0), sampled, a)).sum(), x
        )
        logits = (logits - 0.5 * slope).detach()
    path.append(float(exact.total_variation(logits.softmax(0).numpy(), target)))
print(f"distance to ref·e^(r/β)/Z: {path[0]:.3f} after 1 round, {path[-1]:.1e} after 300")
score = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
(from_reinforce,) = torch.autograd.grad(reinforce(score, torch.tensor([0.7])).sum(), score)

# %% plot
from plot import Plot

shown = [1, 2, 3, 4, 6, 8, 12, 20, 35, 60, 100, 200]
p = Plot("Largest ratio in the batch", x="epoch on one batch", y="π/π_old", log=True)
p.line("clipped", shown, [clipped[0][n - 1] for n in shown]).line(
    "not clipped", shown, [plain[0][n - 1] for n in shown], dash=True
)
p.rule(y=1.2, label="1 + ε").save("18")

# %% [markdown]
# **Found.** The clip is a stop sign for each sample's own gradient. The largest ratio passed 1.2 in epoch {{first}} and reached
# {{clipped[0][-1]:.2f}} after 200, against {{plain[0][-1]:.2f}} without it.
#
# **Where it ends.** PPO for language models holds FOUR networks: policy, reference, reward model and critic (not three). GRPO and RLOO do
# without the critic, verifiable rewards without the reward model.

# %%
assert abs(float(grads[1.0][2]) + 1) < 1e-12
assert abs(float(from_reinforce) + 0.7) < 1e-6
assert grads[1.0][4:].abs().max() == 0
assert grads[-1.0][:1].abs().max() == 0
assert abs(float(grads[-1.0][5]) - 4) < 1e-9
assert capped.max() == 3
assert max(clipped[0]) > 1.25
assert plain[0][-1] > 2 * clipped[0][-1]
assert same.tolist() == [1.0] * 4
assert critic[0] != critic[1]
assert path[-1] < 1e-3
