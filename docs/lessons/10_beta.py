"""A large β keeps the optimum near the reference and makes the first steps large: both are true, at different times."""

# %% [markdown]
# # 10. What β does: at the optimum, and in the first steps
#
# **Question.** "Large β: strong pressure to separate, may overfit; small β: stays near the reference." One reads that often. Is it so?
#
# **Expectation.** β is the coefficient of the KL penalty, the TEMPERATURE of the tilt ref·e^(r/β)/Z. So at the optimum it is the other
# way round: a LARGE β stays near. But DPO's gradient is β σ(−βD) times the push, β/2 at the start: with a fixed learning rate and few
# steps a large β moves FASTER. Whoever stops early can measure either.

# %%
import numpy as np
import torch

from prefopt import exact
from prefopt.losses import dpo

ref, reward = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.5, 1.0, 1.5])
for beta in (0.1, 0.3, 1.0, 3.0, 10.0):
    law = exact.boltzmann(ref, reward, beta)
    gap = np.log(law[3] / ref[3]) - np.log(law[0] / ref[0])
    print(
        f"β = {beta:<5} KL at the optimum {exact.kl(law, ref):.4f} nats, margin log-ratio of best over worst {gap:.2f} = 1.5/β"
    )

# %% [markdown]
# Now plain gradient descent on the population loss (every pair, weighted by how often Bradley-Terry draws it), a tabular policy, the
# same learning rate for every β.

# %%
wins = torch.tensor(exact.bradley_terry(reward)) * (1 - torch.eye(4))
first, second = torch.nonzero(wins > 0, as_tuple=True)
weight = wins[first, second] / wins.sum()
log_ref = torch.tensor(np.log(ref))


def descend(beta: float, steps: int, rate: float = 1.0) -> list[float]:
    """KL to the reference after each step of gradient descent on logits."""
    logits = log_ref.clone().requires_grad_()
    path = [0.0]
    for _ in range(steps):
        logps = logits.log_softmax(0)
        loss = (
            weight
            * dpo(logps[first], logps[second], log_ref[first], log_ref[second], beta=beta)
        ).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - rate * slope).detach().requires_grad_()
        path.append(float(exact.kl(logits.detach().softmax(0).numpy(), ref)))
    return path


betas, steps = (0.1, 0.5, 2.0), 3000
paths = {beta: descend(beta, steps) for beta in betas}
for beta, path in paths.items():
    end = exact.kl(exact.boltzmann(ref, reward, beta), ref)
    print(
        f"β = {beta:<4} KL after 1 step {path[1]:.2e}, 5 steps {path[5]:.2e}, {steps} steps {path[-1]:.4f}, at the optimum {end:.4f}"
    )
crossing = next(n for n in range(1, steps) if paths[0.5][n] > paths[2.0][n])
print(f"β = 0.5 overtakes β = 2 at step {crossing}")

# %% [markdown]
# The first steps are ordered one way, the end the other way. The ratio of the first steps' lengths is the ratio of the β:

# %%
ratio = np.sqrt(paths[2.0][1] / paths[0.1][1])
print(
    f"length of the first step, β = 2 against β = 0.1: {ratio:.2f} times (KL is quadratic in it)"
)

# %% [markdown]
# An optimizer that divides by the size of the gradient (Adam) hides the factor β: there the first steps are equally long, and only the
# later slowing down, where σ(−βD) falls, tells the β apart.

# %%
moved = {}
for beta in betas:
    logits = log_ref.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.01)
    logps = logits.log_softmax(0)
    (
        weight * dpo(logps[first], logps[second], log_ref[first], log_ref[second], beta=beta)
    ).sum().backward()
    adam.step()
    moved[beta] = float((logits.detach() - log_ref).abs().max())
print(
    "largest change of a logit in Adam's first step:",
    {beta: round(move, 6) for beta, move in moved.items()},
)

# %% plot
from plot import Plot

p = Plot("KL to the reference while DPO trains", x="step", y="KL, nats", log=True)
shown = sorted({int(s) for s in np.geomspace(1, steps, 60)})
for beta, path in paths.items():
    p.line(f"β = {beta}", shown, [path[s] for s in shown])
p.save("10")

# %% [markdown]
# **Found.** Large β: near the reference at the end, fast at the start. With gradient descent the curves cross at step {{crossing}}.
# So two β compared after a fixed number of steps say something about learning rates; compare them at convergence, or at equal KL.
#
# **Where it ends.** On the word itself: 1/β is the inverse temperature of the policy's tilt, while in σ(βD) β multiplies the log-ratio
# margin. "Higher KL weight, lower temperature" is wrong: a higher KL weight IS the higher temperature.

# %%
for beta, still in ((0.1, 0.05), (0.5, 1e-3), (2.0, 1e-3)):
    assert abs(paths[beta][-1] - exact.kl(exact.boltzmann(ref, reward, beta), ref)) < still
assert paths[0.1][1] < paths[0.5][1] < paths[2.0][1]
assert exact.kl(exact.boltzmann(ref, reward, 0.1), ref) > exact.kl(
    exact.boltzmann(ref, reward, 2.0), ref
)
assert paths[0.5][-1] > paths[2.0][-1]
assert 18 < ratio < 22
assert max(moved.values()) - min(moved.values()) < 1e-4
