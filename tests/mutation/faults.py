"""FAULTS: mistakes one could make, as small changes of the source.

A fault is (what it is, where, old text, new text); where is "" when the old text stands once in the file, otherwise a text (mostly the
head of a function) after which its first occurrence is meant. When the code changes, its faults change with it: `make mutate` says which
no longer apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Line = tuple[str, str, str, str]


@dataclass(frozen=True)
class Fault:
    """One mistake in one file (path below src/prefopt); `survives` says why no test can see it, where that is known."""

    file: str
    what: str
    where: str
    old: str
    new: str
    survives: str = ""

    @property
    def name(self) -> str:
        """File and mistake."""
        return f"{self.file}: {self.what}"

    def applied(self, source: str) -> str | None:
        """The source with the mistake in it; None where the old text is not found, or found twice without a place to start from."""
        start = source.find(self.where)
        if start < 0 or self.old not in source[start:] or (not self.where and source.count(self.old) > 1):
            return None
        return source[:start] + source[start:].replace(self.old, self.new, 1)


# fmt: off
PAIRWISE: tuple[Line, ...] = (
    ("sign", "def dpo(", "return -F.logsigmoid(beta", "return F.logsigmoid(beta"),
    ("beta twice", "def dpo(", "F.logsigmoid(beta * (slope", "F.logsigmoid(beta * beta * (slope"),
    ("beta missing", "def dpo(", "F.logsigmoid(beta * (slope", "F.logsigmoid((slope"),
    ("f' of the rejected added", "def dpo(", "slope(u) - slope(v)", "slope(u) + slope(v)"),
    ("chosen and rejected swapped", "def dpo(", "slope(u) - slope(v)", "slope(v) - slope(u)"),
    ("forward KL is reverse KL", "", "\"forward_kl\": 0.0", "\"forward_kl\": 1.0"),
    ("power of f' off by one", "def _power_slope", "power = (alpha - 1) * ratio", "power = alpha * ratio"),
    ("f' not divided", "def _power_slope", "exp_tangent(power) - 1) / (alpha - 1)", "exp_tangent(power) - 1)"),
    ("policy and reference swapped", "def _log_ratios", "log_ratio(chosen, ref_chosen)", "log_ratio(ref_chosen, chosen)"),
    ("reference of the rejected taken for both", "def _log_ratios", "log_ratio(chosen, ref_chosen)", "log_ratio(chosen, ref_rejected)"),
    ("reference left out", "def _log_ratios", "log_ratio(rejected, ref_rejected)", "wide(rejected)"),
    ("margin added", "def _margin", "return u - v", "return u + v"),
    ("smoothing both ways the same", "def _smoothed", "- eps * F.logsigmoid(-logit)", "- eps * F.logsigmoid(logit)"),
    ("smoothing of the wrong side", "def _smoothed", "-(1 - eps) * F.logsigmoid(logit)", "-eps * F.logsigmoid(logit)"),
    ("robust: plus for minus", "def robust_dpo", "+ label_smoothing * F.logsigmoid(-logit)", "- label_smoothing * F.logsigmoid(-logit)"),
    ("robust: not rescaled", "def robust_dpo", ") / (1 - 2 * label_smoothing)", ")"),
    ("robust: rescaled by 1 - ε", "def robust_dpo", "/ (1 - 2 * label_smoothing)", "/ (1 - label_smoothing)"),
    ("hinge: sign of the margin", "def hinge", "F.relu(1 - beta", "F.relu(1 + beta"),
    ("hinge: margin without beta", "def hinge", "1 - beta * _margin", "1 - _margin"),
    ("exo: forward KL", "def exo", "win = logit.sigmoid() * (", "win = (1 - label_smoothing) * ("),
    ("exo: labels swapped", "def exo", "math.log(1 - label_smoothing)", "math.log(label_smoothing)"),
    ("exo: losing side left out", "def exo", "return win + (-logit).sigmoid()", "return win + 0 * (-logit).sigmoid()"),
    ("discopop: gate turned round", "def discopop", "(-gate).sigmoid() * F.softplus", "gate.sigmoid() * F.softplus"),
    ("discopop: tau multiplies", "def discopop", "gate = z / tau", "gate = z * tau"),
    ("odpo: offset added", "def odpo", "logit - alpha * offset_N", "logit + alpha * offset_N"),
    ("odpo: offset times beta", "def odpo", "logit - alpha * offset_N", "logit - beta * alpha * offset_N"),
    ("wpo: weight differentiated", "def wpo", "wide(chosen_weight).detach()", "wide(chosen_weight)"),
    ("wpo: weight of one side only", "def wpo", ".detach() * wide(rejected_weight).detach()", ".detach()"),
    ("wpo: weight inside the logarithm", "def wpo", "-weight * F.logsigmoid(logit)", "-F.logsigmoid(weight * logit)"),
    ("ipo: target 1/beta", "def ipo", "1 / (2 * beta)).square()", "1 / beta).square()"),
    ("ipo: sign of the target", "def ipo", "(u - v - 1 / (2", "(u - v + 1 / (2"),
    ("ipo: lengths swapped", "def ipo", "token_mean(u, chosen_len), token_mean(v, rejected_len)", "token_mean(u, rejected_len), token_mean(v, chosen_len)"),
    ("ipo: normalisation ignored", "def ipo", "u, v = token_mean(u, chosen_len)", "_ = token_mean(u, chosen_len)"),
    ("dpo_norm: one length for both", "def dpo_norm", "token_mean(v, rejected_len)", "token_mean(v, chosen_len)"),
    ("rdpo: sign of the length term", "def rdpo", "logit + alpha * difference", "logit - alpha * difference"),
    ("rdpo: length term times beta", "def rdpo", "logit + alpha * difference", "logit + beta * alpha * difference"),
    ("ld_dpo: alpha on the shared part", "def ld_dpo", "(shared + alpha * beyond if", "(alpha * shared + beyond if"),
    ("ld_dpo: tail in full", "def ld_dpo", "(shared + alpha * beyond if", "(shared + beyond if"),
    ("rpo: likelihood summed", "def rpo", "- alpha * token_mean(chosen, chosen_len)", "- alpha * wide(chosen)"),
    ("rpo: likelihood pushed down", "def rpo", "- alpha * token_mean(chosen, chosen_len)", "+ alpha * token_mean(chosen, chosen_len)"),
    ("nca: half forgotten", "def nca", "- 0.5 * F.logsigmoid(-beta * u)", "- F.logsigmoid(-beta * u)"),
    ("nca: rejected raised", "def nca", "0.5 * F.logsigmoid(-beta * v)", "0.5 * F.logsigmoid(beta * v)"),
    ("bco_pair: rejected raised", "def bco_pair", "- F.logsigmoid(-beta * v)", "- F.logsigmoid(beta * v)"),
    ("sppo: targets alike", "def sppo", "(v + target)", "(v - target)"),
    ("sppo: target 1/beta", "def sppo", "target = 1 / (2 * beta)", "target = 1 / beta"),
    ("apo_zero: chosen lowered", "def apo_zero", "(-beta * u).sigmoid()", "(beta * u).sigmoid()"),
    ("apo_zero: margin for the rejected", "def apo_zero", "(beta * v).sigmoid()", "(-beta * (u - v)).sigmoid()"),
    ("apo_down: chosen raised", "def apo_down", "return (beta * u).sigmoid()", "return (-beta * u).sigmoid()"),
    ("apo_down: pair turned round", "def apo_down", "(-beta * (u - v))", "(beta * (u - v))"),
    ("dpop: penalty outside beta", "def dpop", "beta * (u - v - penalty * F.relu(-u))", "beta * (u - v) - penalty * F.relu(-u)"),
    ("dpop: penalty where the chosen rises", "def dpop", "F.relu(-u)", "F.relu(u)"),
    ("dpop: penalty on the rejected", "def dpop", "F.relu(-u)", "F.relu(-v)"),
    ("chipo: without the KL part", "def chipo", "(exp_tangent(u) + u)", "exp_tangent(u)"),
    ("chipo: bound R for 2R", "def chipo", "clamp(-2 * r_max, 2 * r_max)", "clamp(-r_max, r_max)"),
    ("chipo: bound before beta", "def chipo", "-F.logsigmoid(margin.clamp(-2 * r_max, 2 * r_max))", "-F.logsigmoid(margin)"),
    ("aot: reference not sorted", "def aot(", "ref_gap.sort().values", "ref_gap"),
    ("aot: neither sorted", "def aot(", "difference(gap.sort().values, ref_gap.sort().values)", "difference(gap, ref_gap)"),
    ("aot: reference differentiated", "def aot(", "difference(ref_chosen, ref_rejected).detach()", "difference(ref_chosen, ref_rejected)"),
    ("aot_unpaired: sorted apart", "def aot_unpaired", "u.sort().values - v.sort().values", "u.sort().values - v.sort(descending=True).values"),
    ("simpo: gamma times beta", "def simpo", "beta * margin - gamma", "beta * (margin - gamma)"),
    ("simpo: gamma added", "def simpo", "beta * margin - gamma", "beta * margin + gamma"),
    ("simpo: sums for means", "def simpo", "token_mean(chosen, chosen_len) - token_mean(rejected, rejected_len)", "wide(chosen) - wide(rejected)"),
    ("slic: hinge turned round", "def slic", "delta - difference(chosen, rejected)", "delta - difference(rejected, chosen)"),
    ("slic: regulariser on the rejected", "def slic", "sft_weight * wide(chosen)", "sft_weight * wide(rejected)"),
    ("cpo: likelihood left out", "def cpo", " - nll_weight * likelihood", " - 0 * nll_weight * likelihood"),
    ("cpo: likelihood per token always", "def cpo", "if length_normalized and chosen_len is not None else", "if chosen_len is not None else"),
    ("orpo: odds of sums", "def orpo", "mean := token_mean(total, n)", "mean := wide(total)"),
    ("orpo: probabilities for odds", "def orpo", " - log1mexp(mean) for", " for"),
    ("orpo: sign", "def orpo", "return -weight", "return weight"),
)
UNPAIRED: tuple[Line, ...] = (
    ("kto: reference point not clamped", "def kto", ".detach().clamp(min=0)", ".detach()"),
    ("kto: reference point differentiated", "def kto", ".detach().clamp(min=0)", ".clamp(min=0)"),
    ("kto: reference point added", "def kto", "beta * (ratio - point)", "beta * (ratio + point)"),
    ("kto: beta only on the ratio", "def kto", "beta * (ratio - point)", "beta * ratio - point"),
    ("kto: labels swapped", "def kto", "torch.where(label, desirable_weight", "torch.where(~label, desirable_weight"),
    ("kto: weights swapped", "def kto", "desirable_weight * torch.sigmoid(-gain), undesirable_weight", "undesirable_weight * torch.sigmoid(-gain), desirable_weight"),
    ("kto: both sides raised", "def kto", "undesirable_weight * torch.sigmoid(gain)", "undesirable_weight * torch.sigmoid(-gain)"),
    ("apo_zero_unpaired: beta forgotten", "def apo_zero_unpaired", "kl=0.0, beta=beta", "kl=0.0"),
    ("bco: shift added", "def bco", "logit = reward - torch", "logit = reward + torch"),
    ("bco: shift differentiated", "def bco", "device=reward.device).detach()", "device=reward.device)"),
    ("bco: labels swapped", "def bco", "torch.where(label, logit, -logit)", "torch.where(label, -logit, logit)"),
)
LISTWISE: tuple[Line, ...] = (
    ("items before the place compete", "", "device=scores.device).triu()", "device=scores.device).tril()"),
    ("an item does not compete with itself", "", ".triu()", ".triu(1)"),
    ("absent items counted", "", "torch.where(present, log_total - scores, 0.0)", "(log_total - scores)"),
    ("mean over places", "", "0.0).sum(1)", "0.0).mean(1)"),
    ("sign", "", "log_total - scores, 0.0", "scores - log_total, 0.0"),
    ("beta missing", "def pl_dpo", "torch.where(present, beta * ratio", "torch.where(present, ratio"),
    ("absent items at 0", "def pl_dpo", "beta * ratio, -torch.inf", "beta * ratio, 0.0"),
)
REWARD: tuple[Line, ...] = (
    ("margin added", "", "difference(gap, margin)", "difference(gap, -margin)"),
    ("margin ignored", "", "gap = difference(gap, margin)", "gap = gap"),
    ("scores swapped", "def bradley_terry(", "difference(chosen_scores, rejected_scores)", "difference(rejected_scores, chosen_scores)"),
    ("centering of the difference", "", "(wide(chosen_scores) + wide(rejected_scores))", "(wide(chosen_scores) - wide(rejected_scores))"),
    ("centering without square", "", "wide(rejected_scores)).square()", "wide(rejected_scores)).abs()"),
    ("smoothing on one side", "", " - label_smoothing * F.logsigmoid(-gap)", ""),
    ("step labels flipped", "", "wide(logits), labels.to", "wide(logits), 1 - labels.to"),
    ("ties: a tie is a win", "def bradley_terry_ties", "torch.where(tied, log_nu, gap / 2)", "torch.where(tied, gap / 2, gap / 2)"),
    ("ties: threshold helps the winner", "def bradley_terry_ties", "F.logsigmoid(gap - eta)\n", "F.logsigmoid(gap + eta)\n"),
    ("ties: tie and win swapped", "def bradley_terry_ties", "-torch.where(tied, tie, win)", "-torch.where(tied, win, tie)"),
    ("ties: share halved", "def bradley_terry_ties", "2 * tie_share / (1 - tie_share)", "tie_share / (1 - tie_share)"),
    ("graded: strength ignored when scaled", "def graded", "return -strength * F.logsigmoid(gap)", "return -F.logsigmoid(gap)"),
    ("graded: soft labels turned round", "def graded", "-strength.sigmoid() * F.logsigmoid(gap)", "-(-strength).sigmoid() * F.logsigmoid(gap)"),
    ("graded: margin added", "def graded", "F.logsigmoid(gap - strength)", "F.logsigmoid(gap + strength)"),
)
POLICY: tuple[Line, ...] = (
    ("reinforce: sign", "def reinforce", "return -wide(advantages.detach())", "return wide(advantages.detach())"),
    ("reinforce: advantage differentiated", "def reinforce", "wide(advantages.detach())", "wide(advantages)"),
    ("ppo: maximum for minimum", "def _clipped", "-torch.minimum(ratio", "-torch.maximum(ratio"),
    ("ppo: bounds swapped", "def _clipped", "clamp(1 - low, 1 + high)", "clamp(1 - high, 1 + low)"),
    ("ppo: clipped always", "def _clipped", "torch.minimum(ratio * advantages, ratio.clamp", "torch.minimum(ratio.clamp(1 - low, 1 + high) * advantages, ratio.clamp"),
    ("ppo: dual clip on the wrong side", "def _clipped", "advantages < 0, torch.minimum", "advantages > 0, torch.minimum"),
    ("ppo: dual clip raises", "def _clipped", "torch.minimum(loss, -dual_clip", "torch.maximum(loss, -dual_clip"),
    ("ratio: old policy differentiated", "def _ratio", "old_logps.detach()", "old_logps"),
    ("ratio turned round", "def _ratio", "difference(logps, old_logps.detach())", "difference(old_logps.detach(), logps)"),
    ("dr_grpo: not divided", "", " / room\n", "\n"),
    ("gspo: ratio of the token", "def gspo", "exp_tangent(mean_S)[sequence]", "exp_tangent(moved)"),
    ("gspo: tokens out of order", "def gspo", "segment_mean(moved[order], sequence[order]", "segment_mean(moved, sequence[order]"),
    ("cispo: weight differentiated", "def cispo", "-_ratio(logps, old_logps).detach().clamp", "-_ratio(logps, old_logps).clamp"),
    ("cispo: gradient through the clip only", "def cispo", " * wide(logps)\n", "\n"),
    ("cispo: bound of the weight off by one", "def cispo", "1 + clip_high if", "clip_high if"),
    ("xpo: bonus for staying", "def xpo", "+ alpha * wide(explored)", "- alpha * wide(explored)"),
    ("kl_penalty: ratio forgotten", "def kl_penalty", "values if old_logps is None else", "values if True else"),
)
KL: tuple[Line, ...] = (
    ("k1 turned round", "def kl_estimate", "return d\n", "return -d\n"),
    ("k2 not halved", "def kl_estimate", "0.5 * d.square()", "d.square()"),
    ("k3 turned round", "def kl_estimate", ".expm1(), exp_tangent(-d) - 1) + d", ".expm1(), exp_tangent(-d) - 1) - d"),
    ("k3 of the other divergence", "def kl_estimate", "(-d).clamp(max=EXP_CAP).expm1()", "d.clamp(max=EXP_CAP).expm1()"),
    ("controller the wrong way", "class AdaptiveKL", "kl / self.target - 1", "1 - kl / self.target"),
    ("controller not clipped", "class AdaptiveKL", "max(-0.2, min(0.2, kl / self.target - 1))", "kl / self.target - 1"),
    ("budget exceeded is kept", "class KLBudget", "return not kl - error <= self.budget", "return kl - error <= self.budget"),
    ("budget: price falls where it should rise", "class KLBudget", "math.exp(self.IN_TIME * (", "math.exp(-self.IN_TIME * ("),
    ("budget: pulled back to the square of the share", "class KLBudget", "(math.sqrt(self.aim) - start)", "(self.aim - start)"),
)
VALUE: tuple[Line, ...] = (
    ("minimum for maximum", "", "torch.maximum(error", "torch.minimum(error"),
    ("returns differentiated", "", "difference(values, returns.detach())", "difference(values, returns)"),
    ("not halved", "", "return 0.5 * torch.maximum", "return torch.maximum"),
    ("clipped around the new value", "", "near = old +", "near = wide(values) +"),
)
ADVANTAGES: tuple[Line, ...] = (
    ("gae: answers run into each other", "", "following = following.index_fill(0, ends, 0.0)", "pass"),
    ("gae: value of the token itself", "", "torch.cat([values[1:], values[:0].new_zeros(min(1, len(values)))])", "values.clone()"),
    ("gae: returns without values", "", "GAE(advantages, advantages + values)", "GAE(advantages, advantages)"),
    ("gae: decay without lambda", "", "lengths, gamma * lam)", "lengths, gamma)"),
    ("gae: decay without gamma", "", "lengths, gamma * lam)", "lengths, lam)"),
    ("discounted: from the front", "", "range(longest - 2, -1, -1)", "range(longest - 1)"),
    ("leave_one_out: own reward in the baseline", "def leave_one_out", "found.centred * (found.size / (found.size - 1).clamp(min=1))[found.of]", "found.centred"),
    ("group: spread not divided by", "def group_advantages", "found.centred / (spread + 1e-6)", "found.centred"),
    ("group: population for sample spread", "def group_advantages", "div((found.size - 1).clamp(min=1))", "div(found.size)"),
    ("group: spread of the batch for all", "def group_advantages", "if scale == \"group\":", "if False:"),
    ("group: mean of the batch", "class _Groups", "mean[self.of])", "self.rewards.mean())"),
    ("reward_to_go: not whitened", "def reward_to_go", "whiten(discounted(rewards, lengths, gamma))", "discounted(rewards, lengths, gamma)"),
    ("reward_to_go: discount ignored", "def reward_to_go", "discounted(rewards, lengths, gamma)", "discounted(rewards, lengths, 1.0)"),
    ("remax: turned round", "def against_greedy", "rewards.double() - greedy.double()", "greedy.double() - rewards.double()"),
    ("running baseline: weights swapped", "def running_baseline", "decay * b + (1 - decay) * mean", "(1 - decay) * b + decay * mean"),
    ("running baseline: this round's mean", "def running_baseline", "(rewards.double() - b)", "(rewards.double() - mean)"),
    ("whiten: not shifted", "def whiten", "(x - mean) / (x", "x / (x"),
    ("whiten: variance for deviation", "def whiten", "(x.var() + 1e-8).sqrt()", "(x.var() + 1e-8)"),
    ("whiten: shift ignored", "def whiten", "scaled if shift else", "scaled if True else"),
    ("ranks: worst first", "def ranks", "rewards[None, :] > rewards[:, None]", "rewards[None, :] < rewards[:, None]"),
    ("ranks: over all prompts", "def ranks", "(group[None, :] == group[:, None]) & ", ""),
    ("best of n: all of the best", "def best_of_group", " | earlier", ""),
    ("accepted: above only", "def accepted", "rewards >= threshold", "rewards > threshold"),
)
SUPERVISED: tuple[Line, ...] = (
    ("sign of the NLL", "", "return -wide(logps)", "return wide(logps)"),
    ("dft: weight differentiated", "", "logps.detach().exp()", "logps.exp()"),
    ("dft: not weighted", "", "-weight * logps, 0.0", "-logps, 0.0"),
)
NUMERIC: tuple[Line, ...] = (
    ("reference differentiated", "", "difference(policy, reference.detach())", "difference(policy, reference)"),
    ("policy detached", "", "difference(policy, reference.detach())", "difference(policy.detach(), reference)"),
    ("bf16 kept", "", "else x.float()", "else x"),
    ("shapes not compared", "", "if a.shape != b.shape:", "if False:"),
    ("mean over one token more", "", "/ wide(length).clamp(min=1)", "/ (wide(length) + 1)"),
    ("mean of an empty sequence", "", ".clamp(min=1)", ""),
    ("tangent flat", "", "math.exp(EXP_CAP) * (1 + x - EXP_CAP)", "math.exp(EXP_CAP) * torch.ones_like(x)"),
    ("branch not selected overflows", "", "x.clamp(max=EXP_CAP).exp()", "x.exp()"),
    ("log1mexp: branches swapped", "", "torch.where(x > -math.log(2)", "torch.where(x < -math.log(2)"),
    ("log1mexp: 0 let through", "", "x = x.clamp(max=-torch.finfo(x.dtype).eps)", "x = x.clamp(max=0)"),
)
RAGGED: tuple[Line, ...] = (
    ("mean of sums", "def segment_mean", " / lengths(sequence_T, sequences).clamp(min=1)", ""),
    ("mean over all sequences", "def segment_mean", "lengths(sequence_T, sequences).clamp(min=1)", "max(sequences, 1)"),
    ("mean for sum", "def segment_sum", "\"sum\", lengths", "\"mean\", lengths"),
    ("empty sequence is 1", "", "initial=0.0", "initial=1.0"),
    ("tokens shifted by one", "def tokens_of", "start_S[picked_N][pick] + place", "start_S[picked_N][pick] + place - 1"),
    ("starts of all sequences are ends", "def tokens_of", "start_S = length_S.cumsum(0) - length_S", "start_S = length_S.cumsum(0)"),
    ("places start anew late", "def tokens_of", "(length_N.cumsum(0) - length_N)[pick]", "length_N.cumsum(0)[pick]"),
    ("worst first", "def rankings", "rank_S[ranked].argsort(stable=True)", "rank_S[ranked].argsort(stable=True, descending=True)"),
    ("unranked counted", "def rankings", "(rank_S >= 0).nonzero()", "(rank_S >= -1).nonzero()"),
    ("lists of one kept", "def rankings", "size >= 2", "size >= 1"),
)
REDUCE: tuple[Line, ...] = (
    ("mean of the micro-batch", "", "term.values.sum() / max(denominators[term.unit], 1)", "term.values.mean()"),
    ("not divided", "", " / max(denominators[term.unit], 1)", ""),
    ("weight ignored", "", "term.weight * term.values", "term.values"),
    ("weight twice", "", "term.weight * term.values", "term.weight**2 * term.values"),
    ("terms averaged", "", "torch.stack(parts).sum()", "torch.stack(parts).mean()"),
    ("tokens of rejected answers counted", "", "int(best_T(batch).sum())", "len(batch.target_T)"),
    ("pairs counted as sequences", "", "return batch.pairs", "return batch.sequences"),
    ("lists counted as prompts", "", "int(rankings(batch.rank_S, batch.prompt_S).shape[0])", "len(batch.index_P)"),
)
COLUMNS: tuple[Line, ...] = (
    ("likelihood learns rejected answers", "def best_T", "batch.rank_S <= 0", "batch.rank_S <= 1"),
    ("likelihood learns unranked answers only", "def best_T", "batch.rank_S <= 0", "batch.rank_S < 0"),
    ("rejected reads the chosen", "", "\"rejected\": _totals(\"logps_T\", \"rejected_N\")", "\"rejected\": _totals(\"logps_T\", \"chosen_N\")"),
    ("reference column reads the policy", "", "\"ref_chosen\": _totals(\"ref_logps_T\"", "\"ref_chosen\": _totals(\"logps_T\""),
    ("lengths swapped", "", "\"chosen_len\": _length(\"chosen_N\")", "\"chosen_len\": _length(\"rejected_N\")"),
    ("shared part from the longer answer", "", "torch.minimum(batch.length_S[batch.chosen_N]", "torch.maximum(batch.length_S[batch.chosen_N]"),
    ("shared part one token longer", "", "place < shared_N[pair]", "place <= shared_N[pair]"),
    ("parts multiplied by the mask", "", "torch.where(shared, 0.0, logps)", "logps * ~shared"),
    ("weight summed, not averaged", "def _weight", "segment_mean(excess", "segment_sum(excess"),
    ("weight without collision", "def _weight", "difference(_given(view, \"logps_T\"), _given(view, \"collision_T\"))", "_given(view, \"logps_T\")"),
    ("short lists padded with 0", "def _ranked", "values_S[table.clamp(min=0)], -torch.inf", "values_S[table.clamp(min=0)], 0.0"),
    ("margin ignored", "", "view.batch.margin_N.float()", "view.batch.margin_N.float() * 0"),
    ("labels flipped", "", "\"label\": lambda view: view.batch.label_S > 0.5,", "\"label\": lambda view: view.batch.label_S < 0.5,"),
    ("scores of the rejected for both", "", "\"chosen_scores\": _score(\"chosen_N\")", "\"chosen_scores\": _score(\"rejected_N\")"),
)
METHODS: tuple[Line, ...] = (
    ("means of answers are sums", "def _values", "segment_mean if self.within == \"mean\" else", "segment_mean if self.within != \"mean\" else"),
    ("options ignored", "def terms", "{**self.options, **(options or {})}", "{**(options or {}), **self.options}"),
    ("weights of added rows lost", "def terms", "term._replace(weight=weight", "term._replace(weight=1.0"),
    ("weights within added rows lost", "def terms", "weight=weight * term.weight", "weight=weight"),
    ("first term of an added row alone", "def terms", "METHODS[name].terms(view)]", "METHODS[name].terms(view)[:1]]"),
    ("mix replaces nothing", "def mixed", "{**self.plus, **mix}", "{**mix, **self.plus}"),
    ("unknown options let through", "def check_options", "if name not in self.options:", "if False:"),
    ("beta 0 let through", "def check_options", "options.get(\"beta\", 1) > 0", "options.get(\"beta\", 1) >= 0"),
    ("orpo without its likelihood", "", "plus={\"sft\": 1.0}, per_token=True", "per_token=True"),
    ("kto without its coupling", "", ", columns={\"kl\": \"kl\"}, coupling=\"mismatched_kl\"", ", columns={\"kl\": \"delta\"}, coupling=\"reward_shift\""),
    ("sft over sequences", "", "\"sft\": Method(supervised.nll, \"token\"", "\"sft\": Method(supervised.nll, \"sequence\""),
    ("aot in micro-batches", "", "\"aot\": Method(pairwise.aot, \"pair\", \"pairs\", \"2406.05882 sec. 3\", 5e-7, coupling=\"batch\")", "\"aot\": Method(pairwise.aot, \"pair\", \"pairs\", \"2406.05882 sec. 3\", 5e-7)"),
)
METRICS: tuple[Line, ...] = (
    ("reward without beta", "", "reward_S = beta * (", "reward_S = ("),
    ("sides swapped", "", "((\"chosen\", label), (\"rejected\", ~label))", "((\"chosen\", ~label), (\"rejected\", label))"),
    ("margin turned round", "", "margin = difference(chosen, rejected)", "margin = difference(rejected, chosen)"),
    ("ties count full", "", "0.5 * (margin == 0)", "1.0 * (margin == 0)"),
    ("mean for a sum", "", "return values.sum(), values.numel()", "return values.mean(), values.numel()"),
    ("clipped below and above swapped", "def _clipped", "(\"low\", below), (\"high\", above)", "(\"low\", above), (\"high\", below)"),
    ("clipped both ways at once", "def _clipped", "below | above", "below & above"),
    ("clipped whatever the advantage", "def _clipped", "(weighs | (advantages > 0))", "(advantages > -math.inf)"),
    ("a reference that the loss does not read", "def of_logps", "ratio_S if relative else policy_S", "ratio_S"),
    ("steps judged at 0", "", "(COLUMNS[\"step_labels\"](view) > 0.5)", "(COLUMNS[\"step_labels\"](view) >= 0)"),
)
TREE: tuple[Line, ...] = (
    ("shift off by one", "def _columns", "place.first + at - 1, place.predictor", "place.first + at, place.predictor"),
    ("first token predicted by itself", "def pack", "(start + prompt - 1 if prompt else -1)", "(start + prompt if prompt else -1)"),
    ("first token predicted by the branch before", "def _columns", "np.where(at > 0, place.first + at - 1, place.predictor)", "place.first + at - 1"),
    ("positions run on from branch to branch", "def pack", "np.arange(prompt, prompt + len(branch.ids))", "np.arange(start, start + len(branch.ids))"),
    ("positions restart at 0", "def pack", "np.arange(prompt, prompt + len(branch.ids))", "np.arange(len(branch.ids))"),
    ("last token is the one before", "def _columns", "place.first + len(b.ids) - 1 for", "place.first + len(b.ids) - 2 for"),
    ("mask ignored", "def _scored", "np.flatnonzero(branch.scored)", "np.arange(len(branch.ids))"),
    ("last scored token dropped", "def _scored", "np.flatnonzero(branch.scored)", "np.flatnonzero(branch.scored)[:-1]"),
    ("unpredicted first token scored", "def _scored", "at[at > 0]", "at"),
    ("chosen and rejected swapped", "def _pair_columns", "chosen.append(base + better)\n            rejected.append(base + worse)", "chosen.append(base + worse)\n            rejected.append(base + better)"),
    ("sequences of all trees start at 0", "def _pair_columns", "base += len(tree.branches)", "base += 0"),
    ("margin lost", "def _margin", "return tree.margin", "return 0.0"),
    ("ties are pairs", "def ranked_pairs", "judged\" or rank_i < rank_j", "judged\" or rank_i <= rank_j"),
    ("best against second", "def ranked_pairs", "(ranked[0][1], ranked[-1][1])", "(ranked[0][1], ranked[1][1])"),
    ("padding is read as text", "def pad(", "mask_BC[i, : len(row)] = True", "mask_BC[i, :] = True"),
    ("step ends off by one", "def _columns", "place.first + np.array(b.step_ends", "place.first - 1 + np.array(b.step_ends"),
    ("labels lost", "def _columns", "float(b.label or 0) for b in branches", "0.0 for b in branches"),
    ("unranked answers are best", "def _columns", "-1 if b.rank is None else b.rank", "0 if b.rank is None else b.rank"),
    ("judged ties dropped", "def ranked_pairs", "pairs == \"judged\" or ", ""),
)
PLAN: tuple[Line, ...] = (
    ("the same order every epoch", "", "default_rng([self.seed, epoch])", "default_rng([self.seed])"),
    ("seed ignored", "", "default_rng([self.seed, epoch])", "default_rng([0, epoch])"),
    ("last rows of an epoch dropped", "", "math.ceil(self.rows / self.batch_size)", "max(1, self.rows // self.batch_size)"),
    ("ranks read the same rows", "", "items[rank::world_size]", "items[:]"),
    ("a micro-batch loses its first tree", "", "bins.append([tree])", "bins.append([])"),
    ("micro-batches too large", "", "cost + extra <= micro_tokens", "extra <= micro_tokens"),
    ("matched completions for KTO's point", "def mismatched", "[*trees[1:], trees[0]]", "[*trees]"),
    ("completion of the row before", "def mismatched", "[*trees[1:], trees[0]]", "[trees[-1], *trees[:-1]]"),
)
PREPARE: tuple[Line, ...] = (
    ("ties kept as pairs", "", "else ranks == {0}", "else False"),
    ("rejected answers demonstrated", "", "if c.rank == 0))", "if c.rank is not None))"),
    ("labels of a pair swapped", "", "label=c.rank == 0", "label=c.rank == 1"),
    ("first text token scored", "def _score_all", "np.ones(len(ids) - 1", "np.zeros(len(ids) - 1"),
    ("held-out rows trained on", "", "train, heldout = (train.pick(side)", "_, heldout = (train.pick(side)"),
    ("index repeats in held-out rows", "", "index=len(prompts) - 1", "index=0"),
)
TRUNCATE: tuple[Line, ...] = (
    ("prompt cut at its end", "", "tree.prompt[len(tree.prompt) - (room - head) :]", "tree.prompt[: room - head]"),
    ("bos lost", "", "int(tree.prompt[0]) == bos_id else 0", "False else 0"),
    ("one token too many", "", "ids=branch.ids[:room],\n        scored=branch.scored[:room]", "ids=branch.ids[: room + 1],\n        scored=branch.scored[: room + 1]"),
    ("steps beyond the cut kept", "", "sum(end < room for end in branch.step_ends)", "sum(end <= room for end in branch.step_ends)"),
    ("rows that fit are cut", "", "if longest(tree) <= max_length:", "if longest(tree) < max_length:"),
)
SPLIT: tuple[Line, ...] = (
    ("groups ignored", "def group_key", "prompt_key(item) if item.group is None else", "prompt_key(item) if True else"),
    ("seed ignored", "", "salt = str(seed).encode()", "salt = b''"),
    ("sides swapped", "", "found[key in held]", "found[key not in held]"),
)
FORMATS: tuple[Line, ...] = (
    ("chosen and rejected swapped", "", "content=chosen, rank=0, score=scores[0]), Completion(content=rejected, rank=1", "content=chosen, rank=1, score=scores[0]), Completion(content=rejected, rank=0"),
    ("b wins as a", "", "{\"a\": (0, 1), \"b\": (1, 0)", "{\"a\": (0, 1), \"b\": (0, 1)"),
    ("highest score is worst", "def _ranking", "[-score for score in scores]", "[score for score in scores]"),
    ("question put twice for a space", "def _said", "message.content.strip()", "message.content"),
    ("system message beside the prompt left out", "def _led", "return (first, *messages)", "return messages"),
    ("ties broken by order", "def _dense_ranks", "enumerate(sorted(set(keys)))", "enumerate(sorted(keys))"),
)
CHAT: tuple[Line, ...] = (
    ("EOS dropped", "def _string", "self._eos if completion.ended or not content else \"\"", "\"\""),
    ("EOS doubled", "def _string", "completion.content.removesuffix(self._eos)", "completion.content"),
    ("BOS doubled", "def _text", "prompt if prompt.startswith(bos) else bos + prompt", "bos + prompt"),
    ("BOS dropped", "def _text", "else bos + prompt", "else prompt"),
    ("no generation prompt", "def prompt_ids", "self._render(prompt, True, tools)", "self._render(prompt, False, tools)"),
    ("user turns scored", "def _turns", "whole[at : len(before)], False", "whole[at : len(before)], True"),
    ("earlier assistant turns not scored", "def _turns", "[_Piece(answered, True)]", "[_Piece(answered, False)]"),
    ("stop token cut off", "def _turns", "turn = self._close(after[len(before) :])", "turn = self._close(after[len(before) :]).removesuffix(self._stop)"),
    ("turns not checked against the whole", "def _turns", "if not (after.startswith(before) and whole.startswith(before + turn)):", "if False:"),
    ("turn without a stop token", "def _ended", "return turn + self._eos", "return turn"),
    ("tools forgotten", "def _conversation", "opens.pop(), example.tools)", "opens.pop())"),
    ("control tokens in contents", "def _check", "[message.content, *_strings(", "[*_strings("),
    ("header of an opening answer scored", "def _turns", "(opening or self._header(tools))", "opening"),
    ("eos of the conversation as the turn's stop", "def _stop(", "if ended_before else", "if False else"),
    ("first token of nothing scored", "def _branch", "scored[:1] = False", "pass"),
    ("step ends one late", "def _branch", "np.cumsum([len(piece) for piece in ids]) - 1", "np.cumsum([len(piece) for piece in ids])"),
    ("rank lost", "def _branch", "rank=completion.rank", "rank=None"),
    ("stop of the template forgotten when sampling", "def stop_ids", "[self._stop] if self.template else []", "[]"),
    ("index counts from 0 in every chunk", "def trees", "start += len(chunk)", "start += 0"),
)
BLOCKS: tuple[Line, ...] = (
    ("branches see each other", "def blocks_of", "slice(own, rows.stop))\n", "slice(span.start + span.prompt, rows.stop))\n"),
    ("prompt hidden from branches", "def blocks_of", "shared if number else", "shared[1:] if number else"),
    ("a block's queries see what follows", "def blocks_of", "(slice(span.start, rows.stop),)", "(slice(span.start, end),)"),
    ("the next branch starts where this one did", "def blocks_of", "        own = end\n", "        own = own\n"),
    ("the future is seen", "def _distances", "seen = back >= 0 if window", "seen = back >= -1 if window"),
    ("a token does not see itself", "def _distances", "seen = back >= 0 if window", "seen = back > 0 if window"),
    ("window ignored", "def _distances", "if window is None else (back >= 0) & (back < window)", "if True else None"),
    ("window one too wide", "def _distances", "(back < window)", "(back <= window)"),
    ("queries stand at the first positions", "def causal_bias", "room - before : room - before + keys", "room : room + keys"),
    ("scale forgotten", "def _weights", "keys.transpose(1, 2)), scale)", "keys.transpose(1, 2)), 1.0)"),
    ("cap forgotten", "def _weights", "group.masked(_capped(queries, keys, scale, softcap), softcap)", "group.masked(torch.bmm(queries, keys.transpose(1, 2)), scale)"),
    ("mask forgotten", "def masked", "torch.add(self.bias, scores", "torch.add(self.bias.isnan(), scores"),
    ("slope of the cap forgotten", "class _Attention", "(d_scores * (1 - _capped(queries, keys, scale, softcap).square()))", "d_scores"),
    ("scale forgotten in the queries' gradient", "class _Attention", "rows.index_select(0, plan.place).mul_(scale)", "rows.index_select(0, plan.place)"),
    ("scale forgotten in the keys' gradient", "class _Attention", "d_k.mul_(scale)", "d_k"),
    ("keys' gradient of the last part only", "class _Attention", "d_k += part.added(d_keys.rows)", "d_k = part.added(d_keys.rows)"),
    ("values' gradient of the last part only", "class _Attention", "d_v += part.added(d_values.rows)", "d_v = part.added(d_values.rows)"),
    ("gradients of what fills up", "def slopes", "found.index_fill_(0, self.filling, 0) if len(self.filling) else found", "found"),
    ("a filling query sees nothing", "def filled", "(keys + n - queries)", "(keys)"),
    ("a filling query's place taken", "def plan_of", "group.rows.index_fill(0, group.filling, -1)", "group.rows"),
    ("a cut block sees what follows", "def cut", "rows.stop)), self.kept)", "self.keys[-1].stop)), self.kept)"),
    ("the last needed query lost", "def needed", "int(places[last - 1]) + 1", "max(int(places[last - 1]), int(places[first]) + 1)"),
    ("needed queries counted from the row's start", "def _group", "np.searchsorted(queries, ", "np.asarray("),
    ("keys of the first head only", "def _of_heads", "* heads + np.arange(heads)[:, None]", "* heads + 0 * np.arange(heads)[:, None]"),
)
ATTENTION: tuple[Line, ...] = (
    ("block rule: trees see each other", "def rule", "(tree_M[i] == tree_M[j]) & ", ""),
    ("block rule: window ignored", "def rule", "return same if window is None else", "return same if True else"),
    ("model left in tree mode", "def packed_attention", "model.set_attn_implementation(own)", "pass"),
    ("read where nothing was cut", "def read", "torch.searchsorted(self.needed.rows, self.places)", "self.places"),
)
LAST: tuple[Line, ...] = (
    ("queries turned as the first positions", "def _attended", "query * cos[:, :, rows]", "query * cos[:, :, : len(rows)]"),
    ("keys not turned", "def _attended", "key = key * cos + rotate_half(key) * sin", "pass"),
    ("window forgotten", "def _attended", "\"sliding_window\": window", "\"sliding_window\": None"),
    ("norm of the queries forgotten", "def _attended", "getattr(attention, \"q_norm\", None)", "None"),
    ("residual of the attention forgotten", "def _shortened", "y + layer.mlp(", "0 * y + layer.mlp("),
    ("the whole layer after all", "def _shortened", "tree.needed is None", "True"),
)
LOGPROBS: tuple[Line, ...] = (
    ("not normalised", "", "head.logits(hidden[part]).log_softmax(-1)", "head.logits(hidden[part])"),
    ("scale forgotten", "", "z = z * self.scale if self.scale != 1.0 else z", "z = z"),
    ("bias forgotten in the head", "", "linear(hidden, self.weight, self.bias)", "linear(hidden, self.weight)"),
    ("sign of the gradient", "", "mul_(-grad[:, None])", "mul_(grad[:, None])"),
    ("target forgotten in the gradient", "", "dz.scatter_add_(1, target[:, None], grad[:, None].to(dz.dtype))", "pass"),
    ("slope of the cap forgotten", "", "factor * (1 - (z * head.temperature / head.softcap) ** 2) if head.softcap", "factor if head.softcap"),
    ("scale forgotten in the gradient", "", "factor = head.scale / head.temperature", "factor = 1.0 / head.temperature"),
    ("temperature forgotten", "", "return z / self.temperature if", "return z if"),
    ("weight gradient of the last chunk only", "", "d_weight += linear(", "d_weight = linear("),
    ("bias gradient missing", "", "d_bias += dz.sum(0)", "d_bias += 0"),
    ("entropy with the wrong sign", "", "entropy[part] = torch.special.entr(log_p.exp())", "entropy[part] = -torch.special.entr(log_p.exp())"),
    ("collision of p, not p squared", "", "collision[part] = (2 * log_p)", "collision[part] = (1 * log_p)"),
    ("last chunk lost", "", "range(0, total, chunk)]", "range(0, total - chunk + 1, chunk)]"),
)
FORWARD: tuple[Line, ...] = (
    ("padding attended to", "def hidden_states", "attention_mask=mask", "attention_mask=None"),
    ("positions not given", "def hidden_states", "position_ids=batch.positions_BC, ", ""),
    ("scores read at the first scored token", "def reward_scores", "batch.last_S)", "batch.source_T[: len(batch.last_S)])"),
    ("targets read at themselves", "def logps_and_hidden", "hidden_states(model, batch, batch.source_T)", "hidden_states(model, batch, batch.source_T + 1)"),
    ("logit scale ignored", "def head_of", "float(getattr(config, \"logit_scale\", None) or 1.0)", "1.0"),
    ("logits scaling multiplied", "def head_of", "/ float(getattr(config, \"logits_scaling\"", "* float(getattr(config, \"logits_scaling\""),
    ("soft cap ignored", "def head_of", "getattr(config, \"final_logit_softcapping\", None)", "None"),
    ("tree not asked for", "def hidden_states", "if layout.calls == 0:", "if False:"),
)
REFERENCE: tuple[Line, ...] = (
    ("reference is the policy itself", "class AdapterReference", "self._swapped() if self._adapter else self.model.disable_adapter()", "contextmanager(lambda: (yield))()"),
    ("sync replaces nothing", "class FrozenReference", "_lerp(exact, theirs, rate)", "_lerp(exact, exact, rate)"),
    ("rate turned round", "def _lerp", "torch.lerp(mine.float(), theirs.detach().float(), rate)", "torch.lerp(theirs.detach().float(), mine.float(), rate)"),
    ("moved reference not kept", "class FrozenReference", "if self._moved else {}", "if False else {}"),
    ("adapter not put back", "def _swapped", "weight.copy_(kept[name])", "pass"),
    ("first sync from the policy's adapter", "class AdapterReference", "torch.zeros_like(p) if _starts_at_zero(name) else", "p.detach().clone() if False else"),
    ("stale cache: weights not in the key", "def cache_key", "digest.update(weight.detach()", "(weight.detach()"),
    ("stale cache: mask not in the key", "def cache_key", " + b\"|\" + np.packbits(branch.scored).tobytes()", ""),
    ("stale cache: prompt not in the key", "def cache_key", " + tree.prompt.tobytes())", ")"),
    ("stale cache: config not in the key", "def cache_key", "base_of(model).config.to_json_string(use_diff=False).encode()", "b''"),
    ("cache rows in order of the batch", "class CachedReference", "self.rows[int(i)] for i in batch.index_P", "self.rows[k] for k in range(len(batch.index_P))"),
    ("reference in training mode", "class FrozenReference", "model.requires_grad_(False).eval()", "model.requires_grad_(False)"),
)
LOOP: tuple[Line, ...] = (
    ("accumulation forgets a micro-batch", "def train_step", "job.accumulate()", "job.accumulate() if at else None"),
    ("denominators of the micro-batch", "def train_step", "part = _loss(job, view, coupling, counts, at)", "part = _loss(job, view, coupling, job.counts([batch]), at)"),
    ("last loss reported for the sum", "def train_step", "loss += value", "loss = value"),
    ("metrics of the last micro-batch", "def train_step", "meter.add(job.metrics", "meter.stats.clear()\n        meter.add(job.metrics"),
    ("loss not finite let through", "def train_step", "if not math.isfinite(value):", "if False:"),
    ("norm not finite let through", "def train_step", "if not math.isfinite(norm):", "if False:"),
    ("schedule ignored", "def train_step", "job.update(lr_factor)", "job.update(1.0)"),
    ("running means never updated", "def train_step", "remember(job, meter)", "pass"),
    ("slopes of the wrong micro-batch", "def _loss", "coupling.slopes[at]", "coupling.slopes[0][: len(view.logps_T)]"),
    ("evaluation adds nothing up", "def evaluate", "loss += 0.0 if", "loss = 0.0 if"),
    ("evaluation with gradient", "", "@torch.no_grad()\ndef evaluate", "def evaluate"),
)
JOB: tuple[Line, ...] = (
    ("positions of this rank for the step", "", "counts = {unit: float(sum(count(batch, unit) for batch in batches))", "counts = {unit: float(max(count(batch, unit) for batch in batches))"),
    ("units of added rows forgotten", "", "self.method.units | {", "frozenset({self.method.unit}) | {"),
    ("reference not read", "", "self.reference.logps(batch) if self.reference is not None and not divergence else None, None", "None, None"),
    ("counts of one rank", "", "return distributed.add_up(counts | ", "return dict(counts | "),
    ("options ignored", "def terms", "self.method.terms(view, self.options)", "self.method.terms(view)"),
    ("entropy punished", "def terms", "Term(-view.entropy_T", "Term(view.entropy_T"),
    ("coefficient of the KL ignored", "def terms", "self.penalty.coefficient / ", "1.0 / "),
    ("KL not divided as rewards are", "def terms", " / self.method.divided_by(view)", ""),
    ("weight of the critic ignored", "def terms", "self.critic.weight, \"value\"", "1.0, \"value\""),
    ("gradients of ranks not added", "def update", "distributed.add_gradients(optimizer.weights.masters.values())", "pass"),
    ("the critic never learns", "def accumulate", "for optimizer in self.optimizers.values():", "for optimizer in [self.optimizer]:"),
)
COUPLING: tuple[Line, ...] = (
    ("reference point of matched rows", "", "job.batches(mismatched(trees, limit_of(job.model)))", "job.batches(trees)"),
    ("reference point turned round", "", "view.logps_T - view.ref_logps_T", "view.ref_logps_T - view.logps_T"),
    ("reference point per token", "", "rows += batch.sequences", "rows += len(batch.target_T)"),
    ("shift not halved", "", "if stat.count) / 2", "if stat.count)"),
    ("shift pooled over the classes", "", "sum(stat.total / stat.count for stat in shift.values() if stat.count) / 2", "sum(stat.total for stat in shift.values()) / max(1, sum(stat.count for stat in shift.values()))"),
    ("shift of the last step only", "", "Stat(before.total + added", "Stat(added"),
    ("shift of one class", "", "for name in (\"rewards/chosen\", \"rewards/rejected\"):", "for name in (\"rewards/chosen\",):"),
    ("several ranks sort apart", "", "if distributed.world_size() > 1:", "if False:"),
    ("pairs of later micro-batches point at the first", "def merge", "\"chosen_N\": sequences, ", ""),
    ("tokens of later micro-batches too", "def merge", "{\"sequence_T\": sequences, ", "{"),
    ("options ignored", "def whole_step", "job.terms(view)", "job.method.terms(view)"),
    ("penalty left out", "def whole_step", "job.terms(view)", "job.method.terms(view, job.options)"),
)
OPTIM: tuple[Line, ...] = (
    ("warm-up one step late", "def factor", "(step + 1) / warmup", "step / warmup"),
    ("linear decay ends early", "def factor", "max(0.0, 1.0 - progress)", "max(0.0, 1.0 - 2 * progress)"),
    ("cosine without its floor", "def factor", "COSINE_FLOOR + (1 - COSINE_FLOOR) * ", ""),
    ("norms decayed", "", "{\"params\": [p for p in rest if p.ndim < 2], \"weight_decay\": 0.0}", "{\"params\": [p for p in rest if p.ndim < 2], \"weight_decay\": settings.weight_decay}"),
    ("bf16 sums of gradients", "def accumulate", "parameter.grad.float() if", "parameter.grad if"),
    ("gradients not cleared in bf16", "def accumulate", "            parameter.grad = None", "            pass"),
    ("gradients not cleared", "def step", "            master.grad = None", "            pass"),
    ("no clipping", "def step", "if self.grad_clip > 0:", "if False:"),
    ("norm after clipping reported", "def step", "norm = full(torch.nn.utils.get_total_norm(gradients))", "norm = full(torch.nn.utils.get_total_norm(gradients)).clamp(max=self.grad_clip or None)"),
    ("update although not finite", "def step", "if torch.isfinite(norm):", "if True:"),
    ("masters not published", "def step", "self.weights.publish()", "pass"),
    ("optimizer state forgotten on resume", "def load", "\"state\": saved", "\"state\": {}"),
    ("weights forgotten on resume", "def load", "master.copy_(like(slots[name].pop(\"weight\"), master))", "slots[name].pop(\"weight\")"),
)
CHECKPOINT: tuple[Line, ...] = (
    ("hash not checked", "def load", "if _describe(path / name) != written:", "if False:"),
    ("oldest restored", "def restore", "reversed(checkpoints(folder))", "checkpoints(folder)"),
    ("newest deleted", "def save", "checkpoints(folder)[:-keep]", "checkpoints(folder)[keep:]"),
    ("written in place", "def save", "_put(draft, place)", "shutil.copytree(draft, place, dirs_exist_ok=True)"),
    ("draft left behind", "def save", "shutil.rmtree(draft, ignore_errors=True)", "pass"),
    ("damaged checkpoint is silence", "def restore", "if damage is not None:", "if False:"),
    ("generator not put back", "def set_generator_states", "generator.set_state(", "torch.Generator().set_state("),
)
STREAM: tuple[Line, ...] = (
    ("rows of the step before", "def step", "self.plan.step(step)]", "self.plan.step(max(0, step - 1))]"),
)
FIT: tuple[Line, ...] = (
    ("reference never moves", "def step", "if sync and self.job.reference is not None", "if False and self.job.reference is not None"),
    ("reference moves every step", "def step", "self.at.step % sync == 0", "True"),
    ("worst step kept", "def evaluate", "if name.endswith(\"loss\")", "if not name.endswith(\"loss\")"),
    ("patience never counted", "def evaluate", "self.at.waited += 1", "self.at.waited += 0"),
    ("best weights not put back", "def take_best", "master.copy_(like(found.tensors[name], master))", "pass"),
    ("shift lost on resume", "def save", "\"shift\": {k: list(v) for k, v in self.job.shift.items()}", "\"shift\": {}"),
    ("reference lost on resume", "def save", "tensors |= shard.whole({f\"reference/{k}\": t for k, t in reference.items()})", "pass"),
    ("other settings resumed", "def fingerprint", "json.dumps([plain, self.total]", "json.dumps([self.total]"),
)
ROUNDS: tuple[Line, ...] = (
    ("passes in one order", "def part", "default_rng([seed, self.number, epoch])", "default_rng([seed, self.number])"),
    ("parts of prompts, not of rounds", "def part", "np.array_split(order, per_pass)[place]", "np.array_split(order, per_pass)[0]"),
    ("KL earned", "def columns", "self.scores - spent", "self.scores + spent"),
    ("KL of answers at the first token", "def _at_tokens", "ends = self.lengths.cumsum(0) - 1", "ends = self.lengths.cumsum(0) - self.lengths"),
    ("KL after the baseline is earned", "def advantages", "found - self.coefficient * discounted", "found + self.coefficient * discounted"),
    ("KL after the baseline of one token", "def advantages", "discounted(self.drift, self.lengths, 1.0)", "self.drift"),
    ("never whitened", "def advantages", "return whiten(found) if whitened else found", "return found"),
    ("importance weights turned round", "def signals", "(flat[\"old_logps\"] - sampled).exp()", "(sampled - flat[\"old_logps\"]).exp()"),
    ("importance weights not capped", "def signals", ".exp().clamp(max=self.settings.importance_cap)", ".exp()"),
    ("answers that were not kept", "def trees_of", "if \"keep\" not in found or bool(found[\"keep\"][s]):", "if True:"),
    ("prompts without a contrast", "def trees_of", "if \"rank\" in found and len({branch.rank for branch in branches}) < 2:", "if False:"),
    ("margins of bare scores", "def trees_of", "float(found[\"rewards\"][s]) if \"rewards\" in found else branch.score", "branch.score"),
    ("KL of the reference's answers too", "def divergence(", "kl_S[own].numpy(), self.group[own].tolist()", "kl_S.numpy(), self.group.tolist()"),
    ("answers stand alone", "def divergence(", "self.group[own].tolist()", "list(range(int(own.sum())))"),
    ("penalties decide", "def undecided", "{answer.earned for", "{answer.score for"),
)
ONLINE: tuple[Line, ...] = (
    ("variance of the critic for what is left", "def explained", "(returns.double() - values.double()).var(correction=0)", "values.double().var(correction=0)"),
    ("the user's whitening ignored", "", "self.setup.online.whiten if self.setup.online.whiten is not None else self.online.whiten", "self.online.whiten"),
    ("the sampler's seed ignored", "def _seed", "self.setup.train.seed, self.setup.rollout.seed, *stamp", "self.setup.train.seed, *stamp"),
    ("the same samples every round", "def _seed", "self.setup.rollout.seed, *stamp", "self.setup.rollout.seed"),
    ("answers that ended counted", "def summary", "not answer.sample.finished", "answer.sample.finished"),
    ("the reference's answers told", "def summary", "for answer in group.answers if answer.own]", "for answer in group.answers]"),
    ("baseline forgotten", "", "self.baseline = float(found[\"baseline\"])", "pass"),
    ("prompts of one reward kept", "def _gather", "(dynamic and group.undecided)", "False"),
    ("drawn once", "def _gather", "range(self.setup.online.draws if dynamic else 1)", "range(1)"),
    ("the reference samples nothing", "", "own = samples - 1 if self.online.explores and samples > 1 else samples", "own = samples"),
    ("the price never reaches the loss", "def _steer", "self.job.penalty.coefficient = held.coefficient", "pass"),
    ("measured on one round", "def _kl_of_several_rounds", "range(LAST)", "range(1)"),
)
SETUP: tuple[Line, ...] = (
    ("passes over a round forgotten", "def steps_per_epoch", "* self.online.epochs * per_pass", "* per_pass"),
    ("prompts of a batch for those of a round", "def round_size", "self.online.prompts or ", ""),
    ("the user's replacing ignored", "def replaces", "(online.dynamic if asked is None else asked)", "online.dynamic"),
    ("budgets steer k3", "def held", "\"k2\" if steered and online.estimator == \"k3\" and not kl.ratio else online.estimator", "online.estimator"),
    ("a budget begins at nothing", "def held", "online.kl or (0.05 if steered else 0.0)", "online.kl or 0.0"),
    ("members learn from every row", "def who_learns", "(draw < heads.bag) | (draw == draw.amin(1, keepdim=True))", "draw < 2"),
    ("rows of no member", "def who_learns", " | (draw == draw.amin(1, keepdim=True))", ""),
)
METER: tuple[Line, ...] = (
    ("mean of means", "", "Stat(total + float(stat.total), count + float(stat.count))", "Stat(total + float(stat.total) / max(stat.count, 1), count + 1)"),
    ("last micro-batch only", "", "total + float(stat.total), count", "float(stat.total), count"),
)
DISTRIBUTED: tuple[Line, ...] = (
    ("gradients averaged", "def add_gradients", "dist.all_reduce(parameter.grad)", "dist.all_reduce(parameter.grad.div_(world_size()))"),
    ("gradients not added", "def add_gradients", "            dist.all_reduce(parameter.grad)", "            pass"),
    ("counts not added", "def add_up", "    dist.all_reduce(total)", "    pass"),
)
# fmt: on

_ALL: Mapping[str, tuple[Line, ...]] = {
    "losses/pairwise.py": PAIRWISE,
    "losses/unpaired.py": UNPAIRED,
    "losses/listwise.py": LISTWISE,
    "losses/reward.py": REWARD,
    "losses/policy.py": POLICY,
    "losses/kl.py": KL,
    "losses/value.py": VALUE,
    "losses/advantages.py": ADVANTAGES,
    "losses/supervised.py": SUPERVISED,
    "losses/numeric.py": NUMERIC,
    "losses/ragged.py": RAGGED,
    "losses/reduce.py": REDUCE,
    "losses/columns.py": COLUMNS,
    "losses/methods.py": METHODS,
    "losses/metrics.py": METRICS,
    "pack/tree.py": TREE,
    "pack/plan.py": PLAN,
    "pack/prepare.py": PREPARE,
    "data/truncate.py": TRUNCATE,
    "data/split.py": SPLIT,
    "data/formats.py": FORMATS,
    "text/chat.py": CHAT,
    "model/attention.py": ATTENTION,
    "model/blocks.py": BLOCKS,
    "model/last.py": LAST,
    "model/logprobs.py": LOGPROBS,
    "model/forward.py": FORWARD,
    "model/reference.py": REFERENCE,
    "training/loop.py": LOOP,
    "training/job.py": JOB,
    "training/coupling.py": COUPLING,
    "training/optim.py": OPTIM,
    "training/checkpoint.py": CHECKPOINT,
    "training/stream.py": STREAM,
    "training/fit.py": FIT,
    "training/online.py": ONLINE,
    "training/rounds.py": ROUNDS,
    "training/setup.py": SETUP,
    "training/meter.py": METER,
    "training/distributed.py": DISTRIBUTED,
}
SURVIVES: Mapping[str, str] = {
    "losses/listwise.py: an item does not compete with itself": "the diagonal is put back in the line below, for absent items",
    "model/forward.py: padding attended to": "padding stands right of all that is scored, where causal attention does not look",
    "losses/listwise.py: absent items counted": "an absent item has score 0 and competes with itself alone: log e^0 - 0 is 0 already",
    "losses/columns.py: parts multiplied by the mask": "differs only where a scored token has probability 0, and the loss is infinite or NaN then",
}
"""Faults that change nothing anyone could see, with the reason."""

FAULTS: tuple[Fault, ...] = tuple(
    Fault(file, *line, survives=SURVIVES.get(f"{file}: {line[0]}", "")) for file, lines in _ALL.items() for line in lines
)
