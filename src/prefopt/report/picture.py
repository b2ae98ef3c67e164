"""Pictures of a run, SVG files that stand alone: the figures that count with one curve, and reward against distance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import DataError
from prefopt.report import evidence, scatter, training
from prefopt.report.charts import DotPlot, DotRow, Panel
from prefopt.report.folder import Run, read
from prefopt.report.page import environment

SHOWN = ("Gold reward", "Gold win rate", "Win rate", *(f"Accuracy on held-out {unit}s" for unit in ("pair", "answer", "step")))
"""The plots whose first line is worth a block, at most two of them."""
CURVES = ("Log-probs of answers", "Margin", "Accuracy", "Loss")
"""Which chart is shown: the first of these that a stage has, of the last such stage."""


class Block(NamedTuple):
    """A figure in large type with its plot below."""

    plot: DotPlot
    row: DotRow


def draw(run: str | Path, out: str | Path) -> Path:
    """Write the picture of a run to `out` (SVG, light and dark) and return its path.

    Raises:
        DataError: there is no run in the folder, or nothing in it to draw.
    """
    return _write(render(read(Path(run))), out)


def draw_frontier(run: str | Path, out: str | Path) -> Path:
    """Write the picture of reward against distance over the models of a run to `out` (SVG, light and dark) and return its path.

    Raises:
        DataError: there is no run in the folder, or it has not two models evaluated against one baseline on the same data.
    """
    evaluations = [evidence.evidence(stage) for stage in read(Path(run)).stages if stage.evaluation]
    plot = scatter.frontier(evaluations)
    if plot is None:
        what = "holds no two evaluations with KL and reward against one baseline on the same data"
        raise DataError(what, where=str(run), fix="run a sweep, as recipes/frontier.yaml does")
    return _write(environment().get_template("frontier.svg.j2").render(plot=plot), out)


def _write(text: str, out: str | Path) -> Path:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "replace"))
    return path


def render(run: Run) -> str:
    """The picture as text."""
    stage = run.last("evaluation")
    found = evidence.evidence(stage) if stage else None
    plots = evidence.plots(found) if found else []
    blocks = [Block(plot, _first(plot)) for plot in plots if plot.title in SHOWN][:2]
    curve = _curve(run)
    if not blocks and curve is None:
        raise DataError("holds neither an evaluation nor training metrics to draw", where=str(run.folder))
    return environment().get_template("picture.svg.j2").render(blocks=blocks, curve=curve, found=found)


def _first(plot: DotPlot) -> DotRow:
    """The plot's first line; of a win rate the model's own dot alone."""
    row = plot.rows[0]
    return replace(row, dots=row.dots[-1:]) if plot.title.lower().endswith("win rate") else row


def _curve(run: Run) -> tuple[str, Panel] | None:
    """The first of the charts that a stage has, of the last stage that has it."""
    charts = {(stage.name, chart.title): chart for stage in run.stages for chart in training.charts(stage)}
    for title in CURVES:
        for stage in reversed(run.stages):
            if (stage.name, title) in charts:
                return stage.name, charts[stage.name, title]
    return None
