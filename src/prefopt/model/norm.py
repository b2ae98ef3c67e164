"""RMS norms with a backward pass of their own: half the time on a CPU, and nothing in float32 kept but a number a position.

    y = w * xhat,     xhat = x r,     r = (mean(x^2) + eps)^(-1/2)                                             (arXiv 1910.07467, eq. 4)
    dw = the sum of dy * xhat over positions,     dx = r (w dy - xhat mean(w dy * xhat))

As in transformers xhat is found in float32 and rounded before it meets the weight; sums and gradients are float32 inside.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

KINDS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""The classes of transformers that compute exactly this."""


def quicken_norms(model: torch.nn.Module) -> None:
    """Let the model's norms compute by `rms_norm`; weights, names and what is saved stay as they are."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__ in KINDS and kind.__module__.startswith("transformers."):
            module.__class__ = _quick(kind)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """w * x / sqrt(mean(x^2) + epsilon) over the last dimension of x [..., D], w [D]."""
    out: torch.Tensor = _RMSNorm.apply(x, weight, epsilon)
    return out


@lru_cache
def _quick(kind: Any) -> Any:
    """The kind of norm, computed by `rms_norm` on a CPU."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            plain: torch.Tensor = kind.forward(self, hidden_states)
            return plain
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    return type(kind.__name__, (kind,), {"forward": forward})


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        normed, d_out, wide = x * scale, gradients[0].float(), weight.float()
        both = d_out * normed
        d_weight = both.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        shared = (both @ wide).div_(x.shape[-1]).unsqueeze(-1)
        return (d_out * wide).sub_(normed.mul_(shared)).mul_(scale).to(x.dtype), d_weight, None
