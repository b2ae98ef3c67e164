"""The truth suite: what is known for certain of a policy's answers to requests of the synthetic world.

Figures: gold reward; correctness; habits (hedging, flattery, padding); length. Each for the model, for the baseline, and as their paired
difference. Refusals are the safety suite's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefopt.evaluate.bench import Answers, Bench, Findings, sample_row, slice_of
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import slices
from prefopt.types import Example
from prefopt.world import facts

SHARES = ("correct", "hedged", "flattering", "padded", "fluent")
"""Attributes of answers told as shares of all."""


def known(row: Example) -> bool:
    """Whether the row is a request of the world, so that the truth of any answer is known."""
    return {"world", "slice", "slots"} <= row.meta.keys()


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    return "" if bench.can_answer and bench.requests(known) else "a policy, and rows of the synthetic world (with its `meta`)"


def column(own: Answers, name: str) -> np.ndarray:
    """One attribute of every answer, as numbers."""
    pairs = zip(own.rows, own.texts, strict=True)
    return np.array([facts(row.meta, text)[name] for row, text in pairs], dtype=np.float64)


def run(bench: Bench) -> Findings:
    """Answer every request of the world and look at each answer."""
    rows = bench.requests(known)
    answers = [bench.answers(who, rows) for who in bench.subjects]
    requests, clusters = answers[0].rows, answers[0].clusters
    parts = slices([slice_of(row) for row in requests])
    columns = {name: [column(own, name) for own in answers] for name in ("gold", "length_words", *SHARES)}
    figures = [f for name, values in columns.items() for f in bench.compare(name, values, clusters, parts, share=name in SHARES)]
    samples = [sample_row(i, row, answers, gold=columns["gold"]) for i, row in enumerate(requests)]
    notes = {"temperature": bench.rollout.temperature, "samples_per_prompt": bench.rollout.samples}
    return Findings(figures, notes, samples, _told(figures, bench))


def _told(figures: Sequence[Figure], bench: Bench) -> str:
    gold = {f.model: f for f in figures if (f.metric, f.slice, f.difference_from) == ("gold", "all", "")}
    after = gold[bench.model.name]
    told = f"gold {after.value:.2f} [{after.low:.2f}, {after.high:.2f}]"
    return f"{told}, before {gold[bench.baseline.name].value:.2f}" if bench.baseline else told
