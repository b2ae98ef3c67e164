"""Trackers: what was logged is what is read back, also after a run was killed and went on."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
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
    assert run.logged == [(1, {"loss": 0.5})]
    assert run.finished
    assert rows(out / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    open_trackers(settings, out, step=1).close()
    open_trackers(settings, out).close()
    resumed, new = (run.options for run in runs[1:])
    if package == "wandb":
        assert (resumed["id"], resumed["resume"]) == (run.options["id"], "allow")
        assert new["id"] != run.options["id"]
    else:
        assert [options["resume"] for options in (run.options, resumed, new)] == ["never", "allow", "never"]


def test_what_a_tracker_refuses_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> FakeRun:
        raise LookupError("No API key configured.\nSee the docs.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(OptionError, match=r"wandb could not start: No API key configured\.\n.*WANDB_MODE=offline"):
        open_trackers(TrackSettings(to="wandb"), tmp_path)


def test_the_real_trackio_keeps_every_row(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = "open_trackers(TrackSettings(to='trackio', project='p'), Path('q/dpo'), step={step}, config={{'beta': 0.1}})"
    _in_a_process(tmp_path, [code.format(step=0), code.format(step=2), code.format(step=0)])
    (base,) = tmp_path.rglob("p.db")
    with sqlite3.connect(base) as found:
        logged = [(run, step, json.loads(m)) for run, step, m in found.execute("select run_id, step, metrics from metrics order by id")]
    losses = [(step, m["loss"]) for _, step, m in logged]
    assert losses == [(1, 1.0), (2, 0.5), (3, 3.0), (4, 1.5), (1, 1.0), (2, 0.5)]
    assert len({run for run, *_ in logged[:4]}) == 1
    assert logged[4][0] != logged[0][0]


def test_the_real_wandb_keeps_every_row_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = "open_trackers(TrackSettings(to='wandb', project='p'), Path('q/dpo'), step={step}, config={{'beta': 0.1}})"
    _in_a_process(tmp_path, [code.format(step=0), code.format(step=2)])
    first, second = sorted((tmp_path / "q" / "dpo" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert first.stem == second.stem == "run-" + (tmp_path / "q" / "dpo" / "wandb" / "run-id").read_text()
    for path, values in ((first, (b"0.5", b"q/dpo", b"beta")), (second, (b"1.5",))):
        assert all(value in path.read_bytes() for value in (b"loss", *values))


def _in_a_process(folder: Path, runs: list[str]) -> None:
    """Open real trackers one after another, log two steps to each and close them; their threads end with the process."""
    code = "from pathlib import Path\nfrom prefopt.settings import TrackSettings\nfrom prefopt.training.track import open_trackers\n"
    for run in runs:
        step = int(run.partition("step=")[2].partition(",")[0])
        code += f"with {run} as trackers:\n"
        code += "".join(f"    trackers.log({step + i}, {{'loss': {(step + 1) / i}}})\n" for i in (1, 2))
    env = {**os.environ, "HOME": str(folder), "HF_HOME": str(folder), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


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
