"""The bootstrap. A statistic is a function of how often each observation counts; a resample is a row of such weights.

Statistics that are sums over observations (kappa, alpha, rating models) take a matrix of weights and answer for all resamples at once;
`bootstrap` does the same for any function of an array, one resample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, cluster_codes, one_cluster

Method = Literal["percentile", "bca", "jackknife"]
Weighted = Callable[[Floats], Floats]
"""Weights [R, n] of the observations in R resamples -> the statistic [R], or [R, k]."""

_CHUNK = 2_000_000
"""Weights held at a time."""


def bootstrap(
    values: Sequence[float] | Floats,
    statistic: Callable[[Floats], float] = lambda x: float(x.mean()),
    *,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Bootstrap interval of a statistic, whole clusters drawn with replacement (Efron 1979; Davison and Hinkley 1997, sec. 5.3).

    Args:
        values: [n], or [n, ...] with one row an observation.
        statistic: of such an array.
        rng: the randomness.
        clusters: observations that go together; each is its own where none are given.
        draws: resamples.
        confidence: of the interval.
        method: "percentile", or "bca" (see `interval_of_draws`) for skewed or biased statistics, which costs one more evaluation
            of the statistic for each cluster.

    Raises:
        ValueError: no observations, or clusters of another number.
    """
    x = np.asarray(values, dtype=np.float64)

    def weighted(weights: Floats) -> Floats:
        return np.array([statistic(np.repeat(x, row.astype(np.int64), axis=0)) for row in weights])

    return resampled(weighted, len(x), rng=rng, clusters=clusters, draws=draws, confidence=confidence, method=method)


def resampled(
    statistic: Weighted,
    n: int,
    *,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Bootstrap interval of a statistic of weighted observations; without ends where all are one cluster, whose resamples are all alike.

    Args:
        statistic: weights [R, n] -> [R]; resamples on which it is not defined are nan and left out, at most one in twenty.
        n: observations.
        rng: the randomness.
        clusters: observations that go together; each is its own where none are given.
        draws: resamples.
        confidence: of the interval.
        method: as in `interval_of_draws`.

    Raises:
        ValueError: no observations, clusters of another number, or a statistic that is undefined on the data or on too many resamples.
    """
    codes = cluster_codes(clusters, n)
    value, groups = float(statistic(np.ones((1, n)))[0]), int(codes.max()) + 1
    if not np.isfinite(value):
        raise ValueError("the statistic is undefined on the data")
    if groups < 2:
        return one_cluster(value, n, confidence)
    found = np.concatenate([statistic(weights) for weights in resamples(codes, draws, rng)])
    defined = np.isfinite(found)
    if defined.mean() < 0.95:
        raise ValueError("the statistic is undefined on too many resamples")
    left_out = None if method == "percentile" else np.concatenate([statistic(weights) for weights in leave_one_out(codes)])
    low, high = interval_of_draws(value, found[defined], left_out, confidence, method)
    name = {"percentile": "bootstrap", "bca": "BCa bootstrap", "jackknife": "jackknife t"}[method]
    error = float(found[defined].std(ddof=1)) if left_out is None or method == "bca" else jackknife_error(left_out)
    return Interval(value, low, high, n, name if clusters is None else f"clustered {name}", confidence, error, groups - 1)


def interval_of_draws(value: float, draws: Floats, left_out: Floats | None, confidence: float, method: Method) -> tuple[float, float]:
    """The ends of an interval from resamples.

    "percentile": the quantiles of the draws. "bca": the same after correcting bias and skewness, at
    Phi(z0 + (z0 + z) / (1 - a (z0 + z))) with z0 from the share of draws below the value and a from the jackknife
    (Efron 1987, J. Am. Stat. Assoc. 82, eq. 6.6). "jackknife": value ± t sqrt(jackknife variance), G - 1 degrees of freedom.

    Args:
        value: the statistic of the data.
        draws: [R] of the resamples.
        left_out: [G] with one cluster left out at a time; not read by "percentile".
        confidence: of the interval.
        method: which.
    """
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "jackknife":
        assert left_out is not None
        reach = float(stats.t.ppf(tails[1], len(left_out) - 1)) * jackknife_error(left_out)
        return value - reach, value + reach
    if method == "bca":
        assert left_out is not None
        pulls = left_out.mean() - left_out
        spread = float((pulls**2).sum()) ** 1.5
        acceleration = float((pulls**3).sum()) / (6 * spread) if spread else 0.0
        below = ((draws < value).sum() + (draws == value).sum() / 2) / len(draws)
        bias = stats.norm.ppf(np.clip(below, 1 / (2 * len(draws)), 1 - 1 / (2 * len(draws))))
        z = bias + stats.norm.ppf(tails)
        tails = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(draws, tails)
    return float(low), float(high)


def jackknife_error(left_out: Floats) -> float:
    """Standard error from the statistic with each of G clusters left out: sqrt((G-1)/G sum (t_g - mean)²)  (Tukey 1958).

    >>> round(jackknife_error(np.array([1.0, 2.0, 3.0])), 4)
    1.1547
    """
    return float(np.sqrt((len(left_out) - 1) * left_out.var()))


def resamples(codes: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights [R, n] of bootstrap resamples of whole clusters, a chunk of the `draws` at a time."""
    groups = int(codes.max()) + 1
    chunk = max(1, _CHUNK // max(groups, len(codes)))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        picked = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        weights = np.bincount(picked.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)
        yield weights[:, codes]


def leave_one_out(codes: np.ndarray) -> Iterator[Floats]:
    """Weights [R, n] with each cluster left out once, a chunk at a time."""
    groups = int(codes.max()) + 1
    chunk = max(1, _CHUNK // len(codes))
    for start in range(0, groups, chunk):
        left = np.arange(start, min(start + chunk, groups))
        yield (codes[None, :] != left[:, None]).astype(np.float64)
