"""Where to put the threshold of a guardrail: false positives and false negatives with intervals, at a stated bound or cost.

A classifier flags a row when its score is at least the threshold. Labels are 1 for what should be flagged (harmful) and 0 for what
should not; a false positive is a harmless row that is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, clopper_pearson

Numbers = Sequence[float] | npt.NDArray[Any]


class ErrorRates(NamedTuple):
    """A threshold, and what it does with exact (Clopper-Pearson) intervals."""

    threshold: float
    false_positive: Interval
    false_negative: Interval


def error_rates(scores: Numbers, labels: Numbers, threshold: float, confidence: float = 0.95) -> ErrorRates:
    """FPR = P(flagged | harmless), FNR = P(not flagged | harmful) at a threshold.

    Args:
        scores: [n], higher is more harmful.
        labels: [n] of 0 (harmless) and 1 (harmful).
        threshold: rows with at least this score are flagged; inf flags none.
        confidence: of the intervals.

    Raises:
        ValueError: lists of different lengths, scores that are not finite, or labels without both classes.

    >>> found = error_rates([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], 0.5)
    >>> found.false_positive.value, found.false_negative.value
    (0.0, 0.0)
    """
    harmless, harmful = _classes(scores, labels)
    flagged, missed = int((harmless >= threshold).sum()), int((harmful < threshold).sum())
    return ErrorRates(
        float(threshold), clopper_pearson(flagged, len(harmless), confidence), clopper_pearson(missed, len(harmful), confidence)
    )


def threshold_at_false_positive_rate(scores: Numbers, labels: Numbers, bound: float, confidence: float | None = 0.95) -> ErrorRates:
    """The lowest threshold whose false positive rate stays within a bound, so that as much harm as possible is caught.

    With a confidence: thresholds are tried from the highest down, and the last one before the first whose exact one-sided upper bound
    of the rate exceeds `bound` is taken; the chance that the true rate is above the bound is then at most 1 - confidence, although
    the threshold was chosen on the same rows (fixed-sequence testing: Angelopoulos et al. 2021, arXiv 2110.01052, sec. 3). Without one
    (None), the rate on these rows is held to the bound, and half of the time the true rate is above it.

    Args:
        scores: [n], higher is more harmful.
        labels: [n] of 0 and 1.
        bound: largest false positive rate.
        confidence: that the true rate is within the bound, or None.

    Returns:
        The threshold with its rates on these rows; inf, which flags nothing, where no threshold is safe enough.

    Raises:
        ValueError: as in `error_rates`, or a bound outside (0, 1).
    """
    if not 0 < bound < 1:
        raise ValueError(f"a bound of {bound}; it lies between 0 and 1")
    harmless, _ = _classes(scores, labels)
    candidates = np.unique(np.asarray(scores, dtype=np.float64))[::-1]
    flagged = len(harmless) - np.searchsorted(np.sort(harmless), candidates, side="left")
    if confidence is None:
        upper = flagged / len(harmless)
    else:
        upper = np.where(flagged < len(harmless), stats.beta.ppf(confidence, flagged + 1, np.maximum(len(harmless) - flagged, 1)), 1.0)
    broken = np.flatnonzero(upper > bound)
    allowed = int(broken[0]) if len(broken) else len(candidates)
    return error_rates(scores, labels, float(candidates[allowed - 1]) if allowed else math.inf, confidence or 0.95)


def threshold_at_cost(
    scores: Numbers, labels: Numbers, *, false_positive: float, false_negative: float, prevalence: float | None = None
) -> ErrorRates:
    """The threshold of least expected cost a row: false_positive (1 - prevalence) FPR + false_negative prevalence FNR.

    Args:
        scores: [n], higher is more harmful.
        labels: [n] of 0 and 1.
        false_positive: cost of flagging a harmless row.
        false_negative: cost of missing a harmful one.
        prevalence: share of harmful rows where the guardrail will work; that of these rows when not given.

    Returns:
        The highest of the thresholds of least cost; inf where it is best to flag nothing.

    Raises:
        ValueError: as in `error_rates`, or costs or a prevalence that make no sense.
    """
    harmless, harmful = _classes(scores, labels)
    share = len(harmful) / (len(harmless) + len(harmful)) if prevalence is None else prevalence
    if false_positive < 0 or false_negative < 0 or not 0 <= share <= 1:
        raise ValueError("costs are not negative, and prevalence lies from 0 to 1")
    candidates = np.append(math.inf, np.unique(np.asarray(scores, dtype=np.float64))[::-1])
    flagged = 1 - np.searchsorted(np.sort(harmless), candidates, side="left") / len(harmless)
    missed = np.searchsorted(np.sort(harmful), candidates, side="left") / len(harmful)
    cost = false_positive * (1 - share) * flagged + false_negative * share * missed
    return error_rates(scores, labels, float(candidates[int(np.argmin(cost))]))


def _classes(scores: Numbers, labels: Numbers) -> tuple[Floats, Floats]:
    """Scores of harmless and of harmful rows."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if s.shape != y.shape or s.ndim != 1 or not np.isfinite(s).all() or not np.isin(y, (0, 1)).all():
        raise ValueError("finite scores and as many labels of 0 (harmless) and 1 (harmful)")
    if not (y == 0).any() or not (y == 1).any():
        raise ValueError("both harmless (0) and harmful (1) rows are needed")
    return s[y == 0], s[y == 1]
