"""What a reward is: answers in, one verdict each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from prefopt.types import Example

if TYPE_CHECKING:
    from prefopt.rollout.sampler import Sample


@dataclass(frozen=True, slots=True)
class Rolled:
    """One sampled answer to the prompt of `example`, whose `meta` holds the row's extra columns."""

    example: Example
    sample: Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        value: its reward; None where it could not be judged, and then the answer must be left out and counted, never taken as 0.
        parts: what the value is made of, by the name of the source or penalty; each already times its weight.
        note: why it could not be judged, or what a verifier found ("expected 18, found 17").
        earned: what it is worth before any penalty; None where there are none.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    earned: float | None = None


class Reward(Protocol):
    """Anything that rates answers."""

    def check(self, examples: Sequence[Example]) -> None:
        """Whether these rows can be judged at all, asked before anything is sampled.

        Raises:
            DataError: a row lacks what the reward reads (a verifier's answer, tests, instructions), with file and row.
        """
        ...

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """One verdict an answer, in the order given.

        Raises:
            RewardError: the reward is wrong itself (NaN, a wrong number of values, no function of that name).
        """
        ...
