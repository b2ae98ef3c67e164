"""The rewardbench suite: accuracy on preference sets by section, with RewardBench's files (Lambert et al. 2024, arXiv 2403.13787).

    subset   share of its pairs in which the better answer scores higher
    section  mean over the pairs of its subsets, each with its weight (math-prm counts as much as all code subsets together)
    score    mean of the sections

A row's subset is its column `subset` (else its slice); its section is its column `section`, else RewardBench's section of the subset,
else the subset. Rows with lists of chosen and rejected answers are scored as RewardBench 2 does (`rewardbench2`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefopt.evaluate import pairs, rewardbench2
from prefopt.evaluate.bench import Bench, Findings, slice_of
from prefopt.evaluate.pairs import Measured, Pair
from prefopt.evaluate.table import write_jsonl
from prefopt.evaluate.weighted import mean_of_sections, weighted_mean
from prefopt.stats import preference_scores

SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut"),
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
WEIGHTS = {"math-prm": 984 / 447}
"""A pair's weight in its section, 1 where not given: 984 pairs of code against 447 of mathematics."""

lacks = pairs.lacks


def run(bench: Bench) -> Findings:
    """Accuracy of every subset and section, and the score; writes `rewardbench/eval-set` and `rewardbench/eval-set-scores`."""
    if rewardbench2.is_second(bench):
        return rewardbench2.run(bench)
    found = pairs.measure(bench)
    right = preference_scores(*found.values.T)
    rows = {row.where: row for row in bench.rows}
    subsets = [slice_of(rows[pair.tree.where]) if pair.tree.where in rows else pair.tree.source or "data" for pair in found.pairs]
    sections = [_section(rows.get(pair.tree.where), subset) for pair, subset in zip(found.pairs, subsets, strict=True)]
    weights = np.array([WEIGHTS.get(subset, 1.0) for subset in subsets])
    figures = [
        bench.figure("accuracy", weighted_mean(right, np.where(np.array(subsets) == s, 1.0, 0.0), found.groups), slice=s)
        for s in sorted(set(subsets))
        if len(set(subsets)) > 1
    ]
    score, named = mean_of_sections(right, sections, weights, found.groups)
    figures += [bench.figure("section", section, slice=name) for name, section in named.items()]
    _write(bench, found, right, subsets)
    told = f"RewardBench score {score.value:.1%} [{score.low:.1%}, {score.high:.1%}] over {len(named)} section{'s' * (len(named) > 1)}"
    return Findings([bench.figure("rewardbench", score), *figures], {"sections": ", ".join(named)}, [], told)


def _section(row: Any, subset: str) -> str:
    named = row.meta.get("section") if row is not None else None
    return str(named) if named else SECTION_OF.get(subset, subset)


def _write(bench: Bench, found: Measured, right: np.ndarray, subsets: Sequence[str]) -> None:
    """RewardBench's two files."""
    folder, name = bench.out / "rewardbench", bench.model.name.replace("/", "_")
    model, names = bench.model.model, np.array(subsets)
    accuracy = {subset: float(right[names == subset].mean()) for subset in sorted(set(subsets))}
    kind = "Seq. Classifier" if pairs.reads(bench) == "reward" else "DPO"
    told = {"model": bench.model.path, "model_type": kind, "chat_template": "tokenizer" if model.renderer.template else None, **accuracy}
    for part in ("eval-set", "eval-set-scores"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "eval-set" / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    scored = zip(found.pairs, found.values, right, subsets, strict=True)
    write_jsonl(
        folder / "eval-set-scores" / f"{name}.json", (_scores(model, pair, values, r, subset) for pair, values, r, subset in scored)
    )


def _scores(model: Any, pair: Pair, values: np.ndarray, right: float, subset: str) -> dict[str, Any]:
    texts = [model.renderer.decode([*pair.tree.prompt, *pair.tree.branches[i].ids]) for i in (pair.chosen, pair.rejected)]
    numbers = dict(zip(("scores_chosen", "scores_rejected"), map(float, values), strict=True))
    return {"text_chosen": texts[0], "text_rejected": texts[1], **numbers, "results": right, "subset": subset}
