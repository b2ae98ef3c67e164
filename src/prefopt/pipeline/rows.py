"""Rows that models and annotators write: completions, scores and labelled pairs, in layouts `prefopt.data` reads back."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.errors import DataError, OptionError
from prefopt.pipeline.kinds import LabelOptions
from prefopt.settings import RolloutSettings
from prefopt.types import Completion, Example, Text, as_answer, plain

if TYPE_CHECKING:
    from prefopt.rollout.policy import Policy, RewardModel

Row = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON Lines, all or nothing; returns how many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half, count = path.with_name(f".{path.name}.part"), 0
    with half.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    os.replace(half, path)
    return count


def answers(example: Example) -> list[Text]:
    """The completions of a row, those that `sample` wrote without a rank included.

    Raises:
        DataError: there is none.
    """
    found = [c.content for c in example.completions] or list(example.meta.get("completions", ()))
    if not found:
        raise DataError("the row has no completion", where=example.where, fix="sample some first (prefopt generate)")
    return found


def ended(example: Example, at: int) -> bool | None:
    """Whether a completion that `sample` wrote ended by itself; None where the row does not say."""
    said = example.meta.get("finished")
    told = [said] if isinstance(said, bool) else said if isinstance(said, list) else []
    if len(told) != len(answers(example)):
        return None
    return example.completions[at].ended if len(example.completions) > 1 else bool(told[at])


def _all_ended(example: Example) -> Row:
    """The column `finished` of a row that tells it of its answers."""
    told = [ended(example, at) for at in range(len(answers(example)))]
    return {} if None in told else {"finished": told}


# --- a policy's completions -------------------------------------------------------------------------------------------


def sampled(policy: Policy, examples: Sequence[Example], settings: RolloutSettings) -> Iterator[Row]:
    """For each row its prompt, the policy's completions, whether each ended by itself, and the row's own extra columns."""
    drawn = policy.sample(examples, settings)
    for example, samples in zip(examples, drawn, strict=True):
        yield {
            "prompt": plain(example.prompt),
            "completions": [sample.text for sample in samples],
            "finished": [sample.finished for sample in samples],
            **extra(example),
        }


def extra(example: Example) -> Row:
    """What a row carries along: its tools, its group, and its extra columns as `meta`."""
    written = ("completions", "finished", "group", "parts", "notes")
    meta = {name: value for name, value in example.meta.items() if name not in written}
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    return {**tools, **({"group": example.group} if example.group else {}), **({"meta": meta} if meta else {})}


# --- scores -----------------------------------------------------------------------------------------------------------


def scored(
    examples: Sequence[Example], model: Policy | RewardModel, *, reference: Policy | None = None, beta: float = 1.0
) -> Iterator[Row]:
    """For each row its completions and their scores, a ranking that methods for pairs and rankings train on.

    A reward model gives its rewards; a policy with a reference the implicit rewards beta (log pi - log pi_ref), one without
    beta log pi, sums over the completion in nats. A process reward model gives the probability of each step too.
    """
    contents = [answers(example) for example in examples]
    prompts = [example for example, row in zip(examples, contents, strict=True) for _ in row]
    flat = [
        Completion(content=as_answer(example.prompt, content), ended=ended(example, at) is not False)
        for example, row in zip(examples, contents, strict=True)
        for at, content in enumerate(row)
    ]
    by_step = _by_step(model, prompts, examples, flat)
    steps = iter(by_step)
    values = iter([score for score, _ in by_step] if by_step else _scores(model, reference, beta, prompts, flat))
    for example, row in zip(examples, contents, strict=True):
        ranks = [completion.rank for completion in example.completions]
        yield {
            "prompt": plain(example.prompt),
            "completions": [plain(content) for content in row],
            "scores": [next(values) for _ in row],
            **({"step_scores": [next(steps)[1] for _ in row]} if by_step else {}),
            **({"ranks": ranks} if ranks and None not in ranks else {}),
            **_all_ended(example),
            **extra(example),
        }


_Steps = tuple[float, list[float]]
"""The score of an answer and of each of its steps."""


def _by_step(model: Any, prompts: Sequence[Example], examples: Sequence[Example], contents: Sequence[Completion]) -> list[_Steps]:
    """A process reward model's score of each answer and of its steps; nothing from other models."""
    if not getattr(getattr(model, "reading", None), "solution", ""):
        return []
    from prefopt.model.reading import of_solution

    found = model.step_scores(prompts, _with_steps(examples, contents))
    return [(of_solution(steps, model.reading.solution), steps) for steps in found]


def _with_steps(examples: Sequence[Example], contents: Sequence[Completion]) -> list[Completion]:
    """The answers with the steps their rows cut them into; others are cut by the model."""
    known = [c.steps for example in examples for c in example.completions or [Completion(content="")] * len(answers(example))]
    return [
        replace(content, steps=steps, step_labels=(0.0,) * len(steps)) if steps else content
        for steps, content in zip(known, contents, strict=True)
    ]


def _scores(model: Any, reference: Any, beta: float, prompts: Sequence[Example], contents: Sequence[Completion]) -> list[float]:
    if hasattr(model, "score"):
        return list(model.score(prompts, contents))
    values = np.asarray(model.logprobs(prompts, contents))
    if reference is not None:
        values = values - np.asarray(reference.logprobs(prompts, contents))
    return [float(value) for value in beta * values]


# --- simulated annotators ---------------------------------------------------------------------------------------------


def labelled(examples: Iterable[Example], options: LabelOptions, seen: Counter[str]) -> Iterator[Row]:
    """Judged pairs of the answers to each prompt, in the layout `prompt, response_a, response_b, label, votes`.

    Args:
        examples: rows with `completions` and the world's `meta`.
        options: who judges, how often, and which pairs.
        seen: filled with counts of pairs "labelled" and "tie", of "empty" answers, which nobody is shown, and of prompts with "no_pair"
            of different answers left.

    Raises:
        DataError: a row that is not of the synthetic world, or has fewer than two answers.
    """
    names = [options.annotators] if isinstance(options.annotators, str) else options.annotators
    rng = np.random.default_rng(options.seed)
    for example in examples:
        for a, b in _pairs(example, options.pairs, rng, seen):
            votes = _votes(example, a, b, names, options.votes, rng)
            said = Counter(vote["label"] for vote in votes if not options.strength or vote["label"] != "tie")
            label = _majority(said)
            strength = {"margin": _strength(said)} if options.strength else {}
            seen["tie" if label == "tie" else "labelled"] += 1
            if label != "tie" or options.ties == "keep":
                row = {"prompt": plain(example.prompt), "response_a": a, "response_b": b, "label": label, "votes": votes}
                yield {**row, **_pair_ended(example, a, b), **strength, **extra(example)}


def _pairs(example: Example, count: int, rng: np.random.Generator, seen: Counter[str]) -> Iterator[tuple[str, str]]:
    """Up to `count` pairs of different answers, in random order and shown in random order."""
    texts = _texts(example)
    if len(texts) < 2:
        raise DataError(
            "a preference needs two answers, the row has one", where=example.where, fix="set rollout.samples=2 in the sample stage"
        )
    spoken = [text for text in texts if text.strip()]
    seen["empty"] += len(texts) - len(spoken)
    different = list(itertools.combinations(dict.fromkeys(spoken), 2))
    seen["no_pair"] += not different
    for i in rng.permutation(len(different))[:count]:
        a, b = different[i]
        yield (a, b) if rng.random() < 0.5 else (b, a)


def _texts(example: Example) -> list[str]:
    """The answers of a row as text."""
    return [answer if isinstance(answer, str) else answer[-1].content for answer in answers(example)]


def _pair_ended(example: Example, *pair: str) -> Row:
    """The column `finished` of a pair of a row's answers, where the row tells it."""
    told = dict(zip(_texts(example), _all_ended(example).get("finished", ()), strict=False))
    return {"finished": [told[text] for text in pair]} if told else {}


def _votes(example: Example, a: str, b: str, names: Sequence[str], count: int, rng: np.random.Generator) -> list[Row]:
    from prefopt.world import panel

    if "world" not in example.meta:
        raise DataError(
            "the row is not of the synthetic world, so no truth is known", where=example.where, fix="label rows sampled for its prompts"
        )
    annotators = dict(zip(names, _panel(panel, names), strict=True))
    odds = {name: annotator.probabilities(example.meta, a, b) for name, annotator in annotators.items()}
    chosen = rng.choice(len(names), size=count) if len(names) > 1 else [0] * count
    return [{"annotator": names[i], "label": odds[names[i]].draw(rng)} for i in chosen]


def _panel(panel: Any, names: Sequence[str]) -> Any:
    try:
        return panel(tuple(names))
    except OptionError as error:
        raise OptionError(error.what, where="label.annotators", fix=error.fix) from None


def _majority(said: Counter[str]) -> str:
    """The label with strictly more votes than any other, else a tie."""
    ranked = said.most_common(2)
    return "tie" if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]) else ranked[0][0]


def _strength(said: Counter[str]) -> float:
    """The log-odds of a vote for the winner; half a vote is added to either side, so that agreement is never boundless (Haldane 1956)."""
    return abs(math.log((said["a"] + 0.5) / (said["b"] + 0.5)))
