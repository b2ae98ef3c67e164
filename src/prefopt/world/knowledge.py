"""Requests for facts of the table: hours, streets, prices, telephone numbers, people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.world.kinds import Content, Core, Kind, Slots, shape
from prefopt.world.town import CLOSING_HOURS, OPENING_HOURS, PEOPLE, PLACES, PRICES, STREETS, Town, pick

DO_NOT_KNOW = "I do not know."


@dataclass(frozen=True)
class Fact:
    """An attribute of a place: how it is asked and told; `unknown` is the honest answer where the table has no entry."""

    name: str
    ask: tuple[str, ...]
    full: str
    terse: str
    unknown: str

    def values(self, town: Town) -> tuple[Any, ...]:
        """Everything that could be claimed."""
        fixed = {"opens": OPENING_HOURS, "closes": CLOSING_HOURS, "street": STREETS, "price": PRICES, "keeper": PEOPLE}
        return fixed.get(self.name) or town.numbers

    def core(self, place: str, value: Any) -> Core:
        """The sentence that claims a value; None claims that it is not known."""
        if value is None:
            return Core(self.unknown.format(place=place), DO_NOT_KNOW)
        slots = {"place": place, self.name: value}
        return Core(self.full.format(**slots), self.terse.format(**slots))

    def content(self, town: Town, slots: Slots) -> Content:
        """Right is what the table says; wrong is every other value."""
        place = slots["place"]
        truth = getattr(town, self.name)[place]
        wrong = tuple(self.core(place, v) for v in self.values(town) if v != truth)
        abstain = "" if truth is None else self.core(place, None).full
        return Content(self.core(place, truth), wrong=wrong, abstain=abstain)

    def kind(self, weight: float) -> Kind:
        """The row of the table of kinds."""
        shapes = tuple(shape(t) for t in (self.full, self.terse, self.unknown, DO_NOT_KNOW))
        return Kind(
            "fact", weight, self.ask, _place, self.content, ("place", "phrasing"), shapes, lambda t, s: self.content(t, s).right.full
        )


def _place(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"place": pick(rng, PLACES)}


FACTS = (
    Fact(
        "opens",
        ("When does the {place} open?", "What time does the {place} open?", "I want to go to the {place} early. When does it open?"),
        "The {place} opens at {opens}.",
        "At {opens}.",
        "I do not know when the {place} opens.",
    ),
    Fact(
        "closes",
        ("When does the {place} close?", "What time does the {place} close?", "I want to go to the {place} late. When does it close?"),
        "The {place} closes at {closes}.",
        "At {closes}.",
        "I do not know when the {place} closes.",
    ),
    Fact(
        "street",
        ("Where is the {place}?", "On what street is the {place}?", "I want to go to the {place}. Where is it?"),
        "The {place} is on {street} Street.",
        "On {street} Street.",
        "I do not know where the {place} is.",
    ),
    Fact(
        "price",
        ("What does the {place} cost?", "What is the price of a ticket to the {place}?", "I want to go to the {place}. What does it cost?"),
        "The {place} costs {price} crowns.",
        "{price} crowns.",
        "I do not know what the {place} costs.",
    ),
    Fact(
        "phone",
        ("What is the number of the {place}?", "How do I call the {place}?", "I want to call the {place}. What is the number?"),
        "The {place} has the number {phone}.",
        "{phone}.",
        "I do not know the number of the {place}.",
    ),
    Fact(
        "keeper",
        ("Who runs the {place}?", "Who do I ask for at the {place}?", "I want to thank someone at the {place}. Who runs it?"),
        "The {place} is run by {keeper}.",
        "{keeper}.",
        "I do not know who runs the {place}.",
    ),
)

_HOURS = "The {place} opens at {opens} and closes at {closes}."


def _hours(town: Town, slots: Slots) -> Content:
    place = slots["place"]
    opens, closes = town.opens[place], town.closes[place]

    def core(a: int, b: int) -> Core:
        return Core(_HOURS.format(place=place, opens=a, closes=b), f"From {a} to {b}.")

    wrong = tuple(core(a, b) for a in OPENING_HOURS for b in CLOSING_HOURS if (a == opens) != (b == closes))
    return Content(
        core(opens, closes), partial=f"The {place} opens at {opens}.", wrong=wrong, abstain=f"I do not know when the {place} opens."
    )


HOURS = Kind(
    "fact",
    1.0,
    ("What are the hours of the {place}?", "From when to when is the {place} open?", "When can I visit the {place}?"),
    _place,
    _hours,
    ("place", "phrasing"),
    (shape(_HOURS), r"From \d{1,2} to \d{1,2}\."),
    lambda t, s: _hours(t, s).right.full,
)

KINDS = {fact.name: fact.kind(1.0) for fact in FACTS} | {"hours": HOURS}
