"""Two charts of their own: do a reward model's probabilities come true, and does a reward still stand for what it should?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefopt.report.charts import Panel, Range, Series, panel, plot_place
from prefopt.report.folder import Json, Stage, items, mapping

_RELIABILITY = (
    "Of the judgements the model was so sure of, how many people shared (pairs in both orders, so the picture is symmetric). On the "
    "diagonal what is said comes true; flatter means too sure. Faint bars are 95% intervals."
)
_PROXY = "What the policy is trained on, over the square root of the KL to the reference, in which over-optimisation shows as a parabola."
_EVALUATOR = "The held-out evaluator on the same answers. Where it falls while the reward rises, the reward is being hacked."


def reward_charts(stage: Stage) -> list[Panel]:
    """The charts a stage has data for."""
    return [*_reliability(stage.calibration), *_hacking(stage.monitor)]


def _reliability(found: Json) -> list[Panel]:
    curves = {name: _points(rows, "said", "happened") for name, rows in mapping(found.get("curves")).items()}
    if not any(curves.values()):
        return []
    series = [Series("calibrated", "quiet", [(0.0, 0.0), (1.0, 1.0)])]
    styles = {"before": "before", "after": "after"}
    series += [Series(_NAMES[name], styles[name], points, True) for name, points in curves.items() if points and name in styles]
    square, unit = Range(0.0, 1.0), found.get("unit")
    drawn = panel("Reliability", f"share of {unit}s", _RELIABILITY, series, x_title="said", axes=(square, square))
    bars = [f"M{x:g} {low:g}L{x:g} {high:g}" for x, low, high in _bars(mapping(found.get("curves")).get("after"), drawn)]
    return [replace(drawn, lines=tuple(replace(line, raw="".join(bars)) if line.style == "after" else line for line in drawn.lines))]


_NAMES = {"before": "as trained", "after": "scaled"}


def _bars(rows: Any, drawn: Panel) -> list[tuple[float, float, float]]:
    square = (Range(0.0, 1.0), Range(0.0, 1.0))
    ends = [(row["said"], row["low"], row["high"]) for row in items(rows) if all(_is_number(row.get(k)) for k in ("said", "low", "high"))]
    return [(*plot_place(drawn, square, x, low), plot_place(drawn, square, x, high)[1]) for x, low, high in ends]


def _hacking(rows: Sequence[Json]) -> list[Panel]:
    made = []
    for key, title, style, caption in (("reward", "Reward", "after", _PROXY), ("evaluator", "Evaluator", "before", _EVALUATOR)):
        by = "sqrt_kl" if _points(rows, "sqrt_kl", key) else "round"
        points = sorted(_points(rows, by, key))
        if points:
            words = "√KL" if by == "sqrt_kl" else "round"
            made.append(panel(title, "mean of the round's answers", caption, [Series(key, style, points, True)], x_title=words))
    return made


def _points(rows: Any, x: str, y: str) -> list[tuple[float, float]]:
    return [
        (float(row[x]), float(row[y]))
        for row in (rows if isinstance(rows, tuple) else items(rows))
        if _is_number(row.get(x)) and _is_number(row.get(y))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
