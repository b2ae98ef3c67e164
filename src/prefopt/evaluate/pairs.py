"""The pairs suite: does a model prefer what people preferred?

A reward model by its scores; a policy by its implicit reward log pi(y|x) - log ref(y|x), or by log pi(y|x) alone without a reference.
Ties of the data are left out and counted; a model that scores both alike gets one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.data.split import prompt_key
from prefopt.errors import DataError
from prefopt.evaluate.table import Figure, figure, name_of, slices, write, write_jsonl
from prefopt.pack.tree import ranked_pairs
from prefopt.rollout.policy import LanguageModel, RewardModel
from prefopt.stats import win_rate
from prefopt.types import Example, Text


def evaluate(model: LanguageModel, reference: LanguageModel | None, rows: Sequence[Example], *, out: Path) -> str:
    """Accuracy on preference pairs, with the accuracy of "the longer answer wins" beside it; writes evaluation.json and samples.jsonl.

    Args:
        model: a RewardModel, or a Policy.
        reference: the policy's reference; for a reward model None.
        rows: preference pairs or rankings.
        out: the stage's folder.

    Raises:
        DataError: no row has two completions of unequal rank.
    """
    pairs = [(row, i, j) for row in rows for i, j in ranked_pairs(row.completions)]
    if not pairs:
        raise DataError("no row holds a preference (two completions of unequal rank)", fix="see `prefopt data check`")
    rewards = [_rewards(model, reference, [(row.prompt, row.completions[at[k]].content) for row, *at in pairs]) for k in (0, 1)]
    lengths = [np.array([len(_plain(row.completions[at[k]].content)) for row, *at in pairs]) for k in (0, 1)]
    groups = [row.group or prompt_key(row) for row, *_ in pairs]
    name = name_of(model.path)
    figures: list[Figure] = []
    for part, mask in slices([row.source or "data" for row, *_ in pairs]):
        inside = [group for group, kept in zip(groups, mask, strict=True) if kept]
        for metric, (chosen, rejected) in {"accuracy": rewards, "longer_is_chosen": lengths}.items():
            figures.append(figure(metric, win_rate(chosen[mask], rejected[mask], clusters=inside), model=name, slice=part))
    ties = sum(1 for row in rows if not ranked_pairs(row.completions))
    write(
        out,
        suite="pairs",
        model=name,
        baseline=name_of(reference.path) if reference else None,
        n=len(pairs),
        figures=figures,
        notes={"reads": _reads(model, reference), "rows": len(rows), "rows_without_preference": ties},
    )
    write_jsonl(out / "samples.jsonl", (_sample(*pair, name, rewards, n) for n, pair in enumerate(pairs[:200])))
    found = figures[0]
    longer = next(f for f in figures if f.metric == "longer_is_chosen")
    told = f"accuracy {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] on {found.n} pairs"
    return f"{told} ({_reads(model, reference)}); the longer answer is chosen in {longer.value:.1%}"


def _reads(model: LanguageModel, reference: LanguageModel | None) -> str:
    if isinstance(model, RewardModel):
        return "reward"
    return "implicit reward" if reference is not None else "log-prob"


def _rewards(model: Any, reference: Any | None, answers: Sequence[tuple[Text, Text]]) -> np.ndarray:
    """One number an answer."""
    prompts, completions = [prompt for prompt, _ in answers], [completion for _, completion in answers]
    if isinstance(model, RewardModel):
        return np.array(model.score(prompts, completions))
    found = np.array(model.logprobs(prompts, completions))
    return found if reference is None else found - np.array(reference.logprobs(prompts, completions))


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


def _sample(row: Example, i: int, j: int, name: str, rewards: Sequence[np.ndarray], n: int) -> dict[str, Any]:
    """One row of samples.jsonl: the two answers under the names chosen and rejected."""
    answers = {"chosen": _plain(row.completions[i].content), "rejected": _plain(row.completions[j].content)}
    scores = {"chosen": float(rewards[0][n]), "rejected": float(rewards[1][n])}
    return {
        "prompt": _plain(row.prompt),
        "slice": row.source or "data",
        "where": row.where,
        "answers": answers,
        "reward": scores,
        "model": name,
    }
