"""Where metrics go: metrics.jsonl always, and whatever `track.to` names besides. Nothing is sent anywhere unasked."""

from __future__ import annotations

import importlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from prefopt.errors import DataError, OptionError
from prefopt.settings import TrackSettings


class Tracker(Protocol):
    """Takes the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` under their names at `step` (updates done so far)."""

    def close(self) -> None:
        """Write out what is buffered."""


class Jsonl:
    """One JSON object a line, written as it comes: {"step": 3, "loss": 0.69}. A value that is not finite is null.

    Args:
        path: the run's metrics.jsonl.
        step: the step the run goes on from; later rows, logged between a checkpoint and the end that came unasked, are dropped.
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows_until(path, step) if path.exists() and step > 0 else []
        draft = path.with_name(path.name + ".writing")
        draft.write_text("".join(kept), encoding="utf-8")
        os.replace(draft, path)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; it is on its way to the disk when this returns."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in `folder`, read by `tensorboard --logdir`; steps after `step` of an earlier start are hidden."""

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        _need("tensorboard", extra="track")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Trackio:
    """A local trackio project (`trackio show`); a run that goes on is resumed under its name, a new one never is."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], *, step: int = 0) -> None:
        trackio = _need("trackio", extra="track")
        resume = "allow" if step else "never"
        self._run = _open(trackio.init, "trackio", project=project, name=name, config=dict(config), resume=resume, embed=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and end the run."""
        self._run.finish()


class Wandb:
    """A Weights & Biases run, online or offline as `WANDB_MODE` says; a run that goes on is resumed by the id kept in its folder."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, *, step: int = 0) -> None:
        wandb = _need("wandb", extra="wandb")
        kept = folder / "wandb" / "run-id"
        identity = kept.read_text() if step and kept.exists() else secrets.token_hex(4)
        options = {"id": identity, "config": dict(config), "dir": str(folder), "resume": "allow"}
        self._run = _open(wandb.init, "wandb", project=project, name=name, **options)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(identity)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and end the run."""
        self._run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log to each."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Close each."""
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_trackers(settings: TrackSettings, out: Path, *, step: int = 0, config: Mapping[str, Any] | None = None) -> Trackers:
    """metrics.jsonl in the run folder `out`, and every tracker of `settings.to`.

    Args:
        settings: which, and the project's name.
        out: the run's folder; its last two names are the name of the run ("quickstart/dpo").
        step: the step the run goes on from, 0 for a new one.
        config: the resolved recipe, for trackers that show it.

    Raises:
        OptionError: if a tracker's package is not installed, or it cannot start.
    """
    name = "/".join(out.resolve().parts[-2:])
    shown = config or {}
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(out / "tensorboard", step=step),
        "trackio": lambda: Trackio(settings.project, name, shown, step=step),
        "wandb": lambda: Wandb(settings.project, name, shown, out, step=step),
    }
    chosen = [settings.to] if isinstance(settings.to, str) else settings.to or []
    others = [openers[which]() for which in chosen]
    return Trackers([Jsonl(out / "metrics.jsonl", step=step), *others])


def _rows_until(path: Path, step: int) -> list[str]:
    """The lines up to `step`; a last line cut short by the end of the process is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                fix = "mend or delete the line, or start in a new folder"
                raise DataError("expected a JSON object with a step", where=f"{path}:{number}", fix=fix) from error
    return kept


def _open(init: Callable[..., Any], package: str, **options: Any) -> Any:
    """Start another library's run; whatever it raises is told as ours, for every library has errors of its own."""
    try:
        return init(**options)
    except Exception as error:
        what = f"{package} could not start: {str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__}"
        ways = {"wandb": "log in with `wandb login`, set WANDB_MODE=offline, or leave it out"}
        raise OptionError(what, where="track.to", fix=ways.get(package, f"mend what {package} says, or leave it out")) from error


def _need(package: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = f"pip install 'prefopt[{extra}]' (or pip install {package}), or leave track.to out"
        raise OptionError(f"{package} is not installed", where="track.to", fix=fix) from error
