"""The rewardbench suite: accuracy on preference sets by section, with RewardBench's files (Lambert et al. 2024, arXiv 2403.13787).

    subset   share of its pairs in which the better answer scores higher
    section  mean over the pairs of its subsets, each with its weight (math-prm counts as much as all code subsets together)
    score    mean of the sections

A row's subset is its column `subset` (else its slice); its section is its column `section`, else RewardBench's section of the subset,
else the subset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from prefopt.evaluate import pairs
from prefopt.evaluate.bench import Bench, Findings, slice_of
from prefopt.evaluate.pairs import Measured, Pair
from prefopt.evaluate.table import kept, write_jsonl
from prefopt.stats import Interval, preference_scores

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
    named = sorted(set(sections))
    shares = {name: np.where(np.array(sections) == name, weights, 0.0) for name in named}
    figures += [bench.figure("section", weighted_mean(right, share, found.groups), slice=name) for name, share in shares.items()]
    whole = sum(share / share.sum() for share in shares.values()) / len(shares)
    centre = sum(np.where(share > 0, (right @ share) / share.sum(), 0.0) for share in shares.values())
    score = bench.figure("rewardbench", weighted_mean(right, np.asarray(whole), found.groups, np.asarray(centre)))
    _write(bench, found, right, subsets)
    told = f"RewardBench score {score.value:.1%} [{score.low:.1%}, {score.high:.1%}] over {len(named)} section{'s' * (len(named) > 1)}"
    return Findings([score, *figures], {"sections": ", ".join(named)}, [], told)


def _section(row: Any, subset: str) -> str:
    named = row.meta.get("section") if row is not None else None
    return str(named) if named else SECTION_OF.get(subset, subset)


def weighted_mean(values: np.ndarray, weights: np.ndarray, clusters: Sequence[Hashable], centre: np.ndarray | None = None) -> Interval:
    """sum w x / sum w, with an interval that holds when observations of a cluster go together.

    Args:
        values: [n], between 0 and 1.
        weights: [n]; observations of weight 0 play no part.
        clusters: observations that go together.
        centre: what each observation varies around, [n]; the mean where not given.

    >>> weighted_mean(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0]), "abc")[:4]
    (0.5, 0.0, 1.0, 2)
    """
    share = weights / weights.sum()
    value = float(share @ values)
    off = share * (values - (value if centre is None else centre))
    used = weights > 0
    sums: dict[Hashable, float] = {}
    for cluster, part in zip(kept(list(clusters), used), off[used], strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(part)
    groups, n = len(sums), int(used.sum())
    if groups < 2:
        return Interval(value, 0.0, 1.0, n, "one cluster")
    error = math.sqrt(groups / (groups - 1) * sum(part**2 for part in sums.values()))
    reach = float(stats.t.ppf(0.975, groups - 1)) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), n, "weighted clustered t", 0.95, error, groups - 1)


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
