"""Attention over packed trees, registered with transformers under the name "prefopt_tree".

Any model that looks its attention up by name and hands extra keyword arguments down to it (nearly all decoders of transformers 5)
gets tree attention without a line of its own: the forward call carries `tree=TreeLayout(...)`, and the layers' own `sliding_window`,
`softcap` and `sinks` arrive beside it. On a CPU each branch is a few matrix products against what it sees, so no work is spent between
branches or between trees; on CUDA the whole row is one FlexAttention call under a block mask made once per batch.

Shapes: H heads, M positions of the packed row, D head size; W queries, all M or those that a last layer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from prefopt.model.blocks import Needed, Plan, attend, blocks_of, needed, plan_of
from prefopt.types import TreeSpan

NAME = "prefopt_tree"
COMPILED = ("cuda",)
"""Kinds of devices for which attention over trees is compiled."""
WORTH = 0.9
"""A last layer computes what is read of it alone where that is at most so much of it; the selecting has a price too."""
KERNELS = 64
"""FlexAttention may be compiled so often: for windows, soft caps, dtypes, with and without gradient, for each model at work (torch: 8)."""


class TreeLayout:
    """Where the trees of a packed row lie, and what attention derives from it once per batch for all layers.

    `calls` counts the layers that used it: a model that ignores the layout leaves it at 0, and must not be trained packed.

    Args:
        spans: the trees.
        device: where the row lies.
        places: positions at which the last hidden states are read; None for all.
    """

    def __init__(self, spans: Sequence[TreeSpan], device: torch.device, places: torch.Tensor | None = None) -> None:
        self.spans, self.device, self.places = tuple(spans), device, places
        self.calls = 0
        self.shortened = False
        """Whether the last layer computed `needed` alone."""
        self.blocks = tuple(block for span in spans for block in blocks_of(span))
        self._masks: dict[int | None, Any] = {}
        self._plans: dict[Any, Plan] = {}

    @cached_property
    def needed(self) -> Needed | None:
        """What a last layer has to compute, for the places that are read; None where that is nearly everything."""
        if self.places is None or not len(self.places) or self.device.type != "cpu":
            return None
        found = needed(self.blocks, self.places.numpy())
        return found if len(found.rows) <= WORTH * self.spans[-1].end else None

    def read(self, states_WD: torch.Tensor) -> torch.Tensor:
        """Of the last hidden states those at the places."""
        if self.places is None:
            return states_WD
        if not self.shortened or self.needed is None:
            return states_WD[self.places]
        return states_WD[torch.searchsorted(self.needed.rows, self.places)]

    def plan(self, heads: int, key_heads: int, window: int | None, dtype: torch.dtype, *, short: bool = False) -> Plan:
        """The blocks, or the needed ones, laid out for so many heads of queries and of keys."""
        how = heads, key_heads, window, dtype
        if (how, short) not in self._plans:
            blocks = self.needed.blocks if short and self.needed is not None else self.blocks
            self._plans[how, short] = plan_of(blocks, self.spans[-1].end, *how)
        return self._plans[how, short]

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
    """Attention of queries [1, H, W, D] over a packed row; returns [1, W, H, D] as transformers expects.

    Raises:
        RuntimeError: the model does not hand `tree` down, or uses attention sinks; the self-check then takes the padded path.
    """
    if tree is None or others.get("s_aux") is not None:  # attention sinks
        raise RuntimeError("this model's attention cannot take a tree")
    tree.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type in COMPILED:
        key, value = (repeat_kv(t, query.shape[1] // t.shape[1]) for t in (key, value))
        return _flex(query, key, value, tree, scale, sliding_window, softcap).transpose(1, 2), None
    plan = tree.plan(query.shape[1], key.shape[1], sliding_window, query.dtype, short=query.shape[2] < key.shape[2])
    q, k, v = (t[0].transpose(0, 1).flatten(0, 1) for t in (query, key, value))
    out = attend(q, k, v, plan, scale, softcap)
    return out.view(1, query.shape[2], query.shape[1], -1), None


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: TreeLayout, scale: Any, window: Any, softcap: Any) -> torch.Tensor:
    """The whole row in one FlexAttention call; one kernel too many is an error, as the eager form makes the dense matrix trees avoid."""
    from torch._dynamo import config

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    with config.patch(recompile_limit=KERNELS):
        return _compiled_flex()(q, k, v, score_mod=capped if softcap else None, block_mask=tree.block_mask(window), scale=scale)


def _compiled_flex(_cache: list[Any] = []) -> Any:  # noqa: B006 - one compiled kernel for the process
    if not _cache:
        from torch.nn.attention.flex_attention import flex_attention

        _cache.append(torch.compile(flex_attention, dynamic=True, fullgraph=True))
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
