"""A prompt and its K completions as one packed tree: the prompt is read once, and no padding is computed.

A packed batch is a single row: tree after tree, each the prompt followed by its branches. Token i may see token j when both are in
one tree, j is not after i, and j is in the prompt or in i's branch; positions restart after the prompt in every branch, so every
branch reads exactly what it would read alone. `pad` lays the same trees out one sequence a row, the plain way: the oracle of the
packed path and the only path of models whose attention cannot take a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from prefopt.types import SIGNALS, Batch, Branch, Completion, IntArray, TokenTree, TreeSpan

Pairs = Literal["all", "best_worst", "judged"]
"""Which pairs a ranking gives: all of unequal ranks, the best against the worst, or all, ties among them."""


class _Place(NamedTuple):
    """Where a branch lies among the M positions: its first token, and the position that predicts that token (-1: none)."""

    first: int
    predictor: int


def pack(trees: Sequence[TokenTree], *, pairs: Pairs = "all") -> Batch:
    """Pack trees into one row of M = sum of `packed_tokens` positions.

    Args:
        trees: at least one tree with at least one branch each.
        pairs: which pairs a ranking of K > 2 gives.

    Returns:
        A batch with `spans` and B = 1.
    """
    ids, positions, spans, places = [], [], [], []
    start = 0
    for tree in trees:
        prompt = len(tree.prompt)
        spans.append(TreeSpan(start, prompt, tuple(len(b.ids) for b in tree.branches)))
        ids.append(tree.prompt)
        positions.append(np.arange(prompt))
        predictor, start = (start + prompt - 1 if prompt else -1), start + prompt
        for branch in tree.branches:
            places.append(_Place(start, predictor))
            ids.append(branch.ids)
            positions.append(np.arange(prompt, prompt + len(branch.ids)))
            start += len(branch.ids)
    return Batch(
        ids_BC=_long(np.concatenate(ids))[None],
        positions_BC=_long(np.concatenate(positions))[None],
        spans=tuple(spans),
        **_columns(trees, places, pairs),
    )


def pad(trees: Sequence[TokenTree], *, pairs: Pairs = "all", pad_id: int = 0) -> Batch:
    """Lay the same trees out one sequence a row, right padded: `mask_BC` instead of `spans`, every other column alike."""
    rows = [np.concatenate([tree.prompt, branch.ids]) for tree in trees for branch in tree.branches]
    width = max(len(row) for row in rows)
    ids_BC = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask_BC = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        ids_BC[i, : len(row)] = row
        mask_BC[i, : len(row)] = True
    prompts = [len(tree.prompt) for tree in trees for _ in tree.branches]
    places = [_Place(i * width + n, i * width + n - 1 if n else -1) for i, n in enumerate(prompts)]
    return Batch(
        ids_BC=_long(ids_BC),
        positions_BC=torch.arange(width).expand(len(rows), -1).contiguous(),
        mask_BC=torch.from_numpy(mask_BC),
        **_columns(trees, places, pairs),
    )


def _columns(trees: Sequence[TokenTree], places: Sequence[_Place], pairs: Pairs) -> dict[str, Any]:
    """The flat columns of a batch, from where each branch lies."""
    branches = [branch for tree in trees for branch in tree.branches]
    scored = [_scored(branch, place) for branch, place in zip(branches, places, strict=True)]
    sources = [np.where(at > 0, place.first + at - 1, place.predictor) for at, place in zip(scored, places, strict=True)]
    targets = [branch.ids[at] for at, branch in zip(scored, branches, strict=True)]
    lengths = np.array([len(at) for at in scored])
    steps = [place.first + np.array(b.step_ends, dtype=np.int64) for b, place in zip(branches, places, strict=True)]
    chosen, rejected, margins, tied = _pair_columns(trees, pairs)
    return {
        "source_T": _long(np.concatenate(sources)),
        "target_T": _long(np.concatenate(targets)),
        "sequence_T": _long(np.repeat(np.arange(len(branches)), lengths)),
        "last_S": _long([place.first + len(b.ids) - 1 for b, place in zip(branches, places, strict=True)]),
        "prompt_S": _long(np.repeat(np.arange(len(trees)), [len(tree.branches) for tree in trees])),
        "length_S": _long(lengths),
        "chosen_N": _long(chosen),
        "rejected_N": _long(rejected),
        "margin_N": torch.tensor(margins, dtype=torch.float32),
        "tied_N": torch.tensor(tied, dtype=torch.bool),
        "rank_S": _long([-1 if b.rank is None else b.rank for b in branches]),
        "label_S": torch.tensor([float(b.label or 0) for b in branches]),
        "step_index_J": _long(np.concatenate(steps)),
        "step_label_J": torch.tensor([label for b in branches for label in b.step_labels], dtype=torch.float32),
        "index_P": _long([tree.index for tree in trees]),
        **_signals(branches, scored),
    }


def _signals(branches: Sequence[Branch], scored: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """The signals that every branch has, of its scored tokens."""
    named = [name for name in SIGNALS if all(name in branch.signals for branch in branches)]
    return {f"{n}_T": torch.from_numpy(np.concatenate([b.signals[n][at] for b, at in zip(branches, scored, strict=True)])) for n in named}


def _scored(branch: Branch, place: _Place) -> np.ndarray:
    """Indices of the scored tokens of a branch; a first token that nothing precedes has no prediction to score."""
    at = np.flatnonzero(branch.scored)
    return at if place.predictor >= 0 else at[at > 0]


def _pair_columns(trees: Sequence[TokenTree], pairs: Pairs) -> tuple[list[int], list[int], list[float], list[bool]]:
    """Sequence numbers of (chosen, rejected), margins and ties of the pairs of each tree."""
    chosen: list[int] = []
    rejected: list[int] = []
    margins: list[float] = []
    tied: list[bool] = []
    base = 0
    for tree in trees:
        for better, worse in ranked_pairs(tree.branches, pairs):
            chosen.append(base + better)
            rejected.append(base + worse)
            margins.append(_margin(tree, better, worse))
            tied.append(tree.branches[better].rank == tree.branches[worse].rank)
        base += len(tree.branches)
    return chosen, rejected, margins, tied


def _margin(tree: TokenTree, better: int, worse: int) -> float:
    """How strong a preference is: what its row says, or of sampled answers the difference of their rewards; else 0."""
    if tree.margin is not None:
        return tree.margin
    chosen, rejected = tree.branches[better], tree.branches[worse]
    if not chosen.signals or chosen.score is None or rejected.score is None:
        return 0.0
    return chosen.score - rejected.score


def ranked_pairs(branches: Sequence[Branch | Completion], pairs: Pairs = "all") -> list[tuple[int, int]]:
    """(better, worse) branch numbers of a tree, ties left out unless `judged`; best first, then by the worse one's rank."""
    ranked = sorted((b.rank, i) for i, b in enumerate(branches) if b.rank is not None)
    found = [(i, j) for n, (rank_i, i) in enumerate(ranked) for rank_j, j in ranked[n + 1 :] if pairs == "judged" or rank_i < rank_j]
    if pairs == "best_worst":
        return [(ranked[0][1], ranked[-1][1])] if found else []
    return found


def _long(values: IntArray | np.ndarray | Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64))
