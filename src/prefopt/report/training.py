"""Training curves: one small chart for each thing worth watching, one row of them a stage."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefopt.report.charts import Panel, Series, panel
from prefopt.report.folder import Json, Stage
from prefopt.report.reward import reward_charts


class Curve(NamedTuple):
    """A column of metrics.jsonl: its name there, the name beside its line, its style."""

    key: str
    name: str
    style: str


class Chart(NamedTuple):
    """A chart that is drawn where a run has its columns."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    caption: str
    rule: float | None = None
    minor: bool = False
    """Shown only on request."""


def _split(key: str) -> tuple[Curve, ...]:
    """A figure of the training batches and of held-out rows."""
    return (Curve(key, "training", "after"), Curve(f"eval/{key}", "held out", "before"))


def _sides(key: str) -> tuple[Curve, ...]:
    return (Curve(f"{key}/chosen", "chosen", "after"), Curve(f"{key}/rejected", "rejected", "before"))


CHARTS = (
    Chart(
        "Loss", "nats", _split("loss"), "Should fall and level out. Held-out loss that turns up while training loss falls is over-fitting."
    ),
    Chart(
        "Log-probs of answers",
        "nats an answer",
        _sides("logps"),
        "How likely the model finds the preferred and the other answers of each batch. The gap should open; both sinking far together is "
        "the sign of a model that unlearns, however good the loss looks.",
    ),
    Chart(
        "Margin",
        "reward",
        _split("rewards/margins"),
        "Reward of the chosen answer less that of the rejected one; above zero is right.",
        0.0,
    ),
    Chart(
        "Accuracy",
        "share of pairs",
        _split("rewards/accuracies"),
        "Pairs in which the chosen answer has the higher reward. The line is chance.",
        0.5,
    ),
    Chart("Step accuracy", "share of steps", _split("steps/accuracy"), "Labelled steps that are judged right. The line is chance.", 0.5),
    Chart(
        "Log-ratio",
        "nats an answer",
        _split("kl"),
        "How far the model's log-prob of the data's answers has moved from the reference's. Falling far below zero says that it gives up "
        "on all of them.",
        0.0,
    ),
    Chart(
        "Reward",
        "reward",
        _split("reward"),
        "Mean reward of the policy's own answers in each round, before any KL. It should rise; whether the answers get better is for the "
        "evaluation to say.",
    ),
    Chart(
        "KL to the reference",
        "nats an answer",
        _split("objective/kl"),
        "How far the policy has gone, measured on its own answers at the start of each round.",
        0.0,
    ),
    Chart(
        "Length of answers",
        "tokens",
        _split("completions/mean_length"),
        "Rewards are often won by length. Growth without a reason is the first sign of it.",
        minor=True,
    ),
    Chart(
        "Mean score",
        "reward",
        _split("scores/mean"),
        "The level of a reward model's scores means nothing, but drifting far from zero is a warning.",
    ),
    Chart(
        "Gradient norm",
        "before clipping",
        (Curve("grad_norm", "norm", "after"),),
        "Spikes point at bad batches or too high a learning rate.",
    ),
    Chart(
        "Rewards",
        "reward",
        _sides("rewards"),
        "Implicit rewards: beta times the log-ratio to the reference, so both start at 0 (for a reward model, its scores). The chosen one "
        "should not sink.",
        0.0,
        minor=True,
    ),
    Chart(
        "Entropy",
        "nats a token",
        _split("entropy"),
        "How undecided the model is about the next token. A collapse means that it has settled on few answers.",
        minor=True,
    ),
    Chart("Learning rate", "", (Curve("lr", "rate", "quiet"),), "The schedule.", minor=True),
    Chart("Speed", "tokens a second", (Curve("tokens_per_second", "tokens/s", "quiet"),), "Packed tokens through the model.", minor=True),
)


def charts(stage: Stage, *, minor: bool = False) -> list[Panel]:
    """Every main (or minor) chart this stage has figures for."""
    found = [(chart, _series(chart, stage.metrics)) for chart in CHARTS if chart.minor == minor]
    drawn = [panel(c.title, c.unit, c.caption, series, rule=c.rule) for c, series in found if any(s.points for s in series)]
    return drawn if minor else [*reward_charts(stage), *drawn]


def _series(chart: Chart, metrics: tuple[Json, ...]) -> list[Series]:
    told = [Series(c.name, c.style, _points(c.key, metrics), c.key.startswith("eval/")) for c in chart.curves]
    return [series for series in told if series.points]


def _points(key: str, metrics: tuple[Json, ...]) -> list[tuple[float, float]]:
    """(step, value) of every row that has both."""
    return [(float(row["step"]), float(row[key])) for row in metrics if _is_number(row.get("step")) and _is_number(row.get(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
