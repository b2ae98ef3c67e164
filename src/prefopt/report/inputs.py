"""The data of a training stage as it was read and as the model sees it: the preflight's account and coloured tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from prefopt.report.folder import Json, Stage, items, mapping
from prefopt.report.words import counted, listed, number, percent, shown

ROWS = 3
"""Rows whose tokens are shown of each stage."""
TOKENS = 500
"""Tokens shown of a sequence."""


class Fact(NamedTuple):
    """A line of the preflight: what, how many, and more; `tone` is "watch" where rows or tokens were lost."""

    name: str
    value: str
    text: str
    tone: str = ""


class Token(NamedTuple):
    """A token's text and whether the loss counts it."""

    text: str
    scored: bool


class Sequence(NamedTuple):
    """One completion with its prompt."""

    name: str
    tokens: tuple[Token, ...]
    scored: int
    total: int


class Row(NamedTuple):
    """One row of the data."""

    where: str
    sequences: tuple[Sequence, ...]


def preflight(stage: Stage) -> list[Fact]:
    """The account of what was read, kept, dropped and cut."""
    return list(_facts(stage.preflight))


def _facts(found: Json) -> Iterator[Fact]:
    kinds = _counts(found.get("kinds"))
    if "rows" in found:
        yield Fact("rows read", number(found["rows"], 9), ", ".join(f"{number(n, 9)} {kind}" for kind, n in kinds.items()))
    if "prompts" in found:
        yield Fact("prompts", number(found["prompts"], 9), "distinct")
    kept = {side: n for side, n in _counts(found.get("kept")).items() if n}
    if kept:
        names = {"train": "to train on", "heldout": "held out"}
        yield Fact("kept", number(sum(kept.values()), 9), listed([f"{number(n, 9)} {names.get(side, side)}" for side, n in kept.items()]))
    yield from _tallies(found.get("dropped"), "dropped")
    yield from _tokens(found)
    yield from _tallies(found.get("facts"), "seen")
    for unit, share in mapping(found.get("chosen_longer")).items():
        if isinstance(share, dict):
            yield Fact("best is longer", percent(share.get("share")), f"of {counted(share.get('pairs'), 'preference')}, in {unit}")
    yield from (Fact("note", "", str(note)) for note in items(found.get("notes")))


def _tokens(found: Json) -> Iterator[Fact]:
    tokens = _counts(found.get("tokens"))
    if tokens.get("packed"):
        parts = ", ".join(f"{number(tokens[kind], 9)} {kind}" for kind in ("prompt", "completion", "scored") if kind in tokens)
        saved = tokens.get("padded", 0) / tokens["packed"]
        yield Fact("tokens", number(tokens["packed"], 9), f"{parts}; reading each prompt once saves {saved:.2f}×")
    longest = found.get("longest")
    if isinstance(longest, dict) and longest.get("tokens"):
        limit = f", limit {number(found['max_length'], 9)}" if found.get("max_length") else ""
        yield Fact("longest", number(longest["tokens"], 9), f"tokens at {longest.get('where', '')}{limit}")


def _tallies(found: Any, name: str) -> Iterator[Fact]:
    for reason, tally in mapping(found).items():
        if isinstance(tally, dict) and tally.get("count"):
            yield Fact(name, number(tally["count"], 9), f"{reason}, first at {tally.get('first', '')}", "watch")


def _counts(found: Any) -> dict[str, int]:
    return {str(k): v for k, v in mapping(found).items() if isinstance(v, int)}


def rows(stage: Stage) -> list[Row]:
    """A few rows, token by token."""
    return [Row(str(row.get("where", "")), tuple(_sequences(row))) for row in stage.tokens[:ROWS]]


def _sequences(row: Json) -> Iterator[Sequence]:
    for sequence in items(row.get("sequences")):
        pieces = [piece for piece in items(sequence.get("tokens")) if isinstance(piece, list) and len(piece) == 2]
        tokens = tuple(Token(_visible(str(text)), bool(scored)) for text, scored in pieces[:TOKENS])
        yield Sequence(str(sequence.get("name", "")), tokens, sum(1 for _, scored in pieces if scored), len(pieces))


def _visible(text: str) -> str:
    """A token with its line breaks shown, and broken after them."""
    return shown(text).replace("\n", "↵\n")
