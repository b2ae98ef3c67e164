"""Run stages: each once, each whole, again only when something it depends on has changed.

A stage lives in its own folder and is done when `outputs.json`, written last, is there and `record.json` carries the key the stage
has now: the hash of its settings, of the files it reads and of the keys of the stages it takes from.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
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
from prefopt.pipeline.check import hints
from prefopt.pipeline.lineage import HELDOUT
from prefopt.pipeline.recipe import Recipe, Stage
from prefopt.settings import deciding
from prefopt.training.signals import Interrupted, unserved

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
        Interrupted: a signal came in the last step of a training stage, which is finished.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "a recipe runs in one process", where=recipe.name, fix="start its training stages with torchrun and prefopt train"
        )
    with record.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(out / "recipe.yaml", to_yaml(*recipe.stages))
    finished = Finished()
    unserved()
    for number, stage in enumerate(recipe.stages, 1):
        title = f"[{number}/{len(recipe.stages)}] {stage.name}"
        run_stage(stage, out / stage.name, finished, Context(out, tuple(finished.keys), say), title=title)
        if (late := unserved()) and stage is not recipe.stages[-1]:
            raise Interrupted(late, f"stage {stage.name}")
    return finished


def run_stage(
    stage: Stage, folder: Path, finished: Finished, context: Context, *, title: str | None = None, replace: bool | None = None
) -> Mapping[str, Any]:
    """One stage, unless it is done; returns its record.

    Args:
        stage: its settings, references to earlier stages unresolved.
        folder: where it lives.
        finished: the stages before it; this one is added.
        context: what it may know besides.
        title: what progress lines call it.
        replace: clear the folder when it holds another stage's or other settings' results (True) or refuse (False); None, as for a recipe,
            clears results, which can be had again, and refuses the checkpoints of an unfinished training.

    Raises:
        OptionError: the folder holds something that may not be cleared.
    """
    title = title or stage.name
    parents = {name: finished.keys[name] for name in _parents(stage, context)}
    inputs = {path: record.digest_path(path) for path in _inputs(stage)}
    key = _key(stage, parents, inputs, context)
    finished.keys[stage.name] = key
    if (entry := _done(folder, key)) is not None:
        context.say(f"{title}: already done")
    else:
        resolved = stage.resolve(finished.outputs)
        read = {path: inputs.get(path) or record.digest_path(path) for path in _inputs(resolved)}
        entry = {"kind": stage.kind, "name": stage.name, "key": key, "stage": _settings(stage), "parents": parents, "inputs": read}
        entry |= {"key_but_reward": _key(_but_reward(stage), parents, inputs, context)} if "train" in stage.sections else {}
        if record.is_first():
            _make_room(folder, entry, replace=replace, say=context.say, title=title)
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
    entry = {**entry, **record.environment(), "seeds": _seeds(stage), "started": started, **_before(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(folder / "recipe.yaml", to_yaml(stage))
    record.write_json(folder / "record.json", entry)
    try:
        done = _guarded(stage, folder, context)
    except BaseException as error:
        with contextlib.suppress(OSError):
            record.write_json(folder / "record.json", entry | _spent(entry, time.monotonic() - clock))
        if isinstance(error, PrefoptError):
            _forget(folder)
        raise
    seconds = time.monotonic() - clock
    entry = {**entry, **done.facts, "ended": record.now(), **_spent(entry, seconds), "outputs": dict(done.outputs)}
    record.write_json(folder / "record.json", entry)
    record.write_json(folder / "outputs.json", dict(done.outputs))
    context.say(f"{title}: {done.summary} ({seconds:.1f} s)")
    return entry


def _before(folder: Path) -> dict[str, Any]:
    """Of a stage that goes on, the records of its earlier sittings, oldest first, and the seconds they took, as far as they are known."""
    last = record.read_json(folder / "record.json")
    if not isinstance(last, dict):
        return {}
    return {"sittings": [*last.pop("sittings", []), last], "seconds": last.get("seconds", 0.0)}


def _spent(entry: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """The seconds of a sitting with those of the ones before it."""
    return {"seconds": round(entry.get("seconds", 0.0) + seconds, 1)}


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


def _make_room(folder: Path, entry: Mapping[str, Any], *, replace: bool | None, say: Say, title: str) -> None:
    """Leave a folder that is empty or holds a started run of this very stage, which goes on where it stopped."""
    if folder.exists() and not folder.is_dir():
        raise OptionError("is a file; a folder is needed", where=str(folder), fix="choose another --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    held = record.read_json(folder / "record.json")
    if not isinstance(held, dict) or "key" not in held:
        raise OptionError(
            "the folder holds files that are not a prefopt stage's", where=str(folder), fix="choose another --out or empty the folder"
        )
    unfinished = not (folder / "outputs.json").exists()
    if held["key"] == entry["key"] and unfinished:
        say(f"{title}: not finished last time; going on")
        return
    change = "an output is gone" if held["key"] == entry["key"] else _changes(held, entry)
    if unfinished and not replace and "key_but_reward" in entry and held.get("key_but_reward") == entry["key_but_reward"]:
        say(f"{title}: {change}; not finished last time, going on; what was judged so far stays as it is")
        return
    _may_clear(folder, entry, change, unfinished=unfinished, replace=replace)
    say(f"{title}: {change}; running again, old results are deleted")
    shutil.rmtree(folder)


def _may_clear(folder: Path, entry: Mapping[str, Any], change: str, *, unfinished: bool, replace: bool | None) -> None:
    """Find out whether a folder of other results may be cleared.

    Raises:
        OptionError: nobody asked for it, or the stage itself reads what lies there.
    """
    read = [path for path, digest in entry["inputs"].items() if not digest.startswith(record.HUB)]
    own = next((path for path in read if Path(path).resolve().is_relative_to(folder.resolve())), None)
    if own is not None:
        raise OptionError(f"the stage reads {own}, which lies in the folder it is to write", where=str(folder), fix="choose another --out")
    if replace is False:
        what = f"the folder holds a run with other settings or inputs ({change})"
        raise OptionError(what, where=str(folder), fix="choose another --out, or add --overwrite")
    if replace is None and unfinished and any(folder.glob("checkpoints/step-*")):
        what = f"the folder holds the checkpoints of a training that is not finished, with other settings or inputs ({change})"
        fix = "undo the change to go on with it, choose another --out, or delete the folder to start again"
        raise OptionError(what, where=str(folder), fix=fix)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two records' settings and files, in one phrase."""
    before, after = _flat(old.get("stage", {})), _flat(new["stage"])
    changed = [f"{k}: {before.get(k)} -> {after.get(k)}" for k in {**before, **after} if before.get(k) != after.get(k)]
    files = old.get("inputs", {})
    changed += [f"{path} has changed" for path, digest in new["inputs"].items() if files.get(path, digest) != digest]
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


def _but_reward(stage: Stage) -> Stage:
    """A training stage without what judges its answers: a run whose reward has failed may go on with a mended one."""
    kept = {name: section for name, section in stage.sections.items() if name not in ("reward", "monitor")}
    return dataclasses.replace(stage, sections=kept)


def _key(stage: Stage, parents: Mapping[str, str], inputs: Mapping[str, str], context: Context) -> str:
    """The hash of what decides a stage's result; `parents` and `inputs` may hold more than it takes from."""
    taken = {name: parents[name] for name in _parents(stage, context)}
    read = {path: inputs[path] for path in _inputs(stage)}
    return record.digest({"stage": _deciding(stage), "parents": taken, "inputs": read})


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
    values = [getattr(section, name) for section in stage.sections.values() for name in kinds.read_by(hints(section.__class__))]
    values += [stage.options[name] for name in kinds.read_by(kinds.get(stage.kind, stage.to_dict()).options)]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value]) if isinstance(path, str)]
    paths = [file if file.endswith(".py") else path for path in paths for file in [path.rpartition(":")[0]]]  # rewards are "file.py:name"
    return [path for path in dict.fromkeys(paths) if "${" not in path]


def _seeds(stage: Stage) -> dict[str, int]:
    return {name: value for name, value in _flat(_settings(stage)).items() if name.split(".")[-1] == "seed"}
