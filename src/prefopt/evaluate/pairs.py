"""The pairs suite: does a model prefer what people preferred?

A reward model by its scores; a policy by its implicit reward log pi(y|x) - log ref(y|x), or by log pi(y|x) alone without a reference.
A model that scores both answers alike gets one half. Beside the accuracy stand its calibration, what choosing the longer answer would
get, and how much the rewards themselves follow length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from prefopt.data.split import group_key
from prefopt.errors import DataError, OptionError
from prefopt.evaluate.bench import Bench, Findings
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import kept, slices
from prefopt.pack.tree import ranked_pairs
from prefopt.rollout.policy import LanguageModel, RewardModel
from prefopt.stats import bootstrap, brier_interval, calibration_interval, fit_temperature, reliability_curve, win_rate
from prefopt.types import TokenTree

SHOWN = 200
"""Pairs written out for people to read."""
BINS = 10
"""Bins of the reliability curve, with as many pairs each."""


class Pair(NamedTuple):
    """A preference: its tree and the branches of the better and the worse answer."""

    tree: TokenTree
    chosen: int
    rejected: int

    @property
    def lengths(self) -> tuple[int, int]:
        """Scored tokens of both."""
        return tuple(int(self.tree.branches[i].scored.sum()) for i in (self.chosen, self.rejected))  # type: ignore[return-value]


class Measured(NamedTuple):
    """The preferences of some trees and what a model gives both answers: `values` [n, 2], chosen first."""

    pairs: list[Pair]
    values: np.ndarray

    @property
    def groups(self) -> list[bytes]:
        """Pairs of one group go together."""
        return [group_key(pair.tree) for pair in self.pairs]

    @property
    def lengths(self) -> np.ndarray:
        """Scored tokens [n, 2], chosen first."""
        return np.array([pair.lengths for pair in self.pairs])


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    return "" if bench.trees else "rows with a preference (two completions of unequal rank)"


def run(bench: Bench) -> Findings:
    """Accuracy on preference pairs.

    Raises:
        OptionError: a reward model and a baseline.
        DataError: no row has two completions of unequal rank.
    """
    found = measure(bench)
    names = [pair.tree.source or "data" for pair in found.pairs]
    figures = [f for part, mask in slices(names) for f in accuracy(bench, found, mask, part)]
    more, told_of = calibration(bench, found)
    figures += [*more, *length_bias(bench, found)]
    notes: dict[str, Any] = {**told_of, "reads": reads(bench), "prompts": len(bench.trees), "groups": len(set(found.groups))}
    samples = [_sample(bench, pair, values) for pair, values in zip(found.pairs[:SHOWN], found.values, strict=False)]
    return Findings(figures, notes, samples, told(figures, notes["reads"]))


def measure(bench: Bench) -> Measured:
    """What the model gives the two answers of every preference.

    Raises:
        OptionError: a reward model and a baseline.
        DataError: no row has two completions of unequal rank.
    """
    found = _preferences(bench.trees, branch_rewards(bench))
    if not found.pairs:
        raise DataError("no row holds a preference (two completions of unequal rank)", fix="see `prefopt data check`")
    return found


def branch_rewards(bench: Bench) -> list[np.ndarray]:
    """For each tree what the model gives its branches, less what the baseline gives them.

    Raises:
        OptionError: a reward model and a baseline.
    """
    model, reference = bench.model.model, bench.baseline.model if bench.baseline else None
    if reference is not None and isinstance(model, RewardModel):
        raise OptionError("a reward model is measured against no reference", where="baseline", fix="leave baseline out")
    own = rewards(model, bench.trees) if bench.trees else []
    if reference is None or not own:
        return own
    return [mine - theirs for mine, theirs in zip(own, rewards(reference, bench.trees), strict=True)]


def chosen_and_rejected(model: LanguageModel, trees: Sequence[TokenTree]) -> Measured:
    """What a model gives both answers of each preference: a reward model its score, a policy the log-prob in nats."""
    return _preferences(trees, rewards(model, trees) if trees else [])


def _preferences(trees: Sequence[TokenTree], given: Sequence[np.ndarray]) -> Measured:
    told = zip(trees, given, strict=True)
    found = [(Pair(tree, i, j), values[[i, j]]) for tree, values in told for i, j in ranked_pairs(tree.branches)]
    return Measured([pair for pair, _ in found], np.array([values for _, values in found]).reshape(-1, 2))


def rewards(model: Any, trees: Sequence[TokenTree]) -> list[np.ndarray]:
    """For each tree one number a branch."""
    branches = [replace(tree, branches=(branch,)) for tree in trees for branch in tree.branches]
    alone = [replace(tree, index=i) for i, tree in enumerate(branches)]
    found = np.array(model.tree_scores(alone) if isinstance(model, RewardModel) else model.tree_logprobs(alone))
    return np.split(found, np.cumsum([len(tree.branches) for tree in trees])[:-1])


def accuracy(bench: Bench, found: Measured, mask: np.ndarray, part: str) -> list[Figure]:
    """Accuracy and the longer answer's, of one slice; the intervals allow for pairs of one group going together."""
    inside = kept(found.groups, mask)
    measured = {"accuracy": found.values, "longer_is_chosen": found.lengths}
    rates = {metric: win_rate(*values[mask].T, clusters=inside) for metric, values in measured.items()}
    return [bench.figure(metric, rate, slice=part) for metric, rate in rates.items()]


def calibration(bench: Bench, found: Measured) -> tuple[list[Figure], dict[str, Any]]:
    """How well sigmoid(reward difference) tells the chance of being preferred: ECE, Brier score, and the reliability curve.

    Both orders of each pair are used, so that both sides are measured; a policy's rewards are multiplied by `beta`. Confidence is the
    probability given to the answer that the model prefers.
    """
    margins = (bench.beta if reads(bench) != "reward" else 1.0) * (found.values[:, 0] - found.values[:, 1])
    both, labels = np.concatenate([margins, -margins]), np.repeat([1.0, 0.0], len(margins))
    probs = 0.5 * (1 + np.tanh(both / 2))
    clusters = found.groups * 2
    groups = len(set(clusters))
    if groups < 2:
        return [], {}
    ece = calibration_interval(probs, labels, BINS, rng=bench.rng("calibration"), binning="mass", clusters=clusters)
    figures = [
        bench.figure("ece", ece._replace(n=len(margins))),
        bench.figure("brier", brier_interval(probs, labels, clusters=clusters)._replace(n=len(margins))),
    ]
    bins = reliability_curve(probs[: len(margins)], labels[: len(margins)], BINS, kind="confidence", binning="mass")
    sure = [(b.mean_prob, *b.frequency[:3], b.n) for b in bins]
    notes = {"calibration": [dict(zip(("confidence", "accuracy", "low", "high", "n"), point, strict=True)) for point in sure]}
    return figures, {**notes, "calibration_temperature": fit_temperature(both, labels)}


def length_bias(bench: Bench, found: Measured) -> list[Figure]:
    """Accuracy where the better answer is the longer one and where it is the shorter, and how the reward follows length.

    `length_correlation` is Pearson's correlation of the reward difference with the difference of length; people's own preference for length
    is `longer_is_chosen`.
    """
    gap = found.lengths[:, 0] - found.lengths[:, 1]
    parts = [("better is longer", gap > 0), ("better is shorter", gap < 0)]
    figures = [f for part, mask in parts if mask.any() for f in accuracy(bench, found, mask, part)[:1]]
    margins = found.values[:, 0] - found.values[:, 1]
    if len(margins) > 2 and np.ptp(gap) > 0 and np.ptp(margins) > 0:
        both = np.stack([margins, gap], 1)
        interval = bootstrap(both, _correlation, rng=bench.rng("length"), clusters=found.groups)
        figures.append(bench.figure("length_correlation", interval))
    return figures


def _correlation(x: np.ndarray) -> float:
    """Pearson's, of pairs in either order: both differences change sign together, so their means are 0."""
    squares = float((x[:, 0] ** 2).sum() * (x[:, 1] ** 2).sum())
    return float((x[:, 0] * x[:, 1]).sum()) / squares**0.5 if squares > 0 else 0.0


def reads(bench: Bench) -> str:
    """What the model is judged by."""
    if isinstance(bench.model.model, RewardModel):
        return "reward"
    return "implicit reward" if bench.baseline is not None else "log-prob"


def told(figures: Sequence[Figure], by: str) -> str:
    """The line to print."""
    found, longer = figures[:2]
    return (
        f"accuracy {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] on {found.n} pairs ({by}); "
        f"the longer answer is chosen in {longer.value:.1%}"
    )


def _sample(bench: Bench, pair: Pair, values: np.ndarray) -> dict[str, Any]:
    """One row of samples.jsonl: the two answers, as the model reads them, under the names chosen and rejected."""
    decode = bench.model.model.renderer.decode
    named = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "prompt": decode(pair.tree.prompt),
        "slice": pair.tree.source or "data",
        "where": pair.tree.where,
        "answers": {name: decode(pair.tree.branches[i].ids) for name, i in named.items()},
        "reward": dict(zip(named, map(float, values), strict=True)),
        "model": bench.model.name,
    }
