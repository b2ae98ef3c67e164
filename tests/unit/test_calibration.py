"""Calibration by hand and by its conventions; thresholds of a guardrail by hand and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefopt.stats import (
    brier,
    brier_interval,
    calibration_interval,
    error_rates,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability_curve,
    threshold_at_cost,
    threshold_at_false_positive_rate,
)

P, Y = [0.05, 0.15, 0.15, 0.65, 0.85, 0.95], [0, 1, 0, 1, 0, 1]


def test_ece_by_hand() -> None:
    gaps = [0.05, 1 - 0.3, 1 - 0.65, 0.85, 1 - 0.95]  # per bin of width 0.1: |sum of labels - sum of probabilities|
    assert expected_calibration_error(P, Y, 10) == pytest.approx(sum(gaps) / 6)
    assert expected_calibration_error(P, Y, 2) == pytest.approx((abs(1 - 0.35) + abs(2 - 2.45)) / 6)
    assert expected_calibration_error(P, Y, 1) == pytest.approx(abs(3 - 2.8) / 6)
    assert maximum_calibration_error(P, Y, 10) == pytest.approx(0.85)


def test_confidence_and_binary_differ() -> None:
    """Always 0.5 +- 0.2 in the right proportions by class, but the likelier class is right more often than said."""
    p, y = [0.3, 0.7] * 10, [0, 1] * 10
    assert expected_calibration_error(p, y, 10) == pytest.approx(0.3)
    assert expected_calibration_error(p, y, 10, kind="confidence") == pytest.approx(0.3)
    p, y = [0.3] * 10 + [0.7] * 10, [1] * 6 + [0] * 4 + [1] * 8 + [0] * 2
    assert expected_calibration_error(p, y, 10) == pytest.approx((0.3 + 0.1) / 2)
    assert expected_calibration_error(p, y, 10, kind="confidence") == pytest.approx(abs(0.7 - 12 / 20))


def test_bins_are_open_below_and_closed_above() -> None:
    edges = np.linspace(0, 1, 11)
    found = reliability_curve(edges, np.zeros(11), 10)
    assert [b.n for b in found] == [2] + [1] * 9  # 0 and 0.1 share the first bin
    assert found[0].low == 0
    assert found[-1].high == 1


def test_bins_of_equal_mass_hold_equal_numbers_and_never_split_equal_probabilities() -> None:
    rng = np.random.default_rng(0)
    assert [b.n for b in reliability_curve(rng.random(100), np.ones(100), 10, binning="mass")] == [10] * 10
    lumped = [0.2] * 70 + list(np.linspace(0.5, 0.9, 30))
    assert reliability_curve(lumped, [0] * 100, 5, binning="mass")[0].n == 70


def test_reliability_curve_by_hand() -> None:
    low, high = reliability_curve([0.2, 0.4, 0.9], [0, 1, 1], 2)
    assert (low.mean_prob, low.frequency.value, low.n) == (pytest.approx(0.3), 0.5, 2)
    assert (high.mean_prob, high.frequency.value, high.n) == (0.9, 1.0, 1)
    assert low.frequency.low < 0.5 < low.frequency.high


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], "one or more"),
        ([0.5], [0, 1], "as many"),
        ([1.2], [1], "from 0 to 1"),
        ([math.nan], [1], "from 0 to 1"),
        ([0.5], [2], "from 0 to 1"),
        ([0.5], [math.nan], "from 0 to 1"),
    ],
)
def test_what_is_no_probability_is_refused(p: Any, y: Any, message: str) -> None:
    for measure in (expected_calibration_error, maximum_calibration_error, brier):
        with pytest.raises(ValueError, match=message):
            measure(p, y)
    with pytest.raises(ValueError, match="at least one"):
        expected_calibration_error([0.5], [1], 0)
    with pytest.raises(ValueError, match="known"):
        expected_calibration_error([0.5], [1], kind="top")  # type: ignore[arg-type]


def test_labels_between_0_and_1_count_as_the_answers_they_sum_up() -> None:
    """A label of 0.7 is seven answers of 1 and three of 0 to every mean, whatever T."""
    margins, soft = np.array([1.5, -0.4, 0.2, -2.0]), np.array([0.7, 0.4, 0.9, 0.0])
    each = np.array([[1.0] * round(10 * y) + [0.0] * round(10 - 10 * y) for y in soft]).ravel()
    probs = 1 / (1 + np.exp(-margins))
    assert fit_temperature(margins, soft) == pytest.approx(fit_temperature(np.repeat(margins, 10), each))
    assert expected_calibration_error(probs, soft, 4) == pytest.approx(expected_calibration_error(np.repeat(probs, 10), each, 4))
    whole = reliability_curve(probs, soft, 4)
    assert [b.frequency.value for b in whole] == pytest.approx(
        [b.frequency.value for b in reliability_curve(np.repeat(probs, 10), each, 4)]
    )
    assert brier([0.7], [0.7]) == 0.0


def test_the_temperature_of_labels_between_0_and_1() -> None:
    margins = np.random.default_rng(0).normal(size=200)
    for t in (0.2, 1.0, 5.0):
        assert fit_temperature(margins, 1 / (1 + np.exp(-margins / t))) == pytest.approx(t)
    assert fit_temperature([2.0, -1.0], [1.0, 0.0]) == 1e-3
    assert fit_temperature([2.0, -1.0], [0.4, 0.6]) == 1e3
    assert fit_temperature([2.0, -1.0], [0.5, 0.5]) == 1e3
    assert fit_temperature([0.0, 0.0], [1.0, 0.3]) == 1e3
    with pytest.raises(ValueError, match="from 0 to 1"):
        fit_temperature([1.0], [1.2])


def test_brier_by_hand() -> None:
    assert brier([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)
    assert brier([[0.2, 0.8], [0.7, 0.3]], [1, 0]) == pytest.approx(2 * (0.04 + 0.09) / 2)  # the multi-class form counts both classes
    assert brier([[0.0, 1.0, 0.0]], [0]) == 2.0
    found = brier_interval([0.8, 0.3, 0.5], [1, 0, 1])
    assert found.value == pytest.approx((0.04 + 0.09 + 0.25) / 3)
    with pytest.raises(ValueError, match="sums to 1"):
        brier([[0.5, 0.6]], [0])


def test_the_bias_of_ece_is_corrected() -> None:
    """Of a calibrated model plain ECE says 0.04 to 0.09 at n = 300; the corrected one is nearer to 0, and 0 is in its interval."""
    rng = np.random.default_rng(0)
    plain, corrected, inside = [], [], 0
    for _ in range(40):
        p = 1 / (1 + np.exp(-1.5 * rng.normal(size=300)))
        y = (rng.random(300) < p).astype(float)
        found = calibration_interval(p, y, rng=rng, draws=200)
        plain.append(expected_calibration_error(p, y))
        corrected.append(found.value)
        inside += found.low == 0
    assert np.mean(corrected) < 0.7 * np.mean(plain)
    assert inside >= 34


def test_the_interval_finds_overconfidence_and_allows_for_clusters() -> None:
    rng = np.random.default_rng(1)
    margins = 1.5 * rng.normal(size=500)
    y = (rng.random(500) < 1 / (1 + np.exp(-margins))).astype(float)
    p = 1 / (1 + np.exp(-2.5 * margins))
    found = calibration_interval(p, y, rng=rng, draws=200)
    assert 0.05 < found.low < found.value < found.high
    names = [k // 4 for k in range(2000)]
    wide = calibration_interval(np.repeat(p, 4), np.repeat(y, 4), rng=rng, draws=200, clusters=names)
    assert wide.high - wide.low == pytest.approx(found.high - found.low, rel=0.02)
    with pytest.raises(ValueError, match="one cluster"):
        calibration_interval([0.5, 0.6], [0, 1], rng=rng, clusters=["a", "a"])


# --- temperature ------------------------------------------------------------------------------------------------------


def test_temperature_undoes_a_scale() -> None:
    rng = np.random.default_rng(0)
    margins = 2 * rng.normal(size=40000)
    y = rng.random(40000) < 1 / (1 + np.exp(-margins))
    once = fit_temperature(margins, y)
    assert once == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(3 * margins, y) == pytest.approx(3 * once)
    assert fit_temperature(-margins, ~y) == pytest.approx(once)


def test_temperature_is_the_minimum() -> None:
    rng = np.random.default_rng(1)
    margins, y = rng.normal(size=60), rng.integers(2, size=60)

    def loss(t: float) -> float:
        return float(np.logaddexp(0, -np.where(y == 1, margins, -margins) / t).mean())

    margins = margins + 0.7 * (2 * y - 1)
    best = fit_temperature(margins, y)
    assert loss(best) <= min(loss(best * 0.99), loss(best * 1.01), loss(1.0))


def test_temperature_at_its_ends() -> None:
    assert fit_temperature([1.0, -2.0], [1, 0]) == 1e-3
    assert fit_temperature([1.0, -2.0], [0, 1]) == 1e3
    assert fit_temperature([0.0, 0.0], [0, 1]) in (1e-3, 1e3)
    with pytest.raises(ValueError, match="finite"):
        fit_temperature([math.inf], [1])


# --- thresholds -------------------------------------------------------------------------------------------------------

SCORES = [0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def test_error_rates_by_hand() -> None:
    found = error_rates(SCORES, LABELS, 0.5)
    assert (found.false_positive.value, found.false_negative.value) == (0.25, 0.25)
    assert found.false_positive.method == "Clopper-Pearson"
    at = error_rates(SCORES, LABELS, 0.6)
    assert at.false_positive.value == 0.25  # a score equal to the threshold is flagged
    nothing = error_rates(SCORES, LABELS, math.inf)
    assert (nothing.false_positive.value, nothing.false_negative.value) == (0.0, 1.0)


def test_thresholds_by_hand() -> None:
    assert threshold_at_false_positive_rate(SCORES, LABELS, 0.25, confidence=None).threshold == 0.4
    assert threshold_at_false_positive_rate(SCORES, LABELS, 0.2, confidence=None).threshold == 0.7
    assert threshold_at_false_positive_rate(SCORES, LABELS, 0.2).threshold == math.inf  # four rows prove nothing
    assert threshold_at_cost(SCORES, LABELS, false_positive=1, false_negative=1).threshold == 0.7
    assert threshold_at_cost(SCORES, LABELS, false_positive=1, false_negative=10).threshold == 0.4
    assert threshold_at_cost(SCORES, LABELS, false_positive=1, false_negative=1, prevalence=0.0).threshold == math.inf


@pytest.mark.slow
def test_the_bound_holds_with_the_stated_confidence_although_the_threshold_is_chosen_on_the_rows() -> None:
    chosen_above, plain_above = _above(600)
    assert chosen_above / 600 <= 0.07
    assert plain_above / 600 > 0.2


def test_the_bound_holds_on_a_few_draws() -> None:
    chosen_above, plain_above = _above(120)
    assert chosen_above <= 13  # 5% of 120 is 6; 14 or more has a chance of 0.3%
    assert plain_above > chosen_above + 10


def _above(runs: int) -> tuple[int, int]:
    """How often the true false positive rate at a chosen threshold is above the bound of 10%, with and without a confidence."""
    rng, labels = np.random.default_rng(0), [0] * 200 + [1] * 200
    counts = [0, 0]
    for _ in range(runs):
        scores = np.concatenate([rng.random(200), rng.random(200) + 0.5])
        for i, confidence in enumerate((0.95, None)):
            counts[i] += 1 - threshold_at_false_positive_rate(scores, labels, 0.1, confidence).threshold > 0.1
    return counts[0], counts[1]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [([0.5], [1], "both harmless"), ([0.5, math.nan], [0, 1], "finite"), ([0.5, 0.6], [0, 2], "0 .harmless. and 1")],
)
def test_thresholds_need_both_classes(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        error_rates(scores, labels, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_at_false_positive_rate(SCORES, LABELS, 0.0)
    with pytest.raises(ValueError, match="not negative"):
        threshold_at_cost(SCORES, LABELS, false_positive=-1, false_negative=1)
