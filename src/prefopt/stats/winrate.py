"""How often one model's answer beats another's on the same prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, clustered_mean, score_limits, wilson


def preference_scores(mine: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> Floats:
    """1 where mine is better, 0 where theirs is, one half for a tie.

    Raises:
        ValueError: lists of different lengths.

    >>> preference_scores([1.0, 0.5, 0.0], [0.0, 0.5, 1.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    a, b = _as_long(mine, theirs)
    return np.where(a == b, 0.5, (a > b).astype(np.float64))


def win_rate(
    mine: Sequence[float] | Floats,
    theirs: Sequence[float] | Floats,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Share of prompts on which mine beats theirs, ties one half; intervals as in `score_rate`.

    Raises:
        ValueError: no scores, lists of different lengths, or clusters of another number.
    """
    return score_rate(preference_scores(mine, theirs), clusters=clusters, confidence=confidence)


def score_rate(scores: Sequence[float] | Floats, *, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """Mean of scores between 0 and 1 (1 a win, one half a tie), with an interval inside [0, 1].

    Wilson's interval where scores are wins and losses of independent prompts. Otherwise Wilson's with the number of independent wins and
    losses that would have the same standard error, n = p (1 - p) / SE², SE clustered, and t quantiles of G - 1 degrees of freedom
    (Kish 1965, "Survey Sampling", sec. 8.2, for the effective number; Franco, Little, Louis and Slud 2019, J. Surv. Stat. Methodol. 7,
    for the interval): ties make it narrower than Wilson's own, answers of one prompt that go together wider.

    Args:
        scores: [n], each from 0 to 1.
        clusters: observations that go together; each is its own where none are given.
        confidence: of the interval.

    Raises:
        ValueError: no scores, scores outside [0, 1], or clusters of another number.
    """
    x = np.asarray(scores, dtype=np.float64)
    if len(x) and not (np.all(x >= 0) and np.all(x <= 1)):
        raise ValueError("scores are from 0 to 1: 1 a win, one half a tie, 0 a loss")
    found = clustered_mean(x, clusters, confidence)
    independent = clusters is None or len(set(clusters)) == len(x)
    if independent and np.isin(x, (0.0, 1.0)).all():
        return wilson(float(x.sum()), len(x), confidence)
    if not np.isfinite(found.low):
        return found._replace(low=0.0, high=1.0)
    p, groups = found.value, found.df + 1
    effective = p * (1 - p) / found.std_error**2 if found.std_error > 0 else groups
    low, high = score_limits(p, effective, float(stats.t.ppf((1 + confidence) / 2, found.df)))
    method = "Wilson, effective n" if independent else "clustered Wilson"
    return found._replace(low=low, high=high, method=method)


def swapped_scores(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> Floats:
    """One score a prompt from a judge who saw the two answers in both orders.

    Args:
        first: [n] my score (1, 1/2, 0) with my answer shown first.
        second: [n] my score with my answer shown second.

    Returns:
        The mean of both: a judge who only likes a position gives one half.

    Raises:
        ValueError: lists of different lengths.

    >>> swapped_scores([1, 1, 0], [1, 0, 0]).tolist()
    [1.0, 0.5, 0.0]
    """
    a, b = _as_long(first, second)
    return (a + b) / 2


def position_bias(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """How much better an answer does for being shown first: the mean of first - second, from -1 to 1; 0 without bias.

    Args:
        first: [n] my score (1, 1/2, 0) with my answer shown first.
        second: [n] my score with my answer shown second.
        clusters: prompts that go together.
        confidence: of the interval.

    Raises:
        ValueError: no scores, lists of different lengths, or clusters of another number.
    """
    a, b = _as_long(first, second)
    return clustered_mean(a - b, clusters, confidence)


def _as_long(mine: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Both as arrays; a list of one would be repeated in silence."""
    a, b = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return a, b
