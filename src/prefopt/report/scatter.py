"""Pictures of one figure against another: a calibration curve, and reward against distance over the evaluations of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefopt.report.charts import Range, Tick, apart, spanning, ticks
from prefopt.report.evidence import Evidence, Figure
from prefopt.report.folder import items, mapping
from prefopt.report.words import fixed, number, percent

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 430, 16, 296


class Point(NamedTuple):
    """An estimate in both directions; `name` is written beside it, `told` is read out."""

    x: tuple[float, float, float]
    y: tuple[float, float, float]
    name: str
    told: str


class Course(NamedTuple):
    """A line to compare with: its points, its name, a class of the style sheet, and what is written at each point ("" for no dot)."""

    points: Sequence[tuple[float, float]]
    name: str
    style: str
    marks: Sequence[str] = ()


class Curve(NamedTuple):
    """A drawn course: its path, its dots with what is written there, its end, its name and where that stands."""

    path: str
    dots: tuple[tuple[float, float, str], ...]
    end: tuple[float, float]
    name: str
    style: str
    label: float


class Mark(NamedTuple):
    """A drawn point: its place, the ends of its bars, its name and where that stands."""

    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    name: str
    label: float


@dataclass(frozen=True)
class Scatter:
    """A drawn picture in a view box of WIDTH x HEIGHT; `path` joins the points, `guide` is a line to compare with."""

    title: str
    unit: str
    caption: str
    x_title: str
    y_title: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    path: str
    guide: str
    told: str
    curves: tuple[Curve, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def scatter(
    title: str,
    caption: str,
    points: Sequence[Point],
    axes: tuple[Range, Range],
    titles: tuple[str, str],
    *,
    diagonal: bool = False,
    courses: Sequence[Course] = (),
) -> Scatter:
    """Lay out points; a diagonal is where both figures are equal. Points are joined where there is no course to compare them with."""
    across, up = axes

    def at(x: float, y: float) -> tuple[float, float]:
        share = min(1.0, max(0.0, across.share(x))), min(1.0, max(0.0, up.share(y)))
        return round(LEFT + (RIGHT - LEFT) * share[0], 1), round(BOTTOM - (BOTTOM - TOP) * share[1], 1)

    placed = [(point, at(point.x[0], point.y[0])) for point in points]
    drawn = [(course, [at(x, y) for x, y in course.points if x <= across.high]) for course in courses]
    ends = [place[1] for _, place in placed] + [places[-1][1] for _, places in drawn]
    order = sorted(range(len(ends)), key=ends.__getitem__)
    heights = dict(zip(order, apart([ends[i] for i in order], 14, TOP, BOTTOM), strict=True))
    marks = tuple(
        Mark(*place, at(p.x[1], 0)[0], at(p.x[2], 0)[0], at(0, p.y[2])[1], at(0, p.y[1])[1], p.name, heights[i])
        for i, (p, place) in enumerate(placed)
    )
    corners = [at(level, level) for level in (max(across.low, up.low), min(across.high, up.high))]
    return Scatter(
        title,
        "",
        caption,
        *titles,
        marks,
        tuple(Tick(at(value, up.low)[0], label) for value, label in ticks(across)),
        tuple(Tick(at(across.low, value)[1], label) for value, label in ticks(up)),
        "" if courses else " ".join(f"{x:g},{y:g}" for _, (x, y) in placed),
        "M" + "L".join(f"{x:g} {y:g}" for x, y in corners) if diagonal else "",
        "; ".join(point.told for point in points),
        tuple(_curve(course, places, heights[len(placed) + i]) for i, (course, places) in enumerate(drawn)),
    )


def _curve(course: Course, places: Sequence[tuple[float, float]], label: float) -> Curve:
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    dots = tuple((x, y, mark) for (x, y), mark in zip(places, course.marks, strict=False) if mark)
    return Curve(path, dots, places[-1], course.name, course.style, label)


_FRONTIER = (
    "Each dot is a model of this run, compared with {baseline} on the same data: how far it moved, and how good its answers are. Up is "
    "better, right is farther from {baseline}; of two models that are equally good the one to the left gave up less. Bars are 95% "
    "intervals."
)
_CALIBRATION = (
    "Of the pairs in which the model gave the preferred answer a chance of so much, how often it was the preferred one. On the line the "
    "model is as sure as it is right; below it, surer than right. Bars are 95% intervals."
)

_RELIABILITY = (
    "Of the judgements the model was so sure of, how many people shared (pairs in both orders, so the picture is symmetric). On the line "
    "what is said comes true; flatter means too sure."
)
_CHANCES = (
    "Of the {unit}s the model gave such a chance of being right, how many were. On the line what is said comes true; flatter means too "
    "sure."
)


def frontier(evaluations: Sequence[Evidence]) -> Scatter | None:
    """Reward against KL of the models compared with one baseline on the same data, by one judge; None with fewer than two.

    Where there are several such comparisons, that of the most models.
    """
    for metric in ("gold", "reward", "win_rate"):
        found = [
            (e, kl, reward) for e in evaluations if (kl := e.get("kl")) and (reward := e.get(metric)) and kl.bounded and reward.bounded
        ]
        alike: dict[tuple[str, ...], list[tuple[Evidence, Figure, Figure]]] = {}
        for e, kl, reward in found:
            alike.setdefault((e.baseline, reward.data, "" if metric == "gold" else e.judge), []).append((e, kl, reward))
        most = max(alike.values(), key=len, default=[])
        if len(most) > 1:
            return _frontier(metric, sorted(most, key=lambda each: each[1].value), most[0][0].baseline)
    return None


def _frontier(metric: str, found: Sequence[tuple[Evidence, Figure, Figure]], baseline: str) -> Scatter:
    write = percent if metric == "win_rate" else fixed
    points = [
        Point(_ends(kl), _ends(reward), e.model, f"{e.model}: {write(reward.value)} at {fixed(kl.value)} nats") for e, kl, reward in found
    ]
    start = found[0][0].before(metric)
    if start and start.bounded:
        points.insert(0, Point((0.0, 0.0, 0.0), _ends(start), baseline, f"{baseline}: {write(start.value)}"))
    told = (mapping(e.stage.evaluation.get("frontier")) for e, _, _ in found)
    limits = next((each for each in told if each.get("metric") == metric), {})
    courses = _courses(limits)
    far = [end for p in points for end in p.x]
    high = [y for course in courses for _, y in course.points]
    axes = (
        spanning([*far, *(x for c in courses for x, _ in c.points)], include=(0.0,)),
        spanning([*high, *(y for p in points for y in p.y)]),
    )
    titles = ("nats an answer", {"gold": "gold reward", "reward": "reward", "win_rate": "win rate"}[metric])
    caption = _FRONTIER.format(baseline=baseline) + (_limits(limits, baseline) if courses else "")
    return scatter("Reward against distance", caption, points, axes, titles, courses=courses)


def _courses(told: Mapping[str, Any]) -> list[Course]:
    """The estimated optimum and the best of n, as the frontier suite tells them."""
    best, optimum = ([row for row in items(told.get(name)) if isinstance(row, dict)] for name in ("best_of_n", "optimum"))
    courses = [Course([(p["kl"], p["reward"]) for p in optimum], "optimum, estimated", "optimum")] if len(optimum) > 1 else []
    if len(best) > 1:
        marks = ["" if p["n"] == 1 else str(p["n"]) for p in best]
        courses.append(Course([(p["kl"], p["reward"]) for p in best], "best of n", "best", marks))
    return courses


def _limits(told: Mapping[str, Any], baseline: str) -> str:
    draws, end = told["draws"], told["optimum"][-1]
    return (
        f" No policy lies above the optimum of reward under a KL penalty, here {draws} answers of {baseline} to each request weighed by "
        f"exp(reward/β): an estimate, and where it ends {number(end['effective'], 2)} effective answers a request carry it. Best of n "
        "stands at its largest possible KL, log n − (n − 1)/n."
    )


def calibration(found: Evidence) -> Scatter | None:
    """The reliability curve of a reward model; None where the stage has none.

    From the evaluation's `calibration` (confidence, accuracy, low, high and n of each bin), or from what a training stage found on its
    held-out rows (`calibration.json`): as its scores are read now, beside what they were before their temperature.
    """
    bins = _bins(found.stage.evaluation.get("calibration"), "confidence", "accuracy")
    if len(bins) > 1:
        points = [_bin(b, "confidence {}: right {} of {}") for b in bins]
        axis = Range(min(0.5, *(b[0] for b in bins)), 1.0)
        lowest = min(0.5, *(b[2] for b in bins))
        return scatter("Calibration", _CALIBRATION, points, (axis, Range(lowest, 1.0)), ("confidence", "share right"), diagonal=True)
    curves = mapping(found.stage.calibration.get("curves"))
    after, before = (_bins(curves.get(name), "said", "happened") for name in ("after", "before"))
    if len(after) < 2:
        return None
    unit = found.stage.calibration.get("unit")
    words = _CHANCES.format(unit=unit) if unit in ("answer", "step") else _RELIABILITY
    square, caption = Range(0.0, 1.0), f"{words} Bars are 95% intervals."
    points = [_bin(b, "said {}: true of {} of {}") for b in after]
    was = [Course([b[:2] for b in before], "as trained", "best")] if len(before) > 1 else []
    titles = ("said", f"share of {unit or 'judgement'}s")
    return scatter("Calibration", caption, points, (square, square), titles, diagonal=True, courses=was)


def _bins(rows: Any, said: str, happened: str) -> list[tuple[float, float, float, float, int]]:
    """(said, happened, low, high, n) of the rows that have all of them."""
    names = (said, happened, "low", "high", "n")
    whole = [row for row in items(rows) if isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in names)]
    return [(row[said], row[happened], row["low"], row["high"], row["n"]) for row in whole]


def _bin(found: tuple[float, float, float, float, int], words: str) -> Point:
    said, happened, low, high, n = found
    return Point((said,) * 3, (happened, low, high), "", words.format(percent(said), percent(happened), number(n, 9)))


def _ends(f: Figure) -> tuple[float, float, float]:
    return f.value, f.low, f.high
