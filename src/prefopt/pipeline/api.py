"""`prefopt.train`: one stage from Python, by the machinery of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from prefopt.errors import OptionError, did_you_mean
from prefopt.pipeline import record
from prefopt.pipeline.recipe import single
from prefopt.pipeline.run import Context, Finished, Say, run_stage
from prefopt.pipeline.source import Override

CALL = "prefopt.train"


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the model in it, the steps done and the last metrics (names as in metrics.jsonl)."""

    folder: Path
    model: Path
    steps: int
    metrics: dict[str, float]

    @property
    def record(self) -> dict[str, Any]:
        """What made this run: record.json."""
        entry = record.read_json(self.folder / "record.json")
        return entry if isinstance(entry, dict) else {}


def train(
    method: str,
    *,
    model: str | PathLike[str],
    data: str | PathLike[str] | list[str],
    out: str | PathLike[str],
    overwrite: bool = False,
    **options: Any,
) -> RunResult:
    """Train with one method; a run that is done already is not run again, one that was stopped goes on.

    Args:
        method: a row of METHODS ("dpo").
        model: a Hugging Face folder or hub name.
        data: files, folders or hub names.
        out: the run folder.
        overwrite: clear a folder that holds a run with other settings; otherwise that is an error.
        options: the keys of the command line: the method's own (`beta=0.1`), and sections as mappings (`train={"steps": 10}`) or
            as dotted names (`**{"train.steps": 10}`).

    Raises:
        PrefoptError: what the command line prints with exit code 2.
    """
    paths = [str(path) for path in data] if isinstance(data, list) else str(data)
    overrides = [Override(key, value, CALL) for key, value in _flat(options)]
    return train_stage(method, str(model), paths, Path(out), overrides, origin=CALL, overwrite=overwrite)


def train_stage(
    method: str,
    model: str,
    data: str | list[str],
    out: Path,
    overrides: list[Override],
    *,
    origin: str,
    overwrite: bool = False,
    say: Say = print,
) -> RunResult:
    """One training stage in its own folder; `origin` is what messages call the place the options came from."""
    from prefopt.losses.methods import METHODS

    if method not in METHODS:
        raise OptionError(f"'{method}' is no method", where=origin, fix=did_you_mean(method, METHODS))
    stage = single({"kind": method, "model": {"path": model}, "data": {"path": data}}, overrides, origin)
    say = say if record.is_first() else _nothing
    entry = run_stage(stage, out, Finished(), Context(out, (), say), replace=overwrite)
    say(f"model: {out / entry['outputs']['model']}")
    return RunResult(out, out / entry["outputs"]["model"], entry["steps"], entry["metrics"])


def _nothing(line: str) -> None:
    """What the other processes of a distributed run say."""


def _flat(options: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Nested mappings and dotted names as (key, value) pairs."""
    for name, value in options.items():
        key = (*prefix, *name.split("."))
        if isinstance(value, Mapping):
            yield from _flat(value, key)
        else:
            yield key, list(value) if isinstance(value, tuple) else str(value) if isinstance(value, PathLike) else value
