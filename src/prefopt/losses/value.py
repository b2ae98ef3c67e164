"""The critic's loss: values [T] and what came of them in, one loss a token out."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.numeric import difference, require, wide


def value_clip(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.2) -> Tensor:
    """The value loss of PPO: squared error, clipped as the policy's ratio is.

    ½ max((V - R)², (clip(V, V_old - c, V_old + c) - R)²)  (Schulman et al. 2015, arXiv 1506.02438, for the error; the clipping is that of
    the authors' code, github.com/openai/baselines). c = 0.2 as in TRL; verl and OpenRLHF take 0.5. clip=None: ½ (V - R)².

    0 where V = R within the bound. Gradient V - R, and 0 where V has left [V_old - c, V_old + c] towards R.

    Args:
        values: [T] the critic's values, reward units.
        old_values: [T] when the answers were sampled.
        returns: [T] the targets; never differentiated.

    Options:
        clip: c, in reward units.

    Returns:
        [T].

    >>> value_clip(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0])).tolist()
    [1.6199...]
    """
    require(clip is None or clip > 0, "clip", clip, "positive, or left out")
    error = difference(values, returns.detach())
    if clip is None:
        return 0.5 * error.square()
    old = wide(old_values.detach())
    near = old + difference(values, old_values.detach()).clamp(-clip, clip)
    return 0.5 * torch.maximum(error.square(), (near - wide(returns.detach())).square())
