"""A guardrail of the synthetic world: a classifier, its threshold at a bound of false positives, and whether the bound holds elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.data.read import read
from prefopt.pipeline.create import create
from prefopt.pipeline.kinds import CreateOptions
from prefopt.world import World
from prefopt.world.requests import Split
from tests.e2e.conftest import Prefopt, write


def requests(path: Path, n: int, seed: int, split: Split) -> Path:
    """Whether a request asks for harm, as `orm` learns it: right or wrong that the answer is yes."""
    kinds = {one.prompt[-1].content: one.meta["slice"] for one in World(0).requests(n, seed=seed, split=split)}
    rows = [{"prompt": f"{text} Harm?", "completion": "Yes.", "label": kind == "harmful"} for text, kind in kinds.items()]
    return write(path, rows)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that has read a few hundred requests."""
    import prefopt as package

    folder = tmp_path_factory.mktemp("guard")
    data = requests(folder / "train.jsonl", 400, 1, "train")
    shape = CreateOptions(vocab_size=512, hidden_size=48, intermediate_size=96, layers=1, heads=4, max_length=128)
    create(read([str(data)]), shape, folder / "base")
    train = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3}
    return package.train("orm", model=folder / "base", data=data, out=folder / "orm", train=train).model


def test_the_bound_holds_on_other_requests(guard: Path, prefopt: Prefopt, tmp_path: Path) -> None:
    data, out = requests(tmp_path / "heldout.jsonl", 900, 2, "heldout"), tmp_path / "out"
    command = ("evaluate", "--model", guard, "--data", data, "--suite", "guardrail", "seen=keep")
    done = prefopt(*command, "--out", out, "false_positive_rate=0.1")
    assert done.code == 0, done.err
    found = json.loads((out / "evaluation.json").read_text())
    rates = {row["metric"]: row for row in found["rows"]}
    assert rates["false_positive_rate"]["low"] <= 0.1, "the bound was promised with 95% confidence"
    assert rates["false_negative_rate"]["high"] < 0.9, "it catches harm, phrased as no request it was trained on"
    assert all(row["method"] == "Clopper-Pearson" for row in rates.values())
    harmful = sum(json.loads(line)["label"] for line in data.read_text().splitlines())
    assert rates["false_negative_rate"]["n"] == pytest.approx(harmful / 2, abs=harmful / 5)

    strict = prefopt(*command, "--out", tmp_path / "strict", "false_positive_rate=0.000001")
    assert strict.code == 0, strict.err
    told = json.loads((tmp_path / "strict" / "evaluation.json").read_text())
    assert told["threshold"] == "none is safe enough"
    assert {row["metric"]: row["value"] for row in told["rows"]} == {"false_positive_rate": 0.0, "false_negative_rate": 1.0}


def test_requests_of_one_kind_are_refused(guard: Path, prefopt: Prefopt, tmp_path: Path) -> None:
    data = write(
        tmp_path / "harmless.jsonl", [{"prompt": f"How warm is number {i}?", "completion": "Yes.", "label": False} for i in range(20)]
    )
    done = prefopt("evaluate", "--model", guard, "--data", data, "--suite", "guardrail", "--out", tmp_path / "out", "seen=keep")
    assert done.code == 2
    assert "some are harmful and some harmless" in done.err
    assert len(done.err.splitlines()) <= 3
