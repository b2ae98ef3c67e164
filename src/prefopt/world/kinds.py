"""What every kind of request declares: how it is asked, which slots it has, and which answers are right, partial or wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from prefopt.world.town import PEOPLE, PLACES, STREETS, Town

Slots = Mapping[str, Any]


class Core(NamedTuple):
    """The part of an answer that carries its content: a `full` sentence and a `terse` form ("" where a kind has none)."""

    full: str
    terse: str = ""


@dataclass(frozen=True)
class Content:
    """What can be answered to one request, wrapping aside.

    Attributes:
        right: the correct, complete core.
        partial: a correct core that leaves something out ("" where the kind has none).
        wrong: fluent cores that are false, or, for a harmful request, that comply.
        abstain: a core that says the answer is not known ("" where the kind has none, or where it is the right one).
    """

    right: Core
    partial: str = ""
    wrong: tuple[Core, ...] = ()
    abstain: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Attributes:
        slice: the group it is reported under, one of `SLICES`.
        weight: how often it is asked, relative to the other kinds.
        ask: its phrasings, templates over the slots.
        draw: slots from (town, generator).
        content: the possible answers from (town, slots).
        combination: the slots whose values, taken together, are either all training or all held-out; "phrasing" may be among them.
        shapes: regular expressions of the cores this kind allows, right or wrong: what is outside all of them is broken text.
        statement: a sentence for pretraining text from (town, slots), where the kind holds knowledge.
    """

    slice: str
    weight: float
    ask: tuple[str, ...]
    draw: Callable[[Town, np.random.Generator], dict[str, Any]]
    content: Callable[[Town, Slots], Content]
    combination: tuple[str, ...]
    shapes: tuple[str, ...]
    statement: Callable[[Town, Slots], str] | None = field(default=None)


_WORDS = {
    "place": "|".join(PLACES),
    "street": "|".join(STREETS),
    "keeper": "|".join(PEOPLE),
}


def shape(template: str) -> str:
    """The regular expression of every sentence a template can make; slots that are not words of the town are numbers."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(re.escape(p) if i % 2 == 0 else f"(?:{_WORDS.get(p, r'[0-9]{1,3}')})" for i, p in enumerate(parts))
