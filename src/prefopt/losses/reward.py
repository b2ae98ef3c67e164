"""Losses of reward models: Bradley-Terry on pairs and correctness of steps. For rankings see `listwise.plackett_luce`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.numeric import difference, require, wide


def bradley_terry(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | None = None, centering: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Bradley-Terry reward model, with margin, centering and label smoothing.

    -(1-ε) log σ(d) - ε log σ(-d) + c (r_w + r_l)²,  d = r_w - r_l - m
    (Ouyang et al. 2022, arXiv 2203.02155, eq. 1; margin m: Touvron et al. 2023, 2307.09288, eq. 2; centering c: Eisenstein et al. 2023,
    2312.09244; smoothing ε: Wang et al. 2024, 2401.06080.)

    ln 2 at a tie. Scores are identified only up to a constant per prompt: adding one to both changes nothing without centering.
    d -> ∞: 0; d -> -∞: -d. With smoothing the minimum lies at d = log((1-ε)/ε). The centering term squares the SUM of both scores.
    Beware: scores of different prompts cannot be compared.

    Args:
        chosen_scores: [N] score of the preferred answer.
        rejected_scores: [N] score of the other.
        margin: [N] strength of the preference, in score units; none is 0.
        centering: weight c of the squared sum (0.01 is usual).
        label_smoothing: ε, the share of labels taken to be wrong.

    Returns:
        [N].

    >>> import torch
    >>> bradley_terry(torch.tensor([1.0]), torch.tensor([1.0])).item()
    0.6931...
    """
    require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "in [0, 1)")
    gap = difference(chosen_scores, rejected_scores)
    if margin is not None:
        gap = difference(gap, margin)
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
    return loss + centering * (wide(chosen_scores) + wide(rejected_scores)).square() if centering else loss


def step_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Process reward model: binary cross-entropy of each labelled step.

    -y log σ(z) - (1-y) log σ(-z)  (Lightman et al. 2023, arXiv 2305.20050; soft labels: Wang et al. 2023, 2312.08935).

    ln 2 at z = 0; the minimum lies at σ(z) = y. Two-class cross-entropy is the same with z = z_1 - z_0. Gradient on z: σ(z) - y.

    Args:
        logits: [J] score at the last token of each step.
        labels: [J] correctness in [0, 1].

    Returns:
        [J].
    """
    if logits.shape != labels.shape:
        raise ValueError(f"shapes differ: {tuple(logits.shape)} and {tuple(labels.shape)}")
    return F.binary_cross_entropy_with_logits(wide(logits), labels.to(wide(logits).dtype), reduction="none")
