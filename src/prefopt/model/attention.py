"""Attention over packed trees, registered with transformers under the name "prefopt_tree".

Any model that looks its attention up by name and hands extra keyword arguments down to it (nearly all decoders of transformers 5)
gets tree attention without a line of its own: the forward call carries `tree=TreeLayout(...)`, and the layers' own `sliding_window`,
`softcap` and `sinks` arrive beside it. On a CPU each tree is one small SDPA call, so no work is spent between trees; on CUDA the whole row
is one FlexAttention call under a block mask made once per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from prefopt.types import TreeSpan

NAME = "prefopt_tree"
PLAIN_LENGTH = 1024
"""Longest tree whose attention weights are written out, in positions."""


class TreeLayout:
    """Where the trees of a packed row lie, and the masks attention needs, each made once per batch and shared by all layers.

    `calls` counts the layers that used it: a model that ignores the layout leaves it at 0, and must not be trained packed.
    """

    def __init__(self, spans: Sequence[TreeSpan], device: torch.device) -> None:
        self.spans, self.device = tuple(spans), device
        self.calls = 0
        self._masks: dict[int | None, list[torch.Tensor | None]] = {}
        self._biases: dict[int | None, list[torch.Tensor]] = {}
        self._blocks: dict[int | None, Any] = {}

    def masks(self, window: int | None) -> list[torch.Tensor | None]:
        """One [L, L] mask a tree (True: may be seen); None where plain causal attention is the same."""
        if window not in self._masks:
            self._masks[window] = [tree_mask(span, window, self.device) for span in self.spans]
        return self._masks[window]

    def biases(self, window: int | None) -> list[torch.Tensor]:
        """The same as numbers to add to scores, 0 or -inf, [L, L] float32."""
        if window not in self._biases:
            self._biases[window] = [_bias(span, mask) for span, mask in zip(self.spans, self.masks(window), strict=True)]
        return self._biases[window]

    def block_mask(self, window: int | None) -> Any:
        """The same rule over the whole row as a FlexAttention block mask."""
        if window not in self._blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            total = self.spans[-1].end
            self._blocks[window] = create_block_mask(self.rule(window), None, None, total, total, device=str(self.device))
        return self._blocks[window]

    def rule(self, window: int | None) -> Callable[..., torch.Tensor]:
        """The visibility rule on positions of the packed row, in FlexAttention's form."""
        tree_M = torch.cat([torch.full((s.end - s.start,), i) for i, s in enumerate(self.spans)]).to(self.device)
        branch_M = torch.cat([_branch_numbers(s) for s in self.spans]).to(self.device)
        position_M = torch.cat([_positions(s) for s in self.spans]).to(self.device)

        def visible(_b: Any, _h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            same = (tree_M[i] == tree_M[j]) & (j <= i) & ((branch_M[j] == 0) | (branch_M[j] == branch_M[i]))
            return same if window is None else same & (position_M[i] - position_M[j] < window)

        return visible


def tree_mask(span: TreeSpan, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Who sees whom inside one tree, [L, L] bool; None if that is plain causal attention."""
    if len(span.branches) == 1 and (window is None or window >= span.end - span.start):
        return None
    branch_L, position_L = _branch_numbers(span).to(device), _positions(span).to(device)
    index_L = torch.arange(len(branch_L), device=device)
    seen = (index_L[None] <= index_L[:, None]) & ((branch_L[None] == 0) | (branch_L[None] == branch_L[:, None]))
    return seen if window is None else seen & (position_L[:, None] - position_L[None] < window)


def _bias(span: TreeSpan, mask: torch.Tensor | None) -> torch.Tensor:
    size = span.end - span.start
    seen = torch.ones(size, size, dtype=torch.bool).tril() if mask is None else mask
    return torch.zeros(size, size, device=seen.device).masked_fill_(~seen, float("-inf"))


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
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [1, H, M, D] over a packed row; returns [1, M, H, D] as transformers expects.

    Raises:
        RuntimeError: the model does not hand `tree` down, or uses attention sinks; the self-check then takes the padded path.
    """
    if tree is None or s_aux is not None:
        raise RuntimeError("this model's attention cannot take a tree")
    tree.calls += 1
    key, value = (repeat_kv(t, getattr(module, "num_key_value_groups", 1)) for t in (key, value))
    if query.is_cuda:
        return _flex(query, key, value, tree, scaling, sliding_window, softcap).transpose(1, 2), None
    # split, not slices: the backward pass of n slices writes n whole tensors, that of a split one.
    sizes = [span.end - span.start for span in tree.spans]
    parts = zip(*(t.split(sizes, dim=2) for t in (query, key, value)), strict=True)
    if softcap is not None or (query.dtype == torch.bfloat16 and max(sizes) <= PLAIN_LENGTH):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        biases = tree.biases(sliding_window)
        outputs = [_plain(q, k, v, bias, scale, softcap) for (q, k, v), bias in zip(parts, biases, strict=True)]
    else:
        masks = tree.masks(sliding_window)
        outputs = [_fused(q, k, v, mask, scaling) for (q, k, v), mask in zip(parts, masks, strict=True)]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Attention inside one tree written out, [1, H, L, D] in and out; softmax in float32.

    For soft-capped scores, which SDPA has not (Gemma 2); and for bf16 on a CPU, where matrix products in bf16 make it about three
    times as fast as the fused kernel.
    """
    scores = ((q * scale) @ k.transpose(-1, -2)).float()
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return (scores + bias).softmax(-1).to(v.dtype) @ v


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


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` attends over trees; outside it is as it was (generation and the padded path need its own attention)."""
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
