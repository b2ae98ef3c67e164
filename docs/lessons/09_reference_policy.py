"""What the reference is for, what a stale one does to the optimum, and how to see it in the first loss."""

# %% [markdown]
# # 9. The reference policy, and a stale one
#
# **Question.** DPO reads four log-probs a pair, two of them from a frozen reference. What if that reference is not the policy training
# started from: last week's cache, another checkpoint, another chat template?
#
# **Expectation.** The optimum is (the reference that was USED)·e^(r/β)/Z. The start does not matter to it at all. So a stale reference
# quietly aims at another policy. It shows in one place: the first loss is ln 2 only when policy and reference agree.

# %%
import math

import numpy as np
import torch

from prefopt import exact
from prefopt.losses import dpo

reward, beta = np.array([1.0, 0.6, 0.2, -0.4, -1.0]), 0.5
rng = np.random.default_rng(9)
start = rng.dirichlet(np.full(5, 2.0))
stale = rng.dirichlet(np.full(5, 2.0))
wins = torch.tensor(exact.bradley_terry(reward)) * (1 - torch.eye(5))
first, second = torch.nonzero(wins > 0, as_tuple=True)
weight = wins[first, second] / wins.sum()


def train(
    begin: np.ndarray, reference: np.ndarray, steps: int = 3000
) -> tuple[list[float], np.ndarray]:
    """Losses and the final law of DPO by gradient descent on a table."""
    logits, ref = (
        torch.tensor(np.log(begin), requires_grad=True),
        torch.tensor(np.log(reference)),
    )
    losses = []
    for _ in range(steps):
        logps = logits.log_softmax(0)
        loss = (
            weight * dpo(logps[first], logps[second], ref[first], ref[second], beta=beta)
        ).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2.0 * slope).detach().requires_grad_()
        losses.append(loss.item())
    return losses, logits.detach().softmax(0).numpy()


right, ended_right = train(start, start)
wrong, ended_wrong = train(start, stale)
meant = exact.boltzmann(start, reward, beta)
print(
    f"first loss with the right reference {right[0]:.6f} (ln 2 = {math.log(2):.6f}), with a stale one {wrong[0]:.6f}"
)
print(f"last loss  with the right reference {right[-1]:.6f}, with a stale one {wrong[-1]:.6f}")
print(
    f"distance to the policy that was meant: {exact.total_variation(ended_right, meant):.4f} and {exact.total_variation(ended_wrong, meant):.4f}"
)
print(
    f"distance of the second to stale·e^(r/β)/Z: {exact.total_variation(ended_wrong, exact.boltzmann(stale, reward, beta)):.4f}"
)

# %% [markdown]
# Both runs end at the same loss, to the last digit shown: nothing in the later curve betrays the mistake. The first number does, and so
# `prefopt train` refuses to start when policy and reference disagree on a token (unless `reference.path` names another model, which may
# differ on purpose), and a cached reference is kept under a hash of weights, data, template and dtype.
#
# **Noise counts too.** A sum of a thousand log-probs in bf16 is off by about a nat. Here every log-prob of the reference gets an error of
# one nat: as large as the log-ratios that DPO is about.

# %%
noisy = np.exp(np.log(start) + rng.normal(0, 1.0, 5))
_, ended_noisy = train(start, noisy / noisy.sum())
print(
    f"distance to what was meant with an error of 1 nat in the reference: {exact.total_variation(ended_noisy, meant):.4f}"
)

# %% [markdown]
# **A reference that moves on purpose.** TR-DPO copies the policy into the reference every so often; online methods restart from the last
# iterate. Each round tilts once more, so k rounds at β end where one round at β/k would: ref·e^(kr/β)/Z. The leash slides along.

# %%
law, rounds = start, []
for k in range(1, 5):
    _, law = train(law, law)
    rounds.append(law)
    told = exact.boltzmann(start, reward, beta / k)
    print(
        f"round {k}: KL to the first reference {exact.kl(law, start):.4f}, distance to ref·e^({k}r/β)/Z {exact.total_variation(law, told):.4f}"
    )

# %% plot
from plot import Plot

steps = [1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300]
p1 = Plot("Loss", x="step", y="DPO loss", log=True).line(
    "right", steps, [right[s - 1] for s in steps]
)
p1.line("stale", steps, [wrong[s - 1] for s in steps], dash=True).rule(
    y=math.log(2), label="ln 2"
)
p2 = Plot("Where they end", x="answer", y="probability", names=[str(k) for k in range(5)])
p2.bars("meant", meant).bars("right", ended_right).bars("stale", ended_wrong)
p1.save("09", p2)

# %% [markdown]
# **Found.** A stale reference moved the optimum by {{exact.total_variation(ended_wrong, meant):.2f}} in total variation at no cost in loss; the only sign
# was a first loss of {{wrong[0]:.3f}} instead of {{math.log(2):.3f}}.
#
# **Where it ends.** A method without a reference (SimPO, ORPO, CPO) has no such trap, and nothing that holds it near a trusted policy.

# %%
assert abs(right[0] - math.log(2)) < 1e-12
assert abs(wrong[0] - math.log(2)) > 0.02
assert abs(right[-1] - wrong[-1]) < 1e-4
assert exact.total_variation(ended_right, meant) < 1e-3
assert exact.total_variation(ended_wrong, meant) > 0.1
assert exact.total_variation(ended_noisy, meant) > 0.1
for k, reached in enumerate(rounds, 1):
    assert exact.total_variation(reached, exact.boltzmann(start, reward, beta / k)) < 0.02
