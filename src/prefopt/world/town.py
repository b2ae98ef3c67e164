"""The invented town of Lindmoor: the words it is told in and the table of facts a seed draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

NAME = "Lindmoor"
PLACES = ("library", "museum", "pool", "market", "bakery", "station", "theatre", "castle")
STREETS = ("Mill", "Oak", "Bridge", "Church", "King", "Rose")
PEOPLE = ("Ada", "Bruno", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
OPENING_HOURS = tuple(range(6, 11))
CLOSING_HOURS = tuple(range(16, 22))
PRICES = tuple(range(2, 8))
MISSING = {"phone": 1, "keeper": 1}
"""How many places have no known entry for an attribute: the right answer there is that the helpdesk does not know."""


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True)
class Town:
    """What is true in the town a seed names: for each attribute, a value for each place (None where nobody knows)."""

    seed: int
    opens: dict[str, int]
    closes: dict[str, int]
    street: dict[str, str]
    price: dict[str, int]
    phone: dict[str, int | None]
    keeper: dict[str, str | None]

    @property
    def numbers(self) -> tuple[int, ...]:
        """All telephone numbers of the town."""
        return tuple(n for n in self.phone.values() if n is not None)


@lru_cache(maxsize=64)
def town(seed: int) -> Town:
    """The town of a seed, always the same."""
    rng = np.random.default_rng([seed, 0x70776E])

    def column(values: Sequence[T]) -> dict[str, T]:
        return {place: pick(rng, values) for place in PLACES}

    def distinct(values: Sequence[T], missing: int) -> dict[str, T | None]:
        order = rng.permutation(len(values))[: len(PLACES)]
        unknown = rng.choice(len(PLACES), size=missing, replace=False)
        return {place: None if i in unknown else values[order[i]] for i, place in enumerate(PLACES)}

    return Town(
        seed=seed,
        opens=column(OPENING_HOURS),
        closes=column(CLOSING_HOURS),
        street=column(STREETS),
        price=column(PRICES),
        phone=distinct(range(100, 1000), MISSING["phone"]),
        keeper=distinct(PEOPLE, MISSING["keeper"]),
    )
