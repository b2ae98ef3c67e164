"""How far raters agree beyond chance: raw agreement, Cohen, Fleiss, Krippendorff, each with a bootstrap interval.

Every measure is computed from sums over units, so each takes a matrix of weights of the units and answers for all resamples of the
bootstrap at once. Units are what was rated: pairs of answers, completions, prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prefopt.stats.intervals import Floats, Interval, Ints
from prefopt.stats.resample import Method, Weighted, resampled

Weights = Literal["linear", "quadratic"] | None
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Labels = Sequence[Any] | npt.NDArray[Any]
Ratings = Sequence[Sequence[Any]] | npt.NDArray[Any]
"""Raters x units, None (or nan) where a rater did not rate a unit."""


def raw_agreement(a: Labels, b: Labels) -> float:
    """Share of units on which two raters say the same.

    Raises:
        ValueError: no units, or lists of different lengths.

    >>> raw_agreement(["a", "b", "tie"], ["a", "b", "b"])
    0.6666666666666666
    """
    _, x, y = _coded(a, b)
    return float((x == y).mean())


def cohen_kappa(a: Labels, b: Labels, weights: Weights = None) -> float:
    """Agreement of two raters beyond what their own label frequencies give by chance.

    kappa = 1 - sum_ij w_ij p_ij / sum_ij w_ij p_i. p_.j, with disagreement weights w_ij = [i != j], |i - j| ("linear") or (i - j)²
    ("quadratic")  (Cohen 1960, Educ. Psychol. Meas. 20; 1968, Psychol. Bull. 70). With weights, i and j are positions in the sorted
    list of the labels used, so labels should be numbers, or words in the right alphabetical order.

    Args:
        a: one rater's labels, one a unit.
        b: the other's.
        weights: None for labels without order.

    Raises:
        ValueError: no units, lists of different lengths, or a chance agreement of 1 (both always say the same one label).

    >>> round(cohen_kappa([1, 1, 0, 0, 1], [1, 0, 0, 0, 1]), 4)
    0.6154
    """
    return _defined(_cohen(a, b, weights)(np.ones((1, len(a)))), "both raters use one and the same label, so chance agreement is 1")


def fleiss_kappa(counts: Sequence[Sequence[int]] | npt.NDArray[Any]) -> float:
    """Agreement of m raters on each of N units, who need not be the same people.

    kappa = (P - Pe) / (1 - Pe), P = mean over units of sum_j n_ij (n_ij - 1) / (m (m - 1)), Pe = sum_j p_j², p_j the pooled share of
    category j  (Fleiss 1971, Psychol. Bull. 76). With two raters it is Scott's pi, not Cohen's kappa.

    Args:
        counts: units x categories; how many raters said each. Every row sums to m.

    Raises:
        ValueError: rows with different sums or fewer than two raters, or only one category used.

    >>> round(fleiss_kappa([[2, 0], [1, 1], [0, 2]]), 4)
    0.3333
    """
    return _defined(_fleiss(counts)(np.ones((1, len(counts)))), "only one category is used, so chance agreement is 1")


def krippendorff_alpha(ratings: Ratings, level: Level = "nominal") -> float:
    """Agreement of any number of raters with missing ratings.

    alpha = 1 - Do / De: Do the mean difference d(v, v') within units, De that of all values paired across units. d is [v != v'] (nominal),
    (v - v')² (interval), ((v - v') / (v + v'))² (ratio), or (sum_{g=v}^{v'} n_g - (n_v + n_v') / 2)² (ordinal), which is the squared
    difference of mean ranks  (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sec. A to D). Units rated once are
    left out.

    Args:
        ratings: raters x units, None (or nan) where a rater did not rate a unit. Numbers where the level is not nominal; for ordinal
            any values that sort.
        level: what the values mean.

    Raises:
        ValueError: no unit has two ratings, only one value is used, or values that do not fit the level.

    >>> round(krippendorff_alpha([[1, 2, 3, None], [1, 2, 4, 1]], level="nominal"), 4)
    0.6154
    """
    statistic, units = _krippendorff(ratings, level)
    return _defined(statistic(np.ones((1, units))), "only one value is used, so there is no disagreement to expect")


def agreement_interval(
    measure: Literal["raw", "cohen", "fleiss", "krippendorff"],
    data: Any,
    *,
    rng: np.random.Generator,
    weights: Weights = None,
    level: Level = "nominal",
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    method: Method = "bca",
) -> Interval:
    """A measure of agreement with a bootstrap interval: units are drawn with replacement.

    Args:
        measure: "raw" or "cohen" (data: the two raters' labels), "fleiss" (units x categories), "krippendorff" (raters x units).
        data: as the measure's own function takes it.
        rng: the randomness.
        weights: of Cohen's kappa.
        level: of Krippendorff's alpha.
        clusters: units that go together (pairs of one prompt), drawn together.
        draws: resamples.
        confidence: of the interval.
        method: BCa unless said otherwise; the plain percentile interval covers too seldom where few units disagree.

    Raises:
        ValueError: as the measure's own function, or fewer than two units.
    """
    statistic, units = _weighted(measure, data, weights, level)
    if units < 2:
        raise ValueError(f"{units} unit{'s' * (units != 1)}: an interval needs two or more")
    return resampled(statistic, units, rng=rng, clusters=clusters, draws=draws, confidence=confidence, method=method)


def _weighted(measure: str, data: Any, weights: Weights, level: Level) -> tuple[Weighted, int]:
    """The measure as a function of unit weights, and the number of units."""
    if measure == "fleiss":
        return _fleiss(data), len(data)
    if measure == "krippendorff":
        return _krippendorff(data, level)
    if measure not in ("raw", "cohen"):
        raise ValueError(f"measure {measure!r}; known: raw, cohen, fleiss, krippendorff")
    if len(data) != 2:
        more = "; fleiss and krippendorff take more" if len(data) > 2 else ""
        raise ValueError(f"{measure} agreement is of two raters, found {len(data)}{more}")
    a, b = data
    if measure == "cohen":
        return _cohen(a, b, weights), len(a)
    _, x, y = _coded(a, b)
    same = (x == y).astype(np.float64)
    return lambda w: w @ same / w.sum(axis=1), len(same)


def _defined(found: Floats, why_not: str) -> float:
    if not math.isfinite(found[0]):
        raise ValueError(f"undefined: {why_not}")
    return float(found[0])


def _coded(a: Labels, b: Labels) -> tuple[list[Any], Ints, Ints]:
    """The distinct labels in order, and both raters' labels as positions in that list."""
    x, y = list(a), list(b)
    if not x or len(x) != len(y):
        raise ValueError(f"two raters of the same units, one or more: found {len(x)} and {len(y)} labels")
    if any(_missing(v) for v in (*x, *y)):
        raise ValueError("a label is missing; leave such units out, or use krippendorff_alpha")
    distinct = _sorted(set(x) | set(y))
    place = {label: i for i, label in enumerate(distinct)}
    return distinct, np.array([place[v] for v in x]), np.array([place[v] for v in y])


def _sorted(labels: set[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=lambda v: (str(type(v)), str(v)))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _cohen(a: Labels, b: Labels, weights: Weights) -> Weighted:
    distinct, x, y = _coded(a, b)
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"weights {weights!r}; known: None, 'linear', 'quadratic'")
    k = len(distinct)
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    cost = {None: (gap > 0).astype(np.float64), "linear": gap, "quadratic": gap**2}[weights]
    mine, theirs, observed = np.eye(k)[x], np.eye(k)[y], cost[x, y]

    def kappa(w: Floats) -> Floats:
        total = w.sum(axis=1)
        expected = np.einsum("ri,ij,rj->r", w @ mine, cost, w @ theirs) / total
        return _one_minus(w @ observed, expected)

    return kappa


def _fleiss(counts: Sequence[Sequence[int]] | npt.NDArray[Any]) -> Weighted:
    n = np.asarray(counts, dtype=np.float64)
    if n.ndim != 2 or not len(n):
        raise ValueError("counts are units x categories, one unit or more")
    raters = n[0].sum()
    if raters < 2 or (n.sum(axis=1) != raters).any() or (n < 0).any():
        raise ValueError("every unit needs the same number of ratings, two or more; krippendorff_alpha takes what is incomplete")
    disagree = 1 - (n * (n - 1)).sum(axis=1) / (raters * (raters - 1))

    def kappa(w: Floats) -> Floats:
        total = w.sum(axis=1)
        shares = w @ n / (total * raters)[:, None]
        return _one_minus(w @ disagree / total, 1 - (shares**2).sum(axis=1))

    return kappa


def _krippendorff(ratings: Ratings, level: Level) -> tuple[Weighted, int]:
    """Alpha as a function of weights of the units rated twice or more, and how many those are."""
    if level not in ("nominal", "ordinal", "interval", "ratio"):
        raise ValueError(f"level {level!r}; known: nominal, ordinal, interval, ratio")
    values, n = _value_counts(ratings)
    m = n.sum(axis=1)
    per_pairing = n / (m - 1)[:, None]
    if level == "ordinal":
        return lambda w: _ordinal_alpha(w, n, m), len(n)
    cost = _cost(values, level)
    within = np.einsum("ui,ij,uj->u", per_pairing, cost, n)

    def alpha(w: Floats) -> Floats:
        pooled = w @ n
        expected = np.einsum("ri,ri->r", pooled @ cost, pooled) / (pooled.sum(axis=1) - 1)
        return _one_minus(w @ within, expected)

    return alpha, len(n)


def _value_counts(ratings: Ratings) -> tuple[list[Any], Floats]:
    """The distinct values in order, and how often each was given to each unit that has two ratings or more."""
    rows = [list(row) for row in ratings]
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("ratings are raters x units: one list a rater, all of one length, None where a rating is missing")
    units = [[v for v in column if not _missing(v)] for column in zip(*rows, strict=True)]
    paired = [unit for unit in units if len(unit) > 1]
    if not paired:
        raise ValueError(f"no unit has two ratings ({len(rows)} raters, {len(units)} units): there is no agreement to measure")
    values = _sorted({v for unit in paired for v in unit})
    place = {value: i for i, value in enumerate(values)}
    n = np.zeros((len(paired), len(values)))
    for u, unit in enumerate(paired):
        np.add.at(n[u], [place[v] for v in unit], 1)
    return values, n


def _cost(values: list[Any], level: str) -> Floats:
    """d(v, v') of every two values."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if not all(isinstance(v, int | float | np.number) for v in values):
        raise ValueError(f"level {level!r} needs numbers")
    x = np.array(values, dtype=np.float64)
    gap = np.subtract.outer(x, x)
    if level == "interval":
        return gap**2
    if (x < 0).any():
        raise ValueError("level 'ratio' needs numbers that are not negative")
    total = np.add.outer(x, x)
    return np.divide(gap, total, out=np.zeros_like(gap), where=total > 0) ** 2


def _ordinal_alpha(w: Floats, n: Floats, m: Floats) -> Floats:
    """Alpha of values by rank; ranks follow from each resample's own frequencies.

    A unit's sum over its pairs of (R - R')² is 2 (m sum R² - (sum R)²).
    """
    pooled = w @ n
    ranks = np.cumsum(pooled, axis=1) - pooled / 2
    total = pooled.sum(axis=1)
    squares = np.einsum("ri,ri->r", w @ (n * (m / (m - 1))[:, None]), ranks**2)
    crossed = np.einsum("ru,ru->r", w / (m - 1), (ranks @ n.T) ** 2)
    expected = 2 * (total * np.einsum("ri,ri->r", pooled, ranks**2) - np.einsum("ri,ri->r", pooled, ranks) ** 2) / (total - 1)
    return _one_minus(2 * (squares - crossed), expected)


def _one_minus(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected; nan where nothing is expected."""
    return 1 - np.divide(observed, expected, out=np.full_like(observed, np.nan), where=expected > 0)
