"""A synthetic domain with exact ground truth: a helpdesk for an invented town.

Everybody who asks wants a fact, a sum, a text rewritten or advice; some want harm, some only sound as if they did. How good an answer
is, is known (`World.gold`), so every claim about training, rewards and judges can be measured against the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prefopt.world.annotators import ANNOTATORS, Annotator, Probabilities, panel, preferred
from prefopt.world.answers import Answer, parse, render
from prefopt.world.drafts import FLAWLESS, RATES, Rates, draft, ideal
from prefopt.world.files import SIZES, distinct_requests, write
from prefopt.world.gold import DEDUCTIONS, Attributes, facts, gold, judge
from prefopt.world.requests import SLICES, Request, Split, draw_request
from prefopt.world.town import Town, town

__all__ = [
    "ANNOTATORS",
    "DEDUCTIONS",
    "FLAWLESS",
    "RATES",
    "SIZES",
    "SLICES",
    "Annotator",
    "Answer",
    "Attributes",
    "Probabilities",
    "Rates",
    "Request",
    "Town",
    "World",
    "facts",
    "gold",
    "judge",
    "panel",
    "parse",
    "preferred",
    "render",
    "write",
]


class World:
    """The world of a seed.

    >>> world = World(0)
    >>> request = world.requests(1, seed=1)[0]
    >>> world.gold(request.meta, world.ideal(request))
    1.0
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @property
    def town(self) -> Town:
        """The table of facts."""
        return town(self.seed)

    def requests(self, n: int, *, seed: int, split: Split = "train", distinct: bool = False) -> list[Request]:
        """`n` requests of a split; `distinct` ones have no two alike."""
        rng = np.random.default_rng([seed, self.seed, 2])
        if distinct:
            return distinct_requests(self.town, rng, split, n)
        return [draw_request(self.town, rng, split) for _ in range(n)]

    def gold(self, meta: Mapping[str, Any], answer: str) -> float:
        """The gold reward of any text, in [-1, 1]."""
        return gold(meta, answer)

    def judge(self, meta: Mapping[str, Any], answer: str) -> Attributes:
        """The attributes of any text."""
        return judge(meta, answer)

    def ideal(self, request: Request) -> str:
        """An answer of gold reward 1."""
        return ideal(request.meta)

    def draft(self, request: Request, rng: np.random.Generator, rates: Rates = RATES) -> str:
        """An imperfect answer, flawed at the given rates."""
        return draft(request.meta, rng, rates)
