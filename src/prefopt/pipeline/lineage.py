"""Which data trained a model, from the records that training left: the stage that made it, and those behind what it started from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from prefopt.data.read import expand, read
from prefopt.errors import DataError
from prefopt.evaluate.guard import Training
from prefopt.evaluate.table import name_of
from prefopt.pipeline import record
from prefopt.types import Example

HELDOUT = "heldout.txt"
"""The rows that a training stage held out of its own data, a place a line."""


class Source(NamedTuple):
    """The data of one training stage: its settings, the places of the rows it held out, and the reward model that judged its samples."""

    stage: str
    paths: tuple[str, ...]
    limit: int | None
    heldout: frozenset[str]
    reward: str | None


def training(models: Sequence[str]) -> Training:
    """What trained these models, as far as their folders tell."""
    trails = [found for model in models for found in _sources(Path(model))]
    unknown = [found for found in trails if isinstance(found, str)]
    sources = dict.fromkeys(found for found in trails if isinstance(found, Source))
    readable = [there for source in sources if (there := source._replace(paths=tuple(filter(_is_there, source.paths)))).paths]
    gone = [f"{source.stage}: its data are gone ({path})" for source in sources for path in source.paths if not _is_there(path)]
    files = [path for source in readable for path in source.paths]
    rewards = [source.reward for source in sources if source.reward]
    return Training(lambda: _rows(readable), *(tuple(dict.fromkeys(told)) for told in (files, [*unknown, *gone], rewards)))


def _is_there(path: str) -> bool:
    """Whether a file, folder, pattern or hub name that trained a model can still be read, as far as can be told without reading it."""
    try:
        return bool(expand(path))
    except DataError:
        return False


def _rows(sources: Sequence[Source]) -> Iterator[Example | str]:
    """The rows of the sources; a string says which files have changed since training and can no longer be read."""
    for source in sources:
        try:
            yield from (row for row in read(list(source.paths), limit=source.limit) if row.where not in source.heldout)
        except DataError as error:
            yield f"{source.stage}: its data can no longer be read ({error.what})"


def _sources(model: Path, after: frozenset[Path] = frozenset()) -> Iterator[Source | str]:
    """The training stages behind a model folder, newest first, `after` those trained from it; a string says where the trail ends."""
    folder = _stage_of(model)
    if folder.resolve() in after:
        yield f"{folder.name}: trained from itself, earlier data are not known"
        return
    entry, settings = record.read_json(folder / "record.json"), _settings(folder)
    if not isinstance(entry, dict) or not settings:
        yield f"{name_of(str(model))}: no record of what trained it"
        return
    if entry.get("kind") == "create":
        return
    data = settings.get("data") or {}
    heldout = folder / HELDOUT
    if data.get("eval_fraction") and not heldout.exists():
        yield f"{folder.name}: which rows it held out was not recorded"
    elif data.get("path"):
        paths = (data["path"],) if isinstance(data["path"], str) else tuple(data["path"])
        changed = [path for path in paths if _is_there(path) and _changed(entry, path)]
        yield from (f"{entry.get('name')}: its data have changed since training ({path})" for path in changed)
        lines = heldout.read_text(encoding="utf-8").splitlines() if heldout.exists() and not changed else []  # places have moved
        reward = (settings.get("reward") or {}).get("model")
        yield Source(str(entry.get("name")), paths, data.get("limit"), frozenset(lines), reward)
    start = (settings.get("model") or {}).get("path")
    behind = [start] if isinstance(start, str) else settings.get("members") or []
    if not behind and not data.get("path"):
        yield f"{folder.name}: its record does not say what trained it"
    for one in behind:
        if _retrained(entry, one):
            yield f"{folder.name}: the model it started from has changed since ({one})"
        yield from _sources(Path(one), after | {folder.resolve()})


def _stage_of(model: Path) -> Path:
    """The folder of the stage that made a model."""
    return model.parent if model.name == "model" else model


def _changed(entry: Mapping[str, Any], path: str) -> bool:
    """Whether data are not what the record of a training says they were; what it does not say counts as unchanged."""
    was = (entry.get("inputs") or {}).get(path)
    try:
        return was is not None and was != record.digest_path(path)
    except DataError:
        return False  # as whoever reads them will say


def _retrained(entry: Mapping[str, Any], model: str) -> bool:
    """The same of a model it started from, by what the model's own record says it is; weights are not read."""
    was, made = (entry.get("inputs") or {}).get(model), record.read_json(_stage_of(Path(model)) / "record.json")
    now = made.get("model_sha256") if isinstance(made, dict) else None
    return None not in (was, now) and was != now


def _settings(folder: Path) -> Mapping[str, Any]:
    """The stage as it was run, references resolved."""
    try:
        stages = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return {}
    return stages[0] if stages and isinstance(stages[0], dict) else {}
