"""Answers side by side: where the model lost most, where it won most, and some that nobody picked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.report.evidence import Evidence
from prefopt.report.folder import Json, mapping
from prefopt.report.words import counted, fixed, number

A_SLICE = 3
"""Answers shown of each slice in each group."""
MOST_SLICES = 12


class Answer(NamedTuple):
    """One answer, its reward as text, the style of its column, and what else is known of it ("refuses")."""

    name: str
    text: str
    reward: str
    style: str
    marks: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One request and its answers; `slice` is an index into the filter, `change` the difference of reward in words."""

    prompt: str
    slice: int
    slice_name: str
    where: str
    answers: tuple[Answer, ...]
    change: str
    tone: str


class Group(NamedTuple):
    """Samples picked by one rule; `tone` is its name in the style sheet."""

    title: str
    text: str
    samples: tuple[Sample, ...]
    tone: str


class Gallery(NamedTuple):
    """The groups, and what they can be filtered by: slices, and who won (tone -> words); `told` says how many rows they are picked from."""

    slices: tuple[str, ...]
    winners: Mapping[str, str]
    groups: tuple[Group, ...]
    told: str
    kind: str


def galleries(found: Evidence) -> list[Gallery]:
    """Samples of an evaluation: answers of its models, and pairs of the data, apart."""
    rows = [row for row in found.stage.samples if isinstance(row.get("answers"), dict) and row["answers"]]
    pairs = [row for row in rows if "chosen" in row["answers"]]
    answers = [row for row in rows if "chosen" not in row["answers"]]
    return [gallery(found, kind) for kind in (answers, pairs) if kind]


def gallery(found: Evidence, rows: Sequence[Json]) -> Gallery:
    """Samples of one kind, sorted by how much the reward changed."""
    slices = tuple(dict.fromkeys(_slice(row) for row in rows))[:MOST_SLICES]
    changes = [_change(row, found) for row in rows]
    known = [i for i, change in enumerate(changes) if change is not None]
    worse = sorted((i for i in known if (changes[i] or 0) < 0), key=lambda i: changes[i] or 0)
    better = sorted((i for i in known if (changes[i] or 0) > 0), key=lambda i: -(changes[i] or 0))
    picked = [_few(order, rows, slices) for order in (worse, better)]
    plain = _few([i for i in _spread(len(rows)) if i not in {*picked[0], *picked[1]}], rows, slices)

    def show(order: Sequence[int]) -> tuple[Sample, ...]:
        return tuple(_sample(rows[i], changes[i], slices, found) for i in order)

    kind = "pairs" if rows and "chosen" in rows[0]["answers"] else "answers"
    words = _WORDS[kind]
    groups = [Group(*words[k], show(order), k) for k, order in zip(("worse", "better", "plain"), (*picked, plain), strict=True)]
    outcomes = {"worse": bool(worse), "better": bool(better), "same": len(known) > len(worse) + len(better)}
    winners = _winners(found, outcomes, pairs=kind == "pairs")
    return Gallery(slices, winners, tuple(group for group in groups if group.samples), _counted(found, rows, kind), kind)


def _counted(found: Evidence, rows: Sequence[Json], kind: str) -> str:
    """Of how many rows the samples are picked: not every pair of the data need be written out."""
    if kind == "pairs":
        accuracy = found.get("accuracy")
        there = counted(max(len(rows), accuracy.n if accuracy else 0), "pair")
        return f"The first {number(len(rows), 9)} of {there}." if accuracy and accuracy.n > len(rows) else f"{there} in all."
    requests = len({str(row.get("prompt", "")) for row in rows})
    told, each = counted(requests, "request"), " of each model" if any(len(row["answers"]) > 1 for row in rows) else ""
    return f"{told} in all." if requests == len(rows) else f"{counted(len(rows), 'answer')}{each} to {told}."


def _winners(found: Evidence, outcomes: Mapping[str, bool], *, pairs: bool) -> dict[str, str]:
    """Who can have won, in words, by tone: the outcomes that there are."""
    worse, better = ("rejected scores higher", "chosen scores higher") if pairs else (f"{found.baseline} wins", f"{found.model} wins")
    return {tone: words for tone, words in {"worse": worse, "better": better, "same": "no difference"}.items() if outcomes[tone]}


_WORDS = {
    "answers": {
        "worse": ("Where it got worse", "Largest losses of reward of each slice, worst first."),
        "better": ("Where it got better", "Largest gains of each slice, best first."),
        "plain": ("Not picked", "Evenly spaced through the file, whatever happened."),
    },
    "pairs": {
        "worse": ("Where it is most wrong", "Pairs in which the model scores the rejected answer higher, worst first."),
        "better": ("Where it is most right", "Pairs with the widest margin, best first."),
        "plain": ("Not picked", "Evenly spaced through the file, whatever happened."),
    },
}


def _few(order: Sequence[int], rows: Sequence[Json], slices: Sequence[str]) -> list[int]:
    """The first few of each slice, in the order given."""
    left = dict.fromkeys(slices, A_SLICE)
    kept = []
    for i in order:
        name = _slice(rows[i])
        if left.get(name, 0) > 0:
            left[name] -= 1
            kept.append(i)
    return kept


def _spread(n: int) -> list[int]:
    """Every row once, evenly spaced ones first: 0, n/2, n/4, 3n/4, ..."""
    seen: dict[int, None] = {}
    parts = 1
    while len(seen) < n and parts <= 2 * n:
        seen |= dict.fromkeys(n * k // parts for k in range(parts))
        parts *= 2
    return list(seen)


def _slice(row: Json) -> str:
    return str(row.get("slice") or "all")


def _rewards(row: Json) -> Json:
    return mapping(row.get("gold") or row.get("reward"))


def _change(row: Json, found: Evidence) -> float | None:
    """Reward of the model's answer less the baseline's; for pairs, chosen less rejected."""
    rewards = _rewards(row)
    after, before = ("chosen", "rejected") if "chosen" in rewards else (found.model, found.baseline)
    rewards = rewards or mapping(row.get("preferred"))
    pair = rewards.get(after), rewards.get(before)
    return pair[0] - pair[1] if isinstance(pair[0], int | float) and isinstance(pair[1], int | float) else None


def _sample(row: Json, change: float | None, slices: Sequence[str], found: Evidence) -> Sample:
    rewards, name = _rewards(row), _slice(row)
    style: Callable[[str], str] = lambda who: "after" if who in (found.model, "chosen") else "before"  # noqa: E731
    answers = [
        Answer(str(who), str(text), fixed(rewards[who]) if who in rewards else "", style(str(who)), _marks(row, who))
        for who, text in row["answers"].items()
    ]
    answers.sort(key=lambda answer: answer.style == "after")
    told, tone = (
        ("", "")
        if change is None
        else (f"{'+' if change > 0 else ''}{fixed(change)}", "better" if change > 0 else "worse" if change < 0 else "same")
    )
    return Sample(_prompt(row), slices.index(name) if name in slices else -1, name, str(row.get("where", "")), tuple(answers), told, tone)


def _marks(row: Json, who: str) -> tuple[str, ...]:
    """What is known of an answer besides its reward."""
    told = {"refused": ("refuses", ""), "right": ("right", "wrong")}
    said = [(words, mapping(row.get(fact)).get(who)) for fact, words in told.items()]
    return tuple(word for words, value in said if value is not None and (word := words[0] if value == 1 else words[1]))


def _prompt(row: Json) -> Any:
    prompt = row.get("prompt", "")
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt if isinstance(m, dict))
    return prompt
