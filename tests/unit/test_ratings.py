"""Rating models by hand, by plain likelihood, by their symmetries; existence; Elo by hand; 15,403 real battles."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from prefopt.stats import bradley_terry, davidson, elo, elo_draws, plackett_luce, rao_kupper
from prefopt.stats.ratings import _ladder

MODELS = {"half": bradley_terry, "davidson": davidson, "rao_kupper": rao_kupper}
WINS = [(0, 1)] * 6 + [(1, 0)] * 3 + [(1, 2)] * 5 + [(2, 1)] * 2 + [(0, 2)] * 4 + [(2, 0)] * 3
TIES = [(0, 1)] * 2 + [(1, 2)] * 3 + [(2, 0)]


def probabilities(model: str, d: float, tie: float) -> tuple[float, float, float]:
    """P(win), P(tie), P(loss) as the papers write them; with half ties the quasi-likelihood of a win and a loss."""
    p, q = math.exp(d / 2), math.exp(-d / 2)
    if model == "davidson":
        total = p + q + tie * math.sqrt(p * q)
        return p / total, tie * math.sqrt(p * q) / total, q / total
    if model == "rao_kupper":
        return p / (p + tie * q), (tie**2 - 1) * p * q / ((p + tie * q) * (tie * p + q)), q / (tie * p + q)
    return p / (p + q), math.nan, q / (p + q)


def negative_log_likelihood(model: str, theta: Any, tie: float) -> float:
    total = 0.0
    for i, j in WINS:
        total -= math.log(probabilities(model, theta[i] - theta[j], tie)[0])
    for i, j in TIES:
        win, draw, loss = probabilities(model, theta[i] - theta[j], tie)
        total -= math.log(draw) if model != "half" else (math.log(win) + math.log(loss)) / 2
    return total


@pytest.mark.parametrize("model", MODELS)
def test_the_fit_is_the_maximum_of_the_plain_likelihood(model: str) -> None:
    low = 1.0 if model == "rao_kupper" else 0.0

    def loss(x: Any) -> float:
        theta = np.append(x[:2], -x[:2].sum())
        return negative_log_likelihood(model, theta, low + math.exp(x[2]))

    free = optimize.minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9999})
    found = MODELS[model](WINS, 3, ties=TIES)
    assert found.theta[:2] == pytest.approx(free.x[:2], abs=1e-5)
    if model != "half":
        assert found.tie == pytest.approx(low + math.exp(free.x[2]), abs=1e-5)
        assert sum(probabilities(model, 0.7, found.tie)) == pytest.approx(1)


@pytest.mark.parametrize("model", MODELS)
def test_standard_errors_are_the_curvature(model: str) -> None:
    """By numeric second differences of the plain likelihood in coordinates without the free shift."""
    found = MODELS[model](WINS, 3, ties=TIES)
    at = [found.theta[0] - found.theta[2], found.theta[1] - found.theta[2], *([found.tie] if model != "half" else [])]

    def loss(x: Any) -> float:
        return negative_log_likelihood(model, [x[0], x[1], 0.0], x[2] if len(x) > 2 else math.nan)

    h, k = 1e-3, len(at)
    steps = np.eye(k) * h
    curve = [[(loss(at + u + v) - loss(at + u - v) - loss(at - u + v) + loss(at - u - v)) / (4 * h * h) for u in steps] for v in steps]
    spread = np.linalg.inv(np.array(curve))
    to_centred = np.array([[2 / 3, -1 / 3], [-1 / 3, 2 / 3], [-1 / 3, -1 / 3]])
    assert found.covariance == pytest.approx(to_centred @ spread[:2, :2] @ to_centred.T, rel=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_doubling_permuting_and_mirroring(model: str) -> None:
    fit, found = MODELS[model], MODELS[model](WINS, 3, ties=TIES)
    assert found.theta.sum() == pytest.approx(0)
    twice = fit(WINS * 2, 3, ties=TIES * 2)
    assert twice.theta == pytest.approx(found.theta)
    assert twice.std_error == pytest.approx(found.std_error / math.sqrt(2))
    order = [2, 0, 1]
    moved = fit([(order[i], order[j]) for i, j in WINS], 3, ties=[(order[j], order[i]) for i, j in TIES])
    assert moved.theta[order] == pytest.approx(found.theta)
    turned = fit([(j, i) for i, j in WINS], 3, ties=TIES)
    assert turned.theta == pytest.approx(-found.theta)


def test_expected_wins_are_the_observed_ones() -> None:
    theta = bradley_terry(WINS, 3, ties=TIES).theta
    for k in range(3):
        observed = sum(i == k for i, _ in WINS) + sum(k in tie for tie in TIES) / 2
        met = [j if i == k else i for i, j in [*WINS, *TIES] if k in (i, j)]
        assert sum(1 / (1 + math.exp(theta[j] - theta[k])) for j in met) == pytest.approx(observed)


def test_without_ties_the_tie_models_are_bradley_terry() -> None:
    plain = bradley_terry(WINS, 3)
    assert davidson(WINS, 3).theta == pytest.approx(plain.theta)
    assert davidson(WINS, 3).tie == 0
    assert rao_kupper(WINS, 3).theta == pytest.approx(plain.theta)
    assert rao_kupper(WINS, 3).tie == 1
    assert plackett_luce(WINS, 3).theta == pytest.approx(plain.theta)
    assert plackett_luce(WINS, 3).covariance == pytest.approx(plain.covariance)


def test_choix_agrees() -> None:
    choix = pytest.importorskip("choix")
    theirs = choix.opt_pairwise(3, WINS, alpha=0.1)
    assert bradley_terry(WINS, 3, ridge=0.1).theta == pytest.approx(theirs - theirs.mean(), abs=1e-4)


def test_arrays_and_the_elo_scale() -> None:
    found = bradley_terry([(0, 1)] * 10 + [(1, 0)], 2)
    assert np.asarray(found).tolist() == found.theta.tolist()
    assert found[0] - found[1] == pytest.approx(math.log(10))
    assert found.elo()[0] - found.elo()[1] == pytest.approx(400)
    assert len(found) == 2


# --- existence --------------------------------------------------------------------------------------------------------


def test_an_undefeated_item_is_named_and_a_ridge_helps() -> None:
    pairs = [(2, 0), (2, 1), (0, 1), (1, 0)]
    with pytest.raises(ValueError, match=r"2 never lost.*ridge"):
        bradley_terry(pairs, 3)
    found = bradley_terry(pairs, 3, ridge=0.01)
    assert np.isfinite(found.theta).all()
    assert found.theta.argmax() == 2
    with pytest.raises(ValueError, match="3 never lost to the other items, or never met"):
        bradley_terry([*pairs, (0, 2)], 4)
    with pytest.raises(ValueError, match="4 never lost to the other items, or never met them"):
        bradley_terry([(0, 1), (1, 0), (2, 3), (3, 2)], 5)
    with pytest.raises(ValueError, match="0, 1 never lost"):
        bradley_terry([(0, 1), (1, 0), (0, 2), (1, 2), (3, 2), (2, 3)], 4)
    with pytest.raises(ValueError, match="0 never lost"):
        plackett_luce([(0, 1, 2), (0, 2, 1)], 3)


def test_a_tie_links_items_as_a_loss_does() -> None:
    assert np.isfinite(bradley_terry([(0, 1)], 2, ties=[(0, 1)]).theta).all()
    for model in (davidson, rao_kupper):
        assert np.isfinite(model([(0, 1), (1, 2), (0, 2)], 3, ties=[(0, 2)]).theta).all()  # 0 is two wins above 2, and still they tied
    with pytest.raises(ValueError, match="every comparison is a tie"):
        davidson([], 2, ties=[(0, 1)])


LADDERS = [
    ([(0, 1)], [(0, 1)], 2),
    ([(0, 1)] * 5, [(0, 1)] * 3, 2),
    ([(0, 1), (2, 3)], [(0, 2), (1, 3), (0, 3)], 4),
    ([(0, 1), (1, 2)], [(0, 1), (1, 2)], 3),
]


@pytest.mark.parametrize("fit", [davidson, rao_kupper])
@pytest.mark.parametrize(("won", "tied", "n"), LADDERS)
def test_results_on_a_ladder_have_no_finite_ratings_in_the_tie_models(fit: Any, won: Any, tied: Any, n: int) -> None:
    with pytest.raises(ValueError, match=r"no win goes against the others.*ridge"):
        fit(won, n, ties=tied)
    assert np.abs(fit(won, n, ties=tied, ridge=0.01).theta).max() < 20
    assert np.isfinite(bradley_terry(won, n, ties=tied).theta).all()


@given(st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_ladder_is_what_linear_programming_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, chance = int(rng.integers(2, 6)), rng.random(2) * 0.8
    wins, ties = np.triu(rng.random((n, n)) < chance[0], 1).astype(float), np.triu(rng.random((n, n)) < chance[1], 1).astype(float)
    order = rng.permutation(n)
    wins, ties = wins[np.ix_(order, order)], ties + ties.T
    if rng.random() < 0.5:
        i, j = order[:2]
        wins[j, i] = 1.0
    step = np.eye(n)
    rows = [step[j] - step[i] for i, j in np.argwhere(wins)], [step[i] - step[j] for i, j in np.argwhere(ties)]
    above, below = np.array([*rows[0], *rows[1]]).reshape(-1, n), [-1.0] * len(rows[0]) + [1.0] * len(rows[1])
    found = optimize.linprog(np.zeros(n), A_ub=above, b_ub=below, bounds=[(None, None)] * n).status == 0 if below else True
    assert _ladder(wins, ties) == found


@pytest.mark.parametrize(("model", "share"), [("davidson", 0.5), ("rao_kupper", 1.0)])
def test_the_likelihood_on_a_ladder_grows_without_end(model: str, share: float) -> None:
    told = [probabilities(model, step, math.exp(share * step)) for step in (1.0, 3.0, 6.0, 12.0)]
    grown = [5 * math.log(win) + 3 * math.log(tie) for win, tie, _ in told]
    assert all(a < b for a, b in itertools.pairwise(grown))


@pytest.mark.parametrize("fit", [davidson, rao_kupper])
def test_resamples_on_a_ladder_are_counted_and_a_ridge_stands_in(fit: Any) -> None:
    won, tied = [(0, 1)] * 5 + [(1, 0)], [(0, 1)] * 3
    found = fit(won, 2, ties=tied, draws=400, rng=np.random.default_rng(0))
    assert found.not_finite / 400 == pytest.approx((8 / 9) ** 9 + (4 / 9) ** 9, abs=0.07)  # without the upset, or without the wins
    assert np.abs(found.draws).max() < 20


@pytest.mark.parametrize("fit", [davidson, rao_kupper])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_resamples_of_ties_alone_tell_nobody_apart(fit: Any, ridge: float) -> None:
    found = fit([(0, 1), (1, 0)], 2, ties=[(0, 1)] * 4, ridge=ridge, draws=300, rng=np.random.default_rng(0))
    assert (found.draws == 0).all(axis=1).sum() >= 300 * (4 / 6) ** 6 / 2
    assert np.isfinite(found.draws).all()


@pytest.mark.parametrize(
    ("pairs", "message"), [([(0, 3)], "item 3"), ([(-1, 0)], "item -1"), ([(1, 1)], "with itself"), ([], "no observations")]
)
def test_bad_pairs(pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry(pairs, 3)


@given(st.integers(0, 10_000), st.sampled_from(sorted(MODELS)))
@settings(max_examples=60, deadline=None)
def test_hard_tables_converge(seed: int, model: str) -> None:
    """Lopsided and sparse tables: the gradient at what is returned is zero, which says that Newton did not stop on the way."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    theta = rng.normal(size=n) * 3
    pairs, ties = [], []
    for _ in range(int(rng.integers(n, 60))):
        i, j = rng.permutation(n)[:2].tolist()
        if rng.random() < 0.2:
            ties.append((i, j))
        else:
            pairs.append((i, j) if rng.random() < 1 / (1 + math.exp(theta[j] - theta[i])) else (j, i))
    try:
        found = MODELS[model](pairs, n, ties=ties)
    except ValueError:
        return
    at = found.tie if ties else {"davidson": 0.0}.get(model, 1.0)

    def log_likelihood(d: float, tied: bool) -> float:
        win, draw, loss = probabilities(model, d, at)
        return math.log(win) if not tied else math.log(draw) if model != "half" else (math.log(win) + math.log(loss)) / 2

    score, h = np.zeros(n), 1e-6
    for (i, j), tied in [*((p, False) for p in pairs), *((t, True) for t in ties)]:
        slope = (log_likelihood(found[i] - found[j] + h, tied) - log_likelihood(found[i] - found[j] - h, tied)) / (2 * h)
        score[[i, j]] += (slope, -slope)
    assert np.abs(score).max() < 1e-4


# --- uncertainty ------------------------------------------------------------------------------------------------------


def simulated(rng: np.random.Generator, theta: np.ndarray, n: int) -> list[tuple[int, int]]:
    i, j = rng.integers(len(theta), size=n), rng.integers(1, len(theta), size=n)
    j = (i + j) % len(theta)
    first = rng.random(n) < 1 / (1 + np.exp(theta[j] - theta[i]))
    return list(zip(np.where(first, i, j).tolist(), np.where(first, j, i).tolist(), strict=True))


def test_wald_and_bootstrap_intervals_are_alike_and_clusters_widen_them() -> None:
    rng = np.random.default_rng(0)
    pairs = simulated(rng, np.array([1.0, 0.3, 0.0, -0.4, -0.9]), 800)
    wald = bradley_terry(pairs, 5)
    drawn = bradley_terry(pairs, 5, draws=400, rng=rng)
    assert drawn.draws is not None
    assert drawn.draws.std(axis=0) == pytest.approx(wald.std_error, rel=0.15)
    assert [i.method for i in (wald.intervals()[0], drawn.intervals()[0])] == ["Wald", "bootstrap"]
    robust = bradley_terry(pairs, 5, clusters=range(len(pairs)))
    assert robust.std_error == pytest.approx(wald.std_error, rel=0.1)
    names = [k // 4 for k in range(4 * len(pairs))]
    repeated = bradley_terry([pair for pair in pairs for _ in range(4)], 5, clusters=names)
    assert repeated.std_error == pytest.approx(robust.std_error, rel=1e-6)
    assert repeated.intervals()[0].method == "clustered Wald"
    with pytest.raises(ValueError, match="rng"):
        bradley_terry(pairs, 5, draws=10)


def test_clustered_errors_of_the_tie_models_match_their_bootstrap() -> None:
    rng = np.random.default_rng(3)
    won, tied = WINS * 30, TIES * 30
    names = rng.integers(60, size=len(won) + len(tied)).tolist()
    for model in (davidson, rao_kupper):
        found = model(won, 3, ties=tied, clusters=names, draws=600, rng=rng)
        assert found.draws is not None
        assert found.draws.std(axis=0) == pytest.approx(found.std_error, rel=0.15)


def test_ranks_are_claimed_only_where_the_data_allow() -> None:
    rng = np.random.default_rng(1)
    theta = np.array([3.0, 0.05, 0.0, -3.0])
    found = bradley_terry(simulated(rng, theta, 3000), 4, draws=300, rng=rng)
    assert found.rank_ranges() == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert bradley_terry(simulated(rng, theta, 3000), 4).rank_ranges(rng=rng)[0] == (1, 1)
    wrong = 0
    for _ in range(60):
        ranges = bradley_terry(simulated(rng, np.zeros(5), 150), 5).rank_ranges(rng=rng)
        wrong += any(span != (1, 5) for span in ranges)
    assert wrong <= 8  # 5% of 60 is 3; 9 or more has a chance of 0.2%


# --- Plackett-Luce ----------------------------------------------------------------------------------------------------


def test_plackett_luce_finds_the_strengths_again() -> None:
    rng = np.random.default_rng(0)
    theta = np.array([1.0, 0.5, 0.0, -1.5])
    noise = theta + rng.gumbel(size=(4000, 4))  # the order of Gumbel-shifted strengths is Plackett-Luce
    taking_part = [set(rng.permutation(4)[: rng.integers(2, 5)].tolist()) for _ in noise]
    found = plackett_luce([[i for i in row if i in some] for row, some in zip(np.argsort(-noise).tolist(), taking_part, strict=True)], 4)
    assert np.abs((found.theta - (theta - theta.mean())) / found.std_error).max() < 3.5


def test_plackett_luce_of_one_ranking_by_hand() -> None:
    rankings = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert plackett_luce(rankings, 3).theta == pytest.approx(np.zeros(3), abs=1e-9)
    for bad in ([(0,)], [(0, 0)], [(0, 5)], []):
        with pytest.raises(ValueError, match="ranking"):
            plackett_luce(bad, 3)


# --- Elo --------------------------------------------------------------------------------------------------------------


def test_elo_by_hand() -> None:
    found = elo([("x", "y", "a"), ("y", "z", "tie"), ("x", "z", 0.0)], k=32, scale=400, base=10, initial=1500)
    x, y = 1516.0, 1484.0
    e = 1 / (1 + 10 ** ((1500 - y) / 400))
    y, z = y + 32 * (0.5 - e), 1500 - 32 * (0.5 - e)
    e = 1 / (1 + 10 ** ((z - x) / 400))
    assert found == pytest.approx({"x": x - 32 * e, "y": y, "z": z + 32 * e})
    assert sum(found.values()) == pytest.approx(4500)
    assert elo([("x", "y")], k=32) == elo([("x", "y", "model_a")], k=32)


@pytest.mark.parametrize(
    ("battle", "message"), [(("x", "y", "left"), "'left'"), (("x", "x", "a"), "against itself"), (("x", "y", 1.5), "1.5")]
)
def test_elo_refuses(battle: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elo([battle])
    with pytest.raises(ValueError, match="no battles"):
        elo([])


def test_elo_of_many_orders_is_elo_of_each() -> None:
    battles = [("x", "y", "a"), ("y", "z", "tie"), ("x", "z", "b"), ("z", "y", "a")]
    once = elo_draws(battles, rng=np.random.default_rng(5), draws=20, resample=False, k=20)
    rng = np.random.default_rng(5)
    for row in once.draws:
        order = rng.permutation(len(battles))
        one = elo([battles[i] for i in order], k=20)
        assert dict(zip(once.items, row.tolist(), strict=True)) == pytest.approx(one)
    drawn = elo_draws(battles, rng=np.random.default_rng(5), draws=50, clusters=["p", "p", "q", "r"])
    assert drawn.draws.sum(axis=1) == pytest.approx(3000)
    assert drawn.intervals()["x"].low <= drawn.ratings["x"] <= drawn.intervals()["x"].high
    assert drawn.intervals()["x"].method == "clustered bootstrap"


def test_real_battles(shared_data: Path) -> None:
    """The crowd's 59 models and all 15,403 battles; Bradley-Terry and Elo order them alike, with GPT-4 near the top."""
    with gzip.open(shared_data / "arena" / "llmfao_battles.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len({m for row in rows if row["judge"] == "crowd" for m in (row["model_a"], row["model_b"])}) == 59
    names = sorted({m for row in rows for m in (row["model_a"], row["model_b"])})
    sides = [(names.index(row["model_a"]), names.index(row["model_b"]), row["winner"]) for row in rows]
    won = [(a, b) if w == "a" else (b, a) for a, b, w in sides if w != "tie"]
    found = bradley_terry(won, len(names), ties=[(a, b) for a, b, w in sides if w == "tie"], draws=50, rng=np.random.default_rng(0))
    assert found.n == 15403
    by_elo = elo_draws(sides, rng=np.random.default_rng(0), draws=50).ratings
    order = np.argsort(-found.theta)
    assert names.index("GPT 4") in order[:5]
    assert np.corrcoef(found.theta, [by_elo[i] for i in range(len(names))])[0, 1] > 0.85
    first, last = found.rank_ranges()[order[0]], found.rank_ranges()[order[-1]]
    assert first[1] < last[0]
