"""Run stages: each once, each whole, again only when something it depends on has changed.

A stage lives in its own folder and is done when `outputs.json`, written last, is there and `record.json` carries the key the stage
has now: the hash of its settings, of the files it reads and of the keys of the stages it takes from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from prefopt.errors import OptionError, PrefoptError
from prefopt.pipeline import kinds, record
from prefopt.pipeline.lineage import HELDOUT
from prefopt.pipeline.recipe import Recipe, Stage
from prefopt.settings import deciding

_INPUTS = {"model": ("path", "chat_template"), "reference": ("path",), "data": ("path", "eval_path"), "judge": ("path",)}
_INPUTS |= {"reward": ("model", "function"), "critic": ("path",), "monitor": ("evaluator",)}
"""The settings that name files; among a kind's own options these do."""
_OPTION_INPUTS = ("baseline", "reference", "members", "policy", "tasks")

_FREE = {"train": ("save_every", "micro_tokens"), "reward": ("timeout", "retries")}
"""Settings of training that do not decide its result; nor does the section `track`."""

Say = Callable[[str], None]


class Done(NamedTuple):
    """What a stage's function hands back: its outputs (relative to its folder), facts for the record, and a line to print."""

    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    summary: str


@dataclass(frozen=True)
class Context:
    """What a stage may know besides its settings: the run's folder, the names of the stages before it and where to print."""

    run: Path
    before: tuple[str, ...] = ()
    say: Say = print


@dataclass
class Finished:
    """The stages that are done: their outputs (absolute paths) and keys by name."""

    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def run(recipe: Recipe, out: Path, say: Say = print) -> Finished:
    """Every stage of a recipe in order, each in `out/<name>`; what is done already is not run again.

    Raises:
        PrefoptError: a stage cannot go on; the finished ones stay finished.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "a recipe runs in one process", where=recipe.name, fix="start its training stages with torchrun and prefopt train"
        )
    with record.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(out / "recipe.yaml", to_yaml(*recipe.stages))
    finished = Finished()
    for number, stage in enumerate(recipe.stages, 1):
        title = f"[{number}/{len(recipe.stages)}] {stage.name}"
        run_stage(stage, out / stage.name, finished, Context(out, tuple(finished.keys), say), title=title)
    return finished


def run_stage(
    stage: Stage, folder: Path, finished: Finished, context: Context, *, title: str | None = None, replace: bool = True
) -> Mapping[str, Any]:
    """One stage, unless it is done; returns its record.

    Args:
        stage: its settings, references to earlier stages unresolved.
        folder: where it lives.
        finished: the stages before it; this one is added.
        context: what it may know besides.
        title: what progress lines call it.
        replace: clear the folder when it holds another stage's or other settings' results; otherwise refuse.

    Raises:
        OptionError: the folder holds something that may not be cleared.
    """
    title = title or stage.name
    parents = {name: finished.keys[name] for name in _parents(stage, context)}
    inputs = {path: record.digest_path(path) for path in _inputs(stage)}
    key = record.digest({"stage": _deciding(stage), "parents": parents, "inputs": inputs})
    finished.keys[stage.name] = key
    if (entry := _done(folder, key)) is not None:
        context.say(f"{title}: already done")
    else:
        if record.is_first():
            _make_room(stage, folder, key, replace=replace, say=context.say, title=title)
        resolved = stage.resolve(finished.outputs)
        inputs = {path: inputs.get(path) or record.digest_path(path) for path in _inputs(resolved)}
        entry = {"kind": stage.kind, "name": stage.name, "key": key, "stage": _settings(stage), "parents": parents, "inputs": inputs}
        with record.writing(folder):
            entry = _execute(resolved, folder, entry, context, title)
        _give_back()
    finished.outputs[stage.name] = {name: str(folder / path) for name, path in entry["outputs"].items()}
    return entry


def to_yaml(*stages: Stage) -> str:
    """Stages as a recipe that can be run again."""
    return yaml.safe_dump({"stages": [_settings(s) for s in stages]}, sort_keys=False, allow_unicode=True, width=120)


def _execute(stage: Stage, folder: Path, entry: Mapping[str, Any], context: Context, title: str) -> Mapping[str, Any]:
    """Run a stage's function and write its record, then outputs.json; returns the record."""
    started, clock = record.now(), time.monotonic()
    context.say(f"{title}: {stage.kind} ..." if stage.kind != stage.name else f"{title} ...")
    entry = {**entry, **record.environment(), "seeds": _seeds(stage), "started": started}
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(folder / "recipe.yaml", to_yaml(stage))
    record.write_json(folder / "record.json", entry)
    try:
        done = _guarded(stage, folder, context)
    except PrefoptError:
        _forget(folder)
        raise
    seconds = time.monotonic() - clock
    entry = {**entry, **done.facts, "ended": record.now(), "seconds": round(seconds, 1), "outputs": dict(done.outputs)}
    record.write_json(folder / "record.json", entry)
    record.write_json(folder / "outputs.json", dict(done.outputs))
    context.say(f"{title}: {done.summary} ({seconds:.1f} s)")
    return entry


def _give_back() -> None:
    """Return to the system what the stage has freed: glibc keeps it, and the peak of the next stage would come on top."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_BEFORE = {"recipe.yaml", "record.json", "preflight.json", "tokens.json", HELDOUT}
"""What a stage writes before its work begins."""


def _forget(folder: Path) -> None:
    """Remove the folder of a stage that was refused before it had made anything: the mended command finds it free."""
    if record.is_first() and {path.name for path in folder.iterdir()} <= _BEFORE:
        shutil.rmtree(folder)


class Fault(Exception):
    """A stage failed for a reason nobody foresaw; the traceback lies in `path`."""

    def __init__(self, stage: str, error: BaseException, path: Path) -> None:
        super().__init__(f"a fault in stage '{stage}': {type(error).__name__}: {error}")
        self.path = path


def _guarded(stage: Stage, folder: Path, context: Context) -> Done:
    """The stage's function; what nobody foresaw leaves its traceback in the folder."""
    from prefopt.pipeline.stages import RUN, quiet_transformers, train

    try:
        with quiet_transformers(), record.writing(folder):
            return RUN.get(stage.kind, train)(stage, folder, context)
    except PrefoptError:
        raise
    except Exception as error:
        path = folder / "traceback.txt"
        path.write_text(traceback.format_exc(), encoding="utf-8")
        raise Fault(stage.name, error, path) from error


def _done(folder: Path, key: str) -> Mapping[str, Any] | None:
    """The record of a stage that is finished under this key and whose outputs are still there."""
    outputs, entry = record.read_json(folder / "outputs.json"), record.read_json(folder / "record.json")
    if not isinstance(outputs, dict) or not isinstance(entry, dict) or entry.get("key") != key:
        return None
    return entry if all((folder / path).exists() for path in outputs.values()) else None


def _make_room(stage: Stage, folder: Path, key: str, *, replace: bool, say: Say, title: str) -> None:
    """Leave a folder that is empty or holds a started run of this very stage, which goes on where it stopped."""
    if folder.exists() and not folder.is_dir():
        raise OptionError("is a file; a folder is needed", where=str(folder), fix="choose another --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    entry = record.read_json(folder / "record.json")
    if not isinstance(entry, dict) or "key" not in entry:
        raise OptionError(
            "the folder holds files that are not a prefopt stage's", where=str(folder), fix="choose another --out or empty the folder"
        )
    if entry["key"] == key and not (folder / "outputs.json").exists():
        say(f"{title}: not finished last time; going on")
        return
    change = "an output is gone" if entry["key"] == key else _changes(entry.get("stage", {}), _settings(stage))
    if not replace:
        raise OptionError(
            f"the folder holds a run with other settings or inputs ({change})",
            where=str(folder),
            fix="choose another --out, or add --overwrite",
        )
    say(f"{title}: {change}; running again, old results are deleted")
    shutil.rmtree(folder)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two stages' settings, in one phrase."""
    before, after = _flat(old), _flat(new)
    changed = [f"{k}: {before.get(k)} -> {after.get(k)}" for k in {**before, **after} if before.get(k) != after.get(k)]
    return ", ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "") if changed else "its inputs changed"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _settings(stage: Stage) -> dict[str, Any]:
    """A stage as plain JSON values (tuples become lists), the form that is hashed and written."""
    return {name: _plain(value) for name, value in stage.to_dict().items()}


def _deciding(stage: Stage) -> dict[str, Any]:
    """The same without what a run that trains may go on with another of; what only samples is another run on another server."""
    settings = _settings(stage)
    if "train" not in settings:
        return settings
    settings |= {name: {k: v for k, v in settings[name].items() if k not in free} for name, free in _FREE.items() if name in settings}
    settings |= {"rollout": deciding(settings["rollout"])} if "rollout" in settings else {}
    return {name: value for name, value in settings.items() if name != "track"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _parents(stage: Stage, context: Context) -> list[str]:
    """The stages this one takes from; a report takes from all before it."""
    if stage.kind in kinds.KINDS and kinds.KINDS[stage.kind].reads_run:
        return list(context.before)
    return list(dict.fromkeys(name for name, _ in stage.references))


def _inputs(stage: Stage) -> list[str]:
    """The files, folders and hub names a stage reads that no earlier stage wrote."""
    values = [getattr(stage.sections.get(section), name, None) for section, names in _INPUTS.items() for name in names]
    values += [stage.options.get(name) for name in _OPTION_INPUTS]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value]) if isinstance(path, str)]
    paths = [file if file.endswith(".py") else path for path in paths for file in [path.rpartition(":")[0]]]  # rewards are "file.py:name"
    return [path for path in dict.fromkeys(paths) if "${" not in path]


def _seeds(stage: Stage) -> dict[str, int]:
    return {name: value for name, value in _flat(_settings(stage)).items() if name.split(".")[-1] == "seed"}
