"""Attention over packed trees on a CPU: queries in blocks, each against the keys it may see, blocks of one size together.

Queries and keys are read as rows, one of a head at a position: a group of blocks is laid out for its matrix products by one selection of
rows, wherever the blocks lie and however many heads of queries share one of keys, and its gradients go back the same way. In bfloat16
blocks are filled up to few sizes, because oneDNN makes a kernel for each, which takes longer than such a product does; in other dtypes
a little, and only where so many blocks are packed together that calls cost more than the filling. Many small products in one call are
also what several threads can share.

Shapes: M positions of the packed row, H heads of queries, K of keys, D head size; B blocks of a group, n queries and m keys in each, those
that fill it up included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from prefopt.types import IntArray, TreeSpan

ROWS = 192
"""Queries of a block: of a longer branch each block leaves out the keys after its last query."""
STEPS = {torch.bfloat16: 64, torch.float16: 64}
"""Blocks are filled up to multiples of so many queries and keys where kernels are made by size."""
STEP, MANY = 16, 24
"""The same for other dtypes, in rows of so many blocks; those of fewer stay exact."""
SCORES = 1 << 19
"""Scores of a group of several blocks, of all heads: what a cache holds."""
KEPT = 4096
"""Longest tree whose attention weights are kept for the backward pass, in positions; those of longer ones are computed again."""
HELD = 4
"""Gradients of keys that wait to be added up, as a multiple of all keys; in a long tree every block has its own of the same keys."""


class Block(NamedTuple):
    """Neighbouring queries of one branch, and the keys they may see: one run of positions, or the prompt's and the branch's own.

    A key's place among all of them is its position in its sequence, and the last query stands at the last key.
    """

    rows: slice
    keys: tuple[slice, ...]
    kept: bool

    @property
    def size(self) -> tuple[int, int]:
        """How many queries and keys it has."""
        return self.rows.stop - self.rows.start, sum(keys.stop - keys.start for keys in self.keys)

    def filled(self, step: int) -> tuple[int, int]:
        """What it is filled up to. A query that fills it up stands at a key that does, so that it sees something."""
        queries, keys = self.size
        n = -(-queries // step) * step
        return n, -(-(keys + n - queries) // step) * step

    def cut(self, rows: slice) -> Block:
        """The same for some neighbouring ones of its queries, and the keys up to the last of them."""
        return Block(rows, (*self.keys[:-1], slice(self.keys[-1].start, rows.stop)), self.kept)


def blocks_of(span: TreeSpan) -> Iterator[Block]:
    """A tree's queries in blocks; the prompt is read with the first branch, whose keys follow it without a gap."""
    own, kept = span.start + span.prompt, span.end - span.start <= KEPT
    for number, length in enumerate(span.branches):
        end = own + length
        for begin in range(own if number else span.start, end, ROWS):
            rows = slice(begin, min(begin + ROWS, end))
            shared = (slice(span.start, span.start + span.prompt), slice(own, rows.stop))
            yield Block(rows, shared if number else (slice(span.start, rows.stop),), kept)
        own = end


class Needed(NamedTuple):
    """Queries that are not of all positions: in blocks, and the positions they stand at, ascending."""

    blocks: tuple[Block, ...]
    rows: torch.Tensor


def needed(blocks: Iterable[Block], places: IntArray) -> Needed:
    """What is needed of a layer that is read at some places alone: of every block the run from the first to the last of them."""
    places, cut = np.unique(places), []
    for block in blocks:
        first, last = np.searchsorted(places, (block.rows.start, block.rows.stop))
        if first < last:
            cut.append(block.cut(slice(int(places[first]), int(places[last - 1]) + 1)))
    return Needed(tuple(cut), torch.from_numpy(_queries(cut)))


@dataclass(frozen=True)
class Group:
    """Blocks filled up to one size.

    Attributes:
        rows: the row of each query among all that are computed, [B H n].
        keys: the row of each key, [B K m].
        bias: [B, 1, n, m], 0 where a query sees a key, else -inf.
        filling: which of the queries only fill up a block.
        kept: whether the weights are kept for the backward pass.
    """

    rows: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor
    filling: torch.Tensor
    kept: bool

    def queries(self, of: torch.Tensor) -> torch.Tensor:
        """The rows of the queries [M H, D] laid out [B K, n H / K, D]: heads that share keys lie side by side."""
        return self._laid(of, self.rows)

    def seen(self, of: torch.Tensor) -> torch.Tensor:
        """The rows of the keys [M K, D] laid out [B K, m, D]."""
        return self._laid(of, self.keys)

    def slopes(self, of: torch.Tensor) -> torch.Tensor:
        """Gradients [M H, D] laid out as the queries; none for those that fill up."""
        found = of.index_select(0, self.rows)
        return (found.index_fill_(0, self.filling, 0) if len(self.filling) else found).view(self._blocks, -1, of.shape[1])

    def masked(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        """scale * scores + bias, of scores [B K, n H / K, m]."""
        blocks, _, n, m = self.bias.shape
        return torch.add(self.bias, scores.view(blocks, -1, n, m), alpha=scale).view_as(scores)

    @property
    def _blocks(self) -> int:
        """B K."""
        return len(self.keys) // self.bias.shape[-1]

    def _laid(self, of: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return of.index_select(0, rows).view(self._blocks, -1, of.shape[1])


class Part(NamedTuple):
    """Groups whose gradients of keys are added up together: those of row r are `slots` from the r-th of `starts` on."""

    groups: tuple[Group, ...]
    slots: torch.Tensor
    starts: torch.Tensor

    def added(self, gradients: torch.Tensor) -> torch.Tensor:
        """The sum [M K, D] for each row of the gradients of every group's keys; in float32 inside."""
        return F.embedding_bag(self.slots, gradients, self.starts, mode="sum")


class Plan(NamedTuple):
    """Every block of a packed row; `place` says where among all groups' queries that of each row is."""

    parts: tuple[Part, ...]
    place: torch.Tensor

    @property
    def groups(self) -> list[Group]:
        """Those of all parts in turn."""
        return [group for part in self.parts for group in part.groups]


def plan_of(blocks: Sequence[Block], positions: int, heads: int, key_heads: int, window: int | None, dtype: torch.dtype) -> Plan:
    """Lay out blocks, in the order of their queries, that hold each at most once; keys are those of so many positions."""
    step = STEPS.get(dtype, STEP if len(blocks) >= MANY else 1)
    by_size: dict[tuple[tuple[int, int], bool], list[Block]] = {}
    for block in blocks:
        by_size.setdefault((block.filled(step), block.kept), []).append(block)
    groups, queries = [], _queries(blocks)
    for ((n, m), _), alike in by_size.items():
        most = max(1, SCORES // (n * m * heads))
        groups += [_group(alike[at : at + most], (n, m), queries, heads, key_heads, window, dtype) for at in range(0, len(alike), most)]
    rows = torch.cat([group.rows.index_fill(0, group.filling, -1) for group in groups])
    places = (rows >= 0).nonzero()[:, 0]
    place = torch.empty_like(places).index_copy_(0, rows[places], places)
    return Plan(tuple(_parts(groups, positions * key_heads)), place)


def _group(
    blocks: Sequence[Block], size: tuple[int, int], queries: IntArray, heads: int, key_heads: int, window: int | None, dtype: torch.dtype
) -> Group:
    rows = np.searchsorted(queries, np.stack([_positions([block.rows], size[0]) for block in blocks])).astype(np.int32)
    keys = np.stack([_positions(block.keys, size[1]) for block in blocks])
    spare = np.arange(size[0]) >= np.array([block.size[0] for block in blocks])[:, None]
    bias = [causal_bias(*size, block.size[1] - block.size[0], window, dtype) for block in blocks]
    return Group(
        rows=torch.from_numpy(_of_heads(rows, heads)),
        keys=torch.from_numpy(_of_heads(keys, key_heads)),
        bias=(bias[0][None] if len(bias) == 1 else torch.stack(bias))[:, None],
        filling=torch.from_numpy(np.flatnonzero(np.repeat(spare[:, None], heads, axis=1))),
        kept=blocks[0].kept,
    )


def _positions(slices: Sequence[slice], size: int) -> IntArray:
    """The positions of some runs, filled up with the last one."""
    found = np.concatenate([np.arange(run.start, run.stop) for run in slices])
    return np.concatenate([found, np.full(size - len(found), found[-1])])


def _queries(blocks: Iterable[Block]) -> IntArray:
    """The positions of all queries."""
    return np.concatenate([np.arange(block.rows.start, block.rows.stop) for block in blocks])


def _of_heads(positions_BX: IntArray, heads: int) -> IntArray:
    """Rows of every head at the positions, flat, [B heads X]."""
    return (positions_BX[:, None] * heads + np.arange(heads)[:, None]).reshape(-1)


def _parts(groups: Sequence[Group], rows: int) -> Iterator[Part]:
    """Groups one after another, as many together as HELD allows of `rows` rows of keys."""
    some: list[Group] = []
    for group in groups:
        if some and sum(len(one.keys) for one in (*some, group)) > HELD * rows:
            yield _part(some, rows)
            some = []
        some.append(group)
    yield _part(some, rows)


def _part(groups: Sequence[Group], rows: int) -> Part:
    keys = torch.cat([group.keys for group in groups])
    counts = torch.bincount(keys, minlength=rows)
    return Part(tuple(groups), torch.argsort(keys), counts.cumsum(0) - counts)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float, softcap: float | None) -> torch.Tensor:
    """softmax(cap(scale q k') + bias) v of rows q [M H, D], k and v [M K, D]; [M H, D], with gradients."""
    out: torch.Tensor = _Attention.apply(q, k, v, plan, scale, softcap)
    return out


class _Attention(torch.autograd.Function):
    """See `attend`. Softmax computes in float32 inside whatever the dtype.

    What fills up the keys has weights of exactly 0, and what fills up the queries is given gradients of 0, so neither leaves a trace.
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, plan: Plan, scale: float, softcap: float | None) -> Any:
        kept, groups = [], plan.groups
        out = _Room(v, [group.rows for group in groups])
        for group in groups:
            weights = _weights(group, q, k, scale, softcap)
            out.put(weights, group.seen(v))
            kept.append(weights if group.kept else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.given = plan, scale, softcap
        return out.rows.index_select(0, plan.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, *kept = ctx.saved_tensors
        plan, scale, softcap = ctx.given
        d_q, d_k, d_v = _Room(q, [group.rows for group in plan.groups]), torch.zeros_like(k), torch.zeros_like(v)
        left = iter(kept)
        for part in plan.parts:
            d_keys, d_values = (_Room(of, [group.keys for group in part.groups]) for of in (k, v))
            for group in part.groups:
                weights = next(left)
                weights = _weights(group, q, k, scale, softcap) if weights is None else weights
                d_out, queries, keys = group.slopes(gradients[0]), group.queries(q), group.seen(k)
                d_values.put(weights.transpose(1, 2), d_out)
                d_weights = torch.bmm(d_out, group.seen(v).transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                if softcap is not None:
                    d_scores = (d_scores * (1 - _capped(queries, keys, scale, softcap).square())).to(d_scores.dtype)
                d_q.put(d_scores, keys)
                d_keys.put(d_scores.transpose(1, 2), queries)
            d_k += part.added(d_keys.rows)
            d_v += part.added(d_values.rows)
        return d_q.rows.index_select(0, plan.place).mul_(scale), d_k.mul_(scale), d_v, None, None, None


class _Room:
    """Rows [.., D] that products of one group after another are written to; kept apart they would leave holes among larger tensors."""

    def __init__(self, like: torch.Tensor, given: Sequence[torch.Tensor]) -> None:
        sizes = [len(rows) for rows in given]
        self.rows = like.new_empty(sum(sizes), like.shape[1])
        self._left = iter(self.rows.split(sizes))

    def put(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Write the products of batches a and b as the next group's rows."""
        torch.bmm(a, b, out=next(self._left).view(len(a), -1, b.shape[2]))


def _weights(group: Group, q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Attention weights [B K, n H / K, m] of a group."""
    queries, keys = group.queries(q), group.seen(k)
    if softcap is None:
        return group.masked(torch.bmm(queries, keys.transpose(1, 2)), scale).softmax(-1)
    return group.masked(_capped(queries, keys, scale, softcap), softcap).softmax(-1).to(q.dtype)


def _capped(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float) -> torch.Tensor:
    """tanh(scores / cap), in float32 or wider (Gemma 2)."""
    scores = torch.bmm(q, k.transpose(1, 2))
    return torch.tanh((scores if scores.dtype == torch.float64 else scores.float()) * (scale / softcap))


def causal_bias(queries: int, keys: int, before: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[n, m]: 0 where a query sees a key, else -inf, for queries that stand at positions `before`, `before` + 1, ... of the keys.

    It depends on the distance alone, so every block's bias is a view of one matrix, made once.
    """
    room, beyond = (1 << max(size, ROWS).bit_length() for size in (before, keys - before))
    return _distances(max(ROWS, queries), room, beyond, window, dtype)[:queries, room - before : room - before + keys]


@lru_cache(maxsize=16)
def _distances(rows: int, room: int, beyond: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """The bias [rows, room + beyond] of queries `room`, `room` + 1, ... on keys 0, 1, ..."""
    back = room + torch.arange(rows)[:, None] - torch.arange(room + beyond)
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return torch.zeros(rows, room + beyond, dtype=dtype).masked_fill_(~seen, -torch.inf)
