"""The world's suite: a policy answers held-out requests, and the gold reward, which is known exactly, judges them.

Figures: gold reward; gold win rate over the baseline (ties half); refusals of harmful requests and of harmless ones; correctness;
length; KL to the baseline, estimated on the policy's own samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.errors import DataError
from prefopt.evaluate.table import Figure, figure, name_of, slices, write, write_jsonl
from prefopt.rollout.policy import Policy
from prefopt.rollout.sampler import Sample
from prefopt.settings import RolloutSettings
from prefopt.stats import bootstrap, clustered_mean, sign_test, wilson, win_rate
from prefopt.types import Branch, Example, TokenTree
from prefopt.world import facts

SHARES = ("correct", "hedged", "flattering", "padded", "fluent")
"""Attributes of answers told as shares of all."""


@dataclass(frozen=True)
class Answers:
    """One policy's answers to the requests, and what is true of each."""

    name: str
    samples: list[Sample]
    truths: list[dict[str, Any]]

    def column(self, name: str) -> np.ndarray:
        """One attribute of every answer."""
        return np.array([truth[name] for truth in self.truths], dtype=np.float64)

    @cached_property
    def gold(self) -> np.ndarray:
        """The gold reward of every answer."""
        return self.column("gold")


def evaluate(policy: Policy, baseline: Policy | None, rows: Sequence[Example], *, rollout: RolloutSettings, seed: int, out: Path) -> str:
    """Answer every request once or more, judge, and write evaluation.json and samples.jsonl.

    Raises:
        DataError: rows that are not requests of the world.
    """
    requests = [row for row in _checked(rows) for _ in range(rollout.samples)]
    clusters = [i for i in range(len(rows)) for _ in range(rollout.samples)]
    named = {name_of(model.path): model for model in (policy, baseline) if model is not None}
    answers = [_answers(name, model, rows, rollout, requests) for name, model in named.items()]
    rng = np.random.default_rng(seed)
    parts = slices([row.meta["slice"] for row in requests])
    figures = [found for own in answers for found in _own(own, parts, clusters, rng)]
    notes: dict[str, Any] = {"temperature": rollout.temperature, "samples_per_prompt": rollout.samples}
    if len(answers) > 1 and baseline is not None:
        mine, theirs = answers
        figures += _against(mine, theirs, parts, clusters)
        figures.append(_kl(policy, baseline, mine, rows, rollout.samples))
        notes["sign_test"] = sign_test(mine.gold, theirs.gold)
    names = list(named)
    write(out, suite="world", model=names[0], baseline=names[1] if len(names) > 1 else None, n=len(requests), figures=figures, notes=notes)
    write_jsonl(out / "samples.jsonl", (_sample(i, row, answers) for i, row in enumerate(requests)))
    return _headline(figures, names)


def _checked(rows: Sequence[Example]) -> Sequence[Example]:
    for row in rows:
        if not {"world", "slice", "slots"} <= row.meta.keys():
            what = "the row has no `meta` of the synthetic world, so its truth is unknown"
            raise DataError(what, where=row.where, fix="evaluate heldout.jsonl of a world stage, or set suite: pairs")
    if not rows:
        raise DataError("no rows to evaluate on", fix="see data.path")
    return rows


def _answers(name: str, policy: Policy, rows: Sequence[Example], rollout: RolloutSettings, requests: Sequence[Example]) -> Answers:
    samples = [sample for found in policy.sample([row.prompt for row in rows], rollout) for sample in found]
    truths = [facts(row.meta, sample.text) for row, sample in zip(requests, samples, strict=True)]
    return Answers(name, samples, truths)


def _own(own: Answers, parts: list[tuple[str, np.ndarray]], clusters: Sequence[int], rng: np.random.Generator) -> list[Figure]:
    """Figures of one policy alone."""
    group, length, found = np.array(clusters), own.column("length_words"), []
    for part, mask in parts:
        inside = group[mask].tolist()
        found.append(figure("gold", bootstrap(own.gold[mask], rng=rng, clusters=inside), model=own.name, slice=part))
        found.append(figure("length_words", clustered_mean(length[mask], inside), model=own.name, slice=part))
        found += [figure(name, _share(own.column(name)[mask]), model=own.name, slice=part) for name in SHARES]
    refusal, slice_of = own.column("refusal"), np.array([truth["slice"] for truth in own.truths])
    for metric, mask in (("refusal", slice_of == "harmful"), ("over_refusal", slice_of != "harmful")):
        if mask.any():
            found.append(figure(metric, _share(refusal[mask]), model=own.name, slice="harmful" if metric == "refusal" else "harmless"))
    borderline = slice_of == "borderline"
    if borderline.any():
        found.append(figure("over_refusal", _share(refusal[borderline]), model=own.name, slice="borderline"))
    return found


def _share(values: np.ndarray) -> Any:
    return wilson(float(values.sum()), len(values))


def _against(mine: Answers, theirs: Answers, parts: list[tuple[str, np.ndarray]], clusters: Sequence[int]) -> list[Figure]:
    """Win rate and mean difference of gold, slice by slice."""
    group, found = np.array(clusters), []
    for part, mask in parts:
        inside = group[mask].tolist()
        rate = win_rate(mine.gold[mask], theirs.gold[mask], clusters=inside)
        gain = clustered_mean(mine.gold[mask] - theirs.gold[mask], inside)
        found += [figure("win_rate", rate, model=mine.name, slice=part), figure("gold_gain", gain, model=mine.name, slice=part)]
    return found


def _kl(policy: Policy, baseline: Policy, mine: Answers, rows: Sequence[Example], samples: int) -> Figure:
    """KL(policy || baseline) in nats a completion: the mean log-ratio of the policy's own samples (k1), exact at temperature 1."""
    prompts = [policy.renderer.prompt_ids(row.prompt) for row in rows for _ in range(samples)]
    trees = [
        TokenTree(prompt=prompt, branches=(Branch(ids=sample.ids, scored=np.ones(len(sample.ids), bool)),), index=i)
        for i, (prompt, sample) in enumerate(zip(prompts, mine.samples, strict=True))
        if len(sample.ids)
    ]
    ratio = np.array(policy.tree_logprobs(trees)) - np.array(baseline.tree_logprobs(trees))
    return figure("kl", clustered_mean(ratio, [tree.index // samples for tree in trees]), model=mine.name)


def _sample(i: int, row: Example, answers: Sequence[Answers]) -> dict[str, Any]:
    """One row of samples.jsonl."""
    prompt = row.prompt if isinstance(row.prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in row.prompt)
    return {
        "prompt": prompt,
        "slice": row.meta["slice"],
        "where": row.where,
        "answers": {own.name: own.samples[i].text for own in answers},
        "gold": {own.name: own.truths[i]["gold"] for own in answers},
    }


def _headline(figures: Sequence[Figure], names: Sequence[str]) -> str:
    found = {(f.metric, f.model): f for f in figures if f.slice == "all"}
    gold = found["gold", names[0]]
    told = f"gold {gold.value:.2f} [{gold.low:.2f}, {gold.high:.2f}]"
    if ("win_rate", names[0]) not in found:
        return told
    rate, before, kl = found["win_rate", names[0]], found["gold", names[1]], found["kl", names[0]]
    win = f"wins {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] against {names[1]}"
    return f"{told}, before {before.value:.2f}; {win}; KL {kl.value:.2f} nats"
