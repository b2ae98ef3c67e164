"""Where the DPO loss starts, how low it can go, and what it does not see: both answers sinking."""

# %% [markdown]
# # 23. The DPO loss
#
# **Question.** −log σ(β[(log π_w − log ref_w) − (log π_l − log ref_l)]): four numbers a pair. What values does it take, how low can it go,
# and what does a falling loss tell?
#
# **Expectation.** ln 2 at the start, whatever the data, since policy and reference agree there. The least value is the mean entropy of
# the labels, not 0. And it depends on the DIFFERENCE of log-ratios: a policy may lower both answers and still be praised.

# %%
import numpy as np
import torch

from prefopt import exact
from prefopt.losses import dpo

chosen, rejected = torch.tensor([-10.0, -12.0]), torch.tensor([-11.0, -9.0])
start = dpo(chosen, rejected, chosen, rejected, beta=0.1)
hand = dpo(
    torch.tensor([-8.0]),
    torch.tensor([-14.0]),
    torch.tensor([-10.0]),
    torch.tensor([-11.0]),
    beta=0.3,
)
print("at policy == reference:", [round(v, 6) for v in start.tolist()])
print(
    f"u = 2, v = -3, β = 0.3: margin 0.3 · 5 = 1.5, loss {hand.item():.4f}; the pair swapped {hand.item() + 1.5:.4f}"
)

# %% [markdown]
# **The floor.** Comparisons that err have entropy. For Bradley-Terry preferences the least mean loss is that entropy, reached at
# ref·e^(r/β)/Z for EVERY β. So the value at the end says how noisy the labels are, not how good the policy is.

# %%
reward = np.array([1.5, 0.7, 0.0, -1.0])
ref = np.array([0.1, 0.2, 0.3, 0.4])
preferences, every = exact.bradley_terry(reward), 1 - np.eye(4)
floor = exact.dpo_minimum(preferences, every)
for beta in (0.1, 1.0, 10.0):
    best = exact.boltzmann(ref, reward, beta)
    value = exact.dpo_loss(best, ref, preferences, every, beta)
    print(
        f"β = {beta:<4} loss at the optimum {value:.6f}, KL to the reference {exact.kl(best, ref):.4f}"
    )
print(f"entropy of the labels     {floor:.6f}")

# %% [markdown]
# **What it does not see.** Add any number to both log-probs: the same loss. So chosen and rejected may sink together, if a third answer
# rises. In a network this happens when the direction that tells the two apart points at the third. Three answers, "No", "Never" and
# "Yes", with features (1, 0.2), (1, 0) and (0, 1); "No" is preferred to "Never"; the network is one vector θ, logits = features · θ.
# (Razin et al. 2024, arXiv 2410.08847, found it in language models: refusals unlearned by training on pairs of refusals.)

# %%
features = torch.tensor([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
names = ("No", "Never", "Yes")


def train(imitation: float, steps: int = 400) -> np.ndarray:
    """Loss and the three log-probs after each step of DPO plus `imitation` times the chosen answer's negative log-likelihood."""
    theta = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
    before = (features @ theta).log_softmax(0).detach()
    path = []
    for _ in range(steps):
        logps = (features @ theta).log_softmax(0)
        loss = dpo(logps[:1], logps[1:2], before[:1], before[1:2], beta=0.5).mean()
        path.append((loss.item(), *logps.tolist()))
        (slope,) = torch.autograd.grad(loss - imitation * logps[0], theta)
        theta = (theta - 0.5 * slope).detach().requires_grad_()
    return np.array(path)


plain, held = train(0.0), train(0.2)
for title, path in (("DPO alone", plain), ("DPO + 0.2 NLL of the chosen", held)):
    print(f"{title}: loss {path[0, 0]:.4f} -> {path[-1, 0]:.4f}")
    for k, name in enumerate(names, 1):
        print(f"    log-prob of {name:<6} {path[0, k]:+.3f} -> {path[-1, k]:+.3f}")

# %% plot
from plot import Plot

steps = list(range(0, 400, 5))
p1 = Plot("DPO alone", x="step", y="log-prob")
p2 = Plot("with 0.2 times the NLL", x="step", y="log-prob")
for k, name in enumerate(names, 1):
    p1.line(name, steps, plain[::5, k])
    p2.line(name, steps, held[::5, k])
p1.save("23", p2)

# %% [markdown]
# **Found.** The loss fell from ln 2 to {{plain[-1, 0]:.3f}} while the preferred answer's log-prob fell by {{plain[0, 1] - plain[-1, 1]:.2f}} nats: the
# policy now says "Yes". With a little imitation of the chosen answer (`mix.sft=0.2`) it rises instead.
#
# **Where it ends.** Watch `logps/chosen` and `logps/rejected`, not the loss alone; `rpo`, `dpop` and `mix.sft` hold the chosen answer up.
# A loss near the entropy of the labels is all there is to win; below it on the training pairs begins the learning of errors by heart.

# %%
assert torch.allclose(start, torch.full((2,), float(np.log(2))))
assert abs(hand.item() - 0.2014) < 5e-5
assert all(
    abs(exact.dpo_loss(exact.boltzmann(ref, reward, b), ref, preferences, every, b) - floor)
    < 1e-12
    for b in (0.1, 1.0, 10.0)
)
assert plain[-1, 0] < 0.6 * plain[0, 0]
assert plain[-1, 1] < plain[0, 1] - 1
assert plain[-1, 3] > plain[0, 3]
assert held[-1, 1] > held[0, 1]
