"""Tasks of lm-eval through its own library, with data on this disk; the tests that run it skip where the extra is not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Prefopt, write

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 3.0}
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The YAML file of a task of 20 items: which of two answers is likelier."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    items = [{"question": f"Which flower has number {i}?", "choices": ["red", "a blue one"], "answer": i % 2} for i in range(20)]
    file, path = write(tmp_path / "items.jsonl", items), tmp_path / "colours.yaml"
    path.write_text(TASK.replace("FILE", str(file)))
    return path


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_library_the_pip_line_is_told(prefopt: Prefopt, base: Path, tmp_path: Path) -> None:
    done = prefopt("evaluate", "--model", base, "--suite", "lm_eval", "--out", tmp_path / "out", "tasks=[arc_easy]")
    assert done.code == 2
    assert "pip install 'prefopt[lm-eval]'" in done.err
    assert len(done.err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--suite", "lm_eval"), "tasks=[arc_easy]"),
        (("--suite", "shift", "tasks=[arc_easy]"), "only the suite lm_eval reads tasks"),
        ((), "--data"),
    ],
)
def test_what_is_missing_is_told(more: tuple[str, ...], message: str, prefopt: Prefopt, base: Path, tmp_path: Path) -> None:
    done = prefopt("evaluate", "--model", base, "--out", tmp_path / "out", *more)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) <= 3


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (pip install 'prefopt[lm-eval]')")
def test_a_task_gives_figures_with_intervals_and_its_version(prefopt: Prefopt, base: Path, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("evaluate", "--model", base, "--baseline", base, "--suite", "lm_eval", "--out", out, f"tasks=[{task}]")
    done = prefopt(*command)
    assert done.code == 0, done.err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["lm_eval_tasks"] == {"colours": {"version": 3.0, "shots": 0, "n": 20}}
    rows = [row for row in found["rows"] if row["metric"] == "colours/acc"]
    assert [row["difference_from"] == "" for row in rows] == [True, True, False]
    assert rows[0]["value"] == 0.5, "the same answer is likelier to every question"
    assert (rows[0]["n"], rows[0]["method"]) == (20, "Wilson")
    assert 0.25 < rows[0]["low"] < 0.5 < rows[0]["high"] < 0.75
    assert len(rows[0]["data_sha256"]) == 64
    limited = prefopt(*command[:-2], tmp_path / "few", f"tasks=[{task}]", "data.limit=10", "shots=0")
    assert limited.code == 0, limited.err
    assert json.loads((tmp_path / "few" / "evaluation.json").read_text())["lm_eval_tasks"]["colours"]["n"] == 10
    wrong = prefopt("evaluate", "--model", base, "--suite", "lm_eval", "--out", tmp_path / "no", "tasks=[arc_eazy]")
    assert wrong.code == 2
    assert "did you mean 'arc_easy'?" in wrong.err


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (pip install 'prefopt[lm-eval]')")
def test_items_that_trained_the_model_are_refused(
    prefopt: Prefopt, base: Path, data: Callable[[str], Path], task: Path, tmp_path: Path
) -> None:
    import prefopt as package

    words = "Which of the many small flowers by the old mill near the river bend has the number four?"
    write(tmp_path / "items.jsonl", [{"question": words, "choices": ["red", "blue"], "answer": 0}] * 2)
    rows = write(tmp_path / "train.jsonl", [{"prompt": f"Tell me. {words} {i}", "completion": "Red."} for i in range(2)])
    model = package.train("sft", model=base, data=rows, out=tmp_path / "sft", train={"steps": 1, "batch_size": 2}).model
    command = ("evaluate", "--model", model, "--suite", "lm_eval", f"tasks=[{task}]")
    done = prefopt(*command, "--out", tmp_path / "out")
    assert done.code == 2
    assert "colours:0 (same 13 words as" in done.err
    assert prefopt(*command, "--out", tmp_path / "kept", "seen=keep").code == 0
