"""From unreduced terms to the one number that is differentiated: the only normalisation in the package.

The denominator of a term is counted over the whole optimizer step, all micro-batches and all ranks, before the first forward pass, so
that 1 x 32 = 32 x 1 = 2 ranks x 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.losses.columns import best_T
from prefopt.losses.ragged import rankings
from prefopt.types import Batch

UNITS = ("token", "sequence", "pair", "list", "step")


class Term(NamedTuple):
    """One part of a loss: `values` unreduced, `unit` what one value belongs to, `weight` its factor, `name` for the log."""

    values: Tensor
    unit: str
    weight: float = 1.0
    name: str = "loss"


def count(batch: Batch, unit: str) -> int:
    """How many terms of a unit a batch holds.

    Args:
        batch: a micro-batch.
        unit: "token" (scored tokens of unranked and best-ranked completions, those likelihood terms learn), "sequence", "pair",
            "list" (prompts with two or more ranked completions) or "step" (labelled steps).

    Raises:
        ValueError: for another unit.
    """
    match unit:
        case "token":
            return int(best_T(batch).sum())
        case "sequence":
            return batch.sequences
        case "pair":
            return batch.pairs
        case "list":
            return int(rankings(batch.rank_S, batch.prompt_S).shape[0])
        case "step":
            return int(batch.step_label_J.shape[0])
    raise ValueError(f"unknown unit {unit!r}; known: {', '.join(UNITS)}")


def reduce(terms: Iterable[Term], denominators: Mapping[str, float]) -> Tensor:
    """Σ weight · Σ values / denominator of the unit: a micro-batch's share of the step's loss, to be added over micro-batches.

    Args:
        terms: what `Method.terms` gives.
        denominators: unit -> how many terms the whole optimizer step holds; a unit the step holds none of counts as 1.

    Returns:
        A scalar.

    >>> reduce([Term(torch.tensor([1.0, 3.0]), "pair"), Term(torch.tensor([2.0]), "token", 0.5)], {"pair": 4, "token": 1}).item()
    2.0
    """
    parts = [term.weight * term.values.sum() / max(denominators[term.unit], 1) for term in terms]
    return torch.stack(parts).sum()
