"""The last layer of a model that attends over trees, at the positions that are read and no others.

Log-probs are read where something scored follows, scores at the ends of answers. What the last layer makes of any other position nothing
looks at, but for its keys and values:

    k, v = W_k x, W_v x at every position,     y = h + W_o attend(W_q x, k, v),     z = y + MLP(norm(y))     at those that are read
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers.models.llama.modeling_llama import rotate_half

from prefopt.model.attention import tree_attention
from prefopt.model.forward import layers_of

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
"""The classes of transformers that compute exactly this."""


def quicken_last(model: torch.nn.Module) -> None:
    """Let the model's last layer compute what a `TreeLayout` needs of it; weights, names and what is saved stay as they are."""
    for layer in layers_of(model)[-1:]:
        kind: Any = type(layer)
        if kind.__name__ in KINDS and kind.__module__.startswith("transformers."):
            layer.__class__ = _quick(kind)


@lru_cache
def _quick(kind: Any) -> Any:
    """The kind of layer, which hands on [1, W, D] of a tree's needed positions on a CPU."""

    def forward(self: Any, hidden_states: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        found = None if named.get("tree") is None else _shortened(self, hidden_states, **named)
        whole: torch.Tensor = kind.forward(self, hidden_states, *given, **named) if found is None else found
        return whole

    return type(kind.__name__, (kind,), {"forward": forward})


@torch.compiler.disable
def _shortened(layer: Any, h: torch.Tensor, *, tree: Any, position_embeddings: Any, **_: Any) -> torch.Tensor | None:
    """The layer's output [1, W, D] at what the tree needs of its input [1, M, D]; None where that is nearly everything."""
    if tree.needed is None:
        return None
    tree.shortened = True
    rows = tree.needed.rows
    y = h.index_select(1, rows) + _attended(layer.self_attn, layer.input_layernorm(h), rows, tree, position_embeddings)
    z: torch.Tensor = y + layer.mlp(layer.post_attention_layernorm(y))
    return z


def _attended(attention: Any, x: torch.Tensor, rows: torch.Tensor, tree: Any, tables: Any) -> torch.Tensor:
    """What the layer's attention adds at some rows of x [1, M, D]."""

    def heads(states: torch.Tensor, norm: Any = None) -> torch.Tensor:
        apart = states.unflatten(-1, (-1, attention.head_dim))
        return (apart if norm is None else norm(apart)).transpose(1, 2)

    query = heads(attention.q_proj(x.index_select(1, rows)), getattr(attention, "q_norm", None))
    key = heads(attention.k_proj(x), getattr(attention, "k_norm", None))
    cos, sin = (table[:, None] for table in tables)
    query = query * cos[:, :, rows] + rotate_half(query) * sin[:, :, rows]
    key = key * cos + rotate_half(key) * sin
    window = getattr(attention.config if type(attention).__name__ == "MistralAttention" else attention, "sliding_window", None)
    how: dict[str, Any] = {"tree": tree, "scaling": attention.scaling, "sliding_window": window}
    out, _ = tree_attention(attention, query, key, heads(attention.v_proj(x)), None, **how)
    added: torch.Tensor = attention.o_proj(out.flatten(2))
    return added
