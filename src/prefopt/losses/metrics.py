"""What is logged of a batch: sums and counts under the names users know, added over micro-batches and divided once."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses import outputs
from prefopt.losses.columns import COLUMNS, View, policy_ratio
from prefopt.losses.numeric import difference, token_mean, wide
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
    "scores/mean": "mean score of all completions, reward units",
    "steps/accuracy": "share of labelled steps on the right side of 1/2",
}

Totals = dict[str, tuple[Tensor, int]]


def of_logps(view: View, data: str, *, beta: float, per_token: bool) -> dict[str, Stat]:
    """Metrics of a method that trains a language model.

    Args:
        view: the batch and its log-probs.
        data: the method's kind of data; thumbs up and down have sides by label, all others by pair.
        beta: scale of the implicit reward.
        per_token: rewards are per token.
    """
    with torch.no_grad():
        policy_S, ratio_S = COLUMNS["policy"](view), policy_ratio(view)
        reward_S = beta * (token_mean(ratio_S, COLUMNS["length"](view)) if per_token else ratio_S)
        totals: Totals = {}
        if data == "labels":
            label = view.batch.label_S
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
