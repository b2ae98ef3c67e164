"""What is logged of a batch: sums and counts under the names users know, added over micro-batches and divided once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.losses import outputs
from prefopt.losses.columns import COLUMNS, View, policy_ratio
from prefopt.losses.numeric import difference, exp_tangent, token_mean, wide
from prefopt.losses.ragged import segment_mean
from prefopt.types import Stat

UNITS_OF_METRICS = {
    "rewards/chosen": "mean reward of chosen (or thumbs-up) completions: beta times the log-ratio to the reference in nats (the log-prob "
    "where there is none; per token in length-normalised methods), or the reward model's score",
    "rewards/rejected": "the same of rejected (or thumbs-down) completions",
    "rewards/margins": "mean of chosen minus rejected, reward units",
    "rewards/accuracies": "share of pairs with a positive margin, ties count half",
    "logps/chosen": "mean log-prob of chosen (or thumbs-up) completions, summed over their tokens, nats",
    "logps/rejected": "the same of rejected (or thumbs-down) completions",
    "kl": "mean over completions of log-prob minus reference log-prob, nats per completion; an estimate of "
    "KL(policy || reference) only on the policy's own samples",
    "entropy": "mean entropy of the next-token distribution at scored tokens, nats",
    "clip_ratio/low_mean": "share of tokens whose ratio to the policy that sampled was clipped below",
    "clip_ratio/high_mean": "the same above (in cispo, of importance weights that were clipped)",
    "clip_ratio/region_mean": "both together",
    "policy/approxkl": "half the mean squared change of a token's log-prob since it was sampled, nats squared",
    "sampling/sampling_logp_difference/mean": "mean difference of a token's log-prob between sampler and trainer, absolute, nats",
    "loss/value": "the critic's loss, mean over tokens",
    "scores/mean": "mean score of all completions, reward units",
    "steps/accuracy": "share of labelled steps on the right side of 1/2",
}

METRICS_OF_ROUNDS = {
    "reward": "mean reward of the round's answers, before any KL",
    "reward_std": "mean over prompts of the standard deviation of their answers' rewards (over all answers, where each prompt has one)",
    "rewards/NAME/mean": "mean of each source and penalty of the reward, times its weight",
    "frac_reward_zero_std": "share of prompts whose answers all got the same reward",
    "completions/mean_length": "tokens of an answer, its stop token included; also min_length and max_length",
    "completions/clipped_ratio": "share of answers that did not end by themselves",
    "objective/kl": "KL(policy || reference) at the start of the round, nats an answer: that of each next token, summed",
    "kl/coefficient": "reward units per nat, as the controller set it",
    "kl/error": "standard error of objective/kl, answers to one prompt going together (kl.budget)",
    "kl/smoothed": "objective/kl smoothed over rounds, which is what is steered under a budget",
    "kl/pulled_back": "KL of the weights as they came, where it was beyond the budget and they were pulled back; else 0 (kl.budget)",
    "critic/vf_explained_var": "share of the returns' variance that the critic knew (ppo)",
    "reward_baseline": "the running baseline (reinforce)",
    "rollouts/unjudged": "answers that were asked for and left out, because they could not be judged",
    "rollouts/learned_from": "answers that are trained on",
}
"""Logged with the first step of each round."""

METRICS_OF_STEPS = {
    "loss": "what is minimised, all its terms together (rows mixed in, KL in the loss, entropy bonus, critic)",
    "grad_norm": "norm of the gradient before it is clipped; of the policy's alone where there is a critic",
    "lr": "the learning rate of the step, after warm-up and schedule",
    "epoch": "passes over the rows so far, of methods that sample over the prompts",
    "tokens_per_second": "positions computed in the step, each prompt once where trees are packed, by its time; sampling takes none of it",
    "pairs_per_second": "pairs of the step by the same time, where it has some",
    "skipped_steps": "1 where a step had nothing to learn from (a round without a contrast, say) and changed nothing",
}
"""Logged with every step of every method."""

Totals = dict[str, tuple[Tensor, int]]


def of_logps(view: View, data: str, *, beta: float, per_token: bool, relative: bool) -> dict[str, Stat]:
    """Metrics of a method that trains a language model.

    Args:
        view: the batch and its log-probs.
        data: the method's kind of data; thumbs up and down have sides by label, all others by pair.
        beta: scale of the implicit reward.
        per_token: rewards are per token.
        relative: rewards are relative to the reference, which the loss reads, and not log-probs alone.
    """
    with torch.no_grad():
        policy_S, ratio_S = COLUMNS["policy"](view), policy_ratio(view)
        raw_S = ratio_S if relative else policy_S
        reward_S = beta * (token_mean(raw_S, COLUMNS["length"](view)) if per_token else raw_S)
        totals: Totals = {}
        if data == "labels":
            label = COLUMNS["label"](view)
            for name, side in (("chosen", label), ("rejected", ~label)):
                totals |= {f"rewards/{name}": _total(reward_S[side]), f"logps/{name}": _total(policy_S[side])}
        elif view.batch.pairs:
            chosen, rejected = view.batch.chosen_N, view.batch.rejected_N
            totals = _pairs(reward_S[chosen], reward_S[rejected])
            totals |= {"logps/chosen": _total(policy_S[chosen]), "logps/rejected": _total(policy_S[rejected])}
        if view.ref_logps_T is not None:
            totals["kl"] = _total(ratio_S)
        if view.entropy_T is not None:
            totals["entropy"] = _total(wide(view.entropy_T))
        return _stats(totals)


def of_samples(view: View, options: Mapping[str, Any], *, by_sequence: bool) -> dict[str, Stat]:
    """Metrics of a policy on its own samples: how far it has moved since, and how often that was clipped.

    Args:
        view: the batch and its log-probs.
        options: clip_low and clip_high are read where the method has them.
        by_sequence: ratios are of whole answers.
    """
    if view.batch.advantages_T is None:
        return {}
    with torch.no_grad():
        logps, old, advantages = (COLUMNS[name](view) for name in ("logps", "old_logps", "advantages"))
        moved = difference(logps, old)
        totals: Totals = {"policy/approxkl": _total(0.5 * moved.square())}
        if view.batch.sampled_T is not None:
            totals["sampling/sampling_logp_difference/mean"] = _total(difference(old, COLUMNS["sampled"](view)).abs())
        if "clip_high" in options:
            if by_sequence:
                sequence_T = COLUMNS["sequence"](view)
                moved = segment_mean(moved, sequence_T, view.batch.sequences)[sequence_T]
            totals |= _clipped(exp_tangent(moved), advantages, options)
        return _stats(totals)


def _clipped(ratio: Tensor, advantages: Tensor, options: Mapping[str, Any]) -> Totals:
    weighs = "max_ratio" in options  # CISPO: weights are clipped whatever the advantage
    low = 0.0 if options["clip_low"] is None else 1 - options["clip_low"]
    high = options.get("max_ratio") or 1 + options["clip_high"]
    below, above = (ratio < low) & (weighs | (advantages < 0)), (ratio > high) & (weighs | (advantages > 0))
    return {f"clip_ratio/{name}_mean": _total(at.float()) for name, at in (("low", below), ("high", above), ("region", below | above))}


def of_scores(view: View) -> dict[str, Stat]:
    """Metrics of a reward model, of whole answers or of steps; of several outputs, the mean over those that learn from a row."""
    with torch.no_grad():
        view = outputs.mean(view)
        totals: Totals = {}
        if view.step_logits_J is not None:
            right = (COLUMNS["step_logits"](view) > 0) == (COLUMNS["step_labels"](view) > 0.5)
            totals["steps/accuracy"] = _total(right.float())
        if view.scores_S is not None:
            totals["scores/mean"] = _total(COLUMNS["scores"](view))
            if view.batch.pairs:
                won = ~view.batch.tied_N
                totals |= _pairs(COLUMNS["chosen_scores"](view)[won], COLUMNS["rejected_scores"](view)[won])
        return _stats(totals)


def _pairs(chosen: Tensor, rejected: Tensor) -> Totals:
    """The four metrics of rewards of pairs [N]."""
    margin = difference(chosen, rejected)
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    named = {"chosen": chosen, "rejected": rejected, "margins": margin, "accuracies": right}
    return {f"rewards/{name}": _total(values) for name, values in named.items()}


def _total(values: Tensor) -> tuple[Tensor, int]:
    """Sum and number of values."""
    return values.sum(), values.numel()


def _stats(totals: Totals) -> dict[str, Stat]:
    """Totals as plain numbers, fetched from the device in one go."""
    if not totals:
        return {}
    sums = torch.stack([total.double() for total, _ in totals.values()]).tolist()
    return {name: Stat(total, count) for (name, (_, count)), total in zip(totals.items(), sums, strict=True)}
