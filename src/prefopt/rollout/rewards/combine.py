"""Several rewards as one: their weighted sum, less what is taken off for length and for answers that did not end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prefopt.errors import RewardError
from prefopt.rollout.rewards.protocol import Reward, Rolled, Verdict
from prefopt.types import Example

Penalty = Callable[[Rolled], float]
"""What an answer loses, at least 0."""
COUNTING = {"length_penalty", "soft_overlong"}
"""Penalties that count tokens."""


@dataclass(frozen=True)
class Sum:
    """value = sum over sources of weight * value - sum of penalties.

    An answer that one of the sources could not judge is not judged.
    """

    sources: Mapping[str, Reward]
    weights: Mapping[str, float] = field(default_factory=dict)
    penalties: Mapping[str, Penalty] = field(default_factory=dict)

    @property
    def reads_tokens(self) -> bool:
        """Whether the answers' tokens matter, not their text alone."""
        counted = COUNTING & self.penalties.keys()
        return bool(counted) or any(getattr(source, "reads_tokens", False) for source in self.sources.values())

    def check(self, examples: Sequence[Example]) -> None:
        """Every source can judge the rows."""
        for source in self.sources.values():
            source.check(examples)

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """One verdict an answer; its `parts` are those of the sources and penalties.

        Raises:
            RewardError: a source gave a wrong number of verdicts or one that is not finite.
        """
        found = {name: _checked(name, source.judge(rolled), len(rolled)) for name, source in self.sources.items()}
        return [self._add(answer, {name: verdicts[i] for name, verdicts in found.items()}) for i, answer in enumerate(rolled)]

    def _add(self, answer: Rolled, verdicts: Mapping[str, Verdict]) -> Verdict:
        notes = [f"{name}: {verdict.note}" if len(verdicts) > 1 else verdict.note for name, verdict in verdicts.items() if verdict.note]
        parts: dict[str, float] = {}
        total, judged = 0.0, True
        for name, verdict in verdicts.items():
            weight = self.weights.get(name, 1.0)
            parts |= {f"{name}/{part}": weight * value for part, value in verdict.parts.items()}
            if verdict.value is None:
                judged = False
            else:
                parts[name] = weight * verdict.value
                total += parts[name]
        earned = total
        for name, penalty in self.penalties.items():
            parts[name] = 0.0 - penalty(answer)
            total += parts[name]
        return Verdict(total if judged else None, parts, "; ".join(notes), earned if self.penalties else None)


def length_penalty(per_token: float) -> Penalty:
    """`per_token` for every token of the answer, its stop token included."""
    return lambda answer: per_token * len(answer.sample.ids)


def soft_overlong(limit: int, buffer: int) -> Penalty:
    """The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), with its sign turned round.

    With n tokens in the answer: 0 up to limit - buffer, then (n - (limit - buffer)) / buffer, and 1 beyond limit.
    """
    return lambda answer: min(1.0, max(0.0, (len(answer.sample.ids) - (limit - buffer)) / buffer))


def missing_eos(amount: float) -> Penalty:
    """`amount` off an answer that did not end by itself."""
    return lambda answer: 0.0 if answer.sample.finished else amount


def _checked(name: str, verdicts: Sequence[Verdict], expected: int) -> Sequence[Verdict]:
    if len(verdicts) != expected:
        raise RewardError(
            f"{len(verdicts)} values for {expected} answers", where=f"reward {name}", fix="give one value for each answer, in their order"
        )
    for i, verdict in enumerate(verdicts):
        if verdict.value is not None and not math.isfinite(verdict.value):
            what = f"{verdict.value} for answer {i + 1} of {expected}, expected a finite number"
            raise RewardError(what, where=f"reward {name}", fix="return None for an answer that cannot be judged")
    return verdicts
