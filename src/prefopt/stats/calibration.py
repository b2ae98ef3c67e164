"""Do stated probabilities come true? ECE, MCE, Brier score, reliability curves, temperature.

A reward model's probability that the first answer is better is sigmoid(margin), margin its score of the first less that of the second.
Use both orders, or a random one: where the better answer always stands first all labels are 1, and only one side is measured.

Two conventions differ and are both offered. "binary" bins P(class 1) and compares it with how often class 1 happened; "confidence" bins
max(p, 1 - p) and compares it with how often the likelier class was right.

A label may be a number between 0 and 1, the share of people who said class 1: then what is stated is compared with the mean label.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

from prefopt.stats.intervals import Floats, Interval, Ints, cluster_codes, clustered_mean, sum_by, wilson
from prefopt.stats.resample import resamples

Numbers = Sequence[float] | npt.NDArray[Any]
Kind = Literal["binary", "confidence"]
Binning = Literal["width", "mass"]


class Bin(NamedTuple):
    """One point of a reliability curve: probabilities in (low, high], their mean, and how often the event happened."""

    low: float
    high: float
    mean_prob: float
    frequency: Interval
    n: int


def expected_calibration_error(
    probs: Numbers, labels: Numbers, bins: int = 10, *, kind: Kind = "binary", binning: Binning = "width"
) -> float:
    """ECE = sum_b (n_b / n) |frequency_b - mean probability_b|  (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    It is biased upwards, the more the fewer rows a bin has: a perfectly calibrated model has an ECE above 0. See
    `calibration_interval` for the estimate without that bias.

    Args:
        probs: [n] probabilities of class 1.
        labels: [n] from 0 to 1.
        bins: how many.
        kind: see the module's text.
        binning: "width" for equal widths with edges (low, high], "mass" for equal numbers of rows (equal probabilities stay together).

    Raises:
        ValueError: no rows, lists of different lengths, probabilities or labels outside [0, 1], or no bins.

    >>> round(expected_calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0], bins=10), 3)
    0.25
    """
    p, y = _columns(probs, labels, kind)
    sums = _bin_sums(p, y, _bin_codes(p, bins, binning))
    return float(np.abs(sums.gap).sum() / len(p))


def maximum_calibration_error(
    probs: Numbers, labels: Numbers, bins: int = 10, *, kind: Kind = "binary", binning: Binning = "width"
) -> float:
    """MCE: the largest |frequency - mean probability| of any bin  (Guo et al. 2017, arXiv 1706.04599, eq. 5).

    Arguments and errors as in `expected_calibration_error`. One bin with few rows decides it, so look at the curve too.
    """
    p, y = _columns(probs, labels, kind)
    sums = _bin_sums(p, y, _bin_codes(p, bins, binning))
    return float(np.abs(sums.gap / sums.n).max())


def reliability_curve(
    probs: Numbers,
    labels: Numbers,
    bins: int = 10,
    *,
    kind: Kind = "binary",
    binning: Binning = "width",
    confidence: float = 0.95,
) -> list[Bin]:
    """The bins that hold rows, each with Wilson's interval of its frequency (on the wide side where labels lie between 0 and 1).

    Arguments and errors as in `expected_calibration_error`.
    """
    p, y = _columns(probs, labels, kind)
    codes = _bin_codes(p, bins, binning)
    found = []
    for code in np.unique(codes):
        inside = codes == code
        low, high = (code / bins, (code + 1) / bins) if binning == "width" else (p[inside].min(), p[inside].max())
        hits = wilson(float(y[inside].sum()), int(inside.sum()), confidence)
        found.append(Bin(float(low), float(high), float(p[inside].mean()), hits, int(inside.sum())))
    return found


def brier(probs: Numbers, labels: Numbers) -> float:
    """Brier score.

    Of probabilities of class 1: mean (p - y)², in [0, 1]  (the binary form). Of rows of probabilities of K classes:
    mean sum_k (p_k - [y = k])², in [0, 2]  (Brier 1950, Mon. Weather Rev. 78).

    Args:
        probs: [n], or [n, K] with rows that sum to 1.
        labels: [n] from 0 to 1, or of classes from 0.

    Raises:
        ValueError: no rows, lists of different lengths, or numbers that are no probabilities or labels.

    >>> round(brier([0.8, 0.3], [1, 0]), 3)
    0.065
    """
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim == 1:
        p, y = _columns(probs, labels, "binary")
        return float(((p - y) ** 2).mean())
    classes = np.asarray(labels, dtype=np.int64)
    if len(p) != len(classes) or not len(p) or (p < 0).any() or not np.allclose(p.sum(axis=1), 1):
        raise ValueError("one row of probabilities that sums to 1 for each label")
    if classes.min() < 0 or classes.max() >= p.shape[1]:
        raise ValueError(f"labels are classes from 0 to {p.shape[1] - 1}")
    return float(((p - np.eye(p.shape[1])[classes]) ** 2).sum(axis=1).mean())


def brier_interval(probs: Numbers, labels: Numbers, *, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Interval:
    """The binary Brier score with a clustered t interval; errors as in `brier`."""
    p, y = _columns(probs, labels, "binary")
    return clustered_mean((p - y) ** 2, clusters, confidence)


def fit_temperature(margins: Numbers, labels: Numbers) -> float:
    """The T > 0 for which sigmoid(margin / T) has the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, sec. 4.2).

    A label between 0 and 1 weighs both classes: -y log s - (1 - y) log(1 - s), s = sigmoid(margin / T). No decision changes, for the sign
    of a margin stays. T = 1 where the margins are calibrated, above 1 where they are too sure.

    Args:
        margins: [n] log-odds of class 1, in nats.
        labels: [n] from 0 to 1.

    Returns:
        T, between 1e-3 and 1e3: the lower end where every label is 0 or 1 as its margin's sign says (more confidence is always better
        then), the upper end where the margins say nothing or the opposite.

    Raises:
        ValueError: no rows, lists of different lengths, margins that are not finite, or labels outside [0, 1].
    """
    x, y = np.asarray(margins, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(x) != len(y) or not len(x) or not np.isfinite(x).all() or not ((y >= 0) & (y <= 1)).all():
        raise ValueError("finite margins and as many labels from 0 to 1, one or more")

    def slope(log_t: float) -> float:
        """Of the negative log-likelihood by log T, up to a positive factor: mean x (y - s), which grows with T and changes sign once."""
        u = x * np.exp(-log_t)
        return float((x * (y * _sigmoid(-u) - (1 - y) * _sigmoid(u))).mean())

    low, high = math.log(1e-3), math.log(1e3)
    if slope(high) <= 0:
        return 1e3
    return 1e-3 if slope(low) >= 0 else math.exp(float(brentq(slope, low, high, xtol=1e-12)))


def calibration_interval(
    probs: Numbers,
    labels: Numbers,
    bins: int = 10,
    *,
    rng: np.random.Generator,
    kind: Kind = "binary",
    binning: Binning = "width",
    clusters: Sequence[Hashable] | None = None,
    draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """ECE without its upward bias, and an interval for it.

    value = max(0, ECE - bias), bias = mean of the resamples' ECE - ECE; value ± z SE, SE that of the signed sum
    sum_b sign_b gap_b over the bins (the delta method), cut at 0. The absolute value has a corner at 0, where no such interval covers, so
    calibration itself is tested: where the ECE lies below the 95% quantile of the ECE with every cluster's residuals given random
    signs (as perfect calibration would have them; after Broecker and Smith 2007, Weather Forecast. 22, sec. 3), 0 is in the interval.
    The plain percentile bootstrap is not offered: it resamples the bias too and hardly ever covers a small ECE.

    Args:
        probs: as in `expected_calibration_error`, and so on.
        labels: [n] from 0 to 1.
        bins: how many.
        rng: the randomness.
        kind: see the module's text.
        binning: "width" or "mass".
        clusters: rows that go together.
        draws: resamples.
        confidence: of the interval.

    Raises:
        ValueError: as in `expected_calibration_error`, or fewer than two clusters.
    """
    p, y = _columns(probs, labels, kind)
    binned = np.eye(bins)[_bin_codes(p, bins, binning)] * (y - p)[:, None] / len(p)
    gaps = sum_by(cluster_codes(clusters, len(p)), binned)
    groups = len(gaps)
    if groups < 2:
        raise ValueError("one cluster: an interval needs two or more")
    total = gaps.sum(axis=0)
    plain = float(np.abs(total).sum())
    drawn, flipped = [], []
    for weights in resamples(np.arange(groups), draws, rng):
        drawn.append(np.abs(weights @ gaps).sum(axis=1))
        signs = 1.0 - 2.0 * rng.integers(2, size=weights.shape)
        flipped.append(np.abs(signs @ gaps).sum(axis=1))
    value = max(0.0, 2 * plain - float(np.concatenate(drawn).mean()))
    error = math.sqrt(groups) * float((gaps @ np.sign(total)).std(ddof=1))
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    calibrated = plain <= float(np.quantile(np.concatenate(flipped), confidence))
    low = 0.0 if calibrated else max(0.0, value - reach)
    return Interval(value, low, value + reach, len(p), "bias-corrected", confidence, error)


class _Sums(NamedTuple):
    """Of each bin that holds rows: sum of labels less probabilities, and rows; [B] or [R, B]."""

    gap: Floats
    n: Floats


def _bin_sums(p: Floats, y: Floats, codes: Ints) -> _Sums:
    n: Floats = np.bincount(codes).astype(np.float64)
    kept = n > 0
    return _Sums(np.asarray(np.bincount(codes, weights=y - p)[kept], dtype=np.float64), n[kept])


def _bin_codes(p: Floats, bins: int, binning: Binning) -> Ints:
    """The bin of each probability, from 0."""
    if bins < 1:
        raise ValueError(f"{bins} bins; at least one is needed")
    if binning == "width":
        return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left")
    if binning != "mass":
        raise ValueError(f"binning {binning!r}; known: width, mass")
    rank = stats.rankdata(p, method="min") - 1
    return np.asarray(np.minimum((rank * bins / len(p)).astype(np.int64), bins - 1))


def _columns(probs: Numbers, labels: Numbers, kind: Kind) -> tuple[Floats, Floats]:
    """Probabilities and outcomes of the event that is binned."""
    p, y = np.asarray(probs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise ValueError(f"as many labels as probabilities, one or more: found {y.shape} and {p.shape}")
    if not all(((x >= 0) & (x <= 1)).all() for x in (p, y)):
        raise ValueError("probabilities and labels lie from 0 to 1")
    if kind == "binary":
        return p, y
    if kind != "confidence":
        raise ValueError(f"kind {kind!r}; known: binary, confidence")
    likelier = p >= 0.5
    return np.where(likelier, p, 1 - p), np.where(likelier, y, 1 - y)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
