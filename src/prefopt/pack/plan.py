"""Which trees an optimizer step reads, in which order, and how they are cut into forward passes.

Everything is a pure function of (seed, step), so a resumed run reads what the uninterrupted one would have read, and nothing about
micro-batches or ranks changes which rows a step holds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefopt.data.truncate import cut_branch
from prefopt.types import TokenTree


@dataclass(frozen=True)
class Plan:
    """The order of rows: every epoch is a fresh permutation, the last step of an epoch takes what is left."""

    rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that read every row once."""
        return math.ceil(self.rows / self.batch_size)

    def step(self, step: int) -> list[int]:
        """The rows of optimizer step `step` (0-based)."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return [int(i) for i in order[at * self.batch_size : (at + 1) * self.batch_size]]


def share(items: Sequence[TokenTree], rank: int, world_size: int) -> list[TokenTree]:
    """The trees of a step that one rank reads."""
    return list(items[rank::world_size])


def micro_batches(
    trees: Sequence[TokenTree], micro_tokens: int, *, padded: bool = False, border: int | None = None
) -> list[list[TokenTree]]:
    """Cut a step's trees into forward passes of at most `micro_tokens` computed positions (a larger tree stands alone).

    Trees are taken from long to short so that padded rows waste little and a pass that would not fit shows at once. Trees longer than
    `border` and others are never in one pass: a model that reads them differently reads a whole pass as its longest sequence.
    """
    bins: list[list[TokenTree]] = []
    cost = 0
    for tree in sorted(trees, key=lambda t: (-longest(t), t.index)):
        extra = len(tree.branches) * (longest(bins[-1][0]) if bins else 0) if padded else tree.packed_tokens
        apart = bool(bins) and border is not None and longest(tree) <= border < longest(bins[-1][0])
        if bins and cost + extra <= micro_tokens and not apart:
            bins[-1].append(tree)
            cost += extra
        else:
            bins.append([tree])
            cost = len(tree.branches) * longest(tree) if padded else tree.packed_tokens
    return bins


def passes(trees: Sequence[TokenTree], micro_tokens: int, *, padded: bool = False, border: int | None = None) -> Iterator[list[TokenTree]]:
    """The same over a whole data set, some thousand trees in memory at a time."""
    for start in range(0, len(trees), 4096):
        yield from micro_batches(trees[start : start + 4096], micro_tokens, padded=padded, border=border)


def longest(tree: TokenTree) -> int:
    """Tokens of the tree's longest sequence."""
    return len(tree.prompt) + max(len(b.ids) for b in tree.branches)


def mismatched(trees: Sequence[TokenTree], limit: int | None = None) -> list[TokenTree]:
    """Each prompt with the next tree's completions: KTO's estimate of the KL term (arXiv 2402.01306, section 4.1).

    A prompt and a completion that were never one row may be longer than `limit` tokens: the completion loses its end.
    """
    others = [*trees[1:], trees[0]]
    rooms = [sys.maxsize if limit is None else limit - len(tree.prompt) for tree in trees]
    return [
        replace(tree, branches=tuple(cut_branch(branch, room) for branch in other.branches))
        for tree, other, room in zip(trees, others, rooms, strict=True)
    ]
