"""Data sets whose proportions are exactly the probabilities they stand for, and the batch that reads each prefix once.

A population is a list of ordinary token trees, each draw as often as it is likely. Packed as they are, they would run the same few
prefixes through the model thousands of times; so the flat columns of the batch, made by `pack` as always, are led to a row that holds
every completion of every prompt once. A hidden state depends on its prefix alone, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prefopt.exact import World
from prefopt.pack.tree import pack
from prefopt.types import Batch, Branch, TokenTree

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Prefix = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Population:
    """The draws of a world, and their counts, from which theory is computed.

    Attributes:
        world: prompts and completions.
        trees: one a draw.
        drawn: [P, K] how often each completion is a demonstration, or thumbs up.
        against: [P, K] thumbs down.
        wins: [P, K, K] how often i is preferred to j.
        margin: [P, K] a draw of i over j has margin_i - margin_j.
    """

    world: World
    trees: tuple[TokenTree, ...]
    drawn: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    against: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    wins: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    margin: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _batches: dict[Any, Batch] = field(default_factory=dict)

    @cached_property
    def everything(self) -> list[TokenTree]:
        """One tree a prompt, with all its completions."""
        world = self.world
        return [_tree(world, p, [_branch(world, k) for k in range(len(world.completions))], p) for p in range(len(world.prompts))]

    @cached_property
    def whole(self) -> Batch:
        """Every completion of every prompt once: the row that is run through the model."""
        return self.lay_out(self.everything)

    @cached_property
    def _row(self) -> Batch:
        return pack(self.everything)

    @cached_property
    def places(self) -> dict[Prefix, int]:
        """Position in the row of the first token that completes each prefix."""
        found: dict[Prefix, int] = {}
        for position, prefix in enumerate(_prefixes(self.everything)):
            found.setdefault(prefix, position)
        return found

    def lay_out(self, trees: Sequence[TokenTree]) -> Batch:
        """The batch of some draws, over the row; as `pack` makes it but for the positions."""
        key = tuple((tree.index, id(tree.branches[0])) for tree in trees)
        if key not in self._batches:
            self._batches[key] = self.led_to_the_row(trees)
        return self._batches[key]

    def led_to_the_row(self, trees: Sequence[TokenTree]) -> Batch:
        """The same, of trees that will not come again."""
        batch, row = pack(trees, pairs="judged"), self._row
        place = torch.tensor([self.places[prefix] for prefix in _prefixes(trees)])
        moved: dict[str, Any] = {name: place[getattr(batch, name)] for name in ("source_T", "last_S", "step_index_J")}
        return replace(batch, **moved, ids_BC=row.ids_BC, positions_BC=row.positions_BC, spans=row.spans)


def demonstrations(world: World, drawn: Counts) -> Population:
    """Completions, `drawn` of each."""
    draws = [(p, [_branch(world, k)]) for p, k in np.argwhere(drawn) for _ in range(drawn[p, k])]
    return Population(world, _trees(world, draws), drawn=drawn)


def pairs(world: World, wins: Counts, margin: Counts | None = None, ties: Counts | None = None) -> Population:
    """Preferences i over j, `wins` of each, and `ties` of i with j."""
    strength = np.zeros(wins.shape[:2], dtype=np.int64) if margin is None else margin
    trees = [
        replace(tree, margin=float(strength[p, i] - strength[p, j]))
        for p, i, j in np.argwhere(wins)
        for tree in [_tree(world, p, [_branch(world, i, rank=0), _branch(world, j, rank=1)], 0)] * int(wins[p, i, j])
    ]
    trees += [
        tree
        for p, i, j in np.argwhere(ties if ties is not None else np.zeros((0, 0, 0)))
        for tree in [_tree(world, p, [_branch(world, i, rank=0), _branch(world, j, rank=0)], 0)] * int(ties[p, i, j])  # type: ignore[index]
    ]
    return Population(world, tuple(replace(tree, index=n) for n, tree in enumerate(trees)), wins=wins, margin=strength)


def labels(world: World, up: Counts, down: Counts) -> Population:
    """Thumbs up and down; draws of the prompts take turns, since KTO reads each prompt with its neighbour's completion."""
    draws = [
        (p, [_branch(world, k, label=label)])
        for k in range(up.shape[1])
        for p in range(up.shape[0])
        for label, count in ((True, up[p, k]), (False, down[p, k]))
        for _ in range(count)
    ]
    return Population(world, _trees(world, draws), drawn=up, against=down)


def rankings(world: World, counts: dict[tuple[int, ...], list[int]]) -> Population:
    """Rankings, best first -> how often each is drawn under every prompt."""
    draws = [
        (p, [_branch(world, k, rank=rank) for rank, k in enumerate(order)])
        for order, often in counts.items()
        for p, n in enumerate(often)
        for _ in range(n)
    ]
    return Population(world, _trees(world, draws))


def steps(world: World) -> Population:
    """Every token of a completion is a step; a draw labels them all right or all wrong, in proportion s : 1."""
    draws = []
    for p, strengths in enumerate(world.strengths):
        for k, strength in enumerate(strengths):
            n = len(world.completions[k])
            for label, often in ((1.0, strength), (0.0, 1)):
                branch = replace(_branch(world, k), step_ends=tuple(range(n)), step_labels=(label,) * n)
                draws += [(p, [branch])] * often
    return Population(world, _trees(world, draws), drawn=np.array(world.strengths), against=np.ones_like(world.strengths))


def _trees(world: World, draws: Sequence[tuple[int, list[Branch]]]) -> tuple[TokenTree, ...]:
    return tuple(_tree(world, p, branches, n) for n, (p, branches) in enumerate(draws))


def _tree(world: World, prompt: int, branches: list[Branch], index: int) -> TokenTree:
    return TokenTree(prompt=np.array(world.prompts[prompt], dtype=np.int32), branches=tuple(branches), index=index)


def _branch(world: World, k: int, **known: Any) -> Branch:
    ids = np.array(world.completions[k], dtype=np.int32)
    return Branch(ids=ids, scored=np.ones(len(ids), dtype=np.bool_), **known)


def _prefixes(trees: Sequence[TokenTree]) -> Iterator[Prefix]:
    """What a model has read at each position of the packed trees."""
    for tree in trees:
        prompt = tuple(tree.prompt.tolist())
        yield from (prompt[: n + 1] for n in range(len(prompt)))
        for branch in tree.branches:
            ids = tuple(branch.ids.tolist())
            yield from (prompt + ids[: n + 1] for n in range(len(ids)))
