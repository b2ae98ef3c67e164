"""Win rates with ties, clusters and swapped orders; the length-controlled rate; tests, Holm, power, pass@k: by hand and brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from prefopt.stats import (
    Interval,
    bound_p_values,
    clopper_pearson,
    clustered_mean,
    holm,
    length_controlled_win_rate,
    length_fit,
    pass_at_k,
    permutation_test,
    position_bias,
    power,
    sample_size,
    score_rate,
    sign_test,
    swapped_scores,
    wilson,
    win_rate_sample_size,
)

# --- win rates --------------------------------------------------------------------------------------------------------


def test_ties_narrow_and_clusters_widen() -> None:
    plain = score_rate([1.0] * 60 + [0.0] * 40)
    assert plain == wilson(60, 100)
    tied = score_rate([1.0] * 40 + [0.5] * 40 + [0.0] * 20)
    assert tied.value == 0.6
    assert tied.high - tied.low < plain.high - plain.low
    scores, names = [1.0] * 60 + [0.0] * 40, [i // 10 for i in range(100)]
    wide = score_rate(scores, clusters=names)
    assert wide.high - wide.low > 2 * (plain.high - plain.low)
    assert wide.std_error == clustered_mean(scores, names).std_error
    assert score_rate([0.5] * 9).value == 0.5
    assert score_rate([1.0, 1.0], clusters=["a", "a"])[1:3] == (0.0, 1.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        score_rate([1.5])


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_win_rate_and_its_interval_mirror(scores: list[float], size: int) -> None:
    for names in (None, [i // size for i in range(len(scores))]):
        found, turned = score_rate(scores, clusters=names), score_rate([1 - s for s in scores], clusters=names)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert (turned.value, turned.low, turned.high) == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low))


def test_orders() -> None:
    first, second = [1, 1, 1, 0], [1, 0, 0.5, 0]
    assert swapped_scores(first, second).tolist() == [1.0, 0.5, 0.75, 0.0]
    assert position_bias(first, second).value == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    assert score_rate(swapped_scores([1] * 50, [0] * 50)).value == 0.5  # a judge who only likes the first place
    with pytest.raises(ValueError, match="shapes"):
        swapped_scores([1], [1, 0])
    with pytest.raises(ValueError, match="shapes differ"):
        position_bias([1], [1, 0])


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 7), (80, 200)])
def test_clopper_pearson_is_scipys(k: int, n: int) -> None:
    theirs = scipy_stats.binomtest(k, n).proportion_ci(method="exact")
    assert clopper_pearson(k, n)[:3] == pytest.approx((k / n, theirs.low, theirs.high))


# --- length ------------------------------------------------------------------------------------------------------------


def biased(rng: np.random.Generator, n: int, skill: float, bias: float, longer: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Preferences of judges who like what is long, and the lengths."""
    theirs = rng.integers(100, 400, size=n).astype(float)
    mine = theirs + rng.normal(longer, 60, size=n)
    logit = skill + bias * np.tanh((mine - theirs) / (mine - theirs).std(ddof=1))
    return (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float), mine, theirs


def test_length_does_not_win() -> None:
    """Equal skill, longer answers: the raw rate is fooled, the controlled one is not."""
    y, mine, theirs = biased(np.random.default_rng(0), 1500, skill=0.0, bias=1.5, longer=80)
    raw, fair = score_rate(y), length_controlled_win_rate(y, mine, theirs)
    assert raw.low > 0.6
    assert fair.low < 0.5 < fair.high
    fitted = length_fit(y, mine, theirs)
    assert fitted.length == pytest.approx(1.5, abs=0.3)
    assert fair.value == pytest.approx(1 / (1 + math.exp(-fitted.intercept)))
    assert fitted.deviation == pytest.approx((mine - theirs).std(ddof=1))


def test_a_model_against_itself_gets_one_half() -> None:
    lengths = np.arange(50, 90)
    found = length_controlled_win_rate(np.full(40, 0.5), lengths, lengths)
    assert found.value == 0.5
    rng = np.random.default_rng(0)
    assert length_controlled_win_rate(np.full(40, 0.5), lengths, rng.permutation(lengths)).value == pytest.approx(0.5)


def test_without_a_length_effect_it_is_the_raw_rate() -> None:
    y = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 1.0])
    assert length_controlled_win_rate(y, np.full(6, 9), np.full(6, 9)).value == pytest.approx(y.mean())


def test_swapping_the_models_mirrors_it() -> None:
    y, mine, theirs = biased(np.random.default_rng(1), 300, skill=0.4, bias=1.0, longer=40)
    found, turned = length_controlled_win_rate(y, mine, theirs), length_controlled_win_rate(1 - y, theirs, mine)
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low))


def test_the_fit_is_the_maximum_of_the_likelihood() -> None:
    y, mine, theirs = biased(np.random.default_rng(2), 200, skill=0.3, bias=1.0, longer=20)
    y[:50] = 0.3
    hard = np.random.default_rng(3).normal(size=200)
    a, b, c, s = length_fit(y, mine, theirs, difficulty=hard)

    def loss(a: float, b: float, c: float) -> float:
        logit = a + b * np.tanh((mine - theirs) / s) + c * hard
        return float((np.logaddexp(0, logit) - y * logit).sum())

    best = loss(a, b, c)
    for step in itertools.product((-1e-3, 0, 1e-3), repeat=3):
        assert loss(a + step[0], b + step[1], c + step[2]) >= best - 1e-9
    found = length_controlled_win_rate(y, mine, theirs, difficulty=hard)
    assert found.value == pytest.approx(float((1 / (1 + np.exp(-(a + c * hard)))).mean()))


def test_statsmodels_agrees() -> None:
    sm = pytest.importorskip("statsmodels.api")
    y, mine, theirs = biased(np.random.default_rng(2), 200, skill=0.3, bias=1.0, longer=20)
    x = np.tanh((mine - theirs) / (mine - theirs).std(ddof=1))
    fitted = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit()
    assert list(length_fit(y, mine, theirs)[:2]) == pytest.approx(list(fitted.params))


def test_a_model_that_wins_everything_needs_firth() -> None:
    lengths = np.arange(20.0) + 100
    with pytest.raises(ValueError, match="firth=True"):
        length_controlled_win_rate(np.ones(20), lengths, lengths[::-1])
    found = length_controlled_win_rate(np.ones(20), lengths, lengths[::-1], firth=True)
    assert 0.8 < found.low < found.value < 1
    level = length_controlled_win_rate(np.ones(20), lengths, lengths, firth=True)
    assert level.value == pytest.approx(20.5 / 21)  # Jeffreys' prior on one proportion


def test_clusters_widen_the_controlled_rate() -> None:
    y, mine, theirs = biased(np.random.default_rng(1), 200, skill=0.4, bias=1.0, longer=40)
    once = length_controlled_win_rate(y, mine, theirs, clusters=range(200))
    names = np.repeat(np.arange(200), 3).tolist()
    thrice = length_controlled_win_rate(np.repeat(y, 3), np.repeat(mine, 3), np.repeat(theirs, 3), clusters=names)
    assert thrice.value == pytest.approx(once.value, abs=1e-3)
    assert thrice.std_error == pytest.approx(once.std_error, rel=0.03)


@pytest.mark.parametrize(
    ("y", "mine", "message"), [([1, 0], [3, 4], "three rows"), ([1, 0, 2], [3, 4, 5], "from 0 to 1"), ([1, 0, 1], [3, 4], "three rows")]
)
def test_what_is_no_preference_is_refused(y: Any, mine: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(y, mine, [3] * len(y))


# --- tests -------------------------------------------------------------------------------------------------------------


def test_permutation_test_by_brute_force() -> None:
    mine, theirs = np.array([3.0, 5.0, 4.0, 6.0, 2.0]), np.array([1.0, 4.0, 4.5, 2.0, 2.0])
    gap = mine - theirs
    flips = [abs(sum(s * g for s, g in zip(signs, gap, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    rng = np.random.default_rng(0)
    assert permutation_test(mine, theirs, rng=rng) == pytest.approx(np.mean(np.array(flips) >= abs(gap.sum()) - 1e-12))
    sampled = permutation_test(np.tile(mine, 4), np.tile(theirs, 4), rng=rng, draws=4000)
    assert sampled == pytest.approx(scipy_stats.ttest_rel(np.tile(mine, 4), np.tile(theirs, 4)).pvalue, abs=0.01)
    together = permutation_test(np.tile(mine, 4), np.tile(theirs, 4), rng=rng, clusters=[*range(5)] * 4)
    assert together == pytest.approx(permutation_test(mine, theirs, rng=rng))
    assert permutation_test(mine, mine, rng=rng) == 1.0
    assert permutation_test(mine, theirs, rng=rng, alternative="greater") < permutation_test(mine, theirs, rng=rng, alternative="less")


def test_sign_test_one_sided() -> None:
    assert sign_test([1, 1, 1], [0, 0, 0], "greater") == pytest.approx(1 / 8)
    assert sign_test([1, 1, 1], [0, 0, 0], "less") == pytest.approx(1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == []
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([math.nan])


def test_holm_keeps_its_promise() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((4000, 5))
    assert np.mean([(holm(row) <= 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.012)


@given(st.integers(1, 99), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_tests_against_a_bound_agree_with_the_intervals(successes: int, bound: float) -> None:
    """At 2.5% one-sided a bound is rejected exactly where the 95% interval leaves it out."""
    rng = np.random.default_rng(successes)
    names = [i // 4 for i in range(100)]
    scores = np.array([1.0] * successes + [0.0] * (100 - successes))
    for found in (wilson(successes, 100), clustered_mean(scores), clustered_mean(rng.permutation(scores), names)):
        above, below = bound_p_values(found, bound)
        if min(abs(found.low - bound), abs(found.high - bound)) > 1e-6:
            assert (above < 0.025) == (found.low > bound)
            assert (below < 0.025) == (found.high < bound)
        assert above + below == pytest.approx(1)


@given(st.integers(0, 60), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_an_exact_interval_is_tested_exactly(successes: int, bound: float) -> None:
    found = clopper_pearson(successes, 60)
    above, below = bound_p_values(found, bound)
    if min(abs(found.low - bound), abs(found.high - bound)) > 1e-6:
        assert (above < 0.025) == (found.low > bound)
        assert (below < 0.025) == (found.high < bound)


def test_clusters_that_all_succeed_prove_as_much_as_so_many_trials() -> None:
    """Five prompts of twenty answers are five trials, in the interval and in the test."""
    alike = score_rate([1.0] * 100, clusters=[i // 20 for i in range(100)])
    assert alike.low < wilson(5, 5).low  # t instead of z
    assert bound_p_values(alike, 0.9)[0] > bound_p_values(wilson(5, 5), 0.9)[0] > 0.2


def test_a_bound_without_a_standard_error() -> None:
    skewed = Interval(0.5, 0.4, 0.8, 10, "BCa bootstrap")
    assert bound_p_values(skewed, 0.8)[1] == pytest.approx(0.025, abs=1e-6)
    assert bound_p_values(skewed, 0.4)[0] == pytest.approx(0.025, abs=1e-6)
    assert all(math.isnan(p) for p in bound_p_values(Interval(0.5, math.nan, math.nan, 10, "none"), 0.4))


def test_observations_that_are_all_alike_prove_little() -> None:
    same = clustered_mean([0.0] * 40)
    assert bound_p_values(same, -0.05) == (pytest.approx(0.95**40), 1.0)
    assert bound_p_values(same, 0.05) == (1.0, pytest.approx(0.95**40))
    assert bound_p_values(same, 0.0) == (1.0, 1.0)
    assert bound_p_values(clustered_mean([0.0] * 40, [i // 4 for i in range(40)]), -0.05)[0] == pytest.approx(0.95**10)


# --- how many -----------------------------------------------------------------------------------------------------------


def test_power_by_simulation_and_its_inverse() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0.2, 1 / math.sqrt(150), size=20000) * math.sqrt(150)
    assert power(0.2, 1.0, 150) == pytest.approx(np.mean(np.abs(z) > 1.959964), abs=0.01)
    for effect, two_sided in itertools.product((0.05, 0.2, 1.0), (True, False)):
        n = sample_size(effect, 1.0, power=0.9, alpha=0.01, two_sided=two_sided)
        assert power(effect, 1.0, n, alpha=0.01, two_sided=two_sided) >= 0.9 - 1e-6
        assert n == 2 or power(effect, 1.0, n - 1, alpha=0.01, two_sided=two_sided) < 0.9
    assert win_rate_sample_size(0.6, ties=0.3) < win_rate_sample_size(0.6)


@pytest.mark.parametrize(("arguments", "message"), [((0.0, 1.0), "infinitely"), ((0.1, 0.0), "positive"), ((math.inf, 1.0), "infinitely")])
def test_impossible_sizes(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_size(*arguments)
    with pytest.raises(ValueError, match="impossible"):
        win_rate_sample_size(0.9, ties=0.9)


@given(st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, data: Any) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(i < c for i in subset) for subset in subsets]))


def test_pass_at_k_of_many_problems() -> None:
    assert pass_at_k(4, [0, 1, 4], 2).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert isinstance(pass_at_k(4, 1, 2), float)
    for bad in ((4, 1, 5), (4, 1, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match=r"k is|c lies"):
            pass_at_k(*bad)
