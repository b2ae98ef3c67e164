"""Prepared data, models and runs for tests of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data.preflight import Preflight
from prefopt.losses.methods import METHODS
from prefopt.pack.prepare import Prepared
from prefopt.rollout.policy import LanguageModel, Policy, RewardModel
from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.settings import RolloutSettings, TrainSettings
from prefopt.text.chat import Renderer
from prefopt.training.fit import FitResult, fit
from prefopt.training.setup import Setup
from prefopt.types import Example, TokenTree
from tests.tiny import VOCAB, pair_trees, tiny_model


def tokenizer() -> Any:
    """One word a token: w0 to w96, with the tiny models' special ids."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCAB))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def language_model(method: str = "dpo", family: str = "llama", seed: int = 0) -> LanguageModel:
    """A tiny model of the kind `method` trains."""
    scorer = METHODS[method].reads == "scores"
    words = tokenizer()
    kind = RewardModel if scorer else Policy
    return kind(tiny_model(family, scorer=scorer, seed=seed), words, Renderer(words), "tiny")


def rows_for(method: str, count: int, *, seed: int = 0, start: int = 0) -> list[TokenTree]:
    """Random trees of the kind `method` learns from."""
    return [_shaped(METHODS[method].data, tree, tree.index + start) for tree in pair_trees(seed, count)]


def _shaped(data: str, tree: TokenTree, index: int) -> TokenTree:
    better, worse = tree.branches
    if data == "prompts":
        return replace(tree, index=index, branches=(), where=f"rows.jsonl:{index + 1}", example=Example(prompt="asked"))
    branches = {
        "pairs": (better, worse),
        "judgements": (better, replace(worse, rank=int(index % 3 > 0))),
        "rankings": (better, worse, replace(worse, ids=worse.ids[::-1].copy(), rank=2)),
        "labels": ((better, worse)[index % 2],),
        "steps": (replace(better, rank=None, step_ends=(0, len(better.ids) - 1), step_labels=(1.0, 0.0)),),
    }.get(data, (replace(better, rank=None, label=None),))
    return replace(tree, index=index, margin=0.25, branches=branches, where=f"rows.jsonl:{index + 1}")


def run(
    out: Path, method: str = "dpo", *, model: LanguageModel | None = None, rows: int = 16, heldout: int = 0, **changes: Any
) -> FitResult:
    """Train a tiny model for a few steps; `changes` are fields of Setup."""
    train = changes.pop("train", {})
    settings = TrainSettings(**{"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "seed": 1, **train})
    data = Prepared(rows_for(method, rows), rows_for(method, heldout, seed=9, start=rows), Preflight(None, None))
    if METHODS[method].online:
        changes = {"rollout": rollout(method), "reward": EvenTokens(), **changes}
    judged = {name: changes.pop(name) for name in ("reward", "watch") if name in changes}
    return fit(Setup(method=method, train=settings, **changes), model or language_model(method), data, out=out, **judged)


def rollout(method: str, **changes: Any) -> RolloutSettings:
    """As many answers a prompt as the method wants, six tokens at most."""
    online = METHODS[method].online
    return RolloutSettings(**{"samples": min(online.samples, 4) if online else 1, "max_new_tokens": 6, **changes})


class EvenTokens:
    """A reward: the share of an answer's tokens whose ids are even."""

    def check(self, examples: Sequence[Example]) -> None:
        """Any row will do."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """All of them."""
        values = [float((answer.sample.ids % 2 == 0).mean()) for answer in rolled]
        return [Verdict(value, {"even": value}) for value in values]


UNTIMED = ("tokens_per_second", "pairs_per_second")


def metrics_of(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock decides."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in UNTIMED} for row in rows]


def losses_of(out: Path) -> Sequence[float]:
    """The training loss of every step."""
    return [row["loss"] for row in metrics_of(out) if "loss" in row]
