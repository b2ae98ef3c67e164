"""The one sentence at the top: what improved, by how much, how sure; in plain words, and just as plainly where nothing did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.report.evidence import Evidence, Figure
from prefopt.report.folder import Run
from prefopt.report.words import counted, fixed, listed, number, percent


class Tile(NamedTuple):
    """A figure worth a large number."""

    label: str
    value: str
    before: str
    note: str


class Verdict(NamedTuple):
    """The headline, the sentence that says how sure it is, a few large figures, and what else changed."""

    tone: str
    headline: str
    support: str
    tiles: tuple[Tile, ...] = ()
    also: tuple[str, ...] = ()


def verdict(run: Run, evaluations: Sequence[Evidence]) -> Verdict:
    """What this run shows: its last comparison with a baseline, or its last evaluation; the others in a line each."""
    told = [found for found in reversed(evaluations) if found.figures]
    if not told:
        return _unevaluated(run)
    compared = [found for found in told if found.gain("gold")] or [found for found in told if found.get("win_rate")]
    first = (compared or told)[0]
    others = tuple(f"{found.stage.name}: " + _of(found).headline.replace("\n", " ") for found in told if found is not first)
    main = _of(first)
    return main._replace(also=main.also + others)


def _of(found: Evidence) -> Verdict:
    """What one evaluation shows."""
    if found.gain("gold") or found.get("win_rate"):
        return _compared(found)
    return _judging(found) if found.get("accuracy") else _alone(found)


def _unevaluated(run: Run) -> Verdict:
    trained = [stage for stage in run.stages if stage.metrics]
    if not trained:
        return Verdict("open", f"{run.name} has trained nothing yet.", "No stage of this run has left training metrics or an evaluation.")
    steps = [f"{stage.name} for {counted(_steps(stage.metrics), 'step')}" for stage in trained]
    support = "This run holds no evaluation. The curves tell how the training went, not whether the answers got better."
    return Verdict("open", f"Trained {listed(steps)}.", support)


def _steps(metrics: Any) -> int:
    return max((row["step"] for row in metrics if isinstance(row.get("step"), int)), default=len(metrics))


def _interval(f: Figure, write: Any) -> str:
    return f"95% interval {write(f.low)} to {write(f.high)}" if f.bounded else "no interval: too few observations"


# --- answers against a baseline ---------------------------------------------------------------------------------------


def _compared(found: Evidence) -> Verdict:
    gain, rate = found.gain("gold"), found.get("win_rate")
    direction = _direction(gain, 0.0) if gain else _direction(rate, 0.5)
    headline = {
        "better": f"{found.model} answers better than {found.baseline}",
        "worse": f"{found.model} answers worse than {found.baseline}",
        "open": f"No clear difference between {found.model} and {found.baseline}",
    }[direction]
    return Verdict(
        direction, f"{headline}{_by_how_much(found, gain, direction)}.", _support(found, gain, rate), _tiles(found), _also(found)
    )


def _direction(f: Figure | None, level: float) -> str:
    if f is None or not f.bounded or f.low <= level <= f.high:
        return "open"
    return "better" if f.low > level else "worse"


def _by_how_much(found: Evidence, gain: Figure | None, direction: str) -> str:
    before, after = found.before("gold"), found.get("gold")
    if before is None or after is None:
        return ""
    if direction == "open" or gain is None:
        return f":\ngold reward {fixed(before.value)} before, {fixed(after.value)} after"
    verb = "rises" if direction == "better" else "falls"
    return f":\ngold reward {verb} by {fixed(abs(gain.value))}, from {fixed(before.value)} to {fixed(after.value)}"


def _support(found: Evidence, gain: Figure | None, rate: Figure | None) -> str:
    parts = []
    if gain:
        sure = f"the mean change is {fixed(gain.value)} ({_interval(gain, fixed)})"
        parts.append(f"Measured on {counted(gain.n, 'answer')} to {_heldout(found)}requests, {sure}.")
    if rate:
        parts.append(f"{found.model} wins {percent(rate.value)} of the comparisons ({_interval(rate, percent)}; ties count one half).")
    controlled = found.get("length_controlled_win_rate")
    if controlled:
        parts.append(f"Were its answers as long as those of {found.baseline}, it would win {percent(controlled.value)}.")
    return " ".join(parts)


def _heldout(found: Evidence) -> str:
    return "" if found.trained_on else "held-out "


def _tiles(found: Evidence) -> tuple[Tile, ...]:
    wanted = (
        ("gold reward", "gold", "all", fixed),
        ("win rate", "win_rate", "all", percent),
        ("refuses harmful", "refusal", "harmful", percent),
        ("refuses harmless", "over_refusal", "harmless", percent),
        ("words an answer", "length_words", "all", lambda v: fixed(v, 1)),
        ("nats from baseline", "kl", "all", fixed),
        ("log-ratio to baseline", "log_ratio", "all", fixed),
    )
    tiles = []
    for label, metric, part, write in wanted:
        f, before = found.get(metric, part), found.before(metric, part)
        if f:
            note = f"{write(f.low)} to {write(f.high)}" if f.bounded else "no interval"
            tiles.append(Tile(label, write(f.value), write(before.value) if before else "", note))
    return tuple(tiles)


_WATCHED = (
    ("refusal", "harmful", 1, "refuses harmful requests", percent),
    ("over_refusal", "harmless", -1, "refuses harmless requests", percent),
    ("correct", "all", 1, "answers correctly", percent),
    ("fluent", "all", 1, "writes well-formed answers", percent),
    ("hedged", "all", -1, "hedges", percent),
    ("flattering", "all", -1, "flatters", percent),
    ("padded", "all", -1, "pads its answers", percent),
    ("length_words", "all", 0, "words an answer", lambda v: fixed(v, 1)),
)
"""Metric, slice, which direction is good, what it is called, how it is written."""


def _also(found: Evidence) -> tuple[str, ...]:
    """What else clearly changed (the two intervals do not touch), what got worse first."""
    changes = []
    for metric, part, good, words, write in _WATCHED:
        after, before = found.get(metric, part), found.before(metric, part)
        if after is None or before is None or not (after.low > before.high or after.high < before.low):
            continue
        rises = after.value > before.value
        told = "" if not good else "better: " if rises == (good > 0) else "worse: "
        order = {"worse: ": 0, "better: ": 1, "": 2}[told]
        changes.append((order, f"{told}{words} {write(before.value)} → {write(after.value)}"))
    return tuple(text for _, text in sorted(changes, key=lambda change: change[0]))


# --- other evaluations ------------------------------------------------------------------------------------------------


def _alone(found: Evidence) -> Verdict:
    gold = found.get("gold")
    if gold is None:
        return Verdict(
            "open",
            f"{found.model} was evaluated.",
            "The figures are below; there is no gold reward or accuracy to sum them up.",
            _tiles(found),
        )
    headline = f"{found.model} has a gold reward of {fixed(gold.value)}."
    return Verdict(
        "open", headline, f"{_interval(gold, fixed)}, on {counted(gold.n, 'answer')}. It was compared with no other model.", _tiles(found)
    )


_PREFERS = {
    "better": "prefers the better answer in",
    "worse": "prefers the worse answer more often than not: it is right in",
    "open": "is not clearly better than chance: right in",
}
_CALLS = {
    "better": "tells right from wrong in",
    "worse": "is right less often than the commoner label alone: in",
    "open": "is not clearly better than the commoner label alone: right in",
}
"""What accuracy on pairs, and on answers or steps, comes to."""


def _judging(found: Evidence) -> Verdict:
    """Accuracy on pairs against chance; on answers and steps against the commoner label, which one gets without a model."""
    accuracy = found.get("accuracy")
    assert accuracy is not None
    beside = found.get("longer_is_chosen" if found.unit == "pair" else "commoner_label")
    tone = _direction(accuracy, 0.5 if found.unit == "pair" or beside is None else beside.value)
    words = _PREFERS if found.unit == "pair" else _CALLS
    headline = f"{found.model} {words[tone]} {percent(accuracy.value)} of {counted(accuracy.n, f'{_heldout(found)}{found.unit}')}."
    rule = "Choosing the longer answer" if found.unit == "pair" else "Calling all of them by the commoner label"
    without = f" {rule} would be right in {percent(beside.value)} ({_interval(beside, percent)})." if beside else ""
    reads = found.stage.evaluation.get("reads")
    how = f" It is judged by its {reads}." if isinstance(reads, str) else ""
    skipped = found.stage.evaluation.get("rows_without_preference")
    ties = f" {number(skipped, 9)} rows held no preference and are left out." if isinstance(skipped, int) and skipped else ""
    told = _interval(accuracy, percent)
    return Verdict(tone, headline, f"{told[0].upper()}{told[1:]}.{without}{how}{ties}")
