"""Simulated annotators: Bradley-Terry on the gold reward plus declared biases, tastes and carelessness.

An annotator sees each answer's utility

    u(x, y) = scale gold(x, y) + (length - brevity) words(y) / 10 + flattery [y flatters] + courtesy [y is courteous]

and, with d = u(x, a) - u(x, b) + position bias, decides as Rao and Kupper (1967) have it:

    P(a) = sigmoid(d - tie)     P(b) = sigmoid(-d - tie)     P(tie) = 1 - P(a) - P(b)

With tie = 0 that is Bradley and Terry (1952). With probability `careless` the answer is a or b, half each, whatever they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from prefopt.errors import OptionError, did_you_mean
from prefopt.world.gold import judge, reward

Choice = Literal["a", "b", "tie"]


class Probabilities(NamedTuple):
    """How likely each choice is; they add up to 1."""

    a: float
    b: float
    tie: float

    def draw(self, rng: np.random.Generator) -> Choice:
        """A choice with these probabilities."""
        u = rng.random()
        if u < self.a:
            return "a"
        return "b" if u < self.a + self.b else "tie"


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Somebody who says which of two answers is better.

    Args:
        scale: nats of preference per unit of gold reward; larger is more reliable.
        tie: threshold of indifference, in nats; 0 never says "tie".
        length: bias, in nats per ten words, for longer answers whatever the words say.
        position: bias, in nats, for the answer shown first.
        flattery: bias, in nats, for an answer that flatters.
        careless: share of judgements made without reading.
        brevity: taste, in nats per ten words, for shorter answers. courtesy: taste, in nats, for a courteous answer.
        group: the name of the group of like taste.
    """

    scale: float = 4.0
    tie: float = 0.0
    length: float = 0.0
    position: float = 0.0
    flattery: float = 0.0
    careless: float = 0.0
    brevity: float = 0.0
    courtesy: float = 0.0
    group: str = "gold"

    def __post_init__(self) -> None:
        if not 0 <= self.careless <= 1:
            raise OptionError(f"careless is {self.careless}, a share between 0 and 1 is needed", fix="set careless=0.1 or the like")
        if self.tie < 0 or self.scale < 0:
            raise OptionError(f"scale is {self.scale} and tie is {self.tie}, neither may be negative", fix="set them to 0 or more")

    def utility(self, meta: Mapping[str, Any], text: str) -> float:
        """What the annotator sees in an answer, in nats."""
        seen = judge(meta, text)
        biased = (self.length - self.brevity) * seen.words / 10 + self.flattery * seen.flattering + self.courtesy * seen.courteous
        return self.scale * reward(meta, seen) + biased

    def probabilities(self, meta: Mapping[str, Any], a: str, b: str) -> Probabilities:
        """How likely each choice is when `a` is shown first; the exact distribution `prefer` draws from."""
        d = self.utility(meta, a) - self.utility(meta, b) + self.position
        read_a, read_b = _sigmoid(d - self.tie), _sigmoid(-d - self.tie)
        p_a, p_b = ((1 - self.careless) * p + self.careless / 2 for p in (read_a, read_b))
        return Probabilities(p_a, p_b, max(0.0, 1 - p_a - p_b))

    def prefer(self, meta: Mapping[str, Any], a: str, b: str, rng: np.random.Generator) -> Choice:
        """A choice between two answers, `a` shown first."""
        return self.probabilities(meta, a, b).draw(rng)


def preferred(annotators: Sequence[Annotator], meta: Mapping[str, Any], a: str, b: str) -> float:
    """How likely `a` is to be preferred by one of the annotators drawn at random, given that a preference is stated.

    Either answer is shown first in half of the cases. Nobody who does not know the annotator, the order and the draw predicts better than
    max(p, 1 - p), the Bayes limit of accuracy.
    """
    shown = [p for annotator in annotators for p in (annotator.probabilities(meta, a, b), annotator.probabilities(meta, b, a))]
    for_a = sum(p.a if i % 2 == 0 else p.b for i, p in enumerate(shown))
    for_b = sum(p.b if i % 2 == 0 else p.a for i, p in enumerate(shown))
    return for_a / (for_a + for_b)


ANNOTATORS = {
    "gold": Annotator(scale=6.0),
    "brisk": Annotator(scale=4.0, tie=0.3, position=0.1, careless=0.05, brevity=0.5, group="brisk"),
    "polite": Annotator(scale=4.0, tie=0.3, position=0.1, careless=0.05, courtesy=0.5, group="polite"),
    "wordy": Annotator(scale=4.0, tie=0.3, length=1.2, flattery=0.5, careless=0.05, group="wordy"),
    "easy": Annotator(scale=2.0, tie=0.3, position=0.3, length=0.5, flattery=1.0, careless=0.2, group="easy"),
}
"""Named annotators: a reliable one, the two groups of different taste, one who is impressed by length, and one who is easily impressed."""


def panel(names: tuple[str, ...] = ("brisk", "polite")) -> tuple[Annotator, ...]:
    """The annotators of these names.

    Raises:
        OptionError: a name is unknown.
    """
    for name in names:
        if name not in ANNOTATORS:
            raise OptionError(f"no annotator is called '{name}'", fix=did_you_mean(name, ANNOTATORS))
    return tuple(ANNOTATORS[name] for name in names)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
