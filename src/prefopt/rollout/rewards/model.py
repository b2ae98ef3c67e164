"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RewardError
from prefopt.rollout.policy import load
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.types import Completion, Example, as_answer


@dataclass(frozen=True)
class ModelReward:
    """The scores of `model`, a `RewardModel` or whatever else `load` makes of a reward model's folder."""

    model: Any

    def check(self, examples: Sequence[Example]) -> None:
        """A reward model needs nothing but the prompt."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """The score of each answer, its stop token included where it has one."""
        prompts = [answer.example for answer in rolled]
        answers = [
            Completion(content=as_answer(answer.example.prompt, answer.sample.text), ended=answer.sample.finished) for answer in rolled
        ]
        return [Verdict(float(value)) for value in self.model.score(prompts, answers)]


def open_model(path: str) -> ModelReward:
    """The reward model of a folder or hub name.

    Raises:
        ModelError: it cannot be opened. RewardError: it is no reward model.
    """
    model = load(path)
    if not hasattr(model, "score"):
        raise RewardError(
            "this is a language model, not a reward model", where=f"reward.model: {path}", fix="train one with the method reward"
        )
    return ModelReward(model)
