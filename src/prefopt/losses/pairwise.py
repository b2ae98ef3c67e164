"""Learning from preference pairs: DPO and its family, with and without a reference.

Every loss takes summed log-probs of N pairs and gives [N], one value a pair, whose mean over the pairs of a step is minimised.
Notation of the formulas: L_w, L_l are log-probs of the chosen and the rejected completion (sums over scored tokens, nats), n their
tokens, u = L_w - L_w^ref, v = L_l - L_l^ref, D = u - v; σ is the logistic function, sp(z) = log(1 + e^z).

Arguments are the same throughout and are described here once:

    chosen, rejected          [N] L_w, L_l of the policy            ref_chosen, ref_rejected  [N] of the reference, never differentiated
    chosen_len, rejected_len  [N] scored tokens n_w, n_l            beta  tie to the reference, per nat of log-ratio

A larger beta keeps the optimum closer to the reference (target margin: reward gap / beta), while the first gradients grow with
beta: with a fixed learning rate and few steps a larger beta moves faster. The "D-family" depends on D alone: adding a constant to both
L_w and L_l changes nothing, and the gradients on L_w and L_l are opposite.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.numeric import difference, exp_tangent, log1mexp, log_ratio, require, token_mean, wide

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def _log_ratios(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Tensor]:
    """u and v [N]; refuses shapes that differ."""
    u, v = log_ratio(chosen, ref_chosen), log_ratio(rejected, ref_rejected)
    difference(u, v)
    return u, v


def _margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """D = u - v [N]."""
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return u - v


def _smoothed(logit: Tensor, eps: float) -> Tensor:
    """-(1-ε) log σ(z) - ε log σ(-z) [N]: the logistic loss when a share ε of the labels is wrong."""
    require(0 <= eps < 1, "label_smoothing", eps, "in [0, 1)")
    return -(1 - eps) * F.logsigmoid(logit) - eps * F.logsigmoid(-logit)


# --- functions of D ---------------------------------------------------------------------------------------------------


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    divergence: Divergence = "reverse_kl",
    alpha: float | None = None,
) -> Tensor:
    """DPO: direct preference optimization, for any f-divergence.

    -log σ(β D)  (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); with another divergence -log σ(β (f'(e^u) - f'(e^v)))
    (Wang et al. 2023, 2309.16240, table 1): f'(z) = log z (reverse KL), 1 - 1/z (forward KL), log 2z/(1+z) (Jensen-Shannon),
    (z^(α-1) - 1)/(α-1) (alpha; log z as α -> 1, forward KL at α = 0; the paper's own α is 1 - α here).

    ln 2 at policy == reference. βD -> ∞: 0; -> -∞: -βD. β -> 0: ln 2. dL/dL_w = -β σ(-βD). Reverse KL is of the D-family, the others
    are not. e^x goes on as its tangent beyond x = 30. Beware: the loss also falls while both log-probs sink; watch logps/chosen, and hold
    it up with mix.sft.

    Options:
        divergence: what ties the policy to the reference.
        alpha: α of the alpha divergence, which requires it; the others refuse it.

    >>> zero = torch.zeros(1)
    >>> dpo(zero, zero, zero, zero).item()
    0.6931...
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    require(divergence in get_args(Divergence), "divergence", divergence, "one of " + ", ".join(get_args(Divergence)))
    needed = "a number with divergence=alpha" if divergence == "alpha" else "left out unless divergence=alpha"
    require((alpha is None) == (divergence != "alpha"), "alpha", alpha, needed)
    power = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(divergence, alpha)
    slope = F.logsigmoid if power is None else partial(_power_slope, alpha=power)  # JS: log 2z/(1+z) = log σ(log z) + log 2
    return -F.logsigmoid(beta * (slope(u) - slope(v)))


def _power_slope(ratio: Tensor, alpha: float) -> Tensor:
    """(z^(α-1) - 1)/(α-1) at z = e^ratio [N]: log z at α = 1, 1 - 1/z at α = 0."""
    if alpha == 1:
        return ratio
    power = (alpha - 1) * ratio
    # expm1 keeps the digits that e^power - 1 loses as α -> 1.
    return torch.where(power < 1, power.clamp(max=1).expm1(), exp_tangent(power) - 1) / (alpha - 1)


def cdpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Conservative DPO: label smoothing for a share ε of wrong preferences.

    -(1-ε) log σ(βD) - ε log σ(-βD)  (Mitchell 2023, ericmitchell.ai/cdpo.pdf; arXiv 2305.18290 with smoothed labels).

    ln 2 at policy == reference; minimum at βD = log((1-ε)/ε); ε = 0 is DPO, ε = 1/2 pulls to D = 0. D-family.

    Options:
        label_smoothing: ε in [0, 1).
    """
    return _smoothed(beta * _margin(chosen, rejected, ref_chosen, ref_rejected), label_smoothing)


def robust_dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Robust DPO: unbiased under a known share ε of flipped preferences.

    [-(1-ε) log σ(βD) + ε log σ(-βD)] / (1 - 2ε)  (Ray Chowdhury et al. 2024, arXiv 2403.00409, section 3.1).

    ln 2 at policy == reference. Its mean over flips of rate ε is DPO's loss on clean labels. D-family. Beware: it may be negative, and as
    D -> ∞ it falls with slope -εβ/(1-2ε), without bound: on pairs a model can separate, margins grow for ever.

    Options:
        label_smoothing: ε in [0, 1/2).
    """
    require(0 <= label_smoothing < 0.5, "label_smoothing", label_smoothing, "in [0, 0.5): at 1/2 labels carry no information")
    logit = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    return (-(1 - label_smoothing) * F.logsigmoid(logit) + label_smoothing * F.logsigmoid(-logit)) / (1 - 2 * label_smoothing)


def hinge(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """RSO's hinge on the implicit reward margin.

    max(0, 1 - βD)  (Liu et al. 2023, arXiv 2309.06657, eq. 10, hinge-norm). Unlike SLiC-HF it uses the reference.

    1 at policy == reference; no gradient once βD >= 1. D-family.
    """
    return F.relu(1 - beta * _margin(chosen, rejected, ref_chosen, ref_rejected))


def exo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """EXO: the reverse KL of the policy's preference to the smoothed label.

    σ(βD) [log σ(βD) - log(1-ε)] + σ(-βD) [log σ(-βD) - log ε]  (Ji et al. 2024, arXiv 2402.00856, EXO-pref, eq. 16).

    Never negative; 0 exactly at βD = log((1-ε)/ε); -½ log(4ε(1-ε)) at policy == reference. D -> ∞: -log(1-ε); -> -∞: -log ε. D-family.
    Beware: gradients vanish in both tails, so a pair ranked far wrong is left alone.

    Options:
        label_smoothing: ε in (0, 1); 0 would be infinite.
    """
    require(0 < label_smoothing < 1, "label_smoothing", label_smoothing, "in (0, 1): at 0 the loss is infinite")
    logit = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    win = logit.sigmoid() * (F.logsigmoid(logit) - math.log(1 - label_smoothing))
    return win + (-logit).sigmoid() * (F.logsigmoid(-logit) - math.log(label_smoothing))


def discopop(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """DiscoPOP: a loss found by search, logistic and exponential mixed by a gate.

    (1-s) sp(-z) + s e^{-z},  z = βD, s = σ(z/τ)  (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    (ln 2 + 1)/2 at policy == reference. D-family. Beware: it is not convex. At τ = 0.05 its slope there is +0.784, so training starts by
    SHRINKING margins; local minimum at z = -0.1186, local maximum at z = 0.0720.

    Options:
        tau: τ in (0, 1], the width of the gate.
    """
    require(0 < tau <= 1, "tau", tau, "in (0, 1]")
    z = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    gate = z / tau
    # s e^{-z} as one exponential: for z -> -∞ the factors are 0 and inf.
    return (-gate).sigmoid() * F.softplus(-z) + (F.logsigmoid(gate) - z).exp()


def odpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    offset: Tensor | float,
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Tensor:
    """ODPO: DPO with an offset, so that stronger preferences need larger margins.

    -log σ(βD - α Δ)  (Amini et al. 2024, arXiv 2402.10571); Δ is a growing function of the gap in quality.

    sp(αΔ) at policy == reference; Δ = 0 is DPO. D-family.

    Options:
        offset: Δ [N] or a number; in training the data's `margin`, so not an option of the command line.
        alpha: scale of the offset.
    """
    logit = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    offset_N = torch.as_tensor(offset, dtype=logit.dtype, device=logit.device).expand(logit.shape)
    return -F.logsigmoid(logit - alpha * offset_N)


def wpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_weight: Tensor,
    rejected_weight: Tensor,
    *,
    beta: float = 0.1,
    max_weight: float | None = None,
) -> Tensor:
    """WPO: DPO weighted by how likely the policy itself is to write the pair.

    -w(y_w) w(y_l) log σ(βD),  w(y) = exp(mean_t(l_t - log Σ_V p_t²)), never differentiated
    (Zhou et al. 2024, arXiv 2406.11827, eq. 2, with sampled alignment).

    w_w w_l ln 2 at policy == reference. The weights [N] come from outside: with them fixed it is of the D-family.

    Options:
        max_weight: largest product of weights; none in the paper, 1 in the authors' code.
    """
    require(max_weight is None or max_weight > 0, "max_weight", max_weight, "positive, or left out")
    logit = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    weight = wide(chosen_weight).detach() * wide(rejected_weight).detach()
    if max_weight is not None:
        weight = weight.clamp(max=max_weight)
    difference(weight, logit)
    return -weight * F.logsigmoid(logit)


# --- functions of D and of the lengths --------------------------------------------------------------------------------


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    chosen_len: Tensor | None = None,
    rejected_len: Tensor | None = None,
    length_normalized: bool = False,
) -> Tensor:
    """IPO: a squared loss that stops at a finite margin.

    (D - 1/(2β))², β the paper's τ  (Azar et al. 2023, arXiv 2310.12036, eq. 17); length-normalised: (u/n_w - v/n_l - 1/(2β))²,
    the form the authors report using, whose target is in nats per TOKEN (5 at β = 0.1).

    1/(4β²) at policy == reference. Population optimum D = (p - 1/2)/β for preference probability p. The summed form is of the D-family.
    Beware: the two forms aim at margins of different units, so a β tuned for one does not serve the other.

    Options:
        length_normalized: per-token means instead of sums; needs both lengths.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    if length_normalized:
        if chosen_len is None or rejected_len is None:
            raise ValueError("length_normalized needs chosen_len and rejected_len")
        u, v = token_mean(u, chosen_len), token_mean(v, rejected_len)
    return (u - v - 1 / (2 * beta)).square()


def dpo_norm(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_len: Tensor,
    rejected_len: Tensor,
    *,
    beta: float = 5.0,
) -> Tensor:
    """Length-normalised DPO, of Tülu 3.

    -log σ(β (u/n_w - v/n_l))  (Lambert et al. 2024, arXiv 2411.15124).

    ln 2 at policy == reference; with n_w = n_l = n it is DPO at β/n. Beware: β is per nat per TOKEN, so DPO's usual 0.1 is far too small.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * (token_mean(u, chosen_len) - token_mean(v, rejected_len)))


def rdpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_len: Tensor,
    rejected_len: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.01,
) -> Tensor:
    """R-DPO: DPO that discounts preferences explained by length.

    -log σ(βD + α (n_w - n_l))  (Park et al. 2024, arXiv 2403.19159). The sign follows from the reward β log(pi/ref) + α n.

    sp(-α (n_w - n_l)) at policy == reference; α > 0 weakens the push where the winner is longer; α = 0 is DPO. D-family.
    Beware: public codes disagree on the sign of α.

    Options:
        alpha: reward units per token.
    """
    logit = beta * _margin(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(logit + alpha * difference(chosen_len, rejected_len))


def ld_dpo(
    chosen_parts: Tensor,
    rejected_parts: Tensor,
    ref_chosen_parts: Tensor,
    ref_rejected_parts: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """LD-DPO: DPO less sensitive to length; tokens beyond the shorter answer's length weigh α, in policy and reference.

    -log σ(β D'),  L'(y) = Σ_{t <= m} l_t + α Σ_{t > m} l_t,  m = min(n_w, n_l)  (Liu et al. 2024, arXiv 2409.06411).

    ln 2 at policy == reference; α = 1 is DPO; α = 0 cuts both to the shared length. The parts are [N, 2]: log-probs summed over the
    first m tokens, and over the rest.

    Options:
        alpha: α in [0, 1].
    """
    require(0 <= alpha <= 1, "alpha", alpha, "in [0, 1]")
    shared, beyond = _margin(chosen_parts, rejected_parts, ref_chosen_parts, ref_rejected_parts).unbind(-1)
    return -F.logsigmoid(beta * (shared + alpha * beyond if alpha else shared))


def rpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_len: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
) -> Tensor:
    """RPO: DPO plus the negative log-likelihood per token of the chosen answer.

    -log σ(βD) - α L_w/n_w  (Pang et al. 2024, arXiv 2404.19733, eq. 1). Keeps the chosen log-prob from sinking.

    ln 2 - α L_w/n_w at policy == reference; α = 0 is DPO.

    Options:
        alpha: weight of the likelihood term.
    """
    require(alpha >= 0, "alpha", alpha, "at least 0")
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta) - alpha * token_mean(chosen, chosen_len)


# --- functions of u and v apart ---------------------------------------------------------------------------------------


def nca(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """NCA: noise contrastive alignment on pairs.

    -log σ(βu) - ½ log σ(-βu) - ½ log σ(-βv)  (Chen et al. 2024, arXiv 2402.05369, section 4.1).

    2 ln 2 at policy == reference. The chosen reward has a finite optimum, βu = ln 2, so the chosen log-prob does not sink; the rejected
    one is pushed down for ever.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * u) - 0.5 * F.logsigmoid(-beta * u) - 0.5 * F.logsigmoid(-beta * v)


def bco_pair(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """BCO on pairs: each side classified on its own, without reward shift.

    -log σ(βu) - log σ(-βv)  (Jung et al. 2024, arXiv 2404.04656, section 4, with δ = 0).

    2 ln 2 at policy == reference. An upper bound of DPO's loss.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * u) - F.logsigmoid(-beta * v)


def sppo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 1e-3) -> Tensor:
    """SPPO with hard labels: self-play, each log-ratio towards its own target.

    (u - 1/(2β))² + (v + 1/(2β))², β the paper's 1/η  (Wu et al. 2024, arXiv 2405.00675, section 3). The reference must be the
    PREVIOUS iterate, and the completions its samples.

    1/(2β²) at policy == reference; 0 at u = 1/(2β), v = -1/(2β). Beware: with a reference other than the sampler the targets are wrong.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    target = 1 / (2 * beta)
    return (u - target).square() + (v + target).square()


def apo_zero(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-zero: raises the chosen and lowers the rejected, for chosen answers better than the policy's own.

    1 - σ(βu) + σ(βv)  (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    1 at policy == reference; between 0 and 2; gradients vanish in both tails.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return (-beta * u).sigmoid() + (beta * v).sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-down: lowers both, the rejected more, for a policy better than the chosen answers.

    σ(βu) + 1 - σ(βD)  (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8).

    1 at policy == reference, where the gradient on the chosen is exactly 0 and the rejected is pushed down; between 0 and 2. Beware: alone
    it lowers every answer it sees and has no optimum but at the edge; hold the chosen up with mix.sft.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return (beta * u).sigmoid() + (-beta * (u - v)).sigmoid()


def dpop(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, penalty: float = 50.0) -> Tensor:
    """DPO-positive: DPO with a penalty where the chosen log-prob falls below the reference's.

    -log σ(β (D - λ max(0, -u)))  (Pal et al. 2024, arXiv 2402.13228, eq. 3). The penalty lies inside σ and is multiplied by β.

    ln 2 at policy == reference; DPO's value while u >= 0.

    Options:
        penalty: λ (5, 50 and 500 in the paper).
    """
    require(penalty >= 0, "penalty", penalty, "at least 0")
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(beta * (u - v - penalty * F.relu(-u)))


def chipo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, r_max: float = 1.0) -> Tensor:
    """χPO: DPO tied to the reference by chi-squared and KL divergence, against over-optimization.

    -log σ(clip_{±2R}[β φ(e^u) - β φ(e^v)]),  φ(z) = z + log z  (Huang et al. 2024, arXiv 2407.13399, Algorithm 1).

    ln 2 at policy == reference, with twice DPO's slope; between log(1 + e^{-2R}) and log(1 + e^{2R}).
    e^x goes on as its tangent beyond x = 30. Beware: pairs whose margin is clipped have no gradient.

    Options:
        r_max: R, the bound on rewards.
    """
    require(r_max > 0, "r_max", r_max, "positive")
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    margin = beta * (exp_tangent(u) + u) - beta * (exp_tangent(v) + v)
    return -F.logsigmoid(margin.clamp(-2 * r_max, 2 * r_max))


# --- coupled over the batch -------------------------------------------------------------------------------------------


def aot(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """AOT: the policy's margins dominate the reference's as a distribution (alignment by optimal transport).

    cDPO of βδ,  δ = sort(L_w - L_l) - sort(L_w^ref - L_l^ref)  (Melnyk et al. 2024, arXiv 2406.05882, section 3, paired).

    ln 2 at policy == reference; one pair is cDPO. Beware: sorting couples the pairs, so all pairs of an optimizer step belong in one call
    and train.batch_size is part of the objective.

    Options:
        label_smoothing: ε in [0, 1).

    Returns:
        [N], in the order of the sorted margins.
    """
    gap, ref_gap = difference(chosen, rejected), difference(ref_chosen, ref_rejected).detach()
    return _smoothed(beta * difference(gap.sort().values, ref_gap.sort().values), label_smoothing)


def aot_unpaired(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """AOT unpaired: the chosen rewards dominate the rejected ones as a distribution.

    cDPO of βδ,  δ = sort(u) - sort(v)  (Melnyk et al. 2024, arXiv 2406.05882, section 3, unpaired).

    ln 2 at policy == reference; which rejected belongs to which chosen does not matter. Beware: sorting couples the pairs, so all pairs of
    an optimizer step belong in one call and train.batch_size is part of the objective.

    Options:
        label_smoothing: ε in [0, 1).

    Returns:
        [N], in the order of the sorted rewards.
    """
    u, v = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return _smoothed(beta * (u.sort().values - v.sort().values), label_smoothing)


# --- without a reference ----------------------------------------------------------------------------------------------


def simpo(chosen: Tensor, rejected: Tensor, chosen_len: Tensor, rejected_len: Tensor, *, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """SimPO: per-token log-probs as rewards and a target margin, no reference.

    -log σ(β (L_w/n_w - L_l/n_l) - γ)  (Meng et al. 2024, arXiv 2405.14734, eq. 6). γ is subtracted from the margin, after β; others
    write it as a ratio γ/β.

    sp(γ) where both have the same mean. Repeating every token k times changes nothing. Beware: the margin asked for is γ/β nats per TOKEN;
    β = 0.1 with γ = 0.5 asks for 5.

    Options:
        beta: scale of the reward, per nat per token.
        gamma: target margin, in reward units.
    """
    margin = token_mean(chosen, chosen_len) - token_mean(rejected, rejected_len)
    return -F.logsigmoid(beta * margin - gamma)


def slic(chosen: Tensor, rejected: Tensor, *, delta: float = 1.0, sft_weight: float = 0.1) -> Tensor:
    """SLiC-HF: rank calibration by a hinge on sequence log-probs, no reference.

    max(0, δ - L_w + L_l) - λ L_w, all sums  (Zhao et al. 2023, arXiv 2305.10425, eq. 4; regularised towards the chosen answer).

    δ - λ L_w where both are equally likely; the hinge is 0 once L_w - L_l >= δ. RSO's hinge, often called SLiC, uses the reference.

    Options:
        delta: margin in nats.
        sft_weight: λ.
    """
    require(sft_weight >= 0, "sft_weight", sft_weight, "at least 0")
    return F.relu(delta - difference(chosen, rejected)) - sft_weight * wide(chosen)


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    chosen_len: Tensor | None = None,
    length_normalized: bool = False,
) -> Tensor:
    """CPO: DPO with a uniform reference, plus the negative log-likelihood of the chosen answer.

    -log σ(β (L_w - L_l)) - λ L_w  (Xu et al. 2024, arXiv 2401.08417, section 3: the likelihood term is a SUM over tokens);
    length-normalised: -λ L_w/n_w, nearer to TRL's token mean.

    ln 2 - λ L_w where both are equally likely. Beware: the likelihood term is a sum, so it outweighs the preference on long answers.

    Options:
        beta: scale of the margin, per nat.
        nll_weight: λ.
        length_normalized: the likelihood term per token; needs chosen_len.
    """
    require(nll_weight >= 0, "nll_weight", nll_weight, "at least 0")
    if length_normalized and chosen_len is None:
        raise ValueError("length_normalized needs chosen_len")
    likelihood = token_mean(chosen, chosen_len) if length_normalized and chosen_len is not None else wide(chosen)
    return -F.logsigmoid(beta * difference(chosen, rejected)) - nll_weight * likelihood


def orpo(chosen: Tensor, rejected: Tensor, chosen_len: Tensor, rejected_len: Tensor, *, weight: float = 0.1) -> Tensor:
    """ORPO's odds-ratio term; the method adds the NLL of the chosen answers.

    -λ log σ(o_w - o_l),  o = log P/(1-P), P = exp(L/n)  (Hong et al. 2024, arXiv 2403.07691, eqs. 4, 6 and 7). The authors take the NLL
    over prompt and answer; here it is over the answer's tokens.

    λ ln 2 where both have the same mean; λ = 0 is SFT; for small P the odds tend to L/n. A mean within one rounding of 0 is read as that.

    Options:
        weight: λ.
    """
    require(weight >= 0, "weight", weight, "at least 0")
    log_odds = [(mean := token_mean(total, n)) - log1mexp(mean) for total, n in ((chosen, chosen_len), (rejected, rejected_len))]
    return -weight * F.logsigmoid(difference(*log_odds))
