"""Arithmetic every loss stands on: fp32 inside, no silent broadcasting, no 0 * inf, exponentials that stay finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefopt.errors import OptionError

EXP_CAP = 30.0
"""Beyond it `exp_tangent` goes on as a straight line: e^30 = 1e13 keeps even squared gradient norms within fp32."""


class DomainError(OptionError, ValueError):
    """An option outside the range where its loss is defined."""


def require(condition: bool, option: str, value: object, allowed: str) -> None:
    """Refuse a hyper-parameter outside its domain.

    Raises:
        DomainError: when `condition` is false; says the option, its value and what is allowed.
    """
    if not condition:
        raise DomainError(f"{option}={value} is out of range", fix=f"{option} must be {allowed}")


def wide(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged in float64: sums of thousands of bf16 log-probs carry errors of whole nats."""
    return x if x.dtype == torch.float64 else x.float()


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in fp32 or wider; refuses shapes that differ, since [N] - [N, 1] would broadcast to [N, N].

    Raises:
        ValueError: when the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return wide(a) - wide(b)


def log_ratio(policy: Tensor, reference: Tensor) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x) in nats; no gradient ever reaches the reference."""
    return difference(policy, reference.detach())


def token_mean(total: Tensor, length: Tensor) -> Tensor:
    """A sum over tokens as nats per token; an empty sequence (length 0) counts as 0, not as 0/0.

    Raises:
        ValueError: when the shapes differ.
    """
    if total.shape != length.shape:
        raise ValueError(f"shapes differ: {tuple(total.shape)} and {tuple(length.shape)}")
    return wide(total) / wide(length).clamp(min=1)


def exp_tangent(x: Tensor) -> Tensor:
    """e^x up to x = 30, its tangent beyond: finite, increasing, and its gradient never vanishes.

    >>> exp_tangent(torch.tensor([0.0, 1000.0])).isfinite().all().item()
    True
    """
    # Selected, not added: gradients of e^30 (x - min(x, 30)) cancel only in exact arithmetic, and in fp32 swallow e^x's own.
    return torch.where(x <= EXP_CAP, x.clamp(max=EXP_CAP).exp(), math.exp(EXP_CAP) * (1 + x - EXP_CAP))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends (Maechler 2012, eq. 7); x is kept below -eps, where the result would be -inf.

    >>> log1mexp(torch.tensor([-1e-3, -50.0])).tolist()
    [-6.90825..., -1.92874...e-22]
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)  # also keeps the branch not selected finite, so that no 0 * inf enters its gradient
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())
