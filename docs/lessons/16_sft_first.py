"""DPO moves mass between the answers it compares; bringing the policy there in the first place is the work of SFT."""

# %% [markdown]
# # 16. SFT initialisation
#
# **Question.** DPO's optimum depends on the reference alone. Why then does everybody fine-tune on demonstrations first?
#
# **Expectation.** Because the reference is that start. Where it gives nearly all its mass to answers that nobody compared (a base model
# that goes on with the question instead of answering it), preferences among good answers have little to tilt: relative odds change, the
# bulk stays. And the log-ratios are blind to it: margins and accuracy look perfect.
#
# One prompt: five answers that people compare, and twenty ways of rambling that nobody compares. The base model rambles 98% of the time.

# %%
import numpy as np
import torch

from prefopt import exact
from prefopt.losses import dpo, nll

rng = np.random.default_rng(16)
quality = np.concatenate([[1.5, 1.0, 0.5, 0.0, -0.5], np.full(20, -3.0)])
answers, everything = 5, 25
base = np.concatenate([rng.dirichlet(np.ones(5)) * 0.02, rng.dirichlet(np.ones(20)) * 0.98])
wins = torch.tensor(exact.bradley_terry(quality[:answers])) * (1 - torch.eye(answers))
first, second = torch.nonzero(wins > 0, as_tuple=True)
weight = wins[first, second] / wins.sum()


def sft(begin: np.ndarray, demonstrations: np.ndarray, steps: int) -> np.ndarray:
    """Gradient descent on the negative log-likelihood of demonstrations with these proportions."""
    logits, law = torch.tensor(np.log(begin), requires_grad=True), torch.tensor(demonstrations)
    for _ in range(steps):
        (slope,) = torch.autograd.grad((law * nll(logits.log_softmax(0))).sum(), logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    return logits.detach().softmax(0).numpy()


def align(
    begin: np.ndarray, beta: float = 0.2, steps: int = 4000
) -> tuple[np.ndarray, list[tuple[int, float, float]]]:
    """DPO from `begin`, its own reference; the mass on compared answers and the accuracy on the way."""
    ref, logits = torch.tensor(np.log(begin)), torch.tensor(np.log(begin), requires_grad=True)
    path = []
    for step in range(steps):
        logps = logits.log_softmax(0)
        if step % 100 == 0:
            h = (logps - ref).detach()[:answers]
            ordered = float((h[0] > h[1]) & (h[1] > h[2]) & (h[2] > h[3]) & (h[3] > h[4]))
            path.append((step, float(logps.detach().exp()[:answers].sum()), ordered))
        loss = (
            weight * dpo(logps[first], logps[second], ref[first], ref[second], beta=beta)
        ).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2.0 * slope).detach().requires_grad_()
    return logits.detach().softmax(0).numpy(), path


demonstrations = np.concatenate(
    [[0.15, 0.2, 0.3, 0.2, 0.15], np.zeros(20)]
)  # mediocre, but answers
tuned = sft(base, demonstrations, 400)
from_base, path_base = align(base)
from_sft, path_sft = align(tuned)
for name, law in (
    ("base", base),
    ("base + DPO", from_base),
    ("SFT", tuned),
    ("SFT + DPO", from_sft),
):
    among = law[:answers] / law[:answers].sum()
    told = f"mass on real answers {law[:answers].sum():.3f}, best answer among them {among[0]:.3f}, mean quality {law @ quality:+.3f}"
    print(f"{name:<11} {told}")

# %% [markdown]
# DPO from the base model orders the five answers perfectly, and raises their mass, but only through the few that win: most of the policy
# is rambling as before. With a table, the gradient on a logit that is in no pair is exactly zero; it loses mass only because others gain.
#
# **Why not just train longer, or with a smaller β?** Because the relative odds are the optimum: once σ(βD) fits the labels, nothing pulls.

# %%
ratio = np.log(from_base[answers:] / base[answers:])
print(
    f"log-ratios of the ramblings after DPO: all {ratio.mean():+.3f} (spread {ratio.max() - ratio.min():.1e})"
)
accuracy = path_base[-1][2]
print(f"margins ordered rightly: {accuracy:.0%}; the log shows a perfect run")

# %% plot
from plot import Plot

p = Plot("Mass on answers that were compared", x="step of DPO", y="probability", floor=0.0)
p.line("after SFT", [s for s, _, _ in path_sft], [m for _, m, _ in path_sft])
p.line("from base", [s for s, _, _ in path_base], [m for _, m, _ in path_base]).save("16")

# %% [markdown]
# **Found.** Mean quality from base + DPO is {{from_base @ quality:+.2f}}, from SFT alone {{tuned @ quality:+.2f}}, from SFT + DPO
# {{from_sft @ quality:+.2f}}. SFT on MEDIOCRE demonstrations was worth more than preferences, and preferences were worth most after it.
#
# **Where it ends.** Pairs sampled from the policy itself (online methods) contain its rambling, and the first comparisons punish it:
# there is then less need of SFT. Methods that add a likelihood term (ORPO, CPO, RPO) do both at once.

# %%
assert from_base[:answers].sum() < 0.5
assert accuracy == 1.0
assert ratio.max() - ratio.min() < 1e-9
assert tuned[:answers].sum() > 0.8
assert from_base @ quality < tuned @ quality < from_sft @ quality
assert from_sft[0] / from_sft[:answers].sum() > 0.5
