"""Learning from thumbs up and down: one completion a prompt, summed log-probs [S] and a bool label [S] in, one loss a sequence out.

r is the log-ratio L - L^ref in nats. KTO and BCO also need one number that the training loop knows before the loss: `kl` is of the whole
optimizer step, `delta` a running mean over the steps before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.numeric import log_ratio, require


def kto(
    policy: Tensor,
    reference: Tensor,
    label: Tensor,
    *,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: prospect-theoretic value of a completion against a reference point.

    λ_D σ(-β (r - z0)) for desirable, λ_U σ(-β (z0 - r)) for undesirable completions, z0 = max(0, kl)
    (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7; 1 - σ(x) written as σ(-x)).

    λ/2 at policy == reference (z0 = 0). Between 0 and λ; the gradient vanishes in both tails. β -> 0: λ/2. z0 = 0 and λ = 1:
    `apo_zero_unpaired`. Keep λ_D n_D / (λ_U n_U) within [1, 4/3]. Beware: one step estimates z0; clamped at 0, a noisy estimate is
    too large on average, so do not make train.batch_size small.

    Args:
        policy: [S] summed log-probs of the policy, nats.
        reference: [S] of the reference.
        label: [S] bool, True for desirable.
        kl: the mean of L - L^ref over completions paired with other prompts, over the whole step; a scalar, clamped here at 0
            (after the mean) and never differentiated.
        beta: strength of the tie to the reference, per nat.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.

    Returns:
        [S].
    """
    require(desirable_weight >= 0, "desirable_weight", desirable_weight, "at least 0")
    require(undesirable_weight >= 0, "undesirable_weight", undesirable_weight, "at least 0")
    ratio = log_ratio(policy, reference)
    point = torch.as_tensor(kl, dtype=ratio.dtype, device=ratio.device).detach().clamp(min=0)
    gain = beta * (ratio - point)
    return torch.where(label, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def apo_zero_unpaired(policy: Tensor, reference: Tensor, label: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-zero without pairs: raises good completions, lowers bad ones.

    σ(-β r) for good, σ(β r) for bad completions  (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7 taken apart): KTO with z0 = 0.

    1/2 at policy == reference; between 0 and 1; flipping all labels negates the gradient.

    Args:
        policy: [S] summed log-probs of the policy, nats.
        reference: [S] of the reference.
        label: [S] bool, True for good.
        beta: strength of the tie to the reference, per nat.

    Returns:
        [S].
    """
    return kto(policy, reference, label, kl=0.0, beta=beta)


def bco(policy: Tensor, reference: Tensor, label: Tensor, *, delta: Tensor | float, beta: float = 0.1) -> Tensor:
    """BCO: a binary classifier of good against bad whose logit is the implicit reward.

    -log σ(β r - δ) for good, -log σ(δ - β r) for bad completions  (Jung et al. 2024, arXiv 2404.04656, section 4).

    ln 2 at policy == reference (δ = 0). Adding a constant to every reward and to δ changes nothing.

    Args:
        policy: [S] summed log-probs of the policy, nats.
        reference: [S] of the reference.
        label: [S] bool, True for good.
        delta: δ, half way between the mean rewards β r of good and of bad completions, in training those of all steps before (0 in the
            first); a scalar in reward units, never differentiated. TRL pools all completions instead, which differs when the classes
            are unequal.
        beta: strength of the tie to the reference, per nat.

    Returns:
        [S].
    """
    reward = beta * log_ratio(policy, reference)
    logit = reward - torch.as_tensor(delta, dtype=reward.dtype, device=reward.device).detach()
    return -F.logsigmoid(torch.where(label, logit, -logit))
