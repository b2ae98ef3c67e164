"""Trackers: what was logged is what is read back, also after a run was killed and went on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.errors import DataError, OptionError
from prefopt.settings import TrackSettings
from prefopt.training.track import Jsonl, TensorBoard, open_trackers


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_is_on_disk_after_every_row(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = Jsonl(path)
    log.log(1, {"loss": 0.1 + 0.2, "kl": 0.0})
    assert rows(path) == [{"step": 1, "loss": 0.1 + 0.2, "kl": 0.0}]
    log.log(2, {"loss": math.nan, "kl": -math.inf})
    assert rows(path)[1] == {"step": 2, "loss": None, "kl": None}
    log.close()


def test_jsonl_goes_on_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Jsonl(path)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # the process died while writing
    again = Jsonl(path, step=3)
    again.log(4, {"loss": 40.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in rows(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_jsonl_of_a_new_run_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval/loss": 9.0}\nnot even ours\n{"step": 1, "loss": 9.0}\n')
    Jsonl(path).close()
    assert path.read_text() == ""


def test_a_line_that_is_not_ours_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        Jsonl(path, step=2)
    assert len(path.read_text().splitlines()) == 3


def test_tensorboard_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoard(tmp_path)
    for step in range(1, 5):
        first.log(step, {"loss": 1.0 / step, "rewards/margins": float(step)})
    first.close()
    again = TensorBoard(tmp_path, step=2)
    again.log(3, {"loss": 30.0})
    again.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 30.0)]
    assert [e.step for e in events.Scalars("rewards/margins")] == [1, 2]


class FakeRun:
    """What trackio and wandb runs have in common."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, [], False

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_adapters_name_the_run_and_resume_it(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    monkeypatch.setitem(sys.modules, package, SimpleNamespace(init=init))
    out = tmp_path / "quickstart" / "dpo"
    settings = TrackSettings(to=package, project="mine")
    with open_trackers(settings, out, config={"beta": 0.1}) as trackers:
        trackers.log(1, {"loss": 0.5})
    (run,) = runs
    assert run.options["project"] == "mine"
    assert run.options["name"] == "quickstart/dpo"
    assert run.options["config"] == {"beta": 0.1}
    assert run.options["resume"] == "allow"
    assert run.options.get("id", "quickstart-dpo") == "quickstart-dpo"
    assert run.logged == [(1, {"loss": 0.5})]
    assert run.finished
    assert rows(out / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(("package", "extra"), [("tensorboard", "track"), ("trackio", "track"), ("wandb", "wandb")])
def test_a_missing_package_is_named_and_nothing_is_written(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=rf"pip install 'prefopt\[{extra}\]'"):
        open_trackers(TrackSettings(to=[package]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_but_metrics_without_being_asked(tmp_path: Path) -> None:
    with open_trackers(TrackSettings(), tmp_path) as trackers:
        trackers.log(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
