"""Where things lie in a picture: ticks, lines and intervals as plain numbers. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prefopt.report.words import MINUS

POINTS = 240
"""Points a line is drawn with; longer ones are averaged in buckets."""
SMOOTHING = 24
"""A smooth line is a running mean over this part of the points."""


class Tick(NamedTuple):
    """A place on an axis and what is written there."""

    at: float
    label: str


class Range(NamedTuple):
    """The two ends of an axis."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def spanning(values: Iterable[float], *, padding: float = 0.06, include: Sequence[float] = ()) -> Range:
    """A range that holds all finite values with some air; never empty."""
    finite = [v for v in (*values, *include) if math.isfinite(v)]
    if not finite:
        return Range(0.0, 1.0)
    low, high = min(finite), max(finite)
    air = padding * (high - low) if high > low else abs(high) * 0.1 or 1.0
    return Range(low - air, high + air)


def ticks(axis: Range, most: int = 4) -> list[tuple[float, str]]:
    """Round values inside a range, at most about `most`, with labels of equal precision.

    >>> ticks(Range(0.0, 1.0), 4)
    [(0.0, '0'), (0.5, '0.5'), (1.0, '1')]
    """
    rough = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    values = [i * step for i in range(first, last + 1)]
    return [(value, _label(value, step)) for value in values]


def _label(value: float, step: float) -> str:
    if value and (abs(value) >= 1e5 or step < 1e-4):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}".replace("-", MINUS)
    text = f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    zero = float(text.replace(",", "")) == 0
    text = "0" if zero else text
    return (text.rstrip("0").rstrip(".") if "." in text and step >= 0.1 else text).replace("-", MINUS)


# --- lines ------------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """Values over steps; `style` is a class of the style sheet, `dots` marks every value (held-out figures are few)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG paths of the smooth and the raw line, dots, and where its name stands."""

    name: str
    style: str
    path: str
    raw: str
    dots: tuple[tuple[float, float], ...]
    label: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One small chart. Coordinates are those of a `width` x `height` view box; the plot lies between left/right and top/bottom."""

    title: str
    unit: str
    caption: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    notes: tuple[str, ...] = ()
    rule: float | None = None
    width: int = 340
    height: int = 200
    left: int = 46
    right: int = 272
    top: int = 12
    bottom: int = 168
    x_title: str = field(default="step")


def panel(
    title: str,
    unit: str,
    caption: str,
    series: Sequence[Series],
    *,
    rule: float | None = None,
    x_title: str = "step",
    axes: tuple[Range, Range] | None = None,
) -> Panel:
    """Lay out series over a common axis; a value that is no number leaves a gap and a note.

    `rule` is a level drawn across; `x_title` names the axis, whose ticks are whole numbers where it counts steps; `axes` fixes both ranges.
    """
    finite = [Series(s.name, s.style, [p for p in s.points if math.isfinite(p[1])], s.dots) for s in series]
    lost = sum(len(s.points) for s in series) - sum(len(s.points) for s in finite)
    drawn = [s._replace(points=buckets(s.points)) for s in finite if s.points]
    xs = [x for s in drawn for x, _ in s.points]
    x_axis = Range(min(xs, default=0), max(xs, default=1)) if len(set(xs)) > 1 else spanning(xs)
    y_axis = spanning([y for s in drawn for _, y in s.points], include=() if rule is None else (rule,))
    x_axis, y_axis = axes or (x_axis, y_axis)
    empty = Panel(title, unit, caption, (), (), ())

    def place(x: float, y: float) -> tuple[float, float]:
        return plot_place(empty, (x_axis, y_axis), x, y)

    lines = _labels_apart([_line(s, [place(*p) for p in s.points]) for s in drawn], empty)
    return Panel(
        title,
        unit,
        caption,
        tuple(lines),
        x_ticks=tuple(Tick(place(v, y_axis.low)[0], label) for v, label in ticks(x_axis, 3) if x_title != "step" or float(v).is_integer()),
        y_ticks=tuple(Tick(place(x_axis.low, v)[1], label) for v, label in ticks(y_axis)),
        notes=(f"{lost} values were not finite and are left out.",) if lost else (),
        rule=None if rule is None else place(x_axis.low, rule)[1],
        x_title=x_title,
    )


def plot_place(frame: Panel, axes: tuple[Range, Range], x: float, y: float) -> tuple[float, float]:
    """Where a value lies in a panel's view box."""
    across, up = frame.right - frame.left, frame.bottom - frame.top
    return round(frame.left + across * axes[0].share(x), 1), round(frame.bottom - up * axes[1].share(y), 1)


def buckets(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """Neighbouring points averaged so that at most `most` are left.

    >>> buckets([(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)], 2)
    [(1.5, 0.5), (3.5, 2.5)]
    """
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Centred running mean over `reach` values to either side, fewer at the ends.

    >>> smooth([0.0, 3.0, 6.0], 1)
    [1.5, 3.0, 4.5]
    """
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _line(series: Series, places: list[tuple[float, float]]) -> Line:
    reach = 0 if series.dots else len(places) // SMOOTHING
    ys = smooth([y for _, y in places], reach) if reach else [y for _, y in places]
    path = _path([(x, round(y, 1)) for (x, _), y in zip(places, ys, strict=True)])
    dots = tuple(places) if series.dots or len(places) == 1 else ()
    return Line(series.name, series.style, path, _path(places) if reach else "", dots, (places[-1][0], ys[-1]))


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _labels_apart(lines: Sequence[Line], frame: Panel, gap: float = 13) -> list[Line]:
    """The same lines, their names moved up or down so that none covers another."""
    order = sorted(lines, key=lambda line: line.label[1])
    heights = apart([line.label[1] for line in order], gap, frame.top, frame.bottom)
    moved = {id(line): (line.label[0], round(y, 1)) for line, y in zip(order, heights, strict=True)}
    return [Line(line.name, line.style, line.path, line.raw, line.dots, moved[id(line)]) for line in lines]


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted heights moved as little as needed to be `gap` apart and inside [low, high].

    >>> apart([10.0, 11.0, 50.0], 4, 0, 100)
    [10.0, 14.0, 50.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, low, placed[-1] + gap if placed else low))
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], high if i == len(placed) - 1 else placed[i + 1] - gap)
    return placed


# --- dots with intervals ----------------------------------------------------------------------------------------------


class Dot(NamedTuple):
    """An estimate and its interval, in percent of the axis, with the words beside it."""

    style: str
    name: str
    at: float
    low: float
    high: float
    text: str
    interval: str


@dataclass(frozen=True)
class DotRow:
    """One line of a dot plot."""

    label: str
    dots: tuple[Dot, ...]
    note: str = ""


@dataclass(frozen=True)
class DotPlot:
    """Estimates with their intervals, one row a slice; ticks and `rule` (a level drawn across) in percent of the axis."""

    title: str
    caption: str
    unit: str
    rows: tuple[DotRow, ...]
    ticks: tuple[Tick, ...]
    rule: float | None = None
    legend: tuple[tuple[str, str], ...] = ()
