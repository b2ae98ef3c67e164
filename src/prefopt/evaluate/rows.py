"""The row of an evaluation: one figure with its uncertainty and where it came from. Suites write rows; the gate and the report read them.

`evaluation.json` holds {"suite", "model", "baseline", "n", ..., "rows": [row, ...]}; a row is the fields of `Figure`. Numbers that are not
finite are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prefopt.errors import DataError
from prefopt.stats.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of evaluation.json.

    A figure of the model alone has `difference_from` empty, and so has a comparison whose level means something by itself (a win rate:
    0.5). With `difference_from` the value is the model's metric minus that model's, item by item on the same data, so that its interval
    knows of the pairing; a gate's rule against a baseline looks for such a row first.
    """

    metric: str
    """Its name: win_rate, refusal, over_refusal, length_words, ..."""
    value: float
    low: float
    high: float
    n: int
    """Observations it stands on."""
    method: str
    """How the interval was made: Wilson, t, clustered t, bootstrap, ..."""
    confidence: float = 0.95
    """Of the interval."""
    std_error: float = math.nan
    """Of the value, for tests; nan where the method has none."""
    df: float = math.inf
    """Degrees of freedom of the test."""
    slice: str = "all"
    """"all" or a part of the data."""
    model: str
    """Whose figure it is."""
    difference_from: str = ""
    """The model whose figure was subtracted."""
    model_sha256: str = ""
    """Of the model's folder."""
    baseline_sha256: str = ""
    """Of the other model's folder, for a comparison."""
    data_sha256: str = ""
    """Of the data it was measured on."""

    @property
    def interval(self) -> Interval:
        """The figure without its names."""
        return Interval(*(getattr(self, name) for name in Interval._fields))


def figure(metric: str, interval: Interval, *, model: str, **more: Any) -> Figure:
    """An interval as a row; `more` are other fields of `Figure`."""
    return Figure(metric=metric, model=model, **interval._asdict(), **more)


def to_json(row: Figure) -> dict[str, Any]:
    """A row as plain JSON values."""
    return {name: as_json(value) for name, value in asdict(row).items()}


def as_json(value: Any) -> Any:
    """A value as strict JSON can hold it: numbers that are not finite as null, those of numpy as plain ones."""
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(found: Mapping[str, Any], where: str = "") -> Figure:
    """A row as it was written; fields that only other versions know are left out.

    Raises:
        DataError: no object with a metric, a model and a number, or a field of another type.
    """
    if not isinstance(found, Mapping):
        raise DataError("a row of an evaluation is an object with metric, model and value", where=where, fix=_FIX)
    given = {f.name: found[f.name] for f in fields(Figure) if found.get(f.name) is not None}
    values: dict[str, Any] = {**_ABSENT, **given}
    wrong = [name for name, value in values.items() if not isinstance(value, _TYPES[name]) or isinstance(value, bool)]
    if wrong or not math.isfinite(values["value"]):
        name = (wrong or ["value"])[0]
        raise DataError(f"a row of an evaluation has {name}: {found.get(name)!r}", where=where, fix=_FIX)
    return Figure(**values)


def read(path: Path) -> list[Figure]:
    """The rows of an evaluation.json.

    Raises:
        DataError: it cannot be read, or a row is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = list(found["rows"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"cannot be read as an evaluation ({type(error).__name__})", where=str(path), fix=_FIX) from error
    return [from_json(row, f"{path}: row {i}") for i, row in enumerate(rows, 1)]


_ABSENT: Mapping[str, Any] = {"metric": None, "model": None, "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "method": ""}
_NAMED: Mapping[str, Any] = {"float": (int, float), "int": int, "str": str}
_TYPES: Mapping[str, Any] = {f.name: _NAMED[str(f.type)] for f in fields(Figure)}
_FIX = "let an evaluate stage or `prefopt evaluate` write it again"
