"""Linear layers with a low-rank adapter (peft's), in fewer passes: what the adapter adds is added by its own product.

    u = x A',  y = x W' + b + s u B'                                                                  (LoRA, arXiv 2106.09685, eq. 3)
    t = s dy B,  dx = dy W + t A,  dA = t' x,  dB = s dy' u

peft writes s u B' down, scales it, and adds it up in passes of their own, each as large as the layer's output, and so do their backward
passes. Weights, names, merging and what is saved stay peft's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from prefopt.model.linear import linear


def quicken_adapters(model: torch.nn.Module) -> None:
    """Let the model's adapted linear layers compute by `adapted` wherever that is what they are asked for."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer":
            module.__class__ = _quick(kind)


def adapted(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    """x W' + bias + scale x A' B' of x [..., K], frozen W [N, K] and bias [N] or None, A [r, K], B [N, r]; [..., N]."""
    out: torch.Tensor = _Adapted.apply(x, weight, bias, a, b, scale)
    return out


@lru_cache
def _quick(kind: Any) -> Any:
    """peft's layer, computed by `adapted` on a CPU where one plain adapter is in force."""

    def forward(self: Any, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if given or named or x.device.type != "cpu" or torch.compiler.is_compiling() or not _is_plain(self, name, x):
            plain: torch.Tensor = kind.forward(self, x, *given, **named)
            return plain
        base = self.base_layer
        return adapted(x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    return type(kind.__name__, (kind,), {"forward": forward})


def _is_plain(layer: Any, name: str | None, x: torch.Tensor) -> bool:
    """Whether the layer is a frozen linear one and an adapter that only adds to it, in one dtype."""
    if name not in layer.lora_A or layer.disable_adapters or layer.merged or name in layer.lora_variant:
        return False
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    plain = isinstance(base, torch.nn.Linear) and not base.weight.requires_grad and layer.lora_B[name].bias is None
    still = isinstance(dropout, torch.nn.Identity) or not dropout.training
    return plain and still and x.dtype == base.weight.dtype == layer.lora_A[name].weight.dtype


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        rows = x.flatten(0, -2)
        low = rows @ a.t()
        out = linear(rows, weight, bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, a, b, low = ctx.saved_tensors
        d_out = gradients[0].flatten(0, -2).contiguous()
        d_low = (d_out @ b).mul_(ctx.scale)
        d_x = linear(d_out, weight.t()).addmm_(d_low, a).view_as(x) if ctx.needs_input_grad[0] else None
        d_a = d_low.t() @ x.flatten(0, -2) if ctx.needs_input_grad[3] else None
        d_b = (d_out.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return d_x, None, None, d_a, d_b, None
