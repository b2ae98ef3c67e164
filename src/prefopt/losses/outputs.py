"""Reward models with several outputs: each output has the loss to itself, and a term is the mean over the outputs that learn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from prefopt.losses.columns import View
from prefopt.losses.ragged import rankings
from prefopt.types import Batch


def several(view: View) -> bool:
    """Whether scores or step logits have a column for each of several outputs."""
    return any(x is not None and x.dim() == 2 for x in (view.scores_S, view.step_logits_J))


def each(view: View, unit: str, values: Callable[[View], Tensor]) -> Tensor:
    """The terms of a unit, each the mean over the outputs that learn from it; 0 where none does.

    Args:
        view: with scores [S, E] or step logits [J, E].
        unit: what one value belongs to.
        values: the loss of a view with one output.
    """
    table = torch.stack([values(_output(view, e)) for e in range(_count(view))], dim=1)
    learns = torch.ones_like(table, dtype=torch.bool) if view.learns_SE is None else view.learns_SE[_sequence(view.batch, unit)]
    return torch.where(learns, table, 0.0).sum(1) / learns.sum(1).clamp(min=1)


def mean(view: View) -> View:
    """The view as of one output: the mean over the outputs that learn from a sequence, for metrics."""
    if not several(view):
        return view
    steps, scores, learns = view.step_logits_J, view.scores_S, view.learns_SE
    of_steps = None if learns is None else learns[_sequence(view.batch, "step")]
    return replace(view, scores_S=_mean(scores, learns), step_logits_J=_mean(steps, of_steps), learns_SE=None)


def _mean(values: Tensor | None, learns: Tensor | None) -> Tensor | None:
    if values is None or values.dim() == 1:
        return values
    if learns is None:
        return values.mean(1)
    return torch.where(learns, values, 0.0).sum(1) / learns.sum(1).clamp(min=1)


def _count(view: View) -> int:
    values = view.scores_S if view.scores_S is not None else view.step_logits_J
    assert values is not None
    return int(values.shape[1])


def _output(view: View, e: int) -> View:
    def column(x: Tensor | None) -> Tensor | None:
        return x if x is None else x[:, e]

    return replace(view, scores_S=column(view.scores_S), step_logits_J=column(view.step_logits_J), learns_SE=None)


def _sequence(batch: Batch, unit: str) -> Tensor:
    """The sequence that stands for each term: all sequences of a term are of one row."""
    if unit == "pair":
        return batch.chosen_N
    if unit == "list":
        table = rankings(batch.rank_S, batch.prompt_S)
        return table[:, 0] if table.shape[1] else table.new_zeros(0)
    if unit == "step":
        return torch.searchsorted(batch.last_S, batch.step_index_J)
    return torch.arange(batch.sequences, device=batch.last_S.device)
