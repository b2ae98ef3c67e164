"""The length-controlled win rate: how often a model would win if its answers were as long as the baseline's."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from prefopt.stats.intervals import Floats, Interval, cluster_codes, sum_by

Numbers = Sequence[float] | npt.NDArray[Any]
_STEPS, _TOLERANCE, _DIVERGED = 60, 1e-10, 30.0


class LengthFit(NamedTuple):
    """logit P(preferred) = intercept + length * tanh(length difference / deviation) + difficulty * difficulty_x."""

    intercept: float
    length: float
    difficulty: float
    deviation: float


def length_controlled_win_rate(
    preferences: Numbers,
    lengths: Numbers,
    baseline_lengths: Numbers,
    *,
    difficulty: Numbers | None = None,
    clusters: Sequence[Hashable] | None = None,
    firth: bool = False,
    confidence: float = 0.95,
) -> Interval:
    """Win rate predicted at a length difference of 0, in the form of AlpacaEval 2  (Dubois et al. 2024, arXiv 2404.04475, eq. 2).

    logit P_x = c + a tanh((length_x - baseline_length_x) / s) + b difficulty_x, s the standard deviation (n - 1) of the differences; the
    result is mean_x sigmoid(c + b difficulty_x). A model compared with itself gets exactly one half.

    Where this leaves AlpacaEval: plain maximum likelihood (quasi-likelihood for preferences between 0 and 1) instead of an L1 penalty with
    cross-validation and two artificial baselines, and one comparison at a time, so difficulties have to be known or are left out. The
    interval comes from the sandwich variance of c, a, b, on the logit scale, with t quantiles of G - 1 degrees of freedom. It corrects
    what length explains along this curve, within the range of differences that were seen; a judge whose length bias has
    another form is corrected in part.

    Args:
        preferences: [n] P(the model's answer is preferred): 1, 0, one half for a tie, or anything between.
        lengths: [n] of the model's answers; any unit, AlpacaEval counts characters.
        baseline_lengths: [n] of the baseline's.
        difficulty: [n] per prompt, from elsewhere; left out of the model when not given.
        clusters: prompts that go together.
        firth: penalise by Jeffreys' prior (Firth 1993, Biometrika 80), which moves estimates by O(1/n) and stays finite when a model wins
            everything.
        confidence: of the interval.

    Raises:
        ValueError: fewer than three rows, lists of different lengths, preferences outside [0, 1], or preferences that the lengths separate
            completely, so that no finite fit exists without `firth`.
    """
    y, design, _ = _design(preferences, lengths, baseline_lengths, difficulty)
    codes = cluster_codes(clusters, len(y))
    beta = _fit(y, design, firth)
    level = design.copy()
    level[:, 1] = 0.0
    at_zero = _sigmoid(level @ beta)
    value = float(at_zero.mean())
    slope = (at_zero * (1 - at_zero)) @ level / len(y)
    error = math.sqrt(max(0.0, float(slope @ _sandwich(y, design, beta, codes) @ slope)))
    df = int(codes.max())
    if df < 1:
        return Interval(value, 0.0, 1.0, len(y), "one cluster", confidence)
    reach = float(stats.t.ppf((1 + confidence) / 2, df)) * error / max(value * (1 - value), 1e-12)
    logit = math.log(value / (1 - value)) if 0 < value < 1 else math.copysign(40.0, value - 0.5)
    low, high = (float(_sigmoid(np.array(logit + sign * min(reach, 80.0)))) for sign in (-1, 1))
    return Interval(value, low, high, len(y), "length-controlled, sandwich", confidence, error, df)


def length_fit(
    preferences: Numbers, lengths: Numbers, baseline_lengths: Numbers, *, difficulty: Numbers | None = None, firth: bool = False
) -> LengthFit:
    """The coefficients behind `length_controlled_win_rate`: a positive `length` says that longer answers are preferred for their length.

    Raises:
        ValueError: as `length_controlled_win_rate`.
    """
    y, design, deviation = _design(preferences, lengths, baseline_lengths, difficulty)
    beta = _fit(y, design, firth)
    return LengthFit(float(beta[0]), float(beta[1]), float(beta[2]) if len(beta) > 2 else 0.0, deviation)


def _design(preferences: Numbers, lengths: Numbers, baseline_lengths: Numbers, difficulty: Numbers | None) -> tuple[Floats, Floats, float]:
    """Preferences, the columns (1, tanh of the length difference, difficulty), and the deviation of the differences."""
    y, mine, theirs = (np.asarray(v, dtype=np.float64) for v in (preferences, lengths, baseline_lengths))
    hard = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    if len(y) < 3 or any(v.shape != y.shape for v in (mine, theirs, *([] if hard is None else [hard]))):
        raise ValueError("three rows or more, each with a preference, two lengths and, where given, a difficulty")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("preferences lie from 0 to 1: 1 where the model's answer is preferred, one half for a tie")
    gap = mine - theirs
    if not np.isfinite(gap).all():
        raise ValueError("lengths must be finite")
    deviation = float(gap.std(ddof=1))
    columns = [np.ones(len(y)), np.tanh(gap / deviation) if deviation > 0 else np.zeros(len(y)), *([] if hard is None else [hard])]
    return y, np.stack(columns, axis=1), deviation


def _fit(y: Floats, design: Floats, firth: bool) -> Floats:
    """Logistic regression by Newton's method; a column without variation has the coefficient 0."""
    used = np.array([0, *(k for k in range(1, design.shape[1]) if np.ptp(design[:, k]) > 0)])
    x, beta = design[:, used], np.zeros(len(used))
    for _ in range(_STEPS):
        p = _sigmoid(x @ beta)
        weight = p * (1 - p)
        inverse = np.linalg.pinv(x.T @ (x * weight[:, None]))
        pull = y - p
        if firth:
            pull = pull + weight * np.einsum("ni,ij,nj->n", x, inverse, x) * (0.5 - p)
        step = inverse @ (x.T @ pull)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 2.0))
        beta = beta + step
        if np.abs(step).max() < _TOLERANCE or np.abs(x @ beta).min() > _DIVERGED:
            break
    if not firth and np.abs(x @ beta).max() > _DIVERGED:
        raise ValueError("the lengths separate wins from losses, or all are one: no finite fit; firth=True gives one")
    full = np.zeros(design.shape[1])
    full[used] = beta
    return full


def _sandwich(y: Floats, design: Floats, beta: Floats, codes: npt.NDArray[np.int64]) -> Floats:
    """Covariance of the coefficients that holds for any variance and for clusters, with the HC3-like leverage correction of each row."""
    p = _sigmoid(design @ beta)
    weight = p * (1 - p)
    bread = np.linalg.pinv(design.T @ (design * weight[:, None]))
    leverage = weight * np.einsum("ni,ij,nj->n", design, bread, design)
    scores = sum_by(codes, design * ((y - p) / np.sqrt(np.maximum(1 - leverage, 1e-6)))[:, None])
    groups = len(scores)
    return np.asarray(bread @ (scores.T @ scores * groups / max(1, groups - 1)) @ bread)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
