"""Estimates with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and its interval: `n` observations, `method` says how it was made.

    `std_error` (nan where the method has none) and `df` are for tests against a bound: (value - bound) / std_error is t with df degrees of
    freedom, normal where df is infinite.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    std_error: float = math.nan
    df: float = math.inf


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)  (Wilson 1927, J. Am. Stat. Assoc. 22, p. 209).

    Args:
        successes: how many of `n`; a tie may count one half.
        n: independent trials, at least one.
        confidence: of the interval.

    Raises:
        ValueError: no trials, or successes outside [0, n].

    >>> [round(x, 4) for x in wilson(8, 10)[:3]]
    [0.8, 0.4902, 0.9433]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    p, z = successes / n, float(stats.norm.ppf((1 + confidence) / 2))
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    low, high = min(p, max(0.0, low)), max(p, min(1.0, high))  # rounding must not leave p outside at 0 and 1
    return Interval(p, low, high, n, "Wilson", confidence, math.sqrt(p * (1 - p) / n))


def clustered_mean(values: Sequence[float] | Floats, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """Mean with a standard error that holds when observations of one cluster (a prompt, a group) go together.

    mean ± t_{G-1} sqrt(G/(G-1) sum_g (sum_{i in g} (x_i - mean))²) / n,  G clusters
    (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640, eq. 4). Each observation is its own cluster where none are given.

    Raises:
        ValueError: no observations, or clusters of another number.

    >>> [round(x, 3) for x in clustered_mean([0.0, 1.0, 1.0, 0.0])[:3]]
    [0.5, -0.419, 1.419]
    """
    x = np.asarray(values, dtype=np.float64)
    codes = _codes(clusters, len(x))
    groups = int(codes.max()) + 1
    mean = float(x.mean())
    if groups < 2:
        return Interval(mean, -math.inf, math.inf, len(x), "one cluster", confidence)
    sums = np.bincount(codes, weights=x - mean)
    error = math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / len(x)
    reach = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    return Interval(mean, mean - reach, mean + reach, len(x), "clustered t" if clusters is not None else "t", confidence, error, groups - 1)


def bootstrap(
    values: Sequence[float] | Floats,
    statistic: Callable[[Floats], float] = lambda x: float(x.mean()),
    *,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap of a statistic, whole clusters drawn with replacement (Efron 1979; Davison and Hinkley 1997, sec. 5.3).

    Args:
        values: [n], or [n, ...] with one row an observation.
        statistic: of such an array.
        rng: the randomness.
        clusters: observations that go together; each is its own where none are given.
        draws: resamples.
        confidence: of the interval.

    Raises:
        ValueError: no observations, or clusters of another number.
    """
    x = np.asarray(values, dtype=np.float64)
    codes = _codes(clusters, len(x))
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    found = np.empty(draws)
    for i in range(draws):
        picked = rng.integers(len(members), size=len(members))
        found[i] = statistic(x[picked] if clusters is None else x[np.concatenate([members[g] for g in picked])])
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = "bootstrap" if clusters is None else "clustered bootstrap"
    return Interval(statistic(x), float(low), float(high), len(x), method, confidence, float(found.std(ddof=1)))


def _codes(clusters: Sequence[Hashable] | None, n: int) -> npt.NDArray[np.int64]:
    """Clusters as numbers from 0."""
    if n == 0:
        raise ValueError("no observations")
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{n} observations but {len(clusters)} cluster names")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(c, len(numbers)) for c in clusters])
