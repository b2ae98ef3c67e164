"""Attention over packed trees, registered with transformers under the name "prefopt_tree".

Any model that looks its attention up by name and hands extra keyword arguments down to it (nearly all decoders of transformers 5)
gets tree attention without a line of its own: the forward call carries `tree=TreeLayout(...)`, and the layers' own `sliding_window`,
`softcap` and `sinks` arrive beside it. On a CPU each branch is a few matrix products against what it sees, so no work is spent between
branches or between trees; on CUDA the whole row is one FlexAttention call under a block mask made once per batch.

Shapes: H heads, M positions of the packed row, D head size; n queries of a block, m keys they may see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from prefopt.types import TreeSpan

NAME = "prefopt_tree"
ROWS = 192
"""Queries of a block on a CPU: of a longer branch each block leaves out the keys after its last query."""
KEPT = 4096
"""Longest tree whose attention weights are kept for the backward pass, in positions; those of longer ones are computed again."""


class Block(NamedTuple):
    """Neighbouring queries of one branch, and the keys they may see: one run of positions, or the prompt's and the branch's own.

    A key's place among all of them is its position in its sequence, and the last query stands at the last key.
    """

    rows: slice
    keys: tuple[slice, ...]
    kept: bool

    def seen(self, tensor_HMD: torch.Tensor) -> torch.Tensor:
        """The tensor at the keys, [H, m, D]."""
        parts = [tensor_HMD[:, keys] for keys in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def give(self, tensor_HMD: torch.Tensor, values_HmD: torch.Tensor) -> None:
        """Add values at the keys."""
        at = 0
        for keys in self.keys:
            size = keys.stop - keys.start
            tensor_HMD[:, keys] += values_HmD[:, at : at + size]
            at += size


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


class TreeLayout:
    """Where the trees of a packed row lie, and what attention derives from it once per batch for all layers.

    `calls` counts the layers that used it: a model that ignores the layout leaves it at 0, and must not be trained packed.
    """

    def __init__(self, spans: Sequence[TreeSpan], device: torch.device) -> None:
        self.spans, self.device = tuple(spans), device
        self.calls = 0
        self.blocks = tuple(block for span in spans for block in blocks_of(span))
        self._masks: dict[int | None, Any] = {}

    def block_mask(self, window: int | None) -> Any:
        """`rule` as a FlexAttention block mask."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            total = self.spans[-1].end
            self._masks[window] = create_block_mask(self.rule(window), None, None, total, total, device=str(self.device))
        return self._masks[window]

    def rule(self, window: int | None) -> Callable[..., torch.Tensor]:
        """Who sees whom among the M positions, in FlexAttention's form: the readable rule, which the blocks are tested against."""
        tree_M = torch.cat([torch.full((s.end - s.start,), i) for i, s in enumerate(self.spans)]).to(self.device)
        branch_M = torch.cat([_branch_numbers(s) for s in self.spans]).to(self.device)
        position_M = torch.cat([_positions(s) for s in self.spans]).to(self.device)

        def visible(_b: Any, _h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            same = (tree_M[i] == tree_M[j]) & (j <= i) & ((branch_M[j] == 0) | (branch_M[j] == branch_M[i]))
            return same if window is None else same & (position_M[i] - position_M[j] < window)

        return visible


def _branch_numbers(span: TreeSpan) -> torch.Tensor:
    """0 for the prompt, k + 1 for branch k, at every position of a tree."""
    return torch.repeat_interleave(torch.tensor([span.prompt, *span.branches]))


def _positions(span: TreeSpan) -> torch.Tensor:
    return torch.cat([torch.arange(span.prompt), *(torch.arange(span.prompt, span.prompt + n) for n in span.branches)])


@torch.compiler.disable
def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: TreeLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [1, H, M, D] over a packed row; returns [1, M, H, D] as transformers expects.

    Raises:
        RuntimeError: the model does not hand `tree` down, or uses attention sinks; the self-check then takes the padded path.
    """
    if tree is None or others.get("s_aux") is not None:  # attention sinks
        raise RuntimeError("this model's attention cannot take a tree")
    tree.calls += 1
    key, value = (repeat_kv(t, getattr(module, "num_key_value_groups", 1)) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        return _flex(query, key, value, tree, scale, sliding_window, softcap).transpose(1, 2), None
    out_MHD: Any = _Blocks.apply(query[0], key[0], value[0], tree.blocks, sliding_window, scale, softcap)
    return out_MHD[None], None


class _Blocks(torch.autograd.Function):
    """softmax(cap(scale q k') + bias) v, block by block: [H, M, D] in, [M, H, D] out.

    Written out as matrix products: on CPUs with bf16 products it takes half the time of the fused kernel or less, in float32 two
    thirds. Softmax computes in float32 inside whatever the dtype.
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, blocks: Sequence[Block], window: int | None, scale: float, softcap: float | None) -> Any:
        out_MHD = q.new_empty(q.shape[1], q.shape[0], v.shape[2])
        kept = []
        for block in blocks:
            weights = _weights(q[:, block.rows], block.seen(k), window, scale, softcap)
            out_MHD[block.rows] = torch.bmm(weights, block.seen(v)).transpose(0, 1)
            kept.append(weights if block.kept else None)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.given = blocks, window, scale, softcap
        return out_MHD

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, *kept = ctx.saved_tensors
        blocks, window, scale, softcap = ctx.given
        out_HMD = gradients[0].transpose(0, 1)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, stored in zip(blocks, kept, strict=True):
            queries, keys, d_out = q[:, block.rows], block.seen(k), out_HMD[:, block.rows]
            weights = _weights(queries, keys, window, scale, softcap) if stored is None else stored
            block.give(d_v, torch.bmm(weights.transpose(1, 2), d_out))
            d_weights = torch.bmm(d_out, block.seen(v).transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if softcap is not None:
                d_scores = (d_scores * (1 - _capped(queries, keys, scale, softcap).square())).to(d_scores.dtype)
            d_q[:, block.rows] = torch.bmm(d_scores, keys).mul_(scale)
            block.give(d_k, torch.bmm(d_scores.transpose(1, 2), queries).mul_(scale))
        return d_q, d_k, d_v, None, None, None, None


def _weights(q: torch.Tensor, k: torch.Tensor, window: int | None, scale: float, softcap: float | None) -> torch.Tensor:
    """Attention weights [H, n, m] of a block's queries on its keys."""
    bias = causal_bias(q.shape[1], k.shape[1], window, q.dtype)
    if softcap is None:
        return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    return (softcap * _capped(q, k, scale, softcap) + bias).softmax(-1).to(q.dtype)


def _capped(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float) -> torch.Tensor:
    """tanh(scores / cap), in float32 or wider (Gemma 2)."""
    scores = torch.bmm(q, k.transpose(1, 2))
    return torch.tanh((scores if scores.dtype == torch.float64 else scores.float()) * (scale / softcap))


def causal_bias(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """[n, m]: 0 where a query sees a key, else -inf, for queries that stand at the last n of m positions.

    It depends on the distance alone, so every block's bias is a view of one matrix, made once.
    """
    before = keys - queries
    rows, room = max(ROWS, queries), 1 << max(before, 1).bit_length()
    return _distances(rows, room, window, dtype)[:queries, room - before : room + queries]


@lru_cache(maxsize=16)
def _distances(rows: int, room: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """The bias [rows, room + rows] of queries `room`, `room` + 1, ... on keys 0, 1, ..."""
    back = room + torch.arange(rows)[:, None] - torch.arange(room + rows)
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return torch.zeros(rows, room + rows, dtype=dtype).masked_fill_(~seen, -torch.inf)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: TreeLayout, scale: Any, window: Any, softcap: Any) -> torch.Tensor:
    """The whole row in one FlexAttention call."""

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return _compiled_flex()(q, k, v, score_mod=capped if softcap else None, block_mask=tree.block_mask(window), scale=scale)


def _compiled_flex(_cache: list[Any] = []) -> Any:  # noqa: B006 - one compiled kernel for the process
    if not _cache:
        from torch.nn.attention.flex_attention import flex_attention

        _cache.append(torch.compile(flex_attention, dynamic=True))
    return _cache[0]


AttentionInterface.register(NAME, tree_attention)
_OWN: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""What each model that attends over trees at the moment attended with before."""


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` attends over trees; outside it is as it was (generation and the padded path need its own attention)."""
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _OWN[model] = own
    try:
        yield
    finally:
        model.set_attn_implementation(own)
        _OWN.pop(model, None)


@contextmanager
def own_attention(model: PreTrainedModel, like: PreTrainedModel | None = None) -> Iterator[None]:
    """Inside, a model that attends over trees attends as it did before, so that it can decode in the middle of training.

    Args:
        model: any; one that does not attend over trees stays as it is.
        like: what a copy made inside `packed_attention` was made of.
    """
    own = _OWN.get(model) or (_OWN.get(like) if like is not None else None)
    if own is None or model.config._attn_implementation != NAME:
        yield
        return
    model.set_attn_implementation(own)
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)
