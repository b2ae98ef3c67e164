"""Intervals by hand and by coverage; win rates and tests by hand."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
from scipy import stats as scipy_stats

import prefopt.stats
from prefopt.stats import agreement_interval, bootstrap, clustered_mean, preference_scores, sign_test, wilson, win_rate
from prefopt.stats.significance import bound_p_values


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(prefopt.stats.__path__)])
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"prefopt.stats.{name}")).failed == 0


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 7), (80, 200)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    theirs = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n)[:3] == pytest.approx((k / n, theirs.low, theirs.high))


@pytest.mark.parametrize("bad", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(*bad)


def test_clustered_mean_by_hand() -> None:
    x, clusters = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b", "c", "c"]
    error = math.sqrt(3 / 2 * (1.0**2 + 1.0**2 + 0.0**2)) / 6
    found = clustered_mean(x, clusters)
    assert found.value == 0.5
    assert found.high - found.value == pytest.approx(scipy_stats.t.ppf(0.975, 2) * error)
    plain = clustered_mean(x)
    assert plain.high - plain.value == pytest.approx(scipy_stats.t.ppf(0.975, 5) * np.std(x, ddof=1) / math.sqrt(6))


def test_duplicating_rows_inside_clusters_does_not_shrink_the_interval() -> None:
    x = np.random.default_rng(0).random(40)
    once = clustered_mean(x, range(40))
    thrice = clustered_mean(np.repeat(x, 3), np.repeat(np.arange(40), 3).tolist())
    assert thrice[:3] == pytest.approx(once[:3])
    rng = np.random.default_rng(1)
    wide = bootstrap(np.repeat(x, 3), rng=rng, clusters=np.repeat(np.arange(40), 3).tolist())
    narrow = bootstrap(np.repeat(x, 3), rng=rng)
    assert wide.high - wide.low > 1.4 * (narrow.high - narrow.low)


@pytest.mark.parametrize("kind", ["wilson", "t", "clustered", "bootstrap"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    rng, hits, runs = np.random.default_rng(3), 0, 600
    for _ in range(runs):
        if kind == "clustered":  # correlated within prompts of 4
            p = np.repeat(rng.beta(2, 2, 40), 4)
            found = clustered_mean(rng.random(160) < p, np.repeat(np.arange(40), 4).tolist())
        else:
            x = (rng.random(80) < 0.5).astype(float)
            found = {"wilson": lambda x: wilson(x.sum(), 80), "t": clustered_mean}.get(kind, lambda x: bootstrap(x, rng=rng, draws=200))(x)
        hits += found.low <= 0.5 <= found.high
    assert 0.92 <= hits / runs <= 0.98


def test_the_bootstrap_is_decided_by_its_generator() -> None:
    x = np.random.default_rng(0).random(30)
    first, second = (bootstrap(x, rng=np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert first != bootstrap(x, rng=np.random.default_rng(6))


@pytest.mark.parametrize("method", ["percentile", "bca", "jackknife"])
def test_one_cluster_has_no_interval(method) -> None:
    """Every resample of one cluster is that cluster: an interval of width 0 once was "95%", and BCa an error."""
    x, rng = np.random.default_rng(0).random(30), np.random.default_rng(1)
    for found in (bootstrap(x, rng=rng, clusters=["p"] * 30, method=method), bootstrap(x[:1], rng=rng, method=method)):
        assert (found.low, found.high, found.method) == (-math.inf, math.inf, "one cluster")
        assert np.isnan(bound_p_values(found, 0.1)).all()
    kappa = agreement_interval("cohen", (["a", "b"] * 20, ["a", "b", "a", "a"] * 10), rng=rng, clusters=["p"] * 40, method=method)
    assert kappa.value == pytest.approx(0.5)
    assert kappa.high == math.inf


def test_win_rate_counts_ties_half_and_mirrors() -> None:
    mine, theirs = [3.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 1.0]
    assert preference_scores(mine, theirs).tolist() == [1.0, 0.0, 0.5, 1.0]
    found, mirrored = win_rate(mine, theirs), win_rate(theirs, mine)
    assert found.value == 0.625
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low))
    assert win_rate(mine, theirs, clusters=["p", "p", "q", "q"]).method == "clustered Wilson"
    with pytest.raises(ValueError, match="shapes differ"):
        win_rate([1.0], [1.0, 2.0])


def test_sign_test_leaves_ties_out() -> None:
    assert sign_test([1, 1, 1], [1, 1, 1]) == 1.0
    assert sign_test([2, 2, 2, 2, 1], [1, 1, 1, 1, 1]) == pytest.approx(2 * 0.5**4)


@pytest.mark.parametrize("function", [clustered_mean, lambda x, c=None: bootstrap(x, rng=np.random.default_rng(0), clusters=c)])
def test_no_observations_and_wrong_clusters_are_errors(function) -> None:
    with pytest.raises(ValueError, match="no observations"):
        function([])
    with pytest.raises(ValueError, match="cluster names"):
        function([1.0, 2.0], ["a"])
