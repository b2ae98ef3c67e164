"""The recipes of recipes/real on the first rows of the real files: a model from scratch, then preferences of three kinds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt import cli
from prefopt.data.read import read
from prefopt.data.split import group_key
from prefopt.pipeline import recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "real"
RUNS = Path("runs/real")
SMALL = ("vocab_size=1024", "hidden_size=32", "intermediate_size=64", "layers=1", "heads=2", "create.data.limit=300")
SHORT = ("train.steps=2", "train.batch_size=8", "data.max_truncated=1", "data.max_dropped=0.2")
SETS = {"hh": 40, "qa": 24, "gsm8k": 40}
"""Recipe -> rows of its file that are read; QA-Feedback has six pairs a question."""


@pytest.fixture(scope="module")
def elsewhere(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder is one from which the recipes find the data where they look for it: at data."""
    place = tmp_path_factory.mktemp("real")
    (place / "data").symlink_to(shared_data)
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


def run(name: str, *options: str) -> Path:
    """Run a recipe; its folder."""
    out = RUNS / name
    assert cli.run(["run", str(RECIPES / f"{name}.yaml"), "--out", str(out), *SHORT, *options]) == 0
    return out.absolute()


@pytest.fixture(scope="module")
def base(elsewhere: Path) -> Path:
    """A run of base.yaml."""
    return run("base", *SMALL, "data.limit=24", "train.eval_every=0", "sample.data.limit=2", "rollout.max_new_tokens=4")


@pytest.fixture(scope="module", params=SETS)
def preferences(request: pytest.FixtureRequest, base: Path) -> Path:
    """A run of one of the recipes on preferences."""
    return run(request.param, f"data.limit={SETS[request.param]}")


def stages(name: str) -> dict[str, recipe.Stage]:
    return {stage.name: stage for stage in recipe.load(RECIPES / f"{name}.yaml").stages}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_from_scratch_learns_and_answers(base: Path) -> None:
    chance = math.log(load(base / "create" / "model" / "config.json")["vocab_size"])
    first, *_, last = lines(base / "pretrain" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(chance, abs=0.1)
    assert last["eval/loss"] < first["loss"]
    assert len(lines(base / "sample" / "samples.jsonl")) == 2
    assert (base / "report.html").exists()


def test_nothing_that_is_judged_on_is_in_the_base() -> None:
    of_base = stages("base")
    trained = {path for name in ("create", "pretrain", "sft") for path in of_base[name].sections["data"].path}
    judged = {of_base["sample"].sections["data"].path, of_base["sft"].sections["data"].eval_path}
    judged |= {stages(name)["dpo"].sections["data"].path for name in SETS}
    assert not trained & judged
    assert not [path for path in trained if "test" in path or "/pref/" in path or "/eval/" in path]


def test_every_stage_of_a_recipe_holds_out_the_same_rows() -> None:
    for name in SETS:
        sections = [stage.sections["data"] for stage in stages(name).values() if "data" in stage.sections]
        assert len(sections) == 5
        assert all(section == sections[0] for section in sections)
        assert sections[0].eval_fraction > 0


def test_preferences_are_learned_from_and_judged_on_held_out_pairs(preferences: Path) -> None:
    assert lines(preferences / "dpo" / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    kept = load(preferences / "dpo" / "preflight.json")["kept"]
    for stage in ("before", "dpo-pairs", "reward-pairs"):
        evaluation = load(preferences / stage / "evaluation.json")
        assert evaluation["n"] == kept["heldout"] > 0
        accuracy = next(row for row in evaluation["rows"] if row["metric"] == "accuracy")
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert (preferences / "report.html").exists()


def test_what_is_judged_on_was_not_trained_on(preferences: Path) -> None:
    """The judged pairs are of other groups than the rows the training stage shows as trained on."""
    path = stages(preferences.name)["dpo"].sections["data"].path
    groups = {example.where: group_key(example) for example in read(path, limit=SETS[preferences.name])}
    judged = {groups[row["where"]] for row in lines(preferences / "dpo-pairs" / "samples.jsonl")}
    trained = {groups[row["where"]] for row in load(preferences / "dpo" / "tokens.json")}
    assert judged
    assert trained
    assert not judged & trained
