"""How often one model's answer beats another's on the same prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, clustered_mean, wilson


def preference_scores(mine: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> Floats:
    """1 where mine is better, 0 where theirs is, one half for a tie.

    >>> preference_scores([1.0, 0.5, 0.0], [0.0, 0.5, 1.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    a, b = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return np.where(a == b, 0.5, (a > b).astype(np.float64))


def win_rate(
    mine: Sequence[float] | Floats,
    theirs: Sequence[float] | Floats,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Share of prompts on which mine beats theirs, ties one half.

    Wilson's interval where every row is its own cluster (a tie has less variance than the interval allows for, so it is on the wide
    side); otherwise the mean with clustered standard errors, cut to [0, 1].
    """
    scores = preference_scores(mine, theirs)
    if clusters is None or len(set(clusters)) == len(scores):
        return wilson(float(scores.sum()), len(scores), confidence)
    found = clustered_mean(scores, clusters, confidence)
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))


def sign_test(mine: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> float:
    """Two-sided p-value of "neither is better", ties left out (Arbuthnott 1710; exact binomial); 1 if all are ties.

    >>> round(sign_test([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]), 4)
    0.0625
    """
    scores = preference_scores(mine, theirs)
    wins, losses = int((scores == 1).sum()), int((scores == 0).sum())
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
