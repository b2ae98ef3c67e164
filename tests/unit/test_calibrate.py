"""What is found out about a trained reward model: temperature, calibration and probes, on scores whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.data.split import group_key, split
from prefopt.evaluate.calibrate import examine, fitted, judgements
from prefopt.evaluate.probes import probes
from prefopt.model.reading import Reading
from prefopt.types import Branch, TokenTree


class Scores:
    """A reward model that knows every answer's score: an answer's ids are its place in a table."""

    def __init__(self, table: np.ndarray, reading: Reading | None = None) -> None:
        self.table, self.reading, self.path = table, reading or Reading(), "runs/reward/model"
        self.renderer = SimpleNamespace(decode=lambda ids: "Thanks!" if len(ids) > 1 else "No.")

    def tree_outputs(self, trees: Any) -> np.ndarray:
        return self.table[[int(tree.branches[0].ids[0]) for tree in trees]]

    def tree_step_outputs(self, trees: Any) -> list[np.ndarray]:
        return [self.table[list(tree.branches[0].ids)] for tree in trees]


def branch(i: int, rank: int | None = None, words: int = 1, **more: Any) -> Branch:
    ids = np.full(words, i, dtype=np.int32)
    return Branch(ids=ids, scored=np.ones(words, dtype=np.bool_), rank=rank, **more)


def pairs(n: int, *, scale: float, seed: int = 0, group: int = 1) -> tuple[np.ndarray, list[TokenTree]]:
    """Scores, and Bradley-Terry preferences of annotators whose log-odds are the scores' difference times `scale`."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=2 * n)
    trees = []
    for i in range(n):
        a, b = 2 * i, 2 * i + 1
        won = rng.random() < 1 / (1 + np.exp(-scale * (table[a] - table[b])))
        chosen, rejected = (a, b) if won else (b, a)
        words = [2 if x == a else 1 for x in (chosen, rejected)]
        branches = (branch(chosen, 0, words[0]), branch(rejected, 1, words[1]))
        trees.append(
            TokenTree(prompt=np.array([i // group], dtype=np.int32), branches=branches, index=i, where=f"p:{i + 1}", group=str(i // group))
        )
    return table, trees


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((out / "evaluation.json").read_text())
    return {row["metric"]: row for row in found["rows"] if row["slice"] == "all"}


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_temperature_makes_probabilities_come_true(tmp_path: Path, scale: float) -> None:
    """Annotators whose log-odds are the scores times s need the temperature 1/s."""
    table, trees = pairs(4000, scale=scale)
    found = examine(Scores(table), trees, "pair", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == pytest.approx(1 / scale, rel=0.12)
    told = rows(tmp_path)
    assert told["ece"]["value"] < 0.03
    assert told["ece"]["n"] in range(1900, 2100)
    if scale != 1.0:
        assert told["ece_before"]["value"] > told["ece"]["value"] + 0.02
        assert told["brier_before"]["value"] > told["brier"]["value"]
    assert "half of the held-out" in found.reading.fitted_on
    curve = json.loads((tmp_path / "calibration.json").read_text())["curves"]["after"]
    assert all(point["low"] <= point["happened"] <= point["high"] for point in curve)
    assert sum(point["n"] for point in curve) == 2 * told["ece"]["n"]  # both orders


def test_the_rows_that_fit_are_not_those_that_measure(tmp_path: Path) -> None:
    """The half that fits is calibrated as it is, the other one five times too sure."""
    table, trees = pairs(2000, scale=1.0)
    fit, other = split(trees, 0.5, 0)
    assert not {group_key(tree) for tree in fit} & {group_key(tree) for tree in other}
    for tree in other:
        for branch in tree.branches:
            table[branch.ids[0]] *= 5
    found = examine(Scores(table), trees, "pair", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == pytest.approx(1, rel=0.15)
    assert rows(tmp_path)["ece"]["value"] > 0.05


def test_few_rows_and_perfect_rows_leave_the_temperature_alone(tmp_path: Path) -> None:
    table, trees = pairs(60, scale=1.0)
    found = examine(Scores(table), trees, "pair", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == 1.0
    assert found.reading.fitted_on.startswith("no temperature: 30 held-out")
    table, trees = pairs(400, scale=100.0)
    table = np.round(table, 1) * 100
    trees = [tree for tree in trees if table[tree.branches[0].ids[0]] > table[tree.branches[1].ids[0]]]
    found = examine(Scores(table), trees, "pair", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == 1.0
    assert "as predicted" in found.reading.fitted_on
    assert rows(tmp_path)["accuracy"]["value"] == 1.0


def test_rows_that_are_all_ties_measure_nothing(tmp_path: Path) -> None:
    table, trees = pairs(4, scale=1.0)
    ties = [replace(tree, branches=tuple(replace(b, rank=0) for b in tree.branches)) for tree in trees]
    found = examine(Scores(table), ties, "pair", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.figures == []
    assert "prefer nothing" in found.lines[0]


def test_members_are_normalised_on_the_fitting_half() -> None:
    table, trees = pairs(800, scale=1.0)
    two = np.stack([table, 50 * table + 7], axis=1)
    reading = fitted(Scores(two, Reading(outputs=("a", "b"), rule="min")), trees, "pair")  # type: ignore[arg-type]
    assert reading.std[1] / reading.std[0] == pytest.approx(50)
    one = fitted(Scores(table), trees, "pair")  # type: ignore[arg-type]
    np.testing.assert_allclose(np.diff(reading(two)), np.diff(one(table)), rtol=1e-6)
    assert reading.spread == pytest.approx(one.spread)


def test_labels_of_answers_and_of_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=1500)
    right = rng.random(1500) < 1 / (1 + np.exp(-2 * table))
    trees = [
        TokenTree(prompt=np.array([i], dtype=np.int32), branches=(branch(i, label=bool(right[i])),), index=i, where=f"p:{i}")
        for i in range(1500)
    ]
    found = examine(Scores(table), trees, "answer", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == pytest.approx(0.5, rel=0.15)
    assert rows(tmp_path)["accuracy"]["value"] == pytest.approx(np.mean((table > 0) == right))
    assert rows(tmp_path)["commoner_label"]["value"] == pytest.approx(max(right.mean(), 1 - right.mean()))

    stepped = []
    for i in range(0, 1500, 3):
        ids = np.arange(i, i + 3, dtype=np.int32)
        ends = Branch(ids=ids, scored=np.ones(3, dtype=np.bool_), step_ends=(0, 1, 2), step_labels=tuple(map(float, right[i : i + 3])))
        stepped.append(TokenTree(prompt=np.array([i], dtype=np.int32), branches=(ends,), index=i, where=f"p:{i}"))
    told = judgements(Scores(table), stepped, "step", Reading(solution="product"))  # type: ignore[arg-type]
    np.testing.assert_allclose(told.logits, table)
    assert told.labels.tolist() == right.astype(int).tolist()


def test_soft_labels_are_not_cut(tmp_path: Path) -> None:
    """Labels that are the shares a model states leave its temperature at 1 and find no fault with its calibration."""
    table = np.random.default_rng(1).normal(size=600)
    shares = 1 / (1 + np.exp(-table))
    trees = [
        TokenTree(prompt=np.array([i], dtype=np.int32), branches=(branch(i, label=float(shares[i])),), index=i, where=f"p:{i}")
        for i in range(600)
    ]
    found = examine(Scores(table), trees, "answer", seed=0, out=tmp_path)  # type: ignore[arg-type]
    assert found.reading.temperature == pytest.approx(1.0)
    told = rows(tmp_path)
    assert (told["ece"]["value"], told["brier"]["value"]) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert told["log_loss"]["value"] == pytest.approx(np.mean(-shares * np.log(shares) - (1 - shares) * np.log(1 - shares)), rel=0.1)
    assert told["accuracy"]["value"] == 1.0


def test_probes_find_a_model_that_likes_length_and_spare_one_that_does_not() -> None:
    rng = np.random.default_rng(2)
    n = 600
    lengths = rng.integers(1, 30, (n, 2))
    texts = [("fine", "fine")] * n
    groups = [str(i).encode() for i in range(n)]
    honest = np.abs(rng.normal(0.0, 1.0, n)) * np.where(rng.random(n) < 0.6, 1, -1)
    biased = honest + 0.3 * (lengths[:, 0] - lengths[:, 1])
    (clean,) = probes(texts, honest, lengths, groups)
    (found,) = probes(texts, biased, lengths, groups)
    assert (clean.name, found.name) == ("the longer answer",) * 2
    assert found.clear
    assert found.model.value > 0.75
    assert abs(found.people - 0.5) < 0.07
    assert clean.model.value < 0.6
    thanks = [("Thank you. Yes.", "Yes.") if i % 2 else ("Yes.", "Thank you. Yes.") for i in range(n)]
    liking = [p for p in probes(thanks, np.where(np.arange(n) % 2, 50.0, -50.0), lengths, groups) if p.name == "courtesy"]
    assert (liking[0].model.value, liking[0].people, liking[0].excess.value) == pytest.approx((1.0, 0.5, 0.5))


def test_a_reading_with_a_temperature_reaches_scores() -> None:
    reading = replace(Reading(), temperature=2.0)
    assert reading([4.0]).tolist() == [2.0]
