"""prefopt evaluate as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Prefopt, rows, write

FEW = ("rollout.max_new_tokens=4",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Callable[[str], Path]) -> Path:
    """A model after one step of DPO, with a quarter of its rows held out."""
    import prefopt as package

    out = tmp_path_factory.mktemp("runs") / "dpo"
    train = {"steps": 1, "batch_size": 8}
    return package.train("dpo", model=base, data=data("pairs"), out=out, train=train, **{"data.eval_fraction": 0.25}).model


def test_a_folder_of_evidence(prefopt: Prefopt, trained: Path, base: Path, tmp_path: Path) -> None:
    fresh = [{**row, "prompt": [{"role": "user", "content": f"Name {i}"}]} for i, row in enumerate(rows("prompts", 6))]
    file = write(tmp_path / "fresh.jsonl", fresh)
    out = tmp_path / "eval"
    done = prefopt("evaluate", "--model", trained, "--baseline", base, "--data", file, "--out", out, "--suite", "shift", *FEW)
    assert done.code == 0, done.err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["model"] == "dpo"
    assert found["training_files_checked"] == 1
    assert {"kl", "entropy", "distinct_1", "self_bleu", "length_words"} <= {row["metric"] for row in found["rows"]}
    assert all(len(row["model_sha256"]) == len(row["data_sha256"]) == 64 for row in found["rows"])
    assert len((out / "samples.jsonl").read_text().splitlines()) == 6
    again = prefopt("evaluate", "--model", trained, "--baseline", base, "--data", file, "--out", out, "--suite", "shift", *FEW)
    assert "already done" in again.out


def test_rows_that_trained_the_model_are_refused_by_name(
    prefopt: Prefopt, trained: Path, data: Callable[[str], Path], tmp_path: Path
) -> None:
    command = ("evaluate", "--model", trained, "--data", data("pairs"), "--suite", "pairs")
    done = prefopt(*command, "--out", tmp_path / "refused")
    assert done.code == 2
    assert "18 of 24 rows were seen in training" in done.err
    assert f"{data('pairs')}:" in done.err
    assert "seen=drop" in done.err
    assert len(done.err.splitlines()) <= 3
    done = prefopt(*command, "--out", tmp_path / "dropped", "seen=drop")
    assert json.loads((tmp_path / "dropped" / "evaluation.json").read_text())["n"] == 6, done.err
    done = prefopt(*command, "--out", tmp_path / "split", "data.eval_fraction=0.25")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "split" / "evaluation.json").read_text())
    assert found["n"] == 6
    assert "rows_seen_in_training_dropped" not in found


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--suite", "prefrence"), "did you mean 'preference'?"),
        (("--suite", "truth"), "the suite 'truth' needs"),
        (("--suite", "preference"), "needs a baseline"),
        (("judge.by=somebody",), "judge.by"),
        (("judge.pth=x",), "did you mean 'path'?"),
        (("seen=maybe",), "seen"),
    ],
)
def test_mistakes_are_told_in_three_lines(
    more: tuple[str, ...], message: str, prefopt: Prefopt, base: Path, data: Callable[[str], Path], tmp_path: Path
) -> None:
    done = prefopt("evaluate", "--model", base, "--data", data("prompts"), "--out", tmp_path / "out", *more, *FEW)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) <= 3
