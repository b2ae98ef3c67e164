"""Log-probs of chosen tokens straight from hidden states: no [tokens, vocabulary] tensor ever lives.

    logp_t = z_t[y_t] - log sum_v exp z_t[v],     z_t = cap(scale * (W h_t + b)) / temperature,     cap(z) = c tanh(z / c)

The head runs in chunks of tokens; the backward pass computes each chunk's logits again instead of keeping them. Everything after the
matrix product is float32 (float64 for float64 inputs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from prefopt.model.linear import linear

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits computed at once: on a CPU what its cache holds, on a GPU what fills it."""


@dataclass(frozen=True)
class Head:
    """An output head: `weight` [V, D], `bias` [V] or None, and what the model does to its logits."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] of hidden states [n, D], float32 or wider."""
        z = linear(hidden, self.weight, self.bias)
        z = z if z.dtype == torch.float64 else z.float()
        z = z * self.scale if self.scale != 1.0 else z
        z = self.softcap * torch.tanh(z / self.softcap) if self.softcap else z
        return z / self.temperature if self.temperature != 1.0 else z


class TokenStats(NamedTuple):
    """Per scored token: its log-prob; where asked, the entropy of its distribution, and log sum_v p_v^2 (without gradient)."""

    logps_T: torch.Tensor
    entropy_T: torch.Tensor | None = None
    collision_T: torch.Tensor | None = None


def token_logps(
    hidden_TD: torch.Tensor, target_T: torch.Tensor, head: Head, *, stats: bool = False, chunk: int | None = None
) -> TokenStats:
    """Log-probs [T] of `target_T` under the head's distribution at each hidden state [T, D].

    Args:
        hidden_TD: the hidden state that predicts each token.
        target_T: the token ids.
        head: the output head.
        stats: also compute entropy, and collision without gradient.
        chunk: tokens per chunk; by default what CHUNK_LOGITS allows.
    """
    chunk = chunk or max(16, CHUNK_LOGITS.get(hidden_TD.device.type, 1 << 22) // head.weight.shape[0])
    logps_T, entropy_T, collision_T = _LinearLogps.apply(hidden_TD, target_T, head.weight, head.bias, head, stats, chunk)
    return TokenStats(logps_T, entropy_T, collision_T) if stats else TokenStats(logps_T)


def token_logps_plain(hidden_TD: torch.Tensor, target_T: torch.Tensor, head: Head) -> TokenStats:
    """The readable form of `token_logps`, and its oracle."""
    logps_TV = head.logits(hidden_TD).log_softmax(-1)
    return TokenStats(
        logps_TV.gather(1, target_T[:, None])[:, 0],
        torch.special.entr(logps_TV.exp()).sum(-1),
        (2 * logps_TV).logsumexp(-1).detach(),
    )


@torch.no_grad()
def token_kl(hidden_TD: torch.Tensor, head: Head, other_TD: torch.Tensor, other: Head, *, chunk: int | None = None) -> torch.Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) [T] of the next token's distributions p of the one head and q of the other, nats.

    Summed over a sampled answer its mean is the KL of whole answers, as that of log p(y) - log q(y) is, with less variance: the luck of
    which token was drawn is integrated out (Rao-Blackwell; arXiv 2504.10637).
    """
    chunk = chunk or max(16, CHUNK_LOGITS.get(hidden_TD.device.type, 1 << 22) // head.weight.shape[0])
    found = []
    for part in _slices(len(hidden_TD), chunk):
        log_p, log_q = head.logits(hidden_TD[part]).log_softmax(-1), other.logits(other_TD[part]).log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(found) if found else hidden_TD.new_zeros(0)


class _LinearLogps(torch.autograd.Function):
    """The chunked head and its backward: d logp / d z = onehot(y) - p and d entropy / d z = -p (log p + entropy), p = softmax(z)."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, target: Any, weight: Any, bias: Any, head: Head, stats: bool, chunk: int) -> Any:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logps = torch.empty(len(target), dtype=wide, device=hidden.device)
        entropy, collision = (torch.empty_like(logps) if stats else None for _ in range(2))
        for part in _slices(len(target), chunk):
            log_p = head.logits(hidden[part]).log_softmax(-1)
            logps[part] = log_p.gather(1, target[part, None])[:, 0]
            if entropy is not None and collision is not None:
                collision[part] = (2 * log_p).logsumexp(-1)
                entropy[part] = torch.special.entr(log_p.exp()).sum(-1)
        ctx.save_for_backward(hidden, target, weight, bias, entropy)
        ctx.head, ctx.chunk = head, chunk
        ctx.set_materialize_grads(False)
        if collision is not None:
            ctx.mark_non_differentiable(collision)
        return logps, entropy, collision

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, target, weight, bias, entropy = ctx.saved_tensors
        head = replace(ctx.head, weight=weight, bias=bias)
        if grads[0] is None and grads[1] is None:
            return (None,) * 7
        d_logps = grads[0] if grads[0] is not None else torch.zeros_like(grads[1])
        wants_hidden, _, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=d_logps.dtype) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=d_logps.dtype) if wants_bias else None
        for part in _slices(len(target), ctx.chunk):
            bonus = None if grads[1] is None else (entropy[part], grads[1][part])
            dz = _logit_gradient(head, hidden[part], target[part], d_logps[part], bonus).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = linear(dz, weight.T)
            if d_weight is not None:
                d_weight += linear(dz.T, hidden[part].T)
            if d_bias is not None:
                d_bias += dz.sum(0)
        return (
            d_hidden,
            None,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logit_gradient(
    head: Head,
    hidden: torch.Tensor,
    target: torch.Tensor,
    grad: torch.Tensor,
    bonus: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Gradient [n, V] before cap and scale, from logits computed anew; `bonus` holds the entropies and their gradient."""
    z = head.logits(hidden)
    factor = head.scale / head.temperature
    slope = factor * (1 - (z * head.temperature / head.softcap) ** 2) if head.softcap else factor
    if bonus is None:
        dz = z.softmax(-1).mul_(-grad[:, None])
    else:
        log_p = z.log_softmax(-1)
        dz = log_p.exp().mul_(-grad[:, None] - bonus[1][:, None] * (log_p + bonus[0][:, None]))
    dz.scatter_add_(1, target[:, None], grad[:, None].to(dz.dtype))
    return dz * slope if head.softcap or factor != 1.0 else dz


def _slices(total: int, chunk: int) -> list[slice]:
    return [slice(at, min(at + chunk, total)) for at in range(0, total, chunk)]
