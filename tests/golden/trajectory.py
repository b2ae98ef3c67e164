"""Twenty steps of a seeded tiny model for each row of METHODS, and the file that says what they were."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.losses.methods import METHODS
from tests.worlds import metrics_of, run

FOLDER = Path(__file__).parent
STEPS = 20
SERIES = ("loss", "grad_norm")
DIGITS = 7
"""Significant digits kept: all that fp32 has."""
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}
"""What another order of summation may move in twenty steps: 1e-6 was seen here, and other processors' kernels are left some room."""
TRAIN: Mapping[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "warmup": 2, "schedule": "constant", "seed": 3, "precision": "fp32"}
"""With a constant rate the first k steps of a run of twenty are a run of k steps."""
FIRST = "first recording"

Series = dict[str, list[float]]


def trajectory(method: str, *, steps: int = STEPS, out: Path | None = None, **train: Any) -> Series:
    """Loss and gradient norm of every step; `train` holds what must not matter (micro_tokens, layout)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        run(folder, method, rows=12, train={**TRAIN, "steps": steps, **train})
        return series_of(folder, steps)


def series_of(run_folder: Path, steps: int = STEPS) -> Series:
    """The same from the metrics of a finished run of so many steps."""
    rows = [row for row in metrics_of(run_folder) if "loss" in row]
    assert len(rows) == steps, f"{len(rows)} of {steps} steps have a loss"
    return {name: [_rounded(row[name]) for row in rows] for name in SERIES}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def path_of(method: str) -> Path:
    """The method's file."""
    return FOLDER / f"{method}.json"


def recorded(method: str) -> dict[str, Any]:
    """What the file holds: `reason`, and a list of numbers for each of SERIES."""
    return dict(json.loads(path_of(method).read_text()))


def write(method: str, series: Series, reason: str) -> None:
    """Replace the file."""
    lines = [f'  "{name}": {json.dumps(values)}' for name, values in series.items()]
    path_of(method).write_text("{\n" + f'  "reason": {json.dumps(reason)},\n' + ",\n".join(lines) + "\n}\n")


def departures(found: Series, expected: Mapping[str, Any]) -> Iterator[str]:
    """Where a trajectory leaves the file, step by step, as far as it goes."""
    for name in SERIES:
        for step, (mine, theirs) in enumerate(zip(found[name], expected[name], strict=False), 1):
            if not math.isclose(mine, theirs, rel_tol=TOLERANCE["rel"], abs_tol=TOLERANCE["abs"]):
                yield f"{name} of step {step} is {mine}, recorded {theirs}"


def methods(names: Iterable[str] = ()) -> list[str]:
    """The named rows of METHODS, all when none is named."""
    wanted = list(names) or list(METHODS)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise SystemExit(f"no such method: {', '.join(unknown)}")
    return wanted
