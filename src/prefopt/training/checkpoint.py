"""Checkpoints that are whole or absent: safetensors and JSON, no pickle, checked against their hashes when read.

    checkpoints/step-00000120/
        tensors.safetensors   weights and optimizer state, dtypes exact
        state.json            everything else: step, generators, the method's own state
        manifest.json         size and sha256 of the two; written last

A checkpoint is written into a hidden folder beside its place, flushed to the disk and then renamed, so that a process killed or a
disk filled at any moment leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.errors import TrainingError

LOG = logging.getLogger(__name__)
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
WRITING = ".writing-"
BEST = "best"
"""The folder of the weights of the best step, beside the checkpoints."""
PLACE = re.compile(r"step-(\d+)(\.old)?")


class Restored(NamedTuple):
    """The newest checkpoint that is whole."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int | None = 2) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`; None keeps all.

    Raises:
        TrainingError: if it could not be written; earlier checkpoints are intact.
    """
    place, draft = folder / f"step-{step:08d}", folder / f"{WRITING}{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{WRITING}*"):
            shutil.rmtree(stale)
        draft.mkdir()
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, draft / TENSORS)
        (draft / STATE).write_text(json.dumps(state, indent=1))
        (draft / MANIFEST).write_text(json.dumps({name: _describe(draft / name) for name in (TENSORS, STATE)}, indent=1))
        for path in (draft / TENSORS, draft / STATE, draft / MANIFEST, draft):
            _flush(path)
        _put(draft, place)
    except (OSError, SafetensorError) as error:
        raise _unwritten(folder, step, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in checkpoints(folder)[:-keep] if keep else []:
        _discard(old)
    return place


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first; of one step, the one being replaced comes before its replacement."""
    found = [(PLACE.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for match, path in sorted(((m, p) for m, p in found if m), key=lambda pair: (int(pair[0][1]), not pair[0][2]))]


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def keep_steps(folder: Path, steps: Container[int]) -> None:
    """Delete the checkpoints of all other steps."""
    for path in checkpoints(folder):
        if step_of(path) not in steps:
            _discard(path)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, unread."""
    return next(reversed(checkpoints(folder)), None)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of one checkpoint.

    Raises:
        TrainingError: if a file is absent or is not what was written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, written in manifest.items():
            if _describe(path / name) != written:
                raise _damaged(path / name, "its hash is not the one recorded when it was written")
        return load_file(path / TENSORS), json.loads((path / STATE).read_text())
    except FileNotFoundError as error:
        raise _damaged(Path(error.filename), "it is missing") from error
    except (ValueError, AttributeError, SafetensorError) as error:
        raise _damaged(path / MANIFEST, "it is not the JSON that was written") from error


def restore(folder: Path, *, step: int | None = None, say: Callable[[str], None] = LOG.warning) -> Restored | None:
    """The newest checkpoint that is whole; None where none was ever written.

    Args:
        folder: the run's `checkpoints`.
        step: that of this step alone.
        say: told of every damaged checkpoint that is passed over.

    Raises:
        TrainingError: if there are checkpoints and all are damaged.
    """
    damage: TrainingError | None = None
    for path in reversed(checkpoints(folder)):
        if step not in (None, step_of(path)):
            continue
        try:
            tensors, state = load(path)
        except TrainingError as error:
            damage = error
            say(f"{error.where}: {error.what}; trying the checkpoint before it")
        else:
            return Restored(path, tensors, state)
    if damage is not None:
        raise TrainingError(damage.what, where=damage.where, fix="no earlier checkpoint is whole; delete the folder to start again")
    return None


def default_generators() -> list[torch.Generator]:
    """Those torch draws from in this process: the CPU's, and its GPU's where there is one."""
    gpus = [torch.cuda.default_generators[torch.cuda.current_device()]] if torch.cuda.is_available() else []
    return [torch.default_generator, *gpus]


def generator_states(generators: Iterable[torch.Generator]) -> str:
    """The states of torch generators as text, for `state`."""
    return " ".join(bytes(generator.get_state().tolist()).hex() for generator in generators)


def set_generator_states(generators: Iterable[torch.Generator], text: str) -> None:
    """Put generators where `generator_states` found them; one that was not there then stays as it is."""
    for generator, state in zip(generators, text.split(), strict=False):
        generator.set_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8))


def _put(draft: Path, place: Path) -> None:
    """Rename into place. A checkpoint of the same step stays readable under another name until the new one stands."""
    aside = place.with_name(place.name + ".old")
    if place.exists():
        _discard(aside)
        place.rename(aside)
    draft.rename(place)
    _flush(place.parent)
    _discard(aside)


def _discard(path: Path) -> None:
    """Delete a checkpoint so that half of it is never taken for a whole one."""
    if path.exists():
        hidden = path.with_name(f"{WRITING}{path.name}")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritten(folder: Path, step: int, error: Exception) -> TrainingError:
    what = f"the checkpoint of step {step} could not be written: {error}"
    fix = f"mend that (free space, permissions) and give the same command again: {goes_on(folder)}"
    return TrainingError(what, where=str(folder), fix=fix)


def goes_on(folder: Path) -> str:
    """Where the next start of a run goes on from, in words; `folder` holds its checkpoints, or the weights of its best step."""
    kept = latest(folder.parent if folder.name == BEST else folder)
    return f"it goes on from {kept.name}" if kept else "it begins anew, as there is no checkpoint (train.save_every writes some)"


def _damaged(path: Path, how: str) -> TrainingError:
    return TrainingError(f"the checkpoint is damaged: {how}", where=str(path), fix="delete that checkpoint to go on from the one before it")
