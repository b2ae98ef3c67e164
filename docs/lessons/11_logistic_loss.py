"""-log σ(z), the function under every pairwise method: its values, its slopes, and how to compute it."""

# %% [markdown]
# # 11. The pairwise logistic loss
#
# **Question.** −log σ(z) of a margin z is minimised by DPO, by reward models and by a dozen others. What does it reward, when does it
# stop pushing, and how is it computed without overflow?
#
# **Expectation.** ln 2 at z = 0; slope −σ(−z), which is −½ at 0, almost −1 for pairs that are wrong and almost 0 for pairs that are right.
# The two orders of a pair differ by exactly z.

# %%
import numpy as np
import torch
import torch.nn.functional as F

from prefopt.losses import bradley_terry

z = torch.tensor([-5.0, -1.5, -0.7, 0.0, 0.7, 1.5, 5.0], dtype=torch.float64)
loss = bradley_terry(z, torch.zeros_like(z))
swapped = bradley_terry(torch.zeros_like(z), z)
print("    z    -log σ(z)     slope")
for margin, value in zip(z.tolist(), loss.tolist(), strict=True):
    print(f"{margin:5.1f}  {value:10.6f}  {-torch.sigmoid(torch.tensor(-margin)).item():8.4f}")
print(f"log σ(0.7) = {-float(loss[4]):.6f}")
print(f"swapped minus given, largest distance to z: {(swapped - loss - z).abs().max():.1e}")

# %% [markdown]
# A much-read text gives log σ(0.7) ≈ −0.44; it is the number above.
#
# **It never stops.** There is always some slope left, so on pairs that never disagree margins grow for ever, only slower. Compare the
# hinge (stops at a margin), the squared loss of IPO (pulls back beyond it), and the exponential (chases the worst pair).

# %%
grid = torch.linspace(-4, 4, 161, dtype=torch.float64)
curves = {
    "logistic": -F.logsigmoid(grid),
    "hinge": F.relu(1 - grid),
    "squared": (grid - 1).square(),
    "exponential": torch.exp(-grid),
}
for name, values in curves.items():
    slope = torch.gradient(values, spacing=(grid,))[0]
    at = [int(torch.argmin((grid - x).abs())) for x in (-3.0, 0.0, 3.0)]
    print(f"{name:<12} slope at -3, 0, 3: " + ", ".join(f"{slope[i]:+.3f}" for i in at))

# %% [markdown]
# **It is a likelihood.** If the better answer wins a share p of the comparisons, the mean loss is least where σ(z) = p, at z = log p/(1−p):
# the margin settles at what the labels say, no further. That holds for none of the other three curves.

# %%
shares, found = np.array([0.55, 0.7, 0.9, 0.99]), []
fine = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
for p in shares:
    mean = -p * F.logsigmoid(fine) - (1 - p) * F.logsigmoid(-fine)
    found.append(float(fine[mean.argmin()]))
print(
    "p",
    shares,
    " best margin",
    np.round(found, 3),
    " log p/(1-p)",
    np.round(np.log(shares / (1 - shares)), 3),
)

# %% [markdown]
# **Computing it.** σ(−800) is 0 in any precision, and log 0 is −∞ with a gradient that is not a number. `logsigmoid` takes the exponential
# of a negative number only: −log σ(z) = max(0, −z) + log(1 + e^(−|z|)). The "stable" form log(1 + e^(−z)) overflows as well.

# %%
far = torch.tensor([-800.0, -100.0, 100.0], requires_grad=True)
naive = -torch.log(torch.sigmoid(far))
(slope_naive,) = torch.autograd.grad(naive.sum(), far)
right = bradley_terry(far, torch.zeros(3))
(slope_right,) = torch.autograd.grad(right.sum(), far)
print("-log(sigmoid(z))", naive.tolist(), "slope", slope_naive.tolist())
print("log(1 + exp(-z))", torch.log(1 + torch.exp(-far)).tolist())
print(
    "logsigmoid      ",
    [round(v, 4) for v in right.tolist()],
    "slope",
    [round(v, 4) for v in slope_right.tolist()],
)

# %% plot
from plot import Plot

p1 = Plot("Loss of a margin", x="margin z", y="loss")
for name, values in curves.items():
    keep = values < 5
    p1.line(name, grid[keep].tolist(), values[keep].tolist(), dash=name != "logistic")
p1.save("11")

# %% [markdown]
# **Found.** The logistic loss is ln 2 = {{float(loss[3]):.6f}} for a pair it knows nothing of, grows by one for each nat that a pair is
# wrong, and is calibrated: its best margin is the log-odds of the labels.
#
# **Where it ends.** With one label a pair every p is 0 or 1 and the best margin is infinite; then the learning rate, the number of epochs
# or a smoothed label (cDPO) decides where it stops.

# %%
assert abs(float(loss[4]) - 0.403186) < 5e-7
assert abs(float(loss[3]) - np.log(2)) < 1e-12
assert (swapped - loss - z).abs().max() < 1e-12
assert np.abs(np.array(found) - np.log(shares / (1 - shares))).max() < 1e-3
assert torch.isinf(naive[0])
assert torch.isnan(slope_naive[0]) or torch.isinf(slope_naive[0])
assert right.isfinite().all()
assert slope_right.tolist()[0] == -1.0
