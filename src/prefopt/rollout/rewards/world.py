"""Rewards of the synthetic world, where truth is known: `gold` in [-1, 1], and `arithmetic`, 1 for a right result and 0 otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import DataError
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.types import Example
from prefopt.world import gold, judge


@dataclass(frozen=True)
class WorldReward:
    """What `truth(meta, text)` says of each answer."""

    truth: Callable[[Mapping[str, Any], str], float]

    def check(self, examples: Sequence[Example]) -> None:
        """Every row is a request of the world.

        Raises:
            DataError: one is not, so its truth is unknown.
        """
        for example in examples:
            if not {"world", "slice", "slots"} <= example.meta.keys():
                what = "the row has no `meta` of the synthetic world, so its truth is unknown"
                raise DataError(what, where=example.where, fix="use rows of a world stage, or another reward")

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """The truth about each answer."""
        self.check([answer.example for answer in rolled])
        return [Verdict(self.truth(answer.example.meta, answer.sample.text)) for answer in rolled]


def right(meta: Mapping[str, Any], text: str) -> float:
    """1 where the content of the answer is right, complete or not, whatever is wrapped around it; 0 otherwise."""
    return float(judge(meta, text).correct)


GOLD = WorldReward(gold)
ARITHMETIC = WorldReward(right)
