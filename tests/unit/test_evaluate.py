"""Suites: figures follow from the answers, a better policy is told from a worse one, and rows that cannot be judged are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.evaluate import pairs, world
from prefopt.rollout.sampler import Sample
from prefopt.settings import RolloutSettings
from prefopt.types import Completion, Example, TokenTree
from prefopt.world import World
from tests.worlds import language_model

WORLD = World(0)
REQUESTS = WORLD.requests(60, seed=5, split="heldout")


class Scripted:
    """A policy whose answers are given, with log-probs that differ by a constant a token."""

    def __init__(self, name: str, answers: list[str], logp: float = -1.0) -> None:
        self.path, self.answers, self.logp, self.renderer = f"runs/x/{name}/model", answers, logp, self

    def sample(self, prompts: Any, settings: RolloutSettings) -> list[list[Sample]]:
        empty = np.zeros(3, np.float32)
        return [[Sample(ids=np.arange(3, dtype=np.int32), logps=empty, text=text, finished=True)] for text in self.answers]

    def prompt_ids(self, prompt: Any) -> np.ndarray:
        return np.arange(2, dtype=np.int32)

    def tree_logprobs(self, trees: Any) -> list[float]:
        return [self.logp * len(tree.branches[0].ids) for tree in trees]


def rows() -> list[Example]:
    return [Example(prompt=request.prompt, meta=request.meta, where=f"heldout.jsonl:{i + 1}") for i, request in enumerate(REQUESTS)]


def figures(out: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = json.loads((out / "evaluation.json").read_text())
    return {(row["metric"], row["model"], row["slice"]): row for row in found["rows"]}


def test_ideal_answers_beat_drafts_by_the_gold_reward(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ideal, drafts = [WORLD.ideal(r) for r in REQUESTS], [WORLD.draft(r, rng) for r in REQUESTS]
    told = world.evaluate(Scripted("dpo", ideal), Scripted("sft", drafts, -2.0), rows(), rollout=RolloutSettings(), seed=0, out=tmp_path)
    found = figures(tmp_path)
    assert found["gold", "dpo", "all"]["value"] == pytest.approx(1.0)
    gold = [WORLD.gold(r.meta, text) for r, text in zip(REQUESTS, drafts, strict=True)]
    assert found["gold", "sft", "all"]["value"] == pytest.approx(np.mean(gold))
    assert found["gold", "sft", "all"]["low"] < np.mean(gold) < found["gold", "sft", "all"]["high"]
    ties = sum(value == 1.0 for value in gold)
    assert found["win_rate", "dpo", "all"]["value"] == pytest.approx((len(gold) - ties / 2) / len(gold))
    assert found["gold_gain", "dpo", "all"]["value"] == pytest.approx(1 - np.mean(gold))
    assert found["kl", "dpo", "all"]["value"] == pytest.approx(3.0)
    assert found["over_refusal", "dpo", "harmless"]["value"] == 0.0
    assert found["refusal", "dpo", "harmful"]["value"] == 1.0
    assert all(row["n"] > 0 and row["low"] <= row["value"] <= row["high"] and row["method"] for row in found.values())
    assert "wins" in told


def test_equal_policies_win_half_and_samples_stand_side_by_side(tmp_path: Path) -> None:
    answers = [WORLD.ideal(r) for r in REQUESTS]
    world.evaluate(Scripted("a", answers), Scripted("b", answers), rows(), rollout=RolloutSettings(), seed=0, out=tmp_path)
    assert figures(tmp_path)["win_rate", "a", "all"]["value"] == 0.5
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == len(REQUESTS)
    assert samples[0]["answers"] == {"a": answers[0], "b": answers[0]}


def test_rows_of_another_world_are_refused(tmp_path: Path) -> None:
    bare = [Example(prompt="why?", where="rows.jsonl:1")]
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row has no `meta`"):
        world.evaluate(Scripted("a", ["x"]), None, bare, rollout=RolloutSettings(), seed=0, out=tmp_path)


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_pairs_are_judged_by_what_the_model_itself_says(method: str, tmp_path: Path) -> None:
    model = language_model(method)
    texts = [("w5 w6", "w7 w8", "w9"), ("w10", "w11", "w12 w13 w14"), ("w5", "w20 w21", "w22 w23")]
    reads = model.score if method == "reward" else model.logprobs  # type: ignore[attr-defined]
    right = [reads([p], [c])[0] > reads([p], [r])[0] for p, c, r in texts]
    trees = [tree_of(model, p, c, r, index=i) for i, (p, c, r) in enumerate(texts)]
    pairs.evaluate(model, None, trees, out=tmp_path)
    found = figures(tmp_path)
    assert found["accuracy", "tiny", "all"]["value"] == pytest.approx(np.mean(right))
    assert found["longer_is_chosen", "tiny", "all"]["value"] == pytest.approx(0.5)
    assert found["accuracy", "tiny", "s0"]["n"] == 2


def test_an_implicit_reward_is_measured_against_its_reference(tmp_path: Path) -> None:
    model, reference = language_model(seed=1), language_model(seed=1)
    pairs.evaluate(model, reference, [tree_of(model, "w5", "w6", "w7 w8")], out=tmp_path)
    assert figures(tmp_path)["accuracy", "tiny", "all"]["value"] == 0.5  # a policy that has not moved prefers nothing


def test_no_preference_at_all_is_an_error(tmp_path: Path) -> None:
    model = language_model()
    tie = tree_of(model, "w5", "w6", "w7")
    tie = replace(tie, branches=tuple(replace(branch, rank=0) for branch in tie.branches))
    for trees in ([], [tie]):
        with pytest.raises(DataError, match="no row holds a preference"):
            pairs.evaluate(model, None, trees, out=tmp_path)


def tree_of(model: Any, prompt: str, chosen: str, rejected: str, index: int = 0) -> TokenTree:
    completions = (Completion(content=chosen, rank=0), Completion(content=rejected, rank=1))
    return model.renderer.tree(Example(prompt=prompt, completions=completions, source=f"s{index % 2}"), index)
