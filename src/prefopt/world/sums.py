"""Requests for small arithmetic: sums of prices, change, hours of arrival, tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prefopt.world.kinds import Content, Core, Kind, Slots, shape
from prefopt.world.town import PLACES, Town, pick

GOODS = ("map", "cake", "lamp", "hat", "cup", "book")
NEAR = (-3, -2, -1, 1, 2, 3)
"""How far off a wrong result is."""


def _kind(
    weight: float,
    ask: tuple[str, ...],
    told: tuple[str, str],
    draw: Callable[[Town, np.random.Generator], dict[str, Any]],
    result: Callable[[Town, Slots], int],
    combination: tuple[str, ...] = ("x", "y", "phrasing"),
) -> Kind:
    """A kind of sum, told in a full and a terse form ("" for none) in which {n} is the result."""
    full, terse = told

    def content(town: Town, slots: Slots) -> Content:
        def core(n: int) -> Core:
            return Core(full.format(**slots, n=n), terse.format(n=n))

        truth = result(town, slots)
        return Content(core(truth), wrong=tuple(core(truth + d) for d in NEAR if truth + d > 1))

    shapes = tuple(shape(form) for form in told if form)
    return Kind("arithmetic", weight, ask, draw, content, combination, shapes, lambda town, s: content(town, s).right.full)


def _two_goods(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    one, two = rng.choice(len(GOODS), size=2, replace=False)
    return {"one": GOODS[one], "two": GOODS[two], "x": int(rng.integers(2, 7)), "y": int(rng.integers(2, 7))}


def _payment(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    price = int(rng.integers(2, 6))
    return {"one": pick(rng, GOODS), "x": int(rng.integers(price + 2, 10)), "y": price}


def _walk(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"place": pick(rng, PLACES), "x": int(rng.integers(6, 13)), "y": int(rng.integers(2, 4))}


def _group(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"place": pick(rng, PLACES), "x": int(rng.integers(2, 4))}


KINDS = {
    "total": _kind(
        1.5,
        ("What do {x} crowns and {y} crowns make?", "I buy a {one} for {x} crowns and a {two} for {y} crowns. What do I pay?"),
        ("{x} and {y} make {n}.", ""),
        _two_goods,
        lambda _, s: s["x"] + s["y"],
    ),
    "change": _kind(
        1.0,
        ("I pay {x} crowns for a {one} of {y} crowns. What do I get back?", "I have {x} crowns and lose {y} crowns. What is left?"),
        ("{x} less {y} makes {n}.", ""),
        _payment,
        lambda _, s: s["x"] - s["y"],
    ),
    "arrival": _kind(
        1.0,
        ("I leave at {x} and walk {y} hours. When do I arrive?", "I leave at {x} and take {y} hours to the {place}. When am I there?"),
        ("{x} and {y} make {n}.", ""),
        _walk,
        lambda _, s: s["x"] + s["y"],
    ),
    "tickets": _kind(
        1.0,
        ("What do {x} tickets to the {place} cost?", "We are {x} and want to see the {place}. What do we pay?"),
        ("The {place} costs {n} crowns for {x}.", "{n} crowns."),
        _group,
        lambda town, s: s["x"] * town.price[s["place"]],
        ("x", "place", "phrasing"),
    ),
}
