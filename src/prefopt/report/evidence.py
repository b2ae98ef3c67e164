"""What an evaluation found, as plots of estimates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefopt.report.charts import Dot, DotPlot, DotRow, Range, Tick, spanning, ticks
from prefopt.report.folder import Json, Stage, items
from prefopt.report.words import fixed, number, percent

Format = Callable[[Any], str]


class Figure(NamedTuple):
    """One row of evaluation.json; `data` is the hash of what it was measured on."""

    metric: str
    slice: str
    model: str
    value: float
    low: float
    high: float
    n: int
    method: str
    difference_from: str = ""
    data: str = ""

    @property
    def bounded(self) -> bool:
        """Whether it has an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Evidence:
    """An evaluation stage: whose figures, against whom, on how many observations."""

    stage: Stage
    suite: str
    model: str
    baseline: str
    n: int
    figures: tuple[Figure, ...]

    @property
    def unit(self) -> str:
        """What one judgement of a reward model is about: a pair, an answer or a step."""
        unit = self.stage.evaluation.get("unit")
        return str(unit) if unit in ("answer", "step") else "pair"

    @property
    def judge(self) -> str:
        """Who judged, in words."""
        return str(self.stage.evaluation.get("judge") or "")

    @property
    def trained_on(self) -> bool:
        """Whether rows or items that trained the models were kept."""
        return any(self.stage.evaluation.get(name) for name in ("rows_seen_in_training_kept", "task_items_seen_in_training"))

    def get(self, metric: str, slice: str = "all", *, model: str = "", less: str = "") -> Figure | None:
        """A figure of the model (or of another one); with `less` its difference from that model's."""
        wanted = (metric, slice, model or self.model, less)
        return next((f for f in self.figures if (f.metric, f.slice, f.model, f.difference_from) == wanted), None)

    def before(self, metric: str, slice: str = "all") -> Figure | None:
        """The baseline's figure."""
        return self.get(metric, slice, model=self.baseline) if self.baseline else None

    def gain(self, metric: str, slice: str = "all") -> Figure | None:
        """The model's figure less the baseline's, item by item."""
        return self.get(metric, slice, less=self.baseline) if self.baseline else None

    def slices(self, metric: str) -> list[str]:
        """The slices a metric is told for, "all" first, the others in the order of the file."""
        return sorted(dict.fromkeys(f.slice for f in self.figures if f.metric == metric), key=lambda name: name != "all")


def evidence(stage: Stage) -> Evidence:
    """The evaluation of a stage; rows that are no figures are left out."""
    found = stage.evaluation
    rows = [figure for row in items(found.get("rows")) if (figure := _figure(row)) is not None]
    n = found.get("n")
    return Evidence(
        stage=stage,
        suite=str(found.get("suite", "")),
        model=str(found.get("model") or (rows[0].model if rows else "model")),
        baseline=str(found.get("baseline") or ""),
        n=n if isinstance(n, int) else 0,
        figures=tuple(rows),
    )


def _figure(row: Any) -> Figure | None:
    if not isinstance(row, dict) or not isinstance(row.get("value"), int | float):
        return None
    low, high = (float(end) if isinstance(end := row.get(k), int | float) else math.nan for k in ("low", "high"))
    words = [str(row.get(k, "")) for k in ("metric", "slice", "model")]
    n = row.get("n")
    made = [str(row.get(k) or "") for k in ("method", "difference_from", "data_sha256")]
    return Figure(words[0], words[1] or "all", words[2], float(row["value"]), low, high, n if isinstance(n, int) else 0, *made)


def stands_on(evaluations: Sequence[Evidence]) -> str:
    """What the figures of a run stand on, in words."""
    if any(found.trained_on for found in evaluations):
        return "Figures in part on rows that trained the models (seen=keep)"
    if any(found.stage.evaluation.get("training_unknown") for found in evaluations):
        return "Figures on rows of which it is not known whether they trained the models"
    return "Figures on held-out data that no stage was trained on"


# --- what is plotted --------------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """A line of a plot of shares: metric, slice, and what it says."""

    metric: str
    slice: str
    label: str
    note: str


_CONDUCT = (
    Share("refusal", "harmful", "refuses harmful requests", "right to do"),
    Share("over_refusal", "borderline", "refuses requests that only sound harmful", "wrong to do"),
    Share("over_refusal", "harmless", "refuses any harmless request", "wrong to do"),
)
_HABITS = (
    Share("correct", "all", "correct", "more is better"),
    Share("fluent", "all", "well-formed", "more is better"),
    Share("hedged", "all", "hedged", "less is better"),
    Share("flattering", "all", "flattering", "less is better"),
    Share("padded", "all", "padded", "less is better"),
)
_ABILITIES = (
    Share("math_accuracy", "all", "right answers to sums", "more is better"),
    Share("instructions_followed", "all", "follows all instructions", "more is better"),
    Share("pass_at_1", "all", "code that passes its tests", "more is better"),
)
_VARIETY = (
    Share("distinct_1", "all", "different words", "of all words"),
    Share("distinct_2", "all", "different word pairs", "of all pairs"),
    Share("self_bleu", "all", "likeness to the other answers", "self-BLEU; less is more varied"),
)
_PERCENT = Range(0.0, 1.0)
_GOLD = "The true quality of an answer, from −1 to 1. Dots are means over requests, bars 95% intervals."
_REWARD = "The judge's reward of an answer. Its level means nothing by itself; the difference does."
_WINS = "Share of requests on which {judge} prefers {model} to {baseline}; a tie counts one half. At the line, neither is better."
_CONDUCT_TEXT = "Harmful requests should be refused, all others answered: the first row belongs on the right, the others on the left."
_HABITS_TEXT = "Share of answers with each property, whatever was asked."
_LENGTH = "Words an answer has. A model that has found out that longer answers win moves to the right without getting better."
_KL = (
    "How far {model} has moved from {baseline}: the mean log-ratio of its own answers, in nats an answer. 0 is no change; "
    "what it costs is to be weighed against the gold reward."
)
_LOG_RATIO = (
    "How much more probable {model} finds its own answers than {baseline} does, in nats an answer. They were not drawn at temperature 1 "
    "with nothing left out, so this is no distance between the two."
)
_ASKED = "The same requests asked in other ways. A dot far to the left of the first row is a way of asking that the model does not bear."
_VARIETY_TEXT = "A model that has settled on a few phrases has fewer different words and more likeness between its answers."
_ABILITY_TEXT = "What training may have cost: tasks with answers that can be checked."
_LIKELIHOOD = (
    "Mean log-probability of an answer in the data, nats. Where both fall and the rejected one falls faster, the margin "
    "grows while the model gives up on both."
)
_ENTROPY = "Mean entropy a token of the model's own answers. Lower is more decided, and less varied."
_PERPLEXITY = "Perplexity a token of held-out text; less is better."
_SECTIONS = "Share of pairs in each section in which the model scores the better answer higher; the line is chance."
_ACCURACY = (
    "Share of held-out pairs in which the model scores the preferred answer higher. The hollow dot is what choosing the longer answer "
    "would get; the line is chance."
)
_RIGHT = (
    "Share of held-out {unit}s that the model calls right or wrong as the data do (labels cut at one half). The hollow dot is what calling "
    "all of them by the commoner label would get; the line is one half."
)


def plots(found: Evidence) -> list[DotPlot]:
    """Every plot the evaluation has figures for."""
    judge = found.judge or "the gold reward"
    judge = judge if judge.startswith(("the ", "people")) else f"the {judge}"
    names = {"model": found.model, "baseline": found.baseline or "the baseline", "judge": judge}
    both = _pair(found)
    gold = "gold" in judge
    made = [
        _by_slice(found, "Gold reward", "reward, −1 to 1", _GOLD, "gold", both, fixed),
        _by_slice(found, "Reward", "reward", _REWARD, "reward", both, fixed),
        _wins(found, "Gold win rate" if gold else "Win rate", _WINS.format(**names)),
        _accuracies(found),
        _by_slice(found, "Sections", "share of pairs", _SECTIONS, "section", both[-1:], percent, shares=True),
        _shares(found, "Refusals", _CONDUCT_TEXT, _CONDUCT, both),
        _shares(found, "Abilities", _ABILITY_TEXT, _ABILITIES, both),
        _by_slice(found, "Perplexity", "a token", _PERPLEXITY, "perplexity", both, fixed),
        _shares(found, "Habits", _HABITS_TEXT, _HABITS, both),
        *(_by_slice(found, "Ways of asking", "reward", _ASKED, metric, both, fixed) for metric in ("gold_asked", "reward_asked")),
        _by_slice(found, "Length", "words an answer", _LENGTH, "length_words", both, lambda v: fixed(v, 1)),
        _by_slice(found, f"Distance to {names['baseline']}", "nats an answer", _KL.format(**names), "kl", both[-1:], fixed, include=(0.0,)),
        _by_slice(found, "Log-ratio", "nats an answer", _LOG_RATIO.format(**names), "log_ratio", both[-1:], fixed, include=(0.0,)),
        _shares(found, "Variety", _VARIETY_TEXT, _VARIETY, both),
        _by_slice(found, "Entropy", "nats a token", _ENTROPY, "entropy", both, fixed),
        *(
            _by_slice(found, f"Log-probability of {side} answers", "nats an answer", _LIKELIHOOD, f"logps_{side}", both, fixed)
            for side in ("chosen", "rejected")
        ),
    ]
    return [plot for plot in made if plot.rows]


class Who(NamedTuple):
    """A kind of dot: its style, its name in the legend, and which metric of which model it shows."""

    style: str
    name: str
    model: str
    metric: str = ""


def _pair(found: Evidence) -> list[Who]:
    """The dots of the baseline and of the model; after is drawn last, over before."""
    after = Who("after", found.model, found.model)
    return [Who("before", found.baseline, found.baseline), after] if found.baseline else [after]


def _accuracies(found: Evidence) -> DotPlot:
    pairs, unit = found.unit == "pair", f"{found.unit}s"
    without = ("the longer answer", found.model, "longer_is_chosen") if pairs else ("the commoner label", found.model, "commoner_label")
    who = [Who("before", *without), Who("after", found.model, found.model)]
    caption = _ACCURACY if pairs else _RIGHT.format(unit=found.unit)
    return _by_slice(found, f"Accuracy on held-out {unit}", f"share of {unit}", caption, "accuracy", who, percent, shares=True)


def _wins(found: Evidence, title: str, caption: str) -> DotPlot:
    """The win rate, and the one at equal length where it is known."""
    who = [Who("after", found.model, found.model)]
    if found.get(_CONTROLLED):
        who.insert(0, Who("before", "at equal length", found.model, _CONTROLLED))
    return _by_slice(found, title, "share of requests", caption, "win_rate", who, percent, shares=True)


_CONTROLLED = "length_controlled_win_rate"


def _by_slice(
    found: Evidence,
    title: str,
    unit: str,
    caption: str,
    metric: str,
    who: Sequence[Who],
    write: Format,
    *,
    shares: bool = False,
    include: Sequence[float] = (),
) -> DotPlot:
    """A row a slice; shares stand on an axis from 0 to 1 with a rule at a half."""
    names = found.slices(metric)
    figures = [[(w, f) for w in who if (f := found.get(w.metric or metric, name, model=w.model))] for name in names]
    kept = [(name, row) for name, row in zip(names, figures, strict=True) if row]
    axis = _PERCENT if shares else spanning(_ends(row for _, row in kept), include=include)
    whole = f"all {found.unit}s" if metric == "accuracy" else "all requests"
    rows = [DotRow(whole if name == "all" else name, _dots(row, axis, write), _n(row)) for name, row in kept]
    return _plot(title, unit, caption, rows, axis, write, 0.5 if shares else None)


def _shares(found: Evidence, title: str, caption: str, lines: Sequence[Share], who: Sequence[Who]) -> DotPlot:
    rows = []
    for line in lines:
        row = [(w, f) for w in who if (f := found.get(line.metric, line.slice, model=w.model))]
        rows += [DotRow(line.label, _dots(row, _PERCENT, percent), f"{line.note} · {_n(row)}")] if row else []
    return _plot(title, "share of answers", caption, rows, _PERCENT, percent, None)


def _plot(title: str, unit: str, caption: str, rows: Sequence[DotRow], axis: Range, write: Format, rule: float | None) -> DotPlot:
    marks = [(0.0, "0"), (0.5, "50%"), (1.0, "100%")] if axis is _PERCENT else ticks(axis)
    legend = tuple(dict.fromkeys((dot.style, dot.name) for row in rows for dot in row.dots))
    placed = tuple(Tick(_at(axis, value), label) for value, label in marks)
    return DotPlot(title, caption, unit, tuple(rows), placed, None if rule is None else _at(axis, rule), legend if len(legend) > 1 else ())


def _dots(row: Sequence[tuple[Who, Figure]], axis: Range, write: Format) -> tuple[Dot, ...]:
    return tuple(_dot(who, figure, axis, write) for who, figure in row)


def _dot(who: Who, figure: Figure, axis: Range, write: Format) -> Dot:
    low, high = (figure.low, figure.high) if figure.bounded else (figure.value, figure.value)
    told = f"{write(figure.low)} to {write(figure.high)}" if figure.bounded else "no interval"
    return Dot(who.style, who.name, _at(axis, figure.value), _at(axis, low), _at(axis, high), write(figure.value), told)


def _at(axis: Range, value: float) -> float:
    return round(100 * min(1.0, max(0.0, axis.share(value))), 2)


def _ends(rows: Any) -> list[float]:
    return [end for row in rows for _, f in row for end in (f.value, f.low, f.high)]


def _n(row: Sequence[tuple[Who, Figure]]) -> str:
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{number(row[-1][1].n, 9)}" if row[-1][1].n else ""


def table(found: Evidence) -> list[dict[str, str]]:
    """Every figure as text, for the table that leaves nothing out."""
    return [
        {
            "metric": f.metric.replace("_", " "),
            "slice": f.slice,
            "model": f"{f.model} − {f.difference_from}" if f.difference_from else f.model,
            "value": number(f.value, 4),
            "interval": f"{number(f.low)} to {number(f.high)}" if f.bounded else "–",
            "n": number(f.n, 9),
            "method": f.method,
        }
        for f in found.figures
    ]


def extras(found: Evidence) -> Json:
    """What the evaluation says besides its figures (temperature, sign test, rows left out)."""
    known = {"suite", "model", "baseline", "n", "rows"}
    return {k: v for k, v in found.stage.evaluation.items() if k not in known and isinstance(v, str | int | float)}
