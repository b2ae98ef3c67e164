"""Estimates with their uncertainty: an estimate, proportions, means of clustered observations."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """An estimate and its interval: `n` observations, `method` says how it was made.

    `std_error` (nan where the method has none) and `df` are for tests against a bound: (value - bound) / std_error is t with df degrees of
    freedom, normal where df is infinite. `float(interval)` is the estimate.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    std_error: float = math.nan
    df: float = math.inf

    def __float__(self) -> float:
        return self.value


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
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
    _check_counts(successes, n)
    p = successes / n
    low, high = score_limits(p, n, float(stats.norm.ppf((1 + confidence) / 2)))
    return Interval(p, low, high, int(n), "Wilson", confidence, math.sqrt(p * (1 - p) / n))


def score_limits(p: float, n: float, z: float) -> tuple[float, float]:
    """The ends of Wilson's interval of a share `p` of `n` trials (`n` may be an effective number), `z` standard errors either side."""
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return min(p, max(0.0, low)), max(p, min(1.0, high))  # rounding must not leave p outside at 0 and 1


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a proportion: it never covers less often than it says, and so is wide.

    [B(a/2; k, n-k+1), B(1-a/2; k+1, n-k)], quantiles of beta distributions, a = 1 - confidence  (Clopper and Pearson 1934,
    Biometrika 26, p. 404).

    Raises:
        ValueError: no trials, or successes outside [0, n].

    >>> [round(x, 4) for x in clopper_pearson(0, 10)[:3]]
    [0.0, 0.0, 0.3085]
    """
    _check_counts(successes, n)
    p, tail = successes / n, (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return Interval(p, low, high, n, "Clopper-Pearson", confidence, math.sqrt(p * (1 - p) / n))


def _check_counts(successes: float, n: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")


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
    codes = cluster_codes(clusters, len(x))
    groups = int(codes.max()) + 1
    mean = float(x.mean())
    if groups < 2:
        return one_cluster(mean, len(x), confidence)
    sums = np.bincount(codes, weights=x - mean)
    error = math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / len(x)
    reach = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    return Interval(mean, mean - reach, mean + reach, len(x), "clustered t" if clusters is not None else "t", confidence, error, groups - 1)


def one_cluster(value: float, n: int, confidence: float = 0.95) -> Interval:
    """An estimate from a single cluster, which tells nothing of how clusters differ: no ends and no standard error."""
    return Interval(value, -math.inf, math.inf, n, "one cluster", confidence)


def cluster_codes(clusters: Sequence[Hashable] | None, n: int) -> Ints:
    """Clusters as numbers from 0, in the order they first appear; each of the `n` observations its own where none are given.

    Raises:
        ValueError: no observations, or clusters of another number.
    """
    if n == 0:
        raise ValueError("no observations")
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{n} observations but {len(clusters)} cluster names")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(c, len(numbers)) for c in clusters])


def sum_by(group: Ints, rows: Floats, groups: int | None = None) -> Floats:
    """Rows [N, ...] added up by group (numbers from 0) -> [groups, ...]."""
    out = np.zeros((int(group.max()) + 1 if groups is None else groups, *rows.shape[1:]))
    np.add.at(out, group, rows)
    return out
