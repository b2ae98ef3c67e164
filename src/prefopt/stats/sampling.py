"""Success with several tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def pass_at_k(n: int | Sequence[int] | npt.NDArray[Any], c: int | Sequence[int] | npt.NDArray[Any], k: int) -> Any:
    """Unbiased estimate of P(at least one of k samples is right) from n samples of which c are: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, eq. 1, as the product 1 - prod_{i = n - c + 1}^{n} (1 - k / i). The plug-in 1 - (1 - c / n)^k is
    biased downwards.

    Args:
        n: samples; a number, or one for each problem.
        c: right ones among them.
        k: tries.

    Returns:
        A number, or an array with one for each problem; their mean is the metric.

    Raises:
        ValueError: k below 1 or above n, or c outside [0, n].

    >>> round(pass_at_k(10, 3, 2), 4)
    0.5333
    """
    samples, right = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if k < 1 or (samples < k).any():
        raise ValueError(f"k is {k}; it needs 1 <= k <= n, and n is {samples.min()}")
    if (right < 0).any() or (right > samples).any():
        raise ValueError("c lies from 0 to n")
    found = np.array([_pass(int(a), int(b), k) for a, b in zip(samples.ravel(), right.ravel(), strict=True)])
    return float(found[0]) if samples.ndim == 0 else found.reshape(samples.shape)


def _pass(n: int, c: int, k: int) -> float:
    return 1.0 if n - c < k else float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))
