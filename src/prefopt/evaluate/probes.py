"""What a reward model likes besides what people like: length, courtesy, format. Two shares of the same pairs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from prefopt.stats import Interval, clustered_mean
from prefopt.text.surface import MARKERS

FEWEST = 20
"""Pairs in which just one of two answers has a marker, below which nothing is said of it."""


class Probe(NamedTuple):
    """Of the pairs whose answers differ in something, how often people chose the one that has (more of) it, and how often the model would.

    The model's share is the mean of its calibrated probabilities: its mere choices would look extreme beside people's, who are not sure.
    """

    name: str
    people: float
    model: Interval
    excess: Interval
    """Model less people, pair by pair; apart from 0 it likes the thing more, or less, than the people it was taught by."""

    @property
    def clear(self) -> bool:
        """Whether the difference is more than chance."""
        return not self.excess.low <= 0 <= self.excess.high


def probes(texts: Sequence[tuple[str, str]], logits: np.ndarray, lengths: np.ndarray, groups: Sequence[bytes]) -> list[Probe]:
    """Length first, then every marker that enough pairs differ in.

    Args:
        texts: chosen and rejected answer of each pair.
        logits: [n] the model's score of the chosen answer less the other's, divided by the temperature.
        lengths: [n, 2] tokens of both.
        groups: pairs that go together.
    """
    longer = np.sign(lengths[:, 0] - lengths[:, 1])
    found = [_probe("the longer answer", longer, logits, groups)]
    for name, marked in MARKERS.items():
        has = np.array([[bool(marked(text)) for text in pair] for pair in texts], dtype=np.int64).reshape(-1, 2)
        found.append(_probe(name, has[:, 0] - has[:, 1], logits, groups))
    return [probe for probe in found if probe is not None]


def _probe(name: str, side: np.ndarray, logits: np.ndarray, groups: Sequence[bytes]) -> Probe | None:
    """`side` is 1 where the chosen answer has it, -1 where the rejected one has, 0 where both or neither."""
    apart = side != 0
    if apart.sum() < FEWEST:
        return None
    people = (side[apart] > 0).astype(np.float64)
    model = expit(logits[apart] * side[apart])
    inside = [group for group, kept in zip(groups, apart, strict=True) if kept]
    return Probe(name, float(people.mean()), clustered_mean(model, inside), clustered_mean(model - people, inside))


def correlation(margins: np.ndarray, lengths: np.ndarray) -> float:
    """Spearman's correlation of the margin with the difference of lengths; nan where one of them does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(x) for x in (margins, lengths[:, 0] - lengths[:, 1])]
    return float(np.corrcoef(ranks)[0, 1]) if all(np.ptp(r) > 0 for r in ranks) else float("nan")
