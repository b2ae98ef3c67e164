"""RewardBench 2's own rule, for rows with lists of chosen and rejected answers (Malik et al. 2025, arXiv 2506.01937).

subset  mean over its rows of: 1 / (answers that share the highest score) where a chosen one has it, else 0
Ties    mean over its questions q, each asked with one right answer (id "ref:q") and with several (id "tied:q"), of
        0.3 [ref right] + 0.3 [tied right] + 0.2 [m_tied > d] + 0.2 [m > d] + 0.01 tanh(m / d - 1)
        right: every right answer above every wrong one; m_ref, m_tied: worst right less best wrong, m the smaller of both;
        d: best less worst right answer of "tied:q" (0 / 0 counts as 0)
score   mean of the subsets; with Ties it can reach 1.01 there
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prefopt.data.split import group_key
from prefopt.errors import DataError
from prefopt.evaluate import pairs
from prefopt.evaluate.bench import Bench, Findings, slice_of
from prefopt.evaluate.weighted import mean_of_sections
from prefopt.types import TokenTree

TIES = "ties"
MOST = 1.01
"""What a question of Ties counts at most."""


class Row(NamedTuple):
    """A row: its tree, the scores of its answers, which of them are right, its subset and the benchmark's id."""

    tree: TokenTree
    scores: np.ndarray
    right: np.ndarray
    subset: str
    id: str

    @property
    def credit(self) -> float:
        """The share of the highest-scored answers that are right."""
        best = self.scores == self.scores.max()
        return float((best & self.right).sum() / best.sum())

    @property
    def gap(self) -> float:
        """The worst right answer less the best wrong one."""
        return float(self.scores[self.right].min() - self.scores[~self.right].max())


def is_second(bench: Bench) -> bool:
    """Whether the rows have more than two answers."""
    return any(len(tree.branches) > 2 for tree in bench.trees)


def run(bench: Bench) -> Findings:
    """Score of every subset and their mean; writes `rewardbench/eval-set` and `rewardbench/eval-set-scores`.

    Raises:
        OptionError: a reward model and a baseline.
        DataError: no row has right and wrong answers.
    """
    rows = _scored(bench)
    plain = [row for row in rows if row.subset.lower() != TIES]
    tied, alone = _questions([row for row in rows if row.subset.lower() == TIES])
    values = np.array([row.credit for row in plain] + [value for _, _, value in tied])
    subsets = [row.subset for row in plain] + [subset for _, subset, _ in tied]
    clusters = [group_key(row.tree) for row in plain] + [name.encode() for name, _, _ in tied]
    if not len(values):
        raise DataError("no row has a score of its own", where="Ties", fix='a question of Ties needs its rows "ref:N" and "tied:N"')
    score, sections = mean_of_sections(values, subsets, np.ones(len(values)), clusters, most=MOST if tied else 1.0)
    figures = [bench.figure("rewardbench2", score)]
    figures += [bench.figure("accuracy", found, slice=name) for name, found in sections.items()]
    _write(bench, rows, {name: found.value for name, found in sections.items()})
    notes = {"sections": ", ".join(sections), **({"ties_without_partner": alone} if alone else {})}
    told = f"RewardBench 2 score {score.value:.1%} [{score.low:.1%}, {score.high:.1%}] over {len(sections)} subsets"
    return Findings(figures, notes, [], told)


def _scored(bench: Bench) -> list[Row]:
    """Every row with right and wrong answers."""
    given = pairs.branch_rewards(bench)
    examples = {row.where: row for row in bench.rows}
    found = []
    for tree, scores in zip(bench.trees, given, strict=True):
        right = np.array([branch.rank == 0 for branch in tree.branches])
        row = examples.get(tree.where)
        if right.any() and not right.all():
            name = str(row.meta.get("id", "")) if row is not None else ""
            found.append(Row(tree, np.asarray(scores), right, slice_of(row) if row is not None else tree.source or "data", name))
    return found


def _questions(rows: Sequence[Row]) -> tuple[list[tuple[str, str, float]], int]:
    """(id, subset, value) of every question of Ties that has both rows, and how many rows have no partner."""
    named = {row.id: row for row in rows}
    both = [name.partition(":")[2] for name in named if name.startswith("ref:") and f"tied:{name.partition(':')[2]}" in named]
    found = [(name, named[f"ref:{name}"].subset, question(named[f"ref:{name}"], named[f"tied:{name}"])) for name in both]
    return found, len(rows) - 2 * len(both)


def question(ref: Row, tied: Row) -> float:
    """What a question of Ties counts, see the module."""
    apart, gap = float(np.ptp(tied.scores[tied.right])), min(ref.gap, tied.gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = float(np.nan_to_num(np.tanh(np.divide(gap, apart) - 1)))
    return 0.3 * (ref.gap > 0) + 0.3 * (tied.gap > 0) + 0.2 * (tied.gap > apart) + 0.2 * (gap > apart) + 0.01 * margin


def _write(bench: Bench, rows: Sequence[Row], scores: dict[str, float]) -> None:
    """RewardBench 2's two files: a score a subset, and the columns of all rows, the right answers of each first."""
    folder, name, model = bench.out / "rewardbench", bench.model.name.replace("/", "_"), bench.model.model
    kind = "Seq. Classifier" if pairs.reads(bench) == "reward" else "DPO"
    about = {"model": bench.model.path, "model_type": kind, "chat_template": "tokenizer" if model.renderer.template else None}
    orders = [np.argsort(~row.right, kind="stable") for row in rows]
    columns: dict[str, Any] = {
        "id": [row.id for row in rows],
        "subset": [row.subset for row in rows],
        "num_correct": [int(row.right.sum()) for row in rows],
        "text": [
            [model.renderer.decode([*row.tree.prompt, *row.tree.branches[i].ids]) for i in order]
            for row, order in zip(rows, orders, strict=True)
        ],
        "scores": [row.scores[order].tolist() for row, order in zip(rows, orders, strict=True)],
        "results": [None if row.subset.lower() == TIES else row.credit for row in rows],
    }
    for part, content in (("eval-set", {**about, **scores}), ("eval-set-scores", {**columns, **about})):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
