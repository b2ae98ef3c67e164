"""The gradient of DPO is a difference of two scores, weighed by how wrong the policy still is about the pair."""

# %% [markdown]
# # 25. The gradient of DPO and what it weighs
#
# **Question.** Which pairs does DPO learn from, and how hard does it push on each answer?
#
# **Expectation.** ∇ loss = −β σ(−βD) (∇ log π(y_w) − ∇ log π(y_l)). The weight σ(−βD) is the probability that the implicit reward orders
# the pair WRONGLY: near 1 for pairs that are wrong, near 0 for those that are settled. Tutorials often drop the factor β, and it is said
# that "if the policy would never generate y, the gradient is weak". The weight does not contain π(y) at all; and the gradient of the
# log-prob of an unlikely token is LARGER: in its own logit it is 1 − π.

# %%
import numpy as np
import torch

from prefopt.losses import dpo

beta = 0.1
logps = torch.tensor(
    [[-20.0, -30.0], [-20.0, -20.0], [-30.0, -20.0], [-80.0, -20.0]],
    dtype=torch.float64,
    requires_grad=True,
)
ref = torch.tensor([[-20.0, -20.0]] * 4, dtype=torch.float64)
losses = dpo(logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1], beta=beta)
(slope,) = torch.autograd.grad(losses.sum(), logps)
margins = beta * ((logps - ref)[:, 0] - (logps - ref)[:, 1]).detach()
print("  βD     loss    slope on L_w   slope on L_l   β σ(-βD)")
for m, value, (w, rejected) in zip(
    margins.tolist(), losses.tolist(), slope.tolist(), strict=True
):
    print(
        f"{m:5.1f}  {value:7.4f}  {w:12.6f}  {rejected:12.6f}  {beta / (1 + np.exp(m)):11.6f}"
    )

# %% [markdown]
# The two slopes are opposite and bounded by β. The last pair is one where the policy finds the chosen answer hopeless (−80 nats): it has
# the LARGEST weight of all.
#
# **In the logits.** For one token with vocabulary of four: ∇ log π(y) in the logits is onehot(y) − π. Its length against π(y):

# %%
lengths = []
for p in (0.9, 0.5, 0.1, 0.01, 1e-6):
    law = torch.tensor([p, *([(1 - p) / 3] * 3)], dtype=torch.float64)
    logits = law.log().requires_grad_()
    (score,) = torch.autograd.grad(logits.log_softmax(0)[0], logits)
    lengths.append((p, float(score[0]), float(score.norm())))
    print(
        f"π(y) = {p:<6g} ∂ log π(y) / ∂ its own logit = {score[0]:.6f}, length of the gradient {score.norm():.4f}"
    )

# %% [markdown]
# **What is weak, then?** The change of the PROBABILITY: ∂π/∂logit = π(1 − π). An answer at 1e-6 moves by a factor e for each nat of logit
# like any other, and is still unlikely afterwards. The trouble is a different one: off the data nothing is constrained (lesson 4).
#
# **Which pairs teach.** A thousand pairs with margins as after some training, some labels wrong. The ten per cent of pairs with the
# largest weight:

# %%
rng = np.random.default_rng(25)
wrong = rng.random(1000) < 0.1
margin = np.where(wrong, -1, 1) * np.abs(
    rng.normal(2.0, 1.5, 1000)
)  # the policy has learned what is right
weight = 1 / (1 + np.exp(margin))
order = np.argsort(-weight)
share = weight[order[:100]].sum() / weight.sum()
bad = wrong[order[:100]].mean()
print(
    f"mislabelled pairs: {wrong.mean():.1%} of all, {bad:.0%} of the tenth with the largest weight"
)
print(
    f"that tenth carries {share:.0%} of all the push; the mislabelled pairs together {weight[wrong].sum() / weight.sum():.0%}"
)

# %% [markdown]
# The pairs a good policy "gets wrong" are the mislabelled ones, and the logistic loss pushes on them hardest. Conservative DPO takes a
# share ε of labels to be wrong; its slope −(1−ε)σ(−z) + εσ(z) changes sign at z = log((1−ε)/ε), so it stops there. Robust DPO does not
# stop; it corrects the mean over flips.

# %%
z = np.linspace(-6, 6, 121)
logistic = 1 / (1 + np.exp(z))
eps = 0.1
smoothed = (1 - eps) * logistic - eps * (1 - logistic)
stop = float(z[np.abs(smoothed).argmin()])
print(f"cDPO with ε = 0.1 stops pushing at z = {stop:.1f} (log 9 = {np.log(9):.2f})")

# %% plot
from plot import Plot

p = Plot("Push on a pair, by its margin", x="βD", y="push, in units of β").line(
    "DPO", z, logistic
)
p.line("cDPO, ε = 0.1", z, smoothed, dash=True).line(
    "hinge", z, (z < 1).astype(float), dash=True
).rule(y=0.0).save("25")

# %% [markdown]
# **Found.** The weight is β σ(−βD), whatever π is; an answer of probability one in a million has a score of length {{lengths[-1][2]:.2f}}, longer
# than one of probability 0.9 ({{lengths[0][2]:.2f}}). After some training {{bad:.0%}} of the hardest tenth of pairs were mislabelled.
#
# **Where it ends.** In a network the gradients of answers are not orthogonal: pushing w up and l down along shared directions can move
# both the same way (lesson 23).

# %%
assert torch.allclose(slope[:, 0], -slope[:, 1])
assert torch.allclose(slope[:, 0], -beta * torch.sigmoid(-margins))
assert slope[:, 0].abs().argmax() == 3
assert [own for _, own, _ in lengths] == sorted(own for _, own, _ in lengths)
assert abs(lengths[-1][1] - (1 - 1e-6)) < 1e-9
assert bad > 5 * wrong.mean()
assert abs(stop - np.log(9)) < 0.1
