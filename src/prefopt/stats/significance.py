"""Tests: is it more than chance? The sign test, permutation tests, and Holm's correction for testing several things at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, cluster_codes, sum_by
from prefopt.stats.winrate import preference_scores

Alternative = Literal["two-sided", "greater", "less"]


def sign_test(mine: Sequence[float] | Floats, theirs: Sequence[float] | Floats, alternative: Alternative = "two-sided") -> float:
    """p-value of "neither is better", ties left out (Arbuthnott 1710; exact binomial); 1 if all are ties.

    Raises:
        ValueError: lists of different lengths.

    >>> round(sign_test([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]), 4)
    0.0625
    """
    scores = preference_scores(mine, theirs)
    wins, losses = int((scores == 1).sum()), int((scores == 0).sum())
    return float(stats.binomtest(wins, wins + losses, alternative=alternative).pvalue) if wins + losses else 1.0


def permutation_test(
    mine: Sequence[float] | Floats,
    theirs: Sequence[float] | Floats,
    *,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 9999,
    alternative: Alternative = "two-sided",
) -> float:
    """p-value of "swapping mine and theirs changes nothing" for paired numbers: the signs of the differences are flipped at random.

    p = (1 + #{|permuted mean| >= |mean|}) / (1 + draws)  (Fisher 1935, "The Design of Experiments", sec. 21; the added one keeps it from
    being 0, Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9). All 2^G flips are counted instead where they are fewer.

    Args:
        mine: [n] numbers of one model.
        theirs: [n] of the other, on the same prompts.
        rng: the randomness.
        clusters: observations that go together and flip together.
        draws: random flips.
        alternative: "greater" asks whether mine are larger.

    Raises:
        ValueError: no numbers, or lists of different lengths.
    """
    gap = np.asarray(mine, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    sums = sum_by(cluster_codes(clusters, len(gap)), gap)
    groups, total = len(sums), float(sums.sum())
    exact = groups < 31 and 2**groups <= draws
    if exact:
        signs = 1.0 - 2.0 * (np.arange(2**groups)[:, None] >> np.arange(groups) & 1)
        found = signs @ sums
    else:
        chunks = np.array_split(np.arange(draws), max(1, draws * groups // 2_000_000))
        found = np.concatenate([(1.0 - 2.0 * rng.integers(2, size=(len(chunk), groups))) @ sums for chunk in chunks])
    slack = 1e-12 * float(np.abs(sums).sum())  # sums equal but for rounding are equal
    if alternative == "two-sided":
        extreme = int((np.abs(found) >= abs(total) - slack).sum())
    else:
        extreme = int((found >= total - slack).sum() if alternative == "greater" else (found <= total + slack).sum())
    return extreme / len(found) if exact else (1 + extreme) / (1 + len(found))


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """p-values adjusted so that all below alpha may be rejected together: the chance of any false rejection stays at most alpha.

    The i-th smallest of m becomes max_{j <= i} min(1, (m - j + 1) p_(j))  (Holm 1979, Scand. J. Stat. 6).

    Args:
        p_values: [m], in any order; none for none.

    Raises:
        ValueError: a number outside [0, 1].

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not (np.all(p >= 0) and np.all(p <= 1)):
        raise ValueError("p-values are from 0 to 1")
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(steps)
    adjusted[order] = steps
    return adjusted


def bound_p_values(estimate: Interval, bound: float) -> tuple[float, float]:
    """One-sided p-values of an estimate against a bound: of "it is at most the bound", and of "it is at least the bound".

    Wilson's intervals are inverted score tests, z = (p - bound) sqrt(n / (bound (1 - bound))), with the effective n where one was used;
    Clopper and Pearson's are inverted binomial tests; others use t = (value - bound) / std_error with `df`; where there is no standard
    error, the interval's reach on the bound's side divided by its normal quantile stands in. Where n observations are all alike
    the standard error is 0 and proves little: a share that differs from what was seen by g shows in none of them with chance (1 - g)^n, and
    that is the p-value.

    Args:
        estimate: with its interval.
        bound: what it is compared with.

    Returns:
        (p of "value <= bound", p of "value >= bound"); small first: surely above; small second: surely below. nan without any
        measure of uncertainty.

    >>> [round(p, 4) for p in bound_p_values(Interval(0.6, 0.5, 0.7, 100, "Wilson"), 0.5)]
    [0.0228, 0.9772]
    """
    if estimate.method == "Clopper-Pearson":
        seen, law = round(estimate.value * estimate.n), stats.binom(estimate.n, min(1.0, max(0.0, bound)))
        return float(law.sf(seen - 1)), float(law.cdf(seen))
    gap, error, df = estimate.value - bound, bound_error(estimate, bound), estimate.df
    if not np.isfinite(error):
        return float("nan"), float("nan")
    if error == 0:
        unseen = (1 - min(1.0, abs(gap))) ** (min(df + 1, estimate.n) or 1)
        return (1.0, 1.0) if gap == 0 else (unseen, 1.0) if gap > 0 else (1.0, unseen)
    law = stats.t(df) if np.isfinite(df) else stats.norm
    return float(law.sf(gap / error)), float(law.cdf(gap / error))


def bound_error(estimate: Interval, bound: float) -> float:
    """The standard error an estimate is tested with against a bound; nan where nothing measures it."""
    p, error = estimate.value, estimate.std_error
    if "Wilson" in estimate.method:
        if not 0 < bound < 1:
            return error if error > 0 else float("nan")
        if estimate.method == "Wilson":
            effective = float(estimate.n)
        else:
            effective = p * (1 - p) / error**2 if error > 0 else min(estimate.df + 1, estimate.n)
        return float(np.sqrt(bound * (1 - bound) / effective)) if effective > 0 else float("nan")
    if np.isfinite(error):
        return float(error)
    reach = estimate.high - p if bound > p else p - estimate.low
    z = float(stats.norm.ppf((1 + estimate.confidence) / 2))
    return float(reach / z)
