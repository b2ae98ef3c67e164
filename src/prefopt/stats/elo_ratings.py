"""Elo ratings: one update a battle, in the order played; over many shuffles, the order averages out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.stats.intervals import Floats, Interval, Ints, cluster_codes

Battle = tuple[Hashable, Hashable, Any] | tuple[Hashable, Hashable]
"""(model a, model b, who won): "a", "b", "tie", the words of other files (model_a, model_b, tie (bothbad)), or a's score from 0 to 1.
Of two names alone the first has won."""

_SCORES = {"a": 1.0, "model_a": 1.0, "b": 0.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both": 0.5, "neither": 0.5}


@dataclass(frozen=True, kw_only=True)
class EloDraws:
    """Ratings of many shuffles or bootstrap resamples."""

    items: tuple[Any, ...]
    draws: Floats
    """[R, n]."""
    n: int
    method: str

    @property
    def ratings(self) -> dict[Any, float]:
        """The mean over the draws."""
        return dict(zip(self.items, self.draws.mean(axis=0).tolist(), strict=True))

    def intervals(self, confidence: float = 0.95) -> dict[Any, Interval]:
        """Quantiles of the draws around their mean."""
        low, high = np.quantile(self.draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        ends = zip(self.items, self.draws.mean(axis=0), low, high, self.draws.std(axis=0), strict=True)
        return {item: Interval(float(m), float(lo), float(hi), self.n, self.method, confidence, float(e)) for item, m, lo, hi, e in ends}


def outcome(winner: Any) -> float:
    """The score of model a: 1 for a win, 0.5 for a tie, 0 for a loss.

    Raises:
        ValueError: no word or number that says who won.

    >>> outcome("model_b")
    0.0
    """
    if isinstance(winner, str) and winner.strip().lower() in _SCORES:
        return _SCORES[winner.strip().lower()]
    if isinstance(winner, int | float | np.number) and 0 <= winner <= 1:
        return float(winner)
    raise ValueError(f"winner {winner!r}; known: a, b, tie, model_a, model_b, or the score of a from 0 to 1")


def elo(battles: Sequence[Battle], k: float = 4.0, scale: float = 400.0, base: float = 10.0, initial: float = 1000.0) -> dict[Any, float]:
    """Ratings after the battles in the order given.

    E_a = 1 / (1 + base^((R_b - R_a) / scale)); R_a += k (S_a - E_a), R_b -= k (S_a - E_a), S_a = 1, 1/2 or 0  (Elo 1978, "The Rating of
    Chessplayers", sec. 1.4). The sum of all ratings never changes. The order matters: see `elo_draws`.

    Args:
        battles: (model a, model b, who won): "a", "b", "tie", or a's score.
        k: points at stake in a battle.
        scale: difference in points at which the odds are `base` to 1.
        base: of the odds.
        initial: rating before the first battle.

    Raises:
        ValueError: no battles, a model against itself, or a winner that is none.

    >>> elo([("x", "y", "a")], k=32)
    {'x': 1016.0, 'y': 984.0}
    """
    items, a, b, score = _columns(battles)
    ratings, slope = [float(initial)] * len(items), math.log(base) / scale
    for i, j, s in zip(a.tolist(), b.tolist(), score.tolist(), strict=True):
        change = k * (s - 1 / (1 + math.exp(slope * (ratings[j] - ratings[i]))))
        ratings[i] += change
        ratings[j] -= change
    return dict(zip(items, ratings, strict=True))


def elo_draws(
    battles: Sequence[Battle],
    *,
    rng: np.random.Generator,
    draws: int = 1000,
    resample: bool = True,
    clusters: Sequence[Hashable] | None = None,
    k: float = 4.0,
    scale: float = 400.0,
    base: float = 10.0,
    initial: float = 1000.0,
) -> EloDraws:
    """Elo ratings of many random orders of the battles, all played at once.

    Args:
        battles: as in `elo`.
        rng: the randomness.
        draws: how many orders.
        resample: draw the battles with replacement first (a bootstrap, whose quantiles are intervals); otherwise only shuffle, which
            shows how much the order alone matters.
        clusters: names for battles that go together (one prompt), drawn together.
        k: as in `elo`, and so on.
        scale: as in `elo`.
        base: as in `elo`.
        initial: as in `elo`.

    Raises:
        ValueError: as in `elo`.
    """
    items, a, b, score = _columns(battles)
    order = _orders(cluster_codes(clusters, len(a)), draws, resample, rng)
    ratings, rows, slope = np.full((draws, len(items)), float(initial)), np.arange(draws), math.log(base) / scale
    for picked in order:
        playing = picked >= 0  # a resample of whole clusters may be shorter than another
        battle = np.maximum(picked, 0)
        i, j = a[battle], b[battle]
        expected = 1 / (1 + np.exp(slope * (ratings[rows, j] - ratings[rows, i])))
        change = np.where(playing, k * (score[battle] - expected), 0.0)
        ratings[rows, i] += change
        ratings[rows, j] -= change
    how = "shuffles" if not resample else "bootstrap" if clusters is None else "clustered bootstrap"
    return EloDraws(items=tuple(items), draws=ratings, n=len(a), method=how)


def _orders(codes: Ints, draws: int, resample: bool, rng: np.random.Generator) -> Ints:
    """Which battle each draw plays at each step [steps, draws]; -1 past the end."""
    groups = int(codes.max()) + 1
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    found = []
    for _ in range(draws):
        if not resample:
            found.append(rng.permutation(len(codes)))
            continue
        groups_drawn = rng.integers(groups, size=groups)
        drawn = groups_drawn if groups == len(codes) else np.concatenate([members[g] for g in groups_drawn])
        found.append(rng.permutation(drawn))
    out = np.full((max(len(row) for row in found), draws), -1, dtype=np.int64)
    for r, row in enumerate(found):
        out[: len(row), r] = row
    return out


def _columns(battles: Sequence[Battle]) -> tuple[list[Any], Ints, Ints, Floats]:
    """Items in the order they appear, and the battles as columns."""
    if not len(battles):
        raise ValueError("no battles")
    place: dict[Hashable, int] = {}
    a = np.array([place.setdefault(battle[0], len(place)) for battle in battles])
    b = np.array([place.setdefault(battle[1], len(place)) for battle in battles])
    if (a == b).any():
        raise ValueError(f"battle {int(np.argmax(a == b)) + 1} is of a model against itself")
    return list(place), a, b, np.array([outcome(battle[2]) if len(battle) > 2 else 1.0 for battle in battles])
