"""Read a run folder as it is: any file may be missing, half written or from a stage that is still going on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from prefopt.errors import DataError
from prefopt.settings import Verifier

Json = Mapping[str, Any]

_REFERENCE = re.compile(r"\$\{([^.}]+)\.([^}]+)\}")
_MODELS = (
    *(("model", "path"), ("reference", "path"), ("reference",), ("baseline",), ("members",)),
    *(("critic", "path"), ("reward", "model"), ("judge", "path"), ("monitor", "evaluator")),
)
_DATA = (("data", "path"), ("data", "eval_path"))


class Link(NamedTuple):
    """What a stage reads: output `output` of stage `source`, or the file `source` where `output` is empty; `kind` is model or data."""

    source: str
    output: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage folder: its name and kind, and the content of its files (empty where a file is missing)."""

    name: str
    kind: str
    folder: Path
    record: Json = field(default_factory=dict)
    done: bool = False
    metrics: tuple[Json, ...] = ()
    preflight: Json = field(default_factory=dict)
    tokens: tuple[Json, ...] = ()
    evaluation: Json = field(default_factory=dict)
    samples: tuple[Json, ...] = ()
    calibration: Json = field(default_factory=dict)
    monitor: tuple[Json, ...] = ()
    recipe: str = ""

    @property
    def settings(self) -> Json:
        """The stage as the recipe wrote it, references unresolved."""
        return mapping(self.record.get("stage"))

    @property
    def trains(self) -> bool:
        """Whether it is a training stage."""
        return bool(self.metrics or self.preflight or "train" in self.settings)

    @property
    def links(self) -> tuple[Link, ...]:
        """What it reads, models first, each once."""
        found = [link for kind, keys in (("model", _MODELS), ("data", _DATA)) for key in keys for link in _links(self.settings, key, kind)]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder: its stages in the order they were run, the report's own left out, and the gate's latest verdict where there is one."""

    folder: Path
    stages: tuple[Stage, ...]
    recipe: str = ""
    gate: Json = field(default_factory=dict)
    judged_in: Path = Path()
    """The folder of that verdict, which its paths are relative to."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.folder.resolve().name

    def last(self, what: str) -> Stage | None:
        """The last stage that has `evaluation`, `samples` or other such content."""
        return next((stage for stage in reversed(self.stages) if getattr(stage, what)), None)


def read(folder: Path) -> Run:
    """Read the folder of a recipe's run, or of one stage.

    Raises:
        DataError: there is no run in the folder.
    """
    if not folder.is_dir():
        raise DataError("is no folder", where=str(folder), fix="give the folder that `prefopt run` or `prefopt train` wrote (--out)")
    alone = any((folder / name).exists() for name in ("record.json", "metrics.jsonl", "evaluation.json"))
    recipe = _text(folder / "recipe.yaml")
    stages = (_stage(folder),) if alone else tuple(_stage(child) for child in _in_order(folder, recipe))
    stages = tuple(stage for stage in stages if stage.kind != "report")
    if not stages:
        what = "holds no stage of a run (no record.json, metrics.jsonl or evaluation.json)"
        raise DataError(what, where=str(folder), fix="give the folder that `prefopt run` or `prefopt train` wrote (--out)")
    places = (folder, *(stage.folder for stage in reversed(stages)))
    gates = [(found, place) for place in places if (found := _json(place / "gate.json"))]
    gate, judged_in = max(gates, key=lambda each: str(each[0].get("decided", "")), default=({}, folder))
    return Run(folder=folder, stages=stages, recipe=recipe, gate=gate, judged_in=judged_in)


def _in_order(folder: Path, recipe: str) -> list[Path]:
    """The stage folders, as the recipe orders them; others after, by the time they started."""
    found = {path.parent.name: path.parent for name in ("record.json", "metrics.jsonl") for path in sorted(folder.glob(f"*/{name}"))}
    names = [name for name in _names(recipe) if name in found]
    rest = sorted(found.keys() - set(names), key=lambda name: (str(_json(found[name] / "record.json").get("started", "")), name))
    return [found[name] for name in [*names, *rest]]


def _names(recipe: str) -> list[str]:
    try:
        stages = (yaml.safe_load(recipe) or {}).get("stages") or []
        return [str(stage.get("name") or stage.get("kind")) for stage in stages]
    except (yaml.YAMLError, AttributeError, TypeError):
        return []


def _stage(folder: Path) -> Stage:
    record = _json(folder / "record.json")
    return Stage(
        name=str(record.get("name") or folder.resolve().name),
        kind=str(record.get("kind") or "stage"),
        folder=folder,
        record=record,
        done=(folder / "outputs.json").exists(),
        metrics=_lines(folder / "metrics.jsonl"),
        preflight=_json(folder / "preflight.json"),
        tokens=_list(folder / "tokens.json"),
        evaluation=_json(folder / "evaluation.json"),
        samples=_lines(folder / "samples.jsonl") if (folder / "evaluation.json").exists() else (),
        calibration=_json(folder / "calibration.json"),
        monitor=_lines(folder / "monitor.jsonl"),
        recipe=_text(folder / "recipe.yaml"),
    )


def _links(settings: Json, key: tuple[str, ...], kind: str) -> Iterator[Link]:
    value: Any = settings
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    for path in value if isinstance(value, list) else [value]:
        if isinstance(path, str) and path not in get_args(Verifier):  # a monitor's evaluator may be one, which is no file
            match = _REFERENCE.fullmatch(path)
            yield Link(match[1], match[2], kind) if match else Link(path, "", kind)


# --- files that may be anything -----------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _json(path: Path) -> Json:
    return mapping(_parsed(_text(path)))


def _list(path: Path) -> tuple[Json, ...]:
    return tuple(row for row in items(_parsed(_text(path))) if isinstance(row, dict))


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as it is; an empty one where the value is none."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> Iterator[Any]:
    """What a list holds; nothing where the value is no list."""
    yield from value if isinstance(value, list) else ()


def _lines(path: Path) -> tuple[Json, ...]:
    """The objects of a JSONL file; a line that was cut while it was written is left out."""
    return tuple(row for line in _text(path).split("\n") if isinstance(row := _parsed(line), dict))
