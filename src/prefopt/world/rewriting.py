"""Requests to rewrite a given text: capitals, order, numbering, shortening."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np

from prefopt.world.kinds import Content, Core, Kind, Slots
from prefopt.world.sums import GOODS
from prefopt.world.town import PLACES, Town, pick

ADJECTIVES = ("old", "red", "big", "new")

_GOOD, _ADJECTIVE, _PLACE = ("(?:" + "|".join(words) + ")" for words in (GOODS, ADJECTIVES, PLACES))
_CAPITAL = "(?:" + "|".join(w.upper() for w in (*GOODS, *ADJECTIVES)) + ")"


def _described(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"adjective": pick(rng, ADJECTIVES), "good": pick(rng, GOODS)}


def _goods(n: int) -> Callable[[Town, np.random.Generator], dict[str, Any]]:
    return lambda _, rng: {"goods": [GOODS[i] for i in rng.choice(len(GOODS), size=n, replace=False)]}


def _sentence(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    one, two = rng.choice(len(ADJECTIVES), size=2, replace=False)
    return {"one": ADJECTIVES[one], "good": pick(rng, GOODS), "two": ADJECTIVES[two], "place": pick(rng, PLACES)}


def _capitals(_: Town, slots: Slots) -> Content:
    adjective, good = slots["adjective"], slots["good"]
    others = (f"{adjective} {other}" for other in GOODS if other != good)
    wrong = (f"{adjective} {good}.", f"{good} {adjective}.".upper(), *(f"{text}.".upper() for text in others))
    return Content(Core(f"{adjective} {good}.".upper()), partial=f"{adjective.upper()} {good}.", wrong=tuple(map(Core, wrong)))


def _joined(goods: tuple[str, ...]) -> str:
    return ", ".join(goods) + "."


def _sorted(_: Town, slots: Slots) -> Content:
    order = tuple(sorted(slots["goods"]))
    wrong = tuple(Core(_joined(p)) for p in permutations(order) if p != order)
    return Content(Core(_joined(order)), partial=_joined(order[:1]), wrong=wrong)


def _numbers(goods: tuple[str, ...]) -> str:
    return " ".join(f"{i}) {good}" for i, good in enumerate(goods, 1)) + "."


def _numbered(_: Town, slots: Slots) -> Content:
    goods = tuple(slots["goods"])
    wrong = tuple(Core(_numbers(p)) for p in permutations(goods) if p != goods)
    return Content(Core(_numbers(goods)), partial=_numbers(goods[:2]), wrong=(*wrong, Core(_joined(goods))))


def _shortened(_: Town, slots: Slots) -> Content:
    one, good, place = slots["one"], slots["good"], slots["place"]
    elsewhere = (Core(f"The {good} is in the {other}.") for other in PLACES if other != place)
    another = (Core(f"The {other} is in the {place}.") for other in GOODS if other != good)
    kept = f"The {one} {good} is in the {place}."
    return Content(Core(f"The {good} is in the {place}."), partial=kept, wrong=(*elsewhere, *another))


KINDS = {
    "capitals": Kind(
        "rewrite",
        1.0,
        ("Write in capitals: {adjective} {good}", "Put this in capitals: {adjective} {good}"),
        _described,
        _capitals,
        ("adjective", "good"),
        (rf"{_CAPITAL} {_CAPITAL}\.", rf"(?:{_CAPITAL}|{_ADJECTIVE}) {_GOOD}\."),
        lambda t, s: f"{s['adjective']} {s['good']}: {_capitals(t, s).right.full}",
    ),
    "sort": Kind(
        "rewrite",
        1.0,
        ("Sort these words: {goods}", "Put these words in order: {goods}"),
        _goods(2),
        _sorted,
        ("goods",),
        (rf"{_GOOD}(?:, {_GOOD}){{0,4}}\.",),
        lambda t, s: f"{', '.join(s['goods'])}: {_sorted(t, s).right.full}",
    ),
    "number": Kind(
        "rewrite",
        1.0,
        ("Number these words: {goods}", "Make a numbered list of these words: {goods}"),
        _goods(3),
        _numbered,
        ("goods",),
        (rf"1\) {_GOOD}(?: [2-9]\) {_GOOD}){{0,4}}\.",),
        lambda t, s: f"{', '.join(s['goods'])}: {_numbered(t, s).right.full}",
    ),
    "shorten": Kind(
        "rewrite",
        1.0,
        (
            "Make this shorter: The {one} {good} is in the {two} {place}.",
            "Leave out what you can: The {one} {good} is in the {two} {place}.",
        ),
        _sentence,
        _shortened,
        ("one", "good", "two", "place"),
        (rf"The (?:{_ADJECTIVE} )?{_GOOD} is in the (?:{_ADJECTIVE} )?{_PLACE}\.",),
        lambda t, s: f"The {s['one']} {s['good']} is in the {s['two']} {s['place']}: {_shortened(t, s).right.full}",
    ),
}
