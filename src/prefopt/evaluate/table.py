"""The rows of an evaluation: one figure each, with its interval, how many observations it stands on and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.evaluate.rows import Figure, figure, to_json

__all__ = ["Figure", "figure", "name_of", "slices", "write", "write_jsonl"]


def write(out: Path, *, suite: str, model: str, baseline: str | None, n: int, figures: Iterable[Figure], notes: Mapping[str, Any]) -> None:
    """Write evaluation.json."""
    found = {"suite": suite, "model": model, "baseline": baseline, "n": n, **notes, "rows": [to_json(f) for f in figures]}
    (out / "evaluation.json").write_text(json.dumps(found, indent=1, default=_plain) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def slices(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """("all", every row), then each slice with its rows, as numpy masks; a single slice is not told twice."""
    array = np.array(names, dtype=object)
    distinct = sorted(set(names))
    return [("all", np.ones(len(names), bool)), *((name, array == name) for name in distinct if len(distinct) > 1)]


def name_of(path: str) -> str:
    """What a model is called in tables: the stage that made it, or its folder."""
    folder = Path(path)
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
