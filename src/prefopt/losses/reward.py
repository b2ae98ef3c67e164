"""Losses of reward models: Bradley-Terry on pairs, with ties or graded strength, and correctness of answers and steps.

For rankings see `listwise.plackett_luce`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
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
    require(centering >= 0, "centering", centering, "at least 0")
    gap = difference(chosen_scores, rejected_scores)
    if margin is not None:
        gap = difference(gap, margin)
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
    return loss + centering * (wide(chosen_scores) + wide(rejected_scores)).square() if centering else loss


def bradley_terry_ties(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    tied: Tensor,
    *,
    tie_law: Literal["rao_kupper", "davidson"] = "rao_kupper",
    tie_share: float = 0.2,
) -> Tensor:
    """Bradley-Terry reward model that also learns from ties (Rao-Kupper or Davidson).

    With d = r_1 - r_2 and the strengths e^r:
    rao_kupper: P(1 wins) = σ(d - η), P(tie) = 1 - σ(d - η) - σ(-d - η)  (Rao and Kupper 1967, eq. 2.3; η is their ln θ)
    davidson:   P(1 wins) = e^{d/2} / (e^{d/2} + e^{-d/2} + ν), P(tie) = ν / (...)  (Davidson 1970, eq. 2.4)
    The loss is -log P of what was said (for reward models: Liu et al. 2024, arXiv 2410.05328; for DPO: 2409.17431).

    η and ν are given by what they mean: `tie_share` is how often two answers of equal score are called a tie, tanh(η/2) and ν/(2+ν).
    As it tends to 0, both tend to Bradley-Terry on what is no tie, and a tie pulls the two scores
    together with slope tanh(d/2), half of it under Davidson.
    d -> ∞: 0 for a win, |d| for a tie under Rao-Kupper, |d|/2 under Davidson.

    Args:
        chosen_scores: [N] score of the preferred answer, or of either where the two were tied.
        rejected_scores: [N] score of the other.
        tied: [N] bool, neither was preferred.
        tie_law: which of the two laws.
        tie_share: ties among answers of equal score, in (0, 1).

    Returns:
        [N].

    >>> equal = torch.tensor([0.0])
    >>> bradley_terry_ties(equal, equal, torch.tensor([True]), tie_share=0.5).exp().item()
    2.0...
    """
    require(0 < tie_share < 1, "tie_share", tie_share, "in (0, 1)")
    gap = difference(chosen_scores, rejected_scores)
    if tie_law == "davidson":
        log_nu = torch.full_like(gap, math.log(2 * tie_share / (1 - tie_share)))
        log_total = torch.stack([gap / 2, -gap / 2, log_nu]).logsumexp(0)
        return log_total - torch.where(tied, log_nu, gap / 2)
    eta = 2 * math.atanh(tie_share)
    win = F.logsigmoid(gap - eta)
    tie = math.log(math.expm1(2 * eta)) + win + F.logsigmoid(-gap - eta)
    return -torch.where(tied, tie, win)


def graded(
    chosen_scores: Tensor, rejected_scores: Tensor, strength: Tensor, *, form: Literal["margin", "scaled", "soft"] = "margin"
) -> Tensor:
    """Bradley-Terry reward model on preferences of graded strength.

    margin: -log σ(d - m)                        asks for a gap of m        (Touvron et al. 2023, arXiv 2307.09288, eq. 2)
    scaled: -m log σ(d)                          counts a preference m times (Wang et al. 2024, arXiv 2410.01257, eq. 3)
    soft:   -σ(m) log σ(d) - σ(-m) log σ(-d)     m are the log-odds with which people prefer the chosen answer; the minimum is d = m

    with d = r_w - r_l. ln 2 at d = 0 in `soft`, and in `margin` at d = m. `reward` has the first form too, with m optional.

    Args:
        chosen_scores: [N] score of the preferred answer.
        rejected_scores: [N] score of the other.
        strength: [N] m, the data's `margin`; not negative in `scaled`.
        form: what strength means.

    Returns:
        [N].
    """
    gap = difference(chosen_scores, rejected_scores)
    difference(gap, strength)  # of one shape
    strength = wide(strength)
    if form == "scaled":
        return -strength * F.logsigmoid(gap)
    if form == "soft":
        return -strength.sigmoid() * F.logsigmoid(gap) - (-strength).sigmoid() * F.logsigmoid(-gap)
    return -F.logsigmoid(gap - strength)


def outcome_bce(scores: Tensor, outcome: Tensor) -> Tensor:
    """Outcome reward model: binary cross-entropy of the whole answer, right or wrong.

    -y log σ(r) - (1-y) log σ(-r)  (Cobbe et al. 2021, arXiv 2110.14168, section 4.2). The paper takes the squared error at every token
    of the answer, and found cross-entropy no different (appendix B); here the score is that of the last token.

    ln 2 at r = 0; the minimum lies where σ(r) is the share of right answers; a soft label y is such a share (of raters, rollouts). Unlike
    Bradley-Terry's, these scores are comparable across prompts. Gradient on r: σ(r) - y.

    Args:
        scores: [S] score of the answer.
        outcome: [S] whether it is right (or liked), in [0, 1].

    Returns:
        [S].
    """
    return step_bce(scores, outcome)


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
