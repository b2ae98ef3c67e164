"""What was made from what: the stages from top to bottom, with arcs from what each one reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from prefopt.report.folder import Json, Run, Stage
from prefopt.report.words import counted, duration, listed, number, percent

ROW = 60
"""Pixels between stages."""
MIDDLE = 66
"""Where the stages' dots stand, from the left of the picture."""


class Arc(NamedTuple):
    """What flows from one row to a later one, as an SVG path; `kind` is model or data."""

    path: str
    kind: str
    title: str


@dataclass(frozen=True)
class Node:
    """One row: a stage, or files from outside of the run."""

    name: str
    kind: str
    role: str
    did: str
    reads: str
    y: float
    state: str = ""


@dataclass(frozen=True)
class Lineage:
    """The picture: rows, arcs between them, and its height."""

    nodes: tuple[Node, ...]
    arcs: tuple[Arc, ...]

    @property
    def height(self) -> int:
        """In pixels."""
        return ROW * len(self.nodes)


def lineage(run: Run) -> Lineage:
    """Rows for the files from outside and for every stage, in order."""
    names = {stage.name for stage in run.stages}
    outside = _outside(run, names)
    rows = {name: i for i, name in enumerate([*(group.key for group in outside), *(stage.name for stage in run.stages)])}
    nodes = [Node(g.title, g.kind, g.kind, g.text, "", _middle(i), "") for i, g in enumerate(outside)]
    nodes += [_node(stage, _middle(rows[stage.name])) for stage in run.stages]
    belongs = {source: group.key for group in outside for source in group.sources}
    arcs: dict[Arc, None] = {}
    for stage in run.stages:
        for link in stage.links:
            start, end = rows.get(belongs.get(link.source, link.source)), rows[stage.name]
            if start is not None and start < end:
                arcs[_arc(start, end, link.kind, f"{link.source} → {stage.name}")] = None
    return Lineage(tuple(nodes), tuple(arcs))


def _middle(row: int) -> float:
    return ROW * (row + 0.5)


def _arc(start: int, end: int, kind: str, title: str) -> Arc:
    """A bow on the left for models, on the right for data; the further it goes the wider it is."""
    side = -1 if kind == "model" else 1
    reach = MIDDLE + side * min(20 + 13 * (end - start), 76)
    x, y0, y1 = MIDDLE + side * 10, _middle(start), _middle(end)
    return Arc(f"M{x} {y0 + 3:g}C{reach} {y0 + 3:g} {reach} {y1:g} {x + side * 4} {y1:g}", kind, title)


# --- files from outside -----------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Files that the same stages read, shown as one row."""

    key: str
    sources: tuple[str, ...]
    kind: str
    title: str
    text: str


def _outside(run: Run, names: set[str]) -> list[_Group]:
    readers: dict[tuple[str, str], list[str]] = {}
    for stage in run.stages:
        for link in stage.links:
            if link.source not in names:
                readers.setdefault((link.source, link.kind), []).append(stage.name)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (source, kind), stages in readers.items():
        together.setdefault((kind, tuple(stages)), []).append(source)
    return [_group(kind, sources) for (kind, _), sources in together.items()]


def _group(kind: str, sources: list[str]) -> _Group:
    short = [_short(source) for source in sources]
    title = short[0] if len(short) == 1 else f"{counted(len(short), 'file')}"
    text = sources[0] if len(short) == 1 else listed(short)
    return _Group(f"\0{kind}\0{sources[0]}", tuple(sources), kind, title, text)


def _short(path: str) -> str:
    """The end of a path; `dpo/model` where the last part alone says nothing."""
    place = PurePath(path)
    return f"{place.parent.name}/{place.name}" if place.name == "model" and place.parent.name else place.name or path


# --- what a stage did -------------------------------------------------------------------------------------------------


def _node(stage: Stage, y: float) -> Node:
    role = "model" if stage.trains or stage.kind in ("create", "ensemble") else "evidence" if stage.evaluation else "data"
    did = " · ".join(part for part in (_did(stage), duration(stage.record.get("seconds"))) if part)
    state = "" if stage.done or not stage.record else "not finished"
    return Node(stage.name, stage.kind if stage.kind != stage.name else "", role, did, _reads(stage), y, state)


def _reads(stage: Stage) -> str:
    inside = [f"{link.source}.{link.output}" for link in stage.links if link.output]
    outside = [_short(link.source) for link in stage.links if not link.output]
    return ", ".join([*inside, *(outside if len(outside) < 3 else [counted(len(outside), "file")])])


def _did(stage: Stage) -> str:
    entry, settings = stage.record, stage.settings
    if stage.kind in _TOLD:
        return _TOLD[stage.kind](entry, settings)
    kept = stage.preflight.get("kept")
    rows = counted(kept["train"], "row") if isinstance(kept, dict) and isinstance(kept.get("train"), int) else ""
    steps = counted(entry["steps"], "step") if isinstance(entry.get("steps"), int) else ""
    beta = settings.get("beta")
    return " · ".join(part for part in (steps, rows, f"beta {number(beta)}" if isinstance(beta, int | float) else "") if part)


def _world(entry: Json, settings: Json) -> str:
    sizes = [
        f"{number(settings[name], 9)} {name}" for name in ("pretrain", "sft", "prompts", "heldout") if isinstance(settings.get(name), int)
    ]
    return ", ".join(sizes)


def _create(entry: Json, settings: Json) -> str:
    parameters = entry.get("parameters")
    size = f"{number(parameters / 1e6)}M parameters" if isinstance(parameters, int) else "a new model"
    return f"{settings.get('family', '')} {size}, random weights".strip()


def _sample(entry: Json, settings: Json) -> str:
    if not isinstance(entry.get("completions"), int):
        return ""
    told = f"{counted(entry['completions'], 'answer')} to {counted(entry.get('prompts'), 'prompt')}"
    return f"{told}, {percent(entry.get('finished'))} ended by themselves"


def _label(entry: Json, settings: Json) -> str:
    who = settings.get("annotators", "")
    names = listed([str(w) for w in who]) if isinstance(who, list) else str(who)
    return f"{counted(entry['pairs'], 'pair')} chosen by {names}" if isinstance(entry.get("pairs"), int) else ""


def _evaluate(entry: Json, settings: Json) -> str:
    suite = settings.get("suite", "")
    return f"suite {listed([str(name) for name in suite]) if isinstance(suite, list) else suite}"


_TOLD: dict[str, Callable[[Any, Any], str]] = {
    "world": _world,
    "create": _create,
    "sample": _sample,
    "label": _label,
    "evaluate": _evaluate,
}
"""What the kinds that do not train say of themselves."""
