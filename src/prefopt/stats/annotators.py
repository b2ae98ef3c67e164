"""How good each annotator is, without knowing the right labels: the Dawid-Skene model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.stats.intervals import Floats, Ints, sum_by


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """What the model found. Shape letters: U units, A annotators, K labels."""

    units: tuple[Any, ...]
    annotators: tuple[Any, ...]
    labels: tuple[Any, ...]
    posterior_UK: Floats
    """P(true label | all votes)."""
    confusion_AKK: Floats
    """[a, k, l] = P(annotator a says l | the truth is k)."""
    prior_K: Floats
    """How frequent each true label is."""
    votes_A: Ints
    """Votes each annotator gave."""
    log_likelihood: float
    steps: int
    """EM steps until it settled."""

    def consensus(self) -> dict[Any, Any]:
        """The most probable label of each unit."""
        return {unit: self.labels[k] for unit, k in zip(self.units, self.posterior_UK.argmax(axis=1), strict=True)}

    def accuracy(self) -> dict[Any, float]:
        """How often each annotator is right, by the model: sum_k prior_k P(says k | truth k)."""
        right = np.einsum("k,akk->a", self.prior_K, self.confusion_AKK)
        return dict(zip(self.annotators, right.tolist(), strict=True))


def dawid_skene(votes: Sequence[tuple[Hashable, Hashable, Hashable]], *, smoothing: float = 0.01, steps: int = 500) -> DawidSkene:
    """Annotators' confusion matrices, and what the true labels probably are, by expectation maximisation.

    P(votes of a unit) = sum_k prior_k prod_a confusion[a, k, vote]  (Dawid and Skene 1979, Appl. Stat. 28, eq. 2.3 to 2.5). It starts from
    each unit's vote shares and stops when the log-likelihood gains less than 1e-8 a vote.

    Args:
        votes: (unit, annotator, label), in any order.
        smoothing: added to every cell of a confusion matrix, in votes, so that an annotator with three votes is not certain.
        steps: EM steps at most.

    Raises:
        ValueError: no votes, fewer than two annotators, fewer than two labels, or an annotator who votes twice on a unit.
    """
    columns = list(zip(*votes, strict=True)) or [(), (), ()]
    units, annotators, labels = places = [_distinct(column) for column in columns]
    if len(annotators) < 2 or len(labels) < 2:
        raise ValueError(f"{len(annotators)} annotators and {len(labels)} labels: two or more of each are needed")
    u, a, label = (np.array([place[v] for v in column]) for place, column in zip(places, columns, strict=True))
    if len(np.unique(u * len(annotators) + a)) < len(votes):
        raise ValueError("an annotator has two votes on one unit")
    k, said = len(labels), np.eye(len(labels))[label]
    posterior = sum_by(u, said, len(units))
    posterior /= posterior.sum(axis=1, keepdims=True)
    before = -np.inf
    for step in range(1, steps + 1):  # noqa: B007
        prior = posterior.mean(axis=0)
        confusion = sum_by(a, (posterior[u][:, :, None] * said[:, None, :]).reshape(len(u), -1), len(annotators)).reshape(-1, k, k)
        confusion = (confusion + smoothing) / (confusion + smoothing).sum(axis=2, keepdims=True)
        joint = np.log(np.maximum(prior, 1e-300)) + sum_by(u, np.log(confusion)[a, :, label], len(units))
        top = joint.max(axis=1, keepdims=True)
        likelihood = np.exp(joint - top)
        total = float((top[:, 0] + np.log(likelihood.sum(axis=1))).sum())
        posterior = likelihood / likelihood.sum(axis=1, keepdims=True)
        if total - before < 1e-8 * len(u):
            break
        before = total
    return DawidSkene(
        units=tuple(units),
        annotators=tuple(annotators),
        labels=tuple(labels),
        posterior_UK=posterior,
        confusion_AKK=confusion,
        prior_K=prior,
        votes_A=np.bincount(a),
        log_likelihood=total,
        steps=step,
    )


def _distinct(values: Sequence[Hashable]) -> dict[Hashable, int]:
    return {value: i for i, value in enumerate(dict.fromkeys(values))}
