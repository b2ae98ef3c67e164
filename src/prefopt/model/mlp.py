"""The activation of a gated MLP, with what its backward pass needs and no more: two tensors of its width a layer kept, not three.

    y = silu(g) u,     silu(g) = g sigmoid(g)                                                                  (arXiv 2002.05202)
    dg = silu'(g) (dy u),     du = dy silu(g)

silu(g) is computed again in the backward pass; every number is the one that transformers gets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

KINDS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
"""The classes of transformers that compute down(act(gate(x)) * up(x))."""


def quicken_mlps(model: torch.nn.Module) -> None:
    """Let the model's MLPs compute by `gated`; weights, names and what is saved stay as they are."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__ in KINDS and kind.__module__.startswith("transformers.") and _is_silu(module):
            module.__class__ = _quick(kind)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of tensors of one shape; a new tensor of that shape and dtype."""
    out: torch.Tensor = _Gated.apply(gate, up)
    return out


def _is_silu(module: Any) -> bool:
    return getattr(module.config, "hidden_act", "") == "silu"


@lru_cache
def _quick(kind: Any) -> Any:
    """The kind of MLP, computed by `gated` on a CPU."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            plain: torch.Tensor = kind.forward(self, x)
            return plain
        out: torch.Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
        return out

    return type(kind.__name__, (kind,), {"forward": forward})


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        (d_out,) = gradients
        return torch.ops.aten.silu_backward(d_out * up, gate), F.silu(gate).mul_(d_out)
