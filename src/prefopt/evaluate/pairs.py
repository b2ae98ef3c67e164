"""The pairs suite: does a model prefer what people preferred?

A reward model by its scores; a policy by its implicit reward log pi(y|x) - log ref(y|x), or by log pi(y|x) alone without a reference.
A model that scores both answers alike gets one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefopt.data.split import group_key
from prefopt.errors import DataError, OptionError
from prefopt.evaluate.table import Figure, figure, name_of, slices, write, write_jsonl
from prefopt.pack.tree import ranked_pairs
from prefopt.rollout.policy import LanguageModel, RewardModel
from prefopt.stats import win_rate
from prefopt.types import TokenTree

SHOWN = 200
"""Pairs written out for people to read."""


class Pair(NamedTuple):
    """A preference: its tree, the branches of the better and the worse answer, and what the model gives each."""

    tree: TokenTree
    chosen: int
    rejected: int
    rewards: np.ndarray

    @property
    def lengths(self) -> tuple[int, int]:
        """Scored tokens of both."""
        return tuple(int(self.tree.branches[i].scored.sum()) for i in (self.chosen, self.rejected))  # type: ignore[return-value]


def evaluate(model: LanguageModel, reference: LanguageModel | None, trees: Sequence[TokenTree], *, out: Path) -> str:
    """Accuracy on preference pairs, with the accuracy of "the longer answer wins" beside it; writes evaluation.json and samples.jsonl.

    Args:
        model: a RewardModel, or a Policy.
        reference: the policy's reference; for a reward model None.
        trees: preference pairs or rankings, tokenized by the model's renderer.
        out: the stage's folder.

    Raises:
        OptionError: a reward model and a reference.
        DataError: no row has two completions of unequal rank.
    """
    if reference is not None and isinstance(model, RewardModel):
        raise OptionError("a reward model is measured against no reference", where="baseline", fix="leave baseline out")
    told = zip(trees, rewards(model, reference, trees), strict=True) if trees else ()
    pairs = [Pair(tree, i, j, given[[i, j]]) for tree, given in told for i, j in ranked_pairs(tree.branches)]
    if not pairs:
        raise DataError("no row holds a preference (two completions of unequal rank)", fix="see `prefopt data check`")
    reads, name = _reads(model, reference), name_of(model.path)
    figures = _figures(pairs, name)
    notes = {"reads": reads, "prompts": len(trees), "groups": len({group_key(pair.tree) for pair in pairs})}
    baseline = name_of(reference.path) if reference else None
    write(out, suite="pairs", model=name, baseline=baseline, n=len(pairs), figures=figures, notes=notes)
    write_jsonl(out / "samples.jsonl", (_sample(pair, model) for pair in pairs[:SHOWN]))
    found, longer = figures[:2]
    return (
        f"accuracy {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] on {found.n} pairs ({reads}); "
        f"the longer answer is chosen in {longer.value:.1%}"
    )


def rewards(model: Any, reference: Any | None, trees: Sequence[TokenTree]) -> list[np.ndarray]:
    """For each tree one number a branch."""
    branches = [replace(tree, branches=(branch,)) for tree in trees for branch in tree.branches]
    alone = [replace(tree, index=i) for i, tree in enumerate(branches)]
    found = np.array(model.tree_scores(alone) if isinstance(model, RewardModel) else model.tree_logprobs(alone))
    if reference is not None:
        found = found - np.array(reference.tree_logprobs(alone))
    return np.split(found, np.cumsum([len(tree.branches) for tree in trees])[:-1])


def _figures(pairs: Sequence[Pair], name: str) -> list[Figure]:
    """Accuracy and the longer answer's, of all pairs and of each source; the intervals allow for pairs of one group going together."""
    figures = []
    groups = [group_key(pair.tree) for pair in pairs]
    measured = {"accuracy": np.array([pair.rewards for pair in pairs]), "longer_is_chosen": np.array([pair.lengths for pair in pairs])}
    for part, mask in slices([pair.tree.source or "data" for pair in pairs]):
        inside = [group for group, kept in zip(groups, mask, strict=True) if kept]
        for metric, values in measured.items():
            chosen, rejected = values[mask].T
            figures.append(figure(metric, win_rate(chosen, rejected, clusters=inside), model=name, slice=part))
    return figures


def _reads(model: LanguageModel, reference: LanguageModel | None) -> str:
    if isinstance(model, RewardModel):
        return "reward"
    return "implicit reward" if reference is not None else "log-prob"


def _sample(pair: Pair, model: LanguageModel) -> dict[str, Any]:
    """One row of samples.jsonl: the two answers, as the model reads them, under the names chosen and rejected."""
    named = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "prompt": model.renderer.decode(pair.tree.prompt),
        "slice": pair.tree.source or "data",
        "where": pair.tree.where,
        "answers": {name: model.renderer.decode(pair.tree.branches[i].ids) for name, i in named.items()},
        "reward": dict(zip(named, map(float, pair.rewards), strict=True)),
        "model": name_of(model.path),
    }
