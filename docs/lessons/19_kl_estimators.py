"""k1, k2, k3: which one is unbiased as a number, and which one has the right gradient as a loss; they are not the same."""

# %% [markdown]
# # 19. The KL penalty and its estimators
#
# **Question.** KL(π‖ref) is estimated from sampled answers by k1 = d, k2 = d²/2 or k3 = e^(−d) − 1 + d, with d = log π − log ref. Which
# one should be used?
#
# **Expectation.** It depends on the place. As a NUMBER (or a reward) k1 and k3 have the right mean, k2 has not. As a LOSS that is
# differentiated at samples of π, the mean of a gradient is not the gradient of a mean: k1's is zero, k3's is that of the OTHER
# divergence, KL(ref‖π), and k2's is right. With twelve answers all of it can be summed up exactly.

# %%
import numpy as np
import torch

from prefopt import exact
from prefopt.losses.kl import AdaptiveKL, kl_estimate
from prefopt.losses.policy import kl_penalty

rng = np.random.default_rng(19)
answers = 12
ref = rng.dirichlet(np.ones(answers))
direction = rng.normal(size=answers)
kinds = ("k1", "k2", "k3")


def policy(distance: float) -> np.ndarray:
    """ref tilted along one direction."""
    return exact.boltzmann(ref, direction, 1 / distance)


print(
    "distance     KL   " + "".join(f"{kind + ' mean':>10}{kind + ' sd':>10}" for kind in kinds)
)
spreads = {}
for distance in (0.1, 0.5, 1.0, 2.0):
    pi = policy(distance)
    true = float(exact.kl(pi, ref))
    row = f"{distance:8.1f} {true:7.4f}  "
    for kind in kinds:
        k = kl_estimate(torch.tensor(np.log(pi)), torch.tensor(np.log(ref)), kind).numpy()
        mean = pi @ k
        spreads[distance, kind] = mean - true, np.sqrt(pi @ (k - mean) ** 2)
        row += f"{mean:10.4f}{spreads[distance, kind][1]:10.4f}"
    print(row)

# %% [markdown]
# k1 and k3 have the mean KL at every distance. Near the reference k3 varies far less than k1, and is never negative; k2 is biased further
# out. Now the mean of each estimator's GRADIENT at samples of π, beside the two divergences' own gradients:

# %%
pi = policy(1.0)
logits = torch.tensor(np.log(pi), requires_grad=True)
log_ref, law = torch.tensor(np.log(ref)), torch.tensor(pi)


def mean_gradient(values: torch.Tensor) -> np.ndarray:
    """Σ π(y) ∂ value(y)/∂ logits: π as the sampler is not differentiated."""
    (slope,) = torch.autograd.grad((law * values).sum(), logits, retain_graph=True)
    return slope.numpy()


logps = logits.log_softmax(0)
reverse = exact.kl_gradient(pi, ref)
forward = pi - ref  # d KL(ref || π) / d logits
slopes = {kind: mean_gradient(kl_estimate(logps, log_ref, kind)) for kind in kinds}
slopes["ρ k3"] = mean_gradient(kl_penalty(logps, log_ref, logps.detach(), kind="k3"))
for name, slope in slopes.items():
    told = f"length {np.linalg.norm(slope):.4f}, distance to ∇KL(π‖ref) {np.linalg.norm(slope - reverse):.4f}"
    print(f"{name:<5} {told}, to ∇KL(ref‖π) {np.linalg.norm(slope - forward):.4f}")
print(
    f"lengths of the two true gradients: {np.linalg.norm(reverse):.4f} and {np.linalg.norm(forward):.4f}"
)

# %% [markdown]
# So the k3 of GRPO's paper, added to the loss, penalises KL(ref‖π). Multiplied by the ratio ρ = π/π_old with the ratio differentiated (TRL's
# default) it penalises KL(π‖ref). `prefopt` refuses k1 as a loss, since its gradient is zero on average: a penalty that does nothing but noise.
#
# **Does it matter?** Follow each penalty alone from π back towards ref, and reward plus penalty to its end:

# %%
reward = 0.5 * rng.normal(size=answers)
beta, ends = 0.3, {}
for name, slope_of in (("KL(π‖ref)", exact.kl_gradient), ("KL(ref‖π)", lambda p, q: p - q)):
    x = np.log(ref)
    for _ in range(4000):
        p = np.exp(x - x.max())
        p /= p.sum()
        x = x + 0.5 * (p * (reward - p @ reward) - beta * slope_of(p, ref))
    ends[name] = p
    gap = exact.total_variation(p, exact.boltzmann(ref, reward, beta))
    print(
        f"penalty {name}: reward {p @ reward:.4f}, KL(π‖ref) {exact.kl(p, ref):.4f}, distance to ref·e^(r/β)/Z {gap:.4f}"
    )

# %% [markdown]
# **The controller's unit.** The adaptive coefficient of Ziegler et al. compares the KL of a whole ANSWER with a target (6 nats there). Fed
# with the mean per TOKEN, as some code bases do, it sees a KL smaller by the length:

# %%
per_sequence, per_token = (
    AdaptiveKL(0.1, target=6.0, horizon=10_000),
    AdaptiveKL(0.1, target=6.0, horizon=10_000),
)
for _ in range(200):
    per_sequence.update(9.0, 64)  # an answer of 100 tokens, 0.09 nats a token: above the target
    per_token.update(0.09, 64)
print(
    f"after 200 rounds at 9 nats an answer: coefficient {per_sequence.coefficient:.4f} from sums, {per_token.coefficient:.4f} from means"
)

# %% plot
from plot import Plot

far = np.linspace(0.05, 2.5, 60)
means = {
    kind: [
        policy(s)
        @ kl_estimate(torch.tensor(np.log(policy(s))), torch.tensor(np.log(ref)), kind).numpy()
        for s in far
    ]
    for kind in kinds
}
p1 = (
    Plot("Mean of the estimators", x="distance", y="nats")
    .line("k1", far, means["k1"])
    .line("k2", far, means["k2"])
)
p1.line("k3", far, means["k3"], dash=True)
p2 = Plot("What one sample of each varies by", x="distance", y="standard deviation, nats")
for kind in kinds:
    values = []
    for s in far:
        k = kl_estimate(
            torch.tensor(np.log(policy(s))), torch.tensor(np.log(ref)), kind
        ).numpy()
        values.append(np.sqrt(policy(s) @ (k - policy(s) @ k) ** 2))
    p2.line(kind, far, values)
p1.save("19", p2)

# %% [markdown]
# **Found.** As a number: k1 or k3. As a reward: k1, detached. As a loss: k2, or ρ·k3; plain k3 aims elsewhere
# (distance {{np.linalg.norm(slopes["k3"] - reverse):.3f}} of a gradient of length {{np.linalg.norm(reverse):.3f}}).
#
# **Where it ends.** Everything was at samples of the current policy. After several updates on one batch π is no longer the sampler, and
# only the forms with ρ remain right.

# %%
for (distance, kind), (bias, _) in spreads.items():
    assert abs(bias) < 1e-9 or kind == "k2", (distance, kind)
assert abs(spreads[2.0, "k2"][0]) > 0.1
assert spreads[0.1, "k3"][1] < 0.2 * spreads[0.1, "k1"][1]
assert np.linalg.norm(slopes["k1"]) < 1e-9
assert np.allclose(slopes["k2"], reverse)
assert np.allclose(slopes["k3"], forward)
assert np.allclose(slopes["ρ k3"], reverse)
assert exact.total_variation(ends["KL(π‖ref)"], exact.boltzmann(ref, reward, beta)) < 1e-3
assert exact.total_variation(ends["KL(ref‖π)"], exact.boltzmann(ref, reward, beta)) > 0.05
assert per_sequence.coefficient > 0.1 > per_token.coefficient
