"""Requests for small arithmetic: sums of prices, change, hours of arrival, tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prefopt.world.kinds import Content, Core, Kind, Slots, shape
from prefopt.world.town import PLACES, Town, pick

GOODS = ("map", "cake", "lamp", "hat", "cup", "book", "rope", "bell")
NEAR = (-3, -2, -1, 1, 2, 3)
"""How far off a wrong result is."""


def _content(full: str, terse: str, result: Callable[[Town, Slots], int]) -> Callable[[Town, Slots], Content]:
    def content(town: Town, slots: Slots) -> Content:
        def core(n: int) -> Core:
            return Core(full.format(**slots, n=n), terse.format(n=n))

        truth = result(town, slots)
        return Content(core(truth), wrong=tuple(core(truth + d) for d in NEAR if truth + d > 1))

    return content


def _kind(
    weight: float,
    ask: tuple[str, ...],
    answer: tuple[str, str],
    draw: Callable[[Town, np.random.Generator], dict[str, Any]],
    result: Callable[[Town, Slots], int],
    combination: tuple[str, ...],
    statement: Callable[[Town, Slots], str],
) -> Kind:
    shapes = tuple(shape(t) for t in answer)
    return Kind("arithmetic", weight, ask, draw, _content(*answer, result), combination, shapes, statement)


def _two_goods(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    one, two = rng.choice(len(GOODS), size=2, replace=False)
    return {"one": GOODS[one], "two": GOODS[two], "x": int(rng.integers(2, 10)), "y": int(rng.integers(2, 10))}


def _payment(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    price = int(rng.integers(2, 9))
    return {"one": pick(rng, GOODS), "x": int(rng.integers(price + 2, 13)), "y": price}


def _walk(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"place": pick(rng, PLACES), "x": int(rng.integers(6, 18)), "y": int(rng.integers(2, 5))}


def _group(_: Town, rng: np.random.Generator) -> dict[str, Any]:
    return {"place": pick(rng, PLACES), "x": int(rng.integers(2, 4))}


def _plus(_: Town, slots: Slots) -> str:
    return f"{slots['x']} and {slots['y']} make {slots['x'] + slots['y']}."


KINDS = {
    "total": _kind(
        2.0,
        (
            "A {one} costs {x} crowns and a {two} costs {y} crowns. What do both cost?",
            "I buy a {one} for {x} crowns and a {two} for {y} crowns. What do I pay?",
        ),
        ("Together that is {n} crowns.", "{n} crowns."),
        _two_goods,
        lambda _, s: s["x"] + s["y"],
        ("x", "y"),
        _plus,
    ),
    "change": _kind(
        1.5,
        (
            "I pay {x} crowns for a {one} of {y} crowns. What do I get back?",
            "A {one} costs {y} crowns and I give {x} crowns. What is left?",
        ),
        ("You get back {n} crowns.", "{n} crowns."),
        _payment,
        lambda _, s: s["x"] - s["y"],
        ("x", "y"),
        lambda _, s: f"{s['x']} less {s['y']} makes {s['x'] - s['y']}.",
    ),
    "arrival": _kind(
        1.5,
        (
            "I leave at {x} and walk {y} hours to the {place}. When do I arrive?",
            "It takes {y} hours to the {place} and I leave at {x}. When am I there?",
        ),
        ("You arrive at {n}.", "At {n}."),
        _walk,
        lambda _, s: s["x"] + s["y"],
        ("x", "y"),
        _plus,
    ),
    "tickets": _kind(
        1.0,
        ("What do {x} tickets to the {place} cost?", "We are {x} and want to see the {place}. What do we pay?"),
        ("Together that is {n} crowns.", "{n} crowns."),
        _group,
        lambda town, s: s["x"] * town.price[s["place"]],
        ("x", "place", "phrasing"),
        lambda town, s: f"{s['x']} tickets to the {s['place']} cost {s['x'] * town.price[s['place']]} crowns.",
    ),
}
