"""Models of comparisons between two items, and the Newton solver that fits them to many resamples at once.

A model gives the log-likelihood of the comparisons of two items with its first and second derivatives by the difference d of their
log-strengths and by a tie parameter t. Comparisons are summed in items x items matrices, so a fit costs the same for a thousand comparisons
and for a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prefopt.stats.intervals import Floats, Ints

_STEPS, _TOLERANCE, _LONGEST_STEP = 100, 1e-10, 2.0


class Cell(NamedTuple):
    """Log-likelihood of the comparisons of two items, its gradient and Hessian by (difference d, tie parameter t); each [R, n, n]."""

    value: Floats
    d: Floats
    t: Floats
    dd: Floats
    dt: Floats
    tt: Floats


class PairModel(NamedTuple):
    """A model of one comparison.

    `cell(wins [R, n, n], ties [R, n, n], d, t [R, 1, 1])` gives its likelihood; wins count row beat column, ties are symmetric and each
    counts one half in either of its two cells. `start` is where the tie parameter starts, None in a model without one, and
    `tie(t)` is the parameter as the literature writes it; `positive` says that t has to stay above 0.
    """

    name: str
    cell: Callable[[Floats, Floats, Floats, Floats], Cell]
    start: float | None
    tie: Callable[[float], float]
    positive: bool = False

    @property
    def free(self) -> bool:
        """Whether there is a tie parameter to fit."""
        return self.start is not None


# --- the models -------------------------------------------------------------------------------------------------------


def half_ties(wins: Floats, ties: Floats, d: Floats, t: Floats) -> Cell:
    """Bradley-Terry, ties half a win for each."""
    p, won, nothing = _sigmoid(d), wins + ties / 2, np.zeros(1)
    return Cell(won * _log_sigmoid(d), won * (1 - p), nothing, -won * p * (1 - p), nothing, nothing)


def davidson_ties(wins: Floats, ties: Floats, d: Floats, t: Floats) -> Cell:
    """Davidson. Log-weights of win, tie, loss: d/2, t, -d/2 with t = log nu; a tie stands in two cells, half in each."""
    top = np.maximum(np.abs(d) / 2, t)
    win, tie, lose = np.exp(d / 2 - top), np.exp(t - top), np.exp(-d / 2 - top)
    total = win + tie + lose
    log_total, mean_d, p = np.log(total) + top, (win - lose) / (2 * total), tie / total
    games, halves = wins + ties / 2, ties / 2
    spread = (win + lose) / (4 * total) - mean_d**2
    return Cell(
        wins * d / 2 + halves * t - games * log_total,
        wins / 2 - games * mean_d,
        halves - games * p,
        -games * spread,
        games * p * mean_d,
        -games * p * (1 - p),
    )


def rao_kupper_ties(wins: Floats, ties: Floats, d: Floats, t: Floats) -> Cell:
    """Rao and Kupper. Win s(d - t), loss s(-d - t), tie (tau² - 1) s(d - t) s(-d - t), with t = log tau > 0 and s the sigmoid.

    In t, unlike in log t, the likelihood is concave.
    """
    p, q, halves = _sigmoid(d - t), _sigmoid(-d - t), ties / 2
    slope_p, slope_q, first = p * (1 - p), q * (1 - q), wins + halves
    grow = 1 / -np.expm1(-2 * t)  # half the derivative of log(tau² - 1)
    return Cell(
        first * _log_sigmoid(d - t) + halves * (_log_sigmoid(-d - t) + np.log(np.expm1(2 * t))),
        first * (1 - p) - halves * (1 - q),
        -first * (1 - p) - halves * (1 - q) + halves * 2 * grow,
        -first * slope_p - halves * slope_q,
        first * slope_p - halves * slope_q,
        -first * slope_p - halves * slope_q - halves * 4 * np.exp(-2 * t) * grow**2,
    )


HALF = PairModel("Bradley-Terry", half_ties, None, lambda t: math.nan)
DAVIDSON = PairModel("Davidson", davidson_ties, 0.0, math.exp)
RAO_KUPPER = PairModel("Rao-Kupper", rao_kupper_ties, 0.4, lambda t: math.exp(max(0.0, t)), positive=True)


# --- the solver -------------------------------------------------------------------------------------------------------


def newton(model: PairModel, wins: Floats, ties: Floats, ridge: Floats | float, start: Floats | None = None) -> Floats:
    """Maximise the log-likelihood of R problems at once; returns [R, n] thetas of mean 0, then the tie parameter where there is one.

    Args:
        model: of one comparison.
        wins: [R, n, n].
        ties: [R, n, n].
        ridge: of all problems, or [R].
        start: where to start, as returned.
    """
    count, n = wins.shape[:2]
    held = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (count,))
    x = np.zeros((count, n + model.free))
    x[:, n:] = model.start or 0.0
    if start is not None:
        x[:] = start
    left = np.arange(count)
    for _ in range(_STEPS):
        gradient, information = _slopes(model, wins[left], ties[left], held[left], x[left])
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1)
        allowed = np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _LONGEST_STEP))
        if model.positive:  # a step goes at most nine tenths of the way to 0
            allowed = np.minimum(allowed, 0.9 * x[left, n] / np.maximum(-step[:, n], 0.9 * x[left, n]))
        x[left] += step * allowed[:, None]
        left = left[longest > _TOLERANCE]
        if not len(left):
            break
    x[:, :n] -= x[:, :n].mean(axis=1, keepdims=True)
    return x


def _slopes(model: PairModel, wins: Floats, ties: Floats, ridge: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Gradient [R, n (+ 1)] and negative Hessian of the log-likelihood, less ridge * sum theta².

    The likelihood does not change when all thetas move together: adding 1 / n to the Hessian pins their mean and changes nothing else.
    """
    n = wins.shape[1]
    theta, t = x[:, :n], x[:, n:, None] if model.free else np.zeros((len(x), 1, 1))
    found = model.cell(wins, ties, theta[:, :, None] - theta[:, None, :], t)
    gradient = np.zeros_like(x)
    gradient[:, :n] = found.d.sum(axis=2) - found.d.sum(axis=1) - 2 * ridge[:, None] * theta
    pulls = -(found.dd + found.dd.transpose(0, 2, 1))
    information = np.zeros((len(x), x.shape[1], x.shape[1]))
    information[:, :n, :n] = np.eye(n) * pulls.sum(axis=2)[:, :, None] - pulls + 1 / n + 2 * ridge[:, None, None] * np.eye(n)
    if model.free:
        gradient[:, n] = found.t.sum(axis=(1, 2))
        across = -(found.dt.sum(axis=2) - found.dt.sum(axis=1))
        information[:, :n, n] = information[:, n, :n] = across
        information[:, n, n] = -found.tt.sum(axis=(1, 2))
    return gradient, information


def covariance(model: PairModel, wins: Floats, ties: Floats, x: Floats, ridge: float, scores: Floats | None = None) -> Floats:
    """Of the thetas [n, n]: the centred inverse information, or the sandwich of it around the clusters' scores (Huber 1967).

    Args:
        model: of one comparison.
        wins: [1, n, n].
        ties: [1, n, n].
        x: the fit, as `newton` returns it.
        ridge: as it was fitted.
        scores: [G, n (+ 1)] gradients of the log-likelihood, one row a cluster.
    """
    n = wins.shape[1]
    inverse = np.linalg.inv(_slopes(model, wins, ties, np.array([ridge]), x)[1][0])
    if scores is not None:
        inverse = inverse @ (scores.T @ scores * len(scores) / max(1, len(scores) - 1)) @ inverse
    centre = np.eye(n) - 1 / n
    return np.asarray(centre @ inverse[:n, :n] @ centre)


def scores_of(model: PairModel, won: Ints, tied: Ints, x: Floats) -> Floats:
    """The gradient of each comparison's log-likelihood [N, n (+ 1)], wins first, then ties; `x` is one fit [n (+ 1)]."""
    pairs, n = np.concatenate([won, tied]), len(x) - model.free
    d = (x[pairs[:, 0]] - x[pairs[:, 1]])[:, None, None]
    t = np.full_like(d, x[n]) if model.free else np.zeros_like(d)
    tie = (np.arange(len(pairs)) >= len(won)).astype(np.float64)[:, None, None]
    here, mirror = model.cell(1 - tie, tie, d, t), model.cell(np.zeros_like(d), tie, -d, t)
    out, rows = np.zeros((len(pairs), len(x))), np.arange(len(pairs))
    out[rows, pairs[:, 0]] = (here.d - mirror.d)[:, 0, 0]
    out[rows, pairs[:, 1]] = (mirror.d - here.d)[:, 0, 0]
    if model.free:
        out[:, n] = (here.t + mirror.t)[:, 0, 0]
    return out


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0.0, -x)
