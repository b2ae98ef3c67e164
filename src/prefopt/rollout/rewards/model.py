"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.errors import DataError, PrefoptError, RewardError
from prefopt.rollout.policy import load
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.types import Completion, Example, TokenTree, as_answer


@dataclass(frozen=True)
class ModelReward:
    """The scores of `model`, a `RewardModel` or whatever else `load` makes of a reward model's folder."""

    model: Any

    def check(self, examples: Sequence[Example]) -> None:
        """The model's own template takes every prompt with an answer, and the prompt leaves room for one.

        Raises:
            DataError, TemplateError: one it does not take, with file and row.
        """
        for tree in self.model.renderer.trees(self._row(example, "x", ended=True) for example in examples):
            if told := self._too_long(tree):
                raise DataError(f"{told}, with an answer of one word", where=tree.where, fix="leave longer prompts out (data.max_length)")

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """The score of each answer, its stop token included where it has one; one that the model cannot read has none, and a note why."""
        read = self._read([self._row(answer.example, answer.sample.text, ended=answer.sample.finished) for answer in rolled])
        trees = [tree for tree in read if isinstance(tree, TokenTree)]
        scores = iter(self.model.tree_scores(trees) if trees else ())
        return [Verdict(float(next(scores))) if isinstance(found, TokenTree) else Verdict(None, note=found) for found in read]

    def _row(self, example: Example, text: str, *, ended: bool) -> Example:
        completion = Completion(content=as_answer(example.prompt, text), ended=ended)
        return replace(example, completions=(self.model._completion(completion),))

    def _read(self, rows: Sequence[Example]) -> list[TokenTree | str]:
        """The rows as trees; why not, of those the model cannot read."""
        found: list[TokenTree | str]
        try:
            found = list(self.model.renderer.trees(rows))
        except PrefoptError:  # of one of them, so each alone
            found = [self._alone(row, index) for index, row in enumerate(rows)]
        return [self._too_long(one) or one if isinstance(one, TokenTree) else one for one in found]

    def _alone(self, row: Example, index: int) -> TokenTree | str:
        try:
            tree: TokenTree = self.model.renderer.tree(row, index)
        except PrefoptError as error:
            return f"the reward model cannot read it: {error.what}"
        return tree

    def _too_long(self, tree: TokenTree) -> str:
        limit, tokens = self.model.max_length, tree.padded_tokens
        if limit is None or tokens <= limit:
            return ""
        return f"prompt and answer have {tokens} tokens, more than the {limit} that the reward model takes"


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
