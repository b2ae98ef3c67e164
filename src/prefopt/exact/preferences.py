"""Preferences between completions, and what learning from all of them at once comes to.

A preference matrix [K, K] holds P(i beats j) with ½ on the diagonal; a weight matrix [K, K], symmetric with zero diagonal, says how often
each pair is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.special import entr, expit, log_expit

from prefopt.exact.laws import Array, implicit_rewards


def bradley_terry(rewards: npt.ArrayLike) -> Array:
    """P(i beats j) = σ(r_i - r_j) [..., K, K].

    It is the law of the larger of r_i + G_i and r_j + G_j with Gumbel noise G: a difference of two Gumbels is logistic.
    """
    r = np.asarray(rewards, dtype=np.float64)
    return np.asarray(expit(r[..., :, None] - r[..., None, :]))


def gumbel_winners(rewards: npt.ArrayLike, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices [size] of the best of all completions when each draw adds fresh Gumbel noise to the rewards [K].

    The winner's law is softmax(r); between two completions it is Bradley-Terry's, and the whole order is Plackett-Luce's.
    """
    r = np.asarray(rewards, dtype=np.float64)
    return np.asarray((r + rng.gumbel(size=(size, len(r)))).argmax(-1), dtype=np.int64)


def plackett_luce(rewards: npt.ArrayLike, order: Sequence[int]) -> float:
    """Probability of an order, best first: Π_j e^{r_j} / Σ_{k >= j} e^{r_k}, over the listed completions of rewards [K].

    >>> plackett_luce([0.0, 0.0, 0.0], [2, 0, 1])
    0.16666...
    """
    strength = np.exp(np.asarray(rewards, dtype=np.float64)[list(order)])
    return float(np.prod(strength / strength[::-1].cumsum()[::-1]))


def dpo_loss(probs: npt.ArrayLike, ref_probs: npt.ArrayLike, preferences: Array, weights: Array, beta: float) -> float:
    """DPO's population loss for one prompt: the mean over compared pairs and their labels of -log σ(β (h_w - h_l)), h = log pi/ref."""
    h = implicit_rewards(probs, ref_probs, beta)
    return float((weights * preferences * -log_expit(h[:, None] - h)).sum() / (weights.sum() / 2))


def dpo_gradient(probs: npt.ArrayLike, ref_probs: npt.ArrayLike, preferences: Array, weights: Array, beta: float) -> Array:
    """Its slope on each log-prob [K]: β Σ_j w_ij (σ(β (h_i - h_j)) - P(i beats j)) / Σ pairs; it sums to 0."""
    h = implicit_rewards(probs, ref_probs, beta)
    return np.asarray(beta * (weights * (expit(h[:, None] - h) - preferences)).sum(-1) / (weights.sum() / 2))


def dpo_minimum(preferences: Array, weights: Array) -> float:
    """The least DPO can reach: the mean entropy of the labels; reached where preferences are Bradley-Terry's."""
    return float((weights * entr(preferences)).sum() / (weights.sum() / 2))


def ipo_log_ratios(preferences: Array, weights: Array, beta: float) -> Array:
    """IPO's optimum up to a constant: least squares of h_i - h_j = (P(i beats j) - ½)/β over compared pairs [K].

    With all pairs compared alike h_i = mean_j (P(i beats j) - ½)/β + constant (arXiv 2310.12036, eq. 17 and theorem 2); no preference
    model is assumed, cycles included.
    """
    laplacian = np.diag(weights.sum(-1)) - weights
    pull = (weights * (preferences - preferences.T)).sum(-1) / (2 * beta)
    return np.asarray(np.linalg.pinv(laplacian) @ pull)


def components(weights: Array) -> npt.NDArray[np.int64]:
    """Which connected part of the comparison graph each completion lies in [K]; one compared with none is a part of its own."""
    return np.asarray(connected_components(weights > 0, directed=False)[1], dtype=np.int64)


def recombine(probs: npt.ArrayLike, labels: npt.NDArray[np.int64], masses: npt.ArrayLike) -> Array:
    """The law [K] with the mass of each part of the comparison graph set anew.

    DPO's loss cannot tell these laws apart: off the support of the comparisons it constrains nothing.

    Args:
        probs: [K].
        labels: [K] part of each completion, from `components`.
        masses: mass of each part, summing to 1.
    """
    p, wanted = np.asarray(probs, dtype=np.float64), np.asarray(masses, dtype=np.float64)
    return np.asarray(p * (wanted / np.bincount(labels, weights=p))[labels])
