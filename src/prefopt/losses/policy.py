"""Policy gradients: token log-probs [T] under the policy and under the one that sampled, advantages [T] in; one loss a token out.

Every function is minimised. rho = pi/pi_old of a token. How the values are averaged (over tokens, over answers, by a constant) is said
by the method's row, not here; GRPO, DAPO and PPO differ in that and in their advantages alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.kl import kl_estimate
from prefopt.losses.numeric import difference, exp_tangent, require, wide
from prefopt.losses.pairwise import dpo
from prefopt.losses.ragged import segment_mean


def reinforce(logps: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE: raise the log-probs of what did better than the baseline.

    -A_t l_t  (Williams 1992, doi.org/10.1007/BF00992696, eq. 11; for language models Ahmadian et al. 2024, arXiv 2402.14740, eq. 6).

    Its gradient, not its value, means something: on samples of the policy the mean over answers of the sum over tokens has the gradient
    of -E[r]. Gradient on l_t: -A_t. A baseline that does not depend on the answer leaves its expectation unchanged.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        advantages: [T] never differentiated.

    Returns:
        [T].

    >>> reinforce(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0])).tolist()
    [0.5, -2.0]
    """
    _same(logps, advantages)
    return -wide(advantages.detach()) * wide(logps)


def ppo_clip(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """The clipped surrogate of PPO, GRPO and DAPO.

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)  (Schulman et al. 2017, arXiv 1707.06347, eq. 7; unequal bounds, "clip-higher":
    Yu et al. 2025, 2503.14476, eq. 10). With dual_clip c, where A < 0 the loss is at most -c A (Ye et al. 2019, 1912.09729, eq. 9); verl
    has it always on with c = 3, here it is off unless asked for. No clamp on the log-ratio (verl, OpenRLHF: 20 nats): beyond 30 nats rho
    goes on as its tangent, finite and with a gradient.

    -A at rho = 1, where the gradient is REINFORCE's. Gradient 0 exactly where A > 0 and rho > 1 + clip_high, or A < 0 and
    rho < 1 - clip_low: clipping bounds no ratio, it takes the incentive to go further away.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        old_logps: [T] of the policy that sampled them, by the same forward pass.
        advantages: [T] never differentiated.

    Options:
        clip_low: how far below 1 the ratio is rewarded to fall.
        clip_high: how far above 1 it is rewarded to rise.
        dual_clip: bound c > 1 on the ratio where the advantage is negative.

    Returns:
        [T].

    >>> ppo_clip(torch.tensor([0.0]), torch.tensor([-1.0]), torch.tensor([2.0])).tolist()
    [-2.40000...]
    """
    _require_clip(clip_low, clip_high)
    require(dual_clip is None or dual_clip > 1, "dual_clip", dual_clip, "a number above 1, or left out")
    _same(logps, advantages)
    return _clipped(_ratio(logps, old_logps), wide(advantages.detach()), clip_low, clip_high, dual_clip)


def dr_grpo(logps: Tensor, old_logps: Tensor, advantages: Tensor, room: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """Dr. GRPO: the clipped surrogate over a constant, so that long answers are not let off.

    ppo_clip / C, summed over the tokens of an answer, C the tokens an answer may have  (Liu et al. 2025, arXiv 2503.20783, section 3.2).
    TRL divides by the longest completion allowed, as here; verl by the padded width and not by the number of answers.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        old_logps: [T] of the policy that sampled them.
        advantages: [T] never differentiated.
        room: C, a scalar of the run (rollout.max_new_tokens).

    Options:
        clip_low: how far below 1 the ratio is rewarded to fall.
        clip_high: how far above 1 it is rewarded to rise.

    Returns:
        [T].
    """
    return ppo_clip(logps, old_logps, advantages, clip_low=clip_low, clip_high=clip_high) / room


def gspo(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, sequence: Tensor, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> Tensor:
    """GSPO: one ratio an answer, the geometric mean of its tokens' ratios, clipped as a whole.

    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),  s = exp(mean_t(l_t - l_t^old))  (Zheng et al. 2025, arXiv 2507.18071, eqs. 5
    and 7), the same at every token of an answer. Its mean over the tokens of each answer is the paper's loss; for advantages that are
    constant over an answer verl's GSPO-token (eq. 13) is the same in value and gradient.

    -A at s = 1. Gradient on l_t of an answer of n tokens: -s A / n, or 0 where clipped. Ratios of whole answers move less than those of
    tokens: hence the narrow bounds.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        old_logps: [T] of the policy that sampled them.
        advantages: [T] never differentiated.
        sequence: [T] int64, which answer a token belongs to.

    Options:
        clip_low: how far below 1 the ratio is rewarded to fall.
        clip_high: how far above 1 it is rewarded to rise.

    Returns:
        [T].
    """
    _require_clip(clip_low, clip_high)
    _same(logps, advantages)
    moved = difference(logps, old_logps.detach())
    order = sequence.argsort(stable=True)
    mean_S = segment_mean(moved[order], sequence[order], int(sequence.max()) + 1 if len(sequence) else 0)
    return _clipped(exp_tangent(mean_S)[sequence], wide(advantages.detach()), clip_low, clip_high)


def cispo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    clip_high: float = 4.0,
    clip_low: float | None = None,
    max_ratio: float | None = None,
) -> Tensor:
    """CISPO: the importance weight is clipped, the gradient never is.

    -sg(clip(rho, 1 - clip_low, 1 + clip_high)) A l  (MiniMax 2025, arXiv 2506.13585, eqs. 4 and 5, which leaves the low side open, as
    clip_low=None does; verl closes both). The default lets weights go up to 5, as ScaleRL does (2510.13786). TRL's bound is the largest
    weight itself, not its distance to 1: that form is max_ratio.

    Gradient on l_t: -w A with w the clipped weight; every token keeps one. At rho = 1 it is REINFORCE's.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        old_logps: [T] of the policy that sampled them.
        advantages: [T] never differentiated.

    Options:
        clip_high: the weight is at most 1 + clip_high.
        clip_low: the weight is at least 1 - clip_low; nothing leaves it open.
        max_ratio: the largest weight, in place of 1 + clip_high.

    Returns:
        [T].
    """
    require(clip_high > 0, "clip_high", clip_high, "positive")
    require(clip_low is None or 0 <= clip_low <= 1, "clip_low", clip_low, "in [0, 1], or left out")
    require(max_ratio is None or max_ratio > 0, "max_ratio", max_ratio, "positive, or left out")
    _same(logps, advantages)
    low, high = 0.0 if clip_low is None else 1 - clip_low, 1 + clip_high if max_ratio is None else max_ratio
    return -_ratio(logps, old_logps).detach().clamp(low, high) * wide(advantages.detach()) * wide(logps)


def xpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    explored: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1e-5,
) -> Tensor:
    """XPO: online DPO that is paid for leaving the reference's answers.

    -log σ(β (u - v)) + α log pi(y_ref)  (Xie et al. 2024, arXiv 2405.21046, algorithm 1): one answer of each pair is the policy's own,
    the other a sample of the reference, and the second term lowers the latter.

    ln 2 + α L at policy == reference; α = 0: online DPO with one answer of the reference.

    Args:
        chosen: [N] summed log-probs of the preferred answer, nats.
        rejected: [N] of the other.
        ref_chosen: [N] of the preferred answer under the reference.
        ref_rejected: [N] of the other.
        explored: [N] of the answer that the reference sampled.

    Options:
        beta: strength of the tie to the reference, per nat.
        alpha: α, the bonus for exploration.

    Returns:
        [N].
    """
    require(alpha >= 0, "alpha", alpha, "at least 0")
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta) + alpha * wide(explored)


def kl_penalty(logps: Tensor, ref_logps: Tensor, old_logps: Tensor | None = None, *, kind: str = "k3") -> Tensor:
    """The KL term of a loss, to be added with a coefficient.

    kl_estimate, or rho times it with the ratio differentiated when old_logps is given. On the policy's own samples the gradient of k2, and
    of rho k1 and rho k3, is that of KL(pi || ref); that of plain k3, DeepSeekMath's form (arXiv 2402.03300, eq. 4), is that of
    KL(ref || pi); that of plain k1 is 0 on average, and is refused.

    Args:
        logps: [T] log pi of the sampled tokens, nats.
        ref_logps: [T] of the reference.
        old_logps: [T] of the policy that sampled them: multiply by the ratio.

    Options:
        kind: k1, k2 or k3.

    Returns:
        [T].
    """
    require(kind != "k1" or old_logps is not None, "kind", kind, "k2 or k3 without the ratio: k1 has no gradient on average")
    values = kl_estimate(logps, ref_logps, kind)
    return values if old_logps is None else _ratio(logps, old_logps) * values


def _ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    return exp_tangent(difference(logps, old_logps.detach()))


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None) -> Tensor:
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def _require_clip(low: float, high: float) -> None:
    require(0 <= low <= 1, "clip_low", low, "in [0, 1]")
    require(high >= 0, "clip_high", high, "at least 0")


def _same(logps: Tensor, advantages: Tensor) -> None:
    if logps.shape != advantages.shape:
        raise ValueError(f"shapes differ: {tuple(logps.shape)} and {tuple(advantages.shape)}")
