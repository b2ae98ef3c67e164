"""The rows of an evaluation: one figure each, with its interval, how many observations it stands on and how it was made."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from prefopt.evaluate.rows import Figure, as_json, figure, to_json

Item = TypeVar("Item")

__all__ = ["Figure", "figure", "kept", "name_of", "names_of", "slices", "write", "write_jsonl"]


def write(out: Path, *, suite: str, model: str, baseline: str | None, n: int, figures: Iterable[Figure], notes: Mapping[str, Any]) -> None:
    """Write evaluation.json."""
    found = {"suite": suite, "model": model, "baseline": baseline, "n": n, **notes, "rows": [to_json(f) for f in figures]}
    (out / "evaluation.json").write_text(json.dumps(as_json(found), indent=1, allow_nan=False, default=str) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(as_json(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows), encoding="utf-8")


def slices(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """("all", every row), then each slice with its rows, as numpy masks; a single slice is not told twice."""
    array = np.array(names, dtype=object)
    distinct = sorted(set(names))
    return [("all", np.ones(len(names), bool)), *((name, array == name) for name in distinct if len(distinct) > 1)]


def kept(items: Sequence[Item], mask: np.ndarray) -> list[Item]:
    """The items a mask keeps.

    >>> kept(["a", "b"], np.array([True, False]))
    ['a']
    """
    return list(itertools.compress(items, mask))


def name_of(path: str) -> str:
    """What a model is called in tables: the stage that made it, or its folder."""
    folder = Path(path)
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def names_of(paths: Sequence[str]) -> list[str]:
    """What several models are called, each differently: as `name_of`, with the folder above where two would be called the same.

    >>> names_of(["runs/a/dpo/model", "runs/b/dpo/model"]), names_of(["sft/model", "sft/model"])
    (['a/dpo', 'b/dpo'], ['sft', 'sft (2)'])
    """
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names) and len(set(paths)) == len(paths):
        folders = [Path(path).parent if Path(path).name == "model" else Path(path) for path in paths]
        names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]
