"""Agreement by hand, by the textbook, by brute force, by its symmetries; annotators of known quality found again; real votes."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.stats import agreement_interval, cohen_kappa, dawid_skene, fleiss_kappa, krippendorff_alpha, raw_agreement

_ = None
TEXTBOOK = [  # Krippendorff 2011, sec. C: four observers, twelve units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def rows(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- Cohen ------------------------------------------------------------------------------------------------------------


def from_table(table: list[list[int]]) -> tuple[list[int], list[int]]:
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in pairs], [j for _, j in pairs]


def test_cohen_by_hand() -> None:
    a, b = from_table([[20, 5], [10, 15]])  # po = 35/50, pe = .5 * .6 + .5 * .4
    assert raw_agreement(a, b) == 0.7
    assert cohen_kappa(a, b) == pytest.approx((0.7 - 0.5) / 0.5)


def test_weighted_kappa_by_hand() -> None:
    a, b = [0, 1, 2, 2], [0, 2, 0, 2]
    # distances 0, 1, 2, 0; expected over all 16 pairs of the two lists
    for weights, power in (("linear", 1), ("quadratic", 2)):
        observed = (0 + 1 + 2**power + 0) / 4
        expected = sum(abs(i - j) ** power for i, j in itertools.product(a, b)) / 16
        assert cohen_kappa(a, b, weights=weights) == pytest.approx(1 - observed / expected)


def test_much_agreement_may_be_less_than_chance() -> None:
    a, b = from_table([[80, 10], [10, 0]])
    assert raw_agreement(a, b) == 0.8
    assert cohen_kappa(a, b) == pytest.approx((0.8 - 0.82) / 0.18)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_scikit_learn_agrees(weights: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a, b = rng.integers(4, size=200), rng.integers(4, size=200)
    assert cohen_kappa(a, b, weights) == pytest.approx(metrics.cohen_kappa_score(a, b, weights=weights))


LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30)


@given(LABELS, st.permutations(range(4)))
@settings(max_examples=50, deadline=None)
def test_names_and_raters_do_not_matter(pairs: list[tuple[int, int]], names: list[int]) -> None:
    a, b = [i for i, _ in pairs], [j for _, j in pairs]
    if len({*a, *b}) < 2 or (len(set(a)) == 1 and a == [b[0]] * len(b)):
        return
    kappa = cohen_kappa(a, b)
    assert kappa <= 1 + 1e-12
    assert cohen_kappa(b, a) == pytest.approx(kappa)
    assert cohen_kappa([names[i] for i in a], [names[j] for j in b]) == pytest.approx(kappa)
    assert cohen_kappa(["wxyz"[i] for i in a], ["wxyz"[j] for j in b]) == pytest.approx(kappa)
    if a == b:
        assert kappa == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([], [], "one or more"), ([1], [1, 2], "1 and 2"), ([1, 1], [1, 1], "chance agreement is 1"), ([1, None], [1, 2], "missing")],
)
def test_kappa_says_why_there_is_none(a: list[Any], b: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cohen_kappa(a, b)
    with pytest.raises(ValueError, match="weights"):
        cohen_kappa([1, 2], [2, 1], weights="cubic")  # type: ignore[arg-type]


# --- Fleiss -----------------------------------------------------------------------------------------------------------


def test_fleiss_by_the_textbook() -> None:
    counts = [  # Fleiss 1971, as it is found in most texts: ten subjects, fourteen raters, five categories
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_of_two_raters_is_scotts_pi() -> None:
    a, b = from_table([[20, 5], [10, 15]])
    counts = [[(i == k) + (j == k) for k in range(2)] for i, j in zip(a, b, strict=True)]
    pooled = [55 / 100, 45 / 100]
    pi = (0.7 - sum(p * p for p in pooled)) / (1 - sum(p * p for p in pooled))
    assert fleiss_kappa(counts) == pytest.approx(pi)
    assert fleiss_kappa(counts) != pytest.approx(cohen_kappa(a, b), abs=1e-3)


@pytest.mark.parametrize(("counts", "message"), [([[1, 0]], "two or more"), ([[2, 0], [1, 0]], "same number"), ([[2, 0]], "one category")])
def test_fleiss_says_why_there_is_none(counts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fleiss_kappa(counts)


# --- Krippendorff -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)])
def test_alpha_by_the_textbook(level: Any, alpha: float) -> None:
    assert krippendorff_alpha(TEXTBOOK, level) == pytest.approx(alpha, abs=6e-4)
    holes = [[np.nan if v is None else float(v) for v in row] for row in TEXTBOOK]
    assert krippendorff_alpha(np.array(holes), level) == pytest.approx(alpha, abs=6e-4)


def brute_alpha(ratings: list[list[Any]], level: str) -> float:
    """By its definition: the mean difference within units over the mean difference of all values paired."""
    units = [[v for v in column if v is not None] for column in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    pool = [v for unit in units for v in unit]

    def d(v: float, w: float) -> float:
        low, high = min(v, w), max(v, w)
        between = sum(low <= x <= high for x in pool) - (pool.count(low) + pool.count(high)) / 2
        found = {"nominal": v != w, "interval": (v - w) ** 2, "ordinal": between**2 * (v != w), "ratio": ((v - w) / (v + w)) ** 2}
        return float(found[level])

    within = sum(d(v, w) / (len(unit) - 1) for unit in units for v, w in itertools.permutations(unit, 2)) / len(pool)
    across = sum(d(v, w) for v, w in itertools.permutations(pool, 2)) / (len(pool) * (len(pool) - 1))
    return 1 - within / across


RATINGS = st.lists(st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=6, max_size=6), min_size=2, max_size=4)


@given(RATINGS, st.sampled_from(["nominal", "ordinal", "interval", "ratio"]))
@settings(max_examples=80, deadline=None)
def test_alpha_is_its_definition(ratings: list[list[Any]], level: Any) -> None:
    try:
        alpha = krippendorff_alpha(ratings, level)
    except ValueError:
        return
    assert alpha == pytest.approx(brute_alpha(ratings, level))
    shuffled = [row[::-1] for row in ratings[::-1]]
    assert krippendorff_alpha(shuffled, level) == pytest.approx(alpha)
    scaled = [[None if v is None else 2.5 * v for v in row] for row in ratings]
    assert krippendorff_alpha(scaled, level) == pytest.approx(alpha)
    if level != "ratio":
        moved = [[None if v is None else 3 * v - 20 for v in row] for row in ratings]
        assert krippendorff_alpha(moved, level) == pytest.approx(alpha)
    if level == "ordinal":
        squared = [[None if v is None else v**2 for v in row] for row in ratings]
        assert krippendorff_alpha(squared, level) == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("ratings", "level", "message"),
    [
        ([[1, 2, 3]], "nominal", "no unit has two ratings .1 raters, 3 units"),
        ([[1, None], [None, 2]], "nominal", "no unit has two ratings"),
        ([[1, 1], [1, 1]], "nominal", "only one value"),
        ([["a", "b"], ["b", "b"]], "interval", "needs numbers"),
        ([[-1, 2], [2, 2]], "ratio", "not negative"),
        ([[1, 2], [2]], "nominal", "one length"),
        ([[1, 2], [2, 2]], "cardinal", "level"),
    ],
)
def test_alpha_says_why_there_is_none(ratings: list[list[Any]], level: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        krippendorff_alpha(ratings, level)


@pytest.mark.parametrize("measure", ["raw", "cohen"])
@pytest.mark.parametrize("raters", [0, 1, 3])
def test_two_raters_are_asked_for(measure: Any, raters: int) -> None:
    with pytest.raises(ValueError, match=f"of two raters, found {raters}"):
        agreement_interval(measure, [[1, 2, 1]] * raters, rng=np.random.default_rng(0))


def test_intervals_are_around_the_value_and_narrow_with_more_units() -> None:
    rng, widths = np.random.default_rng(0), []
    for n in (40, 640):
        truth = rng.integers(3, size=n)
        a, b = (np.where(rng.random(n) < 0.7, truth, rng.integers(3, size=n)) for _ in range(2))
        found = agreement_interval("cohen", (a, b), rng=rng, draws=500)
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(cohen_kappa(a, b))
        widths.append(found.high - found.low)
        alpha = agreement_interval("krippendorff", [a.tolist(), b.tolist()], rng=rng, draws=500)
        assert alpha.value == pytest.approx(krippendorff_alpha([a.tolist(), b.tolist()]))
        assert agreement_interval("raw", (a, b), rng=rng, draws=500).value == raw_agreement(a, b)
        counts = [[int(x == k) + int(y == k) for k in range(3)] for x, y in zip(a, b, strict=True)]
        assert agreement_interval("fleiss", counts, rng=rng, draws=500).value == pytest.approx(fleiss_kappa(counts))
    assert widths[1] < widths[0] / 2.5
    with pytest.raises(ValueError, match="two or more"):
        agreement_interval("raw", ([1], [1]), rng=rng)
    with pytest.raises(ValueError, match="known: raw"):
        agreement_interval("kendall", ([1, 2], [1, 2]), rng=rng)  # type: ignore[arg-type]


# --- Dawid and Skene --------------------------------------------------------------------------------------------------


def test_dawid_skene_finds_the_annotators_again() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "tie"], p=[0.45, 0.45, 0.1], size=1500)
    quality = {"careful": 0.95, "fair": 0.8, "careless": 0.5, "guesses": 0.0}
    votes = []
    for name, q in quality.items():
        for unit, label in enumerate(truth):
            if rng.random() < 0.8:
                votes.append((unit, name, str(label) if rng.random() < q else str(rng.choice(["a", "b", "tie"], p=[0.45, 0.45, 0.1]))))
    found = dawid_skene(votes)
    chance = 0.45**2 * 2 + 0.1**2
    for name, accuracy in found.accuracy().items():
        assert accuracy == pytest.approx(quality[name] + (1 - quality[name]) * chance, abs=0.05)
    right = np.mean([found.consensus()[unit] == label for unit, label in enumerate(truth) if unit in found.consensus()])
    ballots = [[label for unit, _, label in votes if unit == u] for u in range(300)]
    majority = np.mean([max(said, key=said.count) == truth[u] for u, said in enumerate(ballots) if said])
    assert right > majority + 0.03
    assert found.posterior_UK.sum(axis=1) == pytest.approx(1)
    assert found.confusion_AKK.sum(axis=2) == pytest.approx(1)


def test_dawid_skene_never_loses_likelihood() -> None:
    rng = np.random.default_rng(1)
    votes = [(u, a, int(rng.integers(2))) for u in range(60) for a in range(4)]
    likelihoods = [dawid_skene(votes, steps=steps, smoothing=1e-12).log_likelihood for steps in (1, 2, 5, 20)]
    assert likelihoods == sorted(likelihoods)


@pytest.mark.parametrize(
    "votes", [[], [(1, "x", "a"), (2, "x", "b")], [(1, "x", "a"), (1, "y", "a")], [(1, "x", "a"), (1, "x", "b"), (1, "y", "a")]]
)
def test_dawid_skene_says_what_it_needs(votes: list[Any]) -> None:
    with pytest.raises(ValueError, match="two"):
        dawid_skene(votes)


# --- real votes -------------------------------------------------------------------------------------------------------


def test_pandalm_kappas_as_published(shared_data: Path) -> None:
    found = {v["annotator"]: [] for v in rows(shared_data / "agree" / "pandalm_votes.jsonl")[0]["votes"]}
    for row in rows(shared_data / "agree" / "pandalm_votes.jsonl"):
        for vote in row["votes"]:
            found[vote["annotator"]].append(vote["label"])
    kappas = sorted(cohen_kappa(found[a], found[b]) for a, b in itertools.combinations(sorted(found), 2))
    assert [round(kappa, 2) for kappa in kappas] == [0.85, 0.86, 0.88]


def test_textbook_alphas_of_the_files(shared_data: Path) -> None:
    for row in rows(shared_data / "agree" / "krippendorff_examples.jsonl"):
        assert krippendorff_alpha(row["annotators_by_items"]) == pytest.approx(row["nominal_alpha"], abs=1e-3)


def test_crowd_votes(shared_data: Path) -> None:
    """The crowd of the LLMFAO pairs agrees little, and annotators differ; the consensus of the model is close to the majority."""
    pairs = rows(shared_data / "agree" / "llmfao_votes.jsonl.gz")
    votes = list({(row["id"], v["annotator"]): (row["id"], v["annotator"], v["label"]) for row in pairs for v in row["votes"]}.values())
    people = sorted({annotator for _, annotator, _ in votes})
    said = {(unit, annotator): label for unit, annotator, label in votes}
    ratings = [[said.get((row["id"], annotator)) for row in pairs] for annotator in people]
    alpha = agreement_interval("krippendorff", ratings, rng=np.random.default_rng(0), draws=300)
    assert 0 < alpha.low < alpha.value < alpha.high < 0.5
    found = dawid_skene(votes)
    accuracy = found.accuracy()
    assert max(accuracy.values()) > min(accuracy.values()) + 0.2
    assert len(found.consensus()) == len(pairs)
