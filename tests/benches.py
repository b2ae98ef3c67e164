"""Benches for tests of suites: scripted policies, tiny models, rows given by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.evaluate.bench import Bench, Subject
from prefopt.evaluate.table import name_of
from prefopt.rollout.sampler import Sample
from prefopt.settings import DataSettings, RolloutSettings
from prefopt.types import Example


class Scripted:
    """A policy whose answers are given in the order of the rows, with log-probs that differ by a constant a token."""

    def __init__(self, name: str, answers: Sequence[str], logp: float = -1.0) -> None:
        self.path, self.answers, self.logp, self.renderer = f"runs/x/{name}/model", answers, logp, self
        self.asked = 0

    def sample(self, prompts: Any, settings: RolloutSettings) -> list[list[Sample]]:
        self.asked += len(prompts)
        return [[sample_of(text)] for text in self.answers[: len(prompts)]]

    def prompt_ids(self, prompt: Any, tools: Any = ()) -> np.ndarray:
        return np.arange(2, dtype=np.int32)

    def tree_logprobs(self, trees: Any) -> list[float]:
        return [self.logp * len(tree.branches[0].ids) for tree in trees]

    def tree_entropies(self, trees: Any) -> list[float]:
        return [0.5 * len(tree.branches[0].ids) for tree in trees]


class Spoken(Scripted):
    """A policy whose answer is a function of the prompt."""

    def __init__(self, name: str, say: Any, logp: float = -1.0) -> None:
        super().__init__(name, (), logp)
        self.say = say

    def sample(self, prompts: Any, settings: RolloutSettings) -> list[list[Sample]]:
        self.asked += len(prompts)
        return [[sample_of(self.say(prompt.prompt)) for _ in range(settings.samples)] for prompt in prompts]


def sample_of(text: str) -> Sample:
    return Sample(ids=np.arange(3, dtype=np.int32), logps=np.zeros(3, np.float32), text=text, finished=True)


def bench_of(
    out: Path,
    model: Any,
    baseline: Any = None,
    *,
    rows: Sequence[Example] | None = None,
    trees: Any = None,
    data: DataSettings | None = None,
    **more: Any,
) -> Bench:
    """A bench of models that are there already (a string is a name that cannot be opened) and of rows or trees given by hand."""
    subjects = [subject_of(found) for found in (model, baseline) if found is not None]
    if len(subjects) > 1 and subjects[0].name == subjects[1].name:
        subjects[1].name += " (2)"
        subjects[1].path += "2"
    bench = Bench(
        subjects[0],
        subjects[1] if baseline is not None else None,
        data or DataSettings(path=[]),
        out=out,
        say=lambda line: None,
        data_sha256="d",
        **{"rollout": RolloutSettings(max_new_tokens=8), **more},
    )
    if data is None:
        bench.rows = list(rows or [])
        bench.trees = list(trees or [])
    return bench


def subject_of(model: Any) -> Subject:
    if isinstance(model, str):
        return Subject(model, model, _cannot, f"sha of {model}")
    return Subject(model.path, name_of(model.path), lambda: model, f"sha of {name_of(model.path)}")


def _cannot() -> Any:
    raise AssertionError("this model is only a name")


def rows_of(requests: Any) -> list[Example]:
    """Requests of the world as rows."""
    return [Example(prompt=request.prompt, meta=request.meta, where=f"heldout.jsonl:{i + 1}") for i, request in enumerate(requests)]


def figures_in(out: Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The rows of evaluation.json by metric, model, slice and the model a difference is from."""
    found = json.loads((out / "evaluation.json").read_text())
    return {(row["metric"], row["model"], row["slice"], row["difference_from"]): row for row in found["rows"]}
