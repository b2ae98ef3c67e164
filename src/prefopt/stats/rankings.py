"""Plackett-Luce: log-strengths from rankings of any length, by maximum likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefopt.stats.intervals import Floats
from prefopt.stats.ratings import Ratings, check_connected

_STEPS, _TOLERANCE, _LONGEST_STEP = 100, 1e-10, 2.0


def plackett_luce(rankings: Sequence[Sequence[int]], n_items: int, *, ridge: float = 0.0) -> Ratings:
    """Plackett-Luce ratings: P(ranking) = prod_r exp(theta_{i_r}) / sum_{s >= r} exp(theta_{i_s}).

    Luce 1959, "Individual Choice Behavior"; Plackett 1975, Appl. Stat. 24. Rankings may be partial: only the items in them compete. With
    two items in each it is Bradley-Terry.

    Args:
        rankings: item indices from 0, best first, two or more in each.
        n_items: how many items there are.
        ridge: adds ridge * sum theta² to the negative log-likelihood.

    Raises:
        ValueError: no rankings, an index out of range or twice in a ranking, or, without ridge, items that were never ranked below
            the rest.

    >>> plackett_luce([(0, 1), (0, 1), (0, 1), (1, 0)], 2).theta.round(4).tolist()
    [0.5493, -0.5493]
    """
    checked = [_checked(ranking, n_items) for ranking in rankings]
    if not checked:
        raise ValueError("no rankings")
    wins = np.zeros((n_items, n_items))
    for ranking in checked:
        wins[ranking[:-1], ranking[1:]] += 1  # above the next is enough for a chain to all below
    if ridge <= 0:
        check_connected(wins)
    stages = _stages(checked, n_items)
    theta = np.zeros(n_items)
    for _ in range(_STEPS):
        gradient, information = _slopes(stages, theta, ridge)
        step = np.linalg.solve(information + 1 / n_items, gradient)
        longest = float(np.abs(step).max())
        theta = theta + step * min(1.0, _LONGEST_STEP / max(longest, _LONGEST_STEP))
        if longest < _TOLERANCE:
            break
    theta -= theta.mean()
    centre = np.eye(n_items) - 1 / n_items
    inverse = np.linalg.inv(_slopes(stages, theta, ridge)[1] + 1 / n_items)
    return Ratings(theta=theta, covariance=centre @ inverse @ centre, model="Plackett-Luce", n=len(checked))


def _checked(ranking: Sequence[int], n_items: int) -> list[int]:
    found = [int(i) for i in ranking]
    if len(found) < 2 or len(set(found)) < len(found) or min(found) < 0 or max(found) >= n_items:
        raise ValueError(f"ranking {found}: two or more different items from 0 to {n_items - 1} are needed")
    return found


def _stages(rankings: Sequence[list[int]], n_items: int) -> tuple[Floats, Floats]:
    """Every choice among the items not yet placed: who is chosen and who competes, as [stages, n] of 0 and 1."""
    length = sum(len(ranking) - 1 for ranking in rankings)
    chosen, competing = np.zeros((length, n_items)), np.zeros((length, n_items))
    at = 0
    for ranking in rankings:
        for r in range(len(ranking) - 1):
            chosen[at, ranking[r]] = 1
            competing[at, ranking[r:]] = 1
            at += 1
    return chosen, competing


def _slopes(stages: tuple[Floats, Floats], theta: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Gradient and negative Hessian of the log-likelihood less ridge * sum theta²; each stage is a softmax over who competes."""
    chosen, competing = stages
    weights = competing * np.exp(theta - theta.max())
    p = weights / weights.sum(axis=1, keepdims=True)
    gradient = (chosen - p).sum(axis=0) - 2 * ridge * theta
    return gradient, np.diag(p.sum(axis=0)) - p.T @ p + 2 * ridge * np.eye(len(theta))
