"""Small SVG plots for the lessons: lines, points and bars, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from prefopt.report.charts import Range, apart, spanning, ticks

FOLDER = Path(__file__).resolve().parent / "img"
SAVED: list[tuple[str, str]] = []
"""(file, words) of every plot saved, in order."""

WIDTH, HEIGHT, TOP, FOOT, LEFT = 680, 300, 40, 44, 58
STYLE = """
.page { --paper: #fdfdfb; --ink: #1c2024; --faint: #727a83; --line: #e4e4df; --a: #1d62b8; --b: #b45f06; --c: #2e7d4f; --d: #8b3fa8; }
@media (prefers-color-scheme: dark) {
  .page { --paper: #15181b; --ink: #e9e9e5; --faint: #8d959d; --line: #2d3237; --a: #7fb3f7; --b: #eda255; --c: #74c795; --d: #cf9be6; }
}
rect.card { fill: var(--paper); stroke: var(--line); }
text { font: 12px ui-sans-serif, system-ui, "Segoe UI", Roboto, Helvetica, Arial, "Liberation Sans", sans-serif; fill: var(--ink); }
.title { font-size: 14px; font-weight: 600; }
.tick { fill: var(--faint); font-size: 11px; }
.grid { stroke: var(--line); }
.rule { stroke: var(--faint); stroke-dasharray: 3 3; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dash { stroke-dasharray: 5 4; }
""" + "".join(
    f".{c} path {{ stroke: var(--{c}); }} .{c} circle, .{c} rect, .{c} text {{ fill: var(--{c}); }}\n"
    for c in "abcd"
)


@dataclass
class Drawn:
    """A series and how it is drawn."""

    name: str
    kind: str
    xs: Sequence[float]
    ys: Sequence[float]
    dash: bool = False


@dataclass
class Plot:
    """One chart; `log` spreads the x axis by powers of ten. Methods return the plot, so that they chain."""

    title: str
    x: str = ""
    y: str = ""
    log: bool = False
    names: Sequence[str] = ()
    floor: float | None = None
    drawn: list[Drawn] = field(default_factory=list)
    rules: list[tuple[str, float, str]] = field(default_factory=list)

    def line(
        self, name: str, xs: Iterable[float], ys: Iterable[float], *, dash: bool = False
    ) -> Plot:
        """A line through points."""
        self.drawn.append(
            Drawn(name, "line", [float(v) for v in xs], [float(v) for v in ys], dash)
        )
        return self

    def points(self, name: str, xs: Iterable[float], ys: Iterable[float]) -> Plot:
        """Dots."""
        self.drawn.append(Drawn(name, "points", [float(v) for v in xs], [float(v) for v in ys]))
        return self

    def bars(self, name: str, ys: Iterable[float]) -> Plot:
        """A bar for each of `names`; several calls stand side by side."""
        ys = [float(v) for v in ys]
        self.drawn.append(Drawn(name, "bars", [float(i) for i in range(len(ys))], ys))
        return self

    def rule(self, *, x: float | None = None, y: float | None = None, label: str = "") -> Plot:
        """A level drawn across, or a place drawn upwards."""
        self.rules.append(
            ("y", float(y), label) if y is not None else ("x", float(x or 0), label)
        )
        return self

    def save(self, name: str, *others: Plot) -> None:
        """Write FOLDER/name.svg, other plots to the right of this one."""
        plots = [self, *others]
        width = WIDTH // len(plots)
        body = "".join(
            f'<g transform="translate({i * width} 0)">{plot._svg(width)}</g>'
            for i, plot in enumerate(plots)
        )
        words = "; ".join(plot.title for plot in plots)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(words)}"><style>{STYLE}</style><g class="page"><rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" '
            f'height="{HEIGHT - 1}" rx="10"/>{body}</g></svg>\n',
            encoding="utf-8",
        )
        SAVED.append((f"{name}.svg", words))

    # --- where things lie ---------------------------------------------------------------------------------------------

    def _across(self, x: float) -> float:
        return math.log10(x) if self.log else x

    def _svg(self, width: int) -> str:
        longest = max((len(d.name) for d in self.drawn), default=0)
        right = width - (20 if not longest else 22 + 6.4 * longest)
        xs = [self._across(x) for d in self.drawn for x in d.xs] + [
            self._across(v) for way, v, _ in self.rules if way == "x"
        ]
        ys = [y for d in self.drawn for y in d.ys] + [
            v for way, v, _ in self.rules if way == "y"
        ]
        if self.names:
            x_axis, y_axis = Range(-0.5, len(self.names) - 0.5), spanning(ys, include=(0.0,))
        else:
            x_axis, y_axis = (
                spanning(xs, padding=0.02),
                spanning(ys, include=() if self.floor is None else (self.floor,)),
            )
        frame = _Frame(x_axis, y_axis, LEFT, right, TOP, HEIGHT - FOOT)
        marks = "".join(self._mark(frame, i, d) for i, d in enumerate(self.drawn))
        return f'<text class="title" x="16" y="24">{escape(self.title)}</text>{self._axes(frame)}{marks}{self._labels(frame)}'

    def _axes(self, f: _Frame) -> str:
        parts = [
            f'<line class="grid" x1="{f.left}" x2="{f.right:.1f}" y1="{f.y(v)}" y2="{f.y(v)}"/>'
            f'<text class="tick" x="{f.left - 6}" y="{f.y(v) + 4:.1f}" text-anchor="end">{label}</text>'
            for v, label in ticks(f.y_axis, 5)
        ]
        for at, label in self._x_ticks(f.x_axis):
            parts.append(
                f'<text class="tick" x="{f.x(at)}" y="{f.bottom + 16}" text-anchor="middle">{escape(label)}</text>'
            )
        for way, value, label in self.rules:
            parts.append(self._rule(f, way, value, label))
        parts.append(
            f'<text class="tick" x="{f.right:.1f}" y="{f.bottom + 33}" text-anchor="end">{escape(self.x)}</text>'
        )
        parts.append(
            f'<text class="tick" x="{f.left}" y="{f.bottom + 33}">↑ {escape(self.y)}</text>'
            if self.y
            else ""
        )
        return "".join(parts)

    def _rule(self, f: _Frame, way: str, value: float, label: str) -> str:
        if way == "y":
            line, at = (
                f'x1="{f.left}" x2="{f.right:.1f}" y1="{f.y(value)}" y2="{f.y(value)}"',
                (f.left + 4, f.y(value) - 5),
            )
        else:
            x = f.x(self._across(value))
            line, at = f'x1="{x}" x2="{x}" y1="{f.top}" y2="{f.bottom}"', (x + 4, f.top + 10)
        return f'<line class="rule" {line}/><text class="tick" x="{at[0]:.1f}" y="{at[1]:.1f}">{escape(label)}</text>'

    def _x_ticks(self, axis: Range) -> list[tuple[float, str]]:
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        if self.log:
            return [
                (float(p), f"{10.0**p:g}")
                for p in range(math.ceil(axis.low), math.floor(axis.high) + 1)
            ]
        return ticks(axis, 5)

    def _mark(self, f: _Frame, i: int, d: Drawn) -> str:
        places = [
            (f.x(self._across(x)), f.y(y))
            for x, y in zip(d.xs, d.ys, strict=True)
            if math.isfinite(y)
        ]
        if d.kind == "line":
            path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
            inside = (
                f'<path{" class=" + chr(34) + "dash" + chr(34) if d.dash else ""} d="{path}"/>'
            )
        elif d.kind == "points":
            inside = "".join(f'<circle cx="{x:g}" cy="{y:g}" r="3"/>' for x, y in places)
        else:
            groups = [other for other in self.drawn if other.kind == "bars"]
            wide = 0.7 * (f.right - f.left) / len(self.names) / len(groups)
            shift = (groups.index(d) - len(groups) / 2) * wide
            inside = "".join(
                f'<rect x="{x + shift:.1f}" width="{wide - 2:.1f}" y="{min(y, f.y(0)):.1f}" height="{abs(y - f.y(0)):.1f}"/>'
                for x, y in places
            )
        return f'<g class="{"abcd"[i % 4]}">{inside}</g>'

    def _labels(self, f: _Frame) -> str:
        """Names beside the last point of each series, none covering another."""
        ends = [
            (f.y([y for y in d.ys if math.isfinite(y)][-1]) + 4, i, d.name)
            for i, d in enumerate(self.drawn)
            if d.name
        ]
        ends.sort()
        heights = apart([end[0] for end in ends], 15, f.top + 4, f.bottom)
        texts = (
            f'<g class="{"abcd"[i % 4]}"><text x="{f.right + 8:.1f}" y="{y:.1f}">{escape(name)}</text></g>'
            for y, (_, i, name) in zip(heights, ends, strict=True)
        )
        return "".join(texts)


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle and its axes."""

    x_axis: Range
    y_axis: Range
    left: float
    right: float
    top: float
    bottom: float

    def x(self, value: float) -> float:
        return round(self.left + (self.right - self.left) * self.x_axis.share(value), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * self.y_axis.share(value), 1)
