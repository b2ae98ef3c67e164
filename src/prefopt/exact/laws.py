"""The laws that preference optimization aims at, and the distances between laws.

    max over pi of  E_pi[r] - β KL(pi || ref)   is reached by   pi* = ref e^{r/β} / Z   and is worth   β log Z

β is the temperature of the tilt: β -> ∞ gives ref, β -> 0 gives ref conditioned on the best completions (all of them, when tied).
E_{pi*}[r] and KL(pi* || ref) never increase with β. The entropy of pi* has no such order: tilting away from ref may first pass the
uniform law.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import entr, logsumexp, rel_entr, softmax

Array = npt.NDArray[np.float64]


def boltzmann(ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, beta: float) -> Array:
    """The optimum of reward under a KL penalty: ref e^{r/β} / Z.

    Args:
        ref_probs: [..., K] law of the reference; completions of probability 0 stay at 0.
        rewards: [..., K].
        beta: temperature > 0, reward units per nat; infinity gives the reference.

    Returns:
        [..., K].

    Raises:
        ValueError: a law that does not sum to 1, shapes that differ, or beta <= 0.

    >>> boltzmann([0.6, 0.4], [0.0, 1.0], beta=2.0).round(4).tolist()
    [0.4764, 0.5236]
    """
    return np.asarray(softmax(_tilt(ref_probs, rewards, beta), axis=-1), dtype=np.float64)


def log_partition(ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, beta: float) -> Array:
    """log Z = log Σ ref e^{r/β} of each prompt [...]; β log Z is the optimum's value."""
    return np.asarray(logsumexp(_tilt(ref_probs, rewards, beta), axis=-1), dtype=np.float64)


def implicit_rewards(probs: npt.ArrayLike, ref_probs: npt.ArrayLike, beta: float) -> Array:
    """β log(pi/ref) [..., K]: at the optimum r - β log Z, so comparable within a prompt and never across prompts."""
    with np.errstate(divide="ignore"):
        return np.asarray(beta * (np.log(_law(probs)) - np.log(_law(ref_probs))), dtype=np.float64)


def objective(probs: npt.ArrayLike, ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, beta: float) -> Array:
    """E_pi[r] - β KL(pi || ref) of each prompt [...], what RLHF maximises."""
    return np.asarray((_law(probs) * np.asarray(rewards)).sum(-1) - beta * kl(probs, ref_probs))


def kl(probs: npt.ArrayLike, other: npt.ArrayLike) -> Array:
    """KL(p || q) = Σ p log(p/q) of each prompt [...]; infinite where p has mass and q has none."""
    return np.asarray(rel_entr(_law(probs), _law(other)).sum(-1))


def kl_gradient(probs: npt.ArrayLike, ref_probs: npt.ArrayLike) -> Array:
    """d KL(pi || ref) / d logits [..., K] = pi (log(pi/ref) - KL); it sums to 0 over completions."""
    p = _law(probs)
    return np.asarray(rel_entr(p, _law(ref_probs)) - p * kl(p, ref_probs)[..., None])


def entropy(probs: npt.ArrayLike) -> Array:
    """-Σ p log p of each prompt [...]."""
    return np.asarray(entr(_law(probs)).sum(-1))


def total_variation(probs: npt.ArrayLike, other: npt.ArrayLike) -> Array:
    """½ Σ |p - q| of each prompt [...]: the largest difference any event can show."""
    return np.asarray(0.5 * np.abs(np.asarray(probs, dtype=np.float64) - np.asarray(other, dtype=np.float64)).sum(-1))


def best_of_n(ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int) -> Array:
    """The law of the best of n independent samples of the reference; ties are broken at random.

    ref(y | r = r(y)) · (P(r <= r(y))^n - P(r < r(y))^n)  (arXiv 2401.01879, with ties). Only the order of the rewards matters.

    Args:
        ref_probs: [..., K].
        rewards: [..., K].
        n: samples >= 1; 1 gives the reference.

    Returns:
        [..., K].

    >>> best_of_n([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], n=2).tolist()
    [0.25, 0.375, 0.375]
    """
    if n < 1:
        raise ValueError(f"n={n}, at least 1 sample is needed")
    ref = _law(ref_probs)
    mine, other = np.asarray(rewards)[..., :, None], np.asarray(rewards)[..., None, :]
    up_to = (ref[..., None, :] * (other <= mine)).sum(-1)
    below = (ref[..., None, :] * (other < mine)).sum(-1)
    # The tie class has mass up_to - below; summing it on its own keeps the digits that the difference would lose.
    tied = (ref[..., None, :] * (other == mine)).sum(-1)
    return np.asarray(np.divide(ref, tied, out=np.zeros_like(ref), where=tied > 0) * (up_to**n - below**n))


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n-1)/n >= KL(best of n || ref); equal only where no two samples tie (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def tilted(ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, beta: float, log_ratio: Callable[[Array], Array]) -> Array:
    """The law ref e^{h(c)} with c = (r - λ)/β, λ chosen so that it sums to 1.

    For the tie β Σ ref f(pi/ref) the optimum has h(c) = log (f')^{-1}(c) (arXiv 2309.16240, eq. 7): h(c) = c is Boltzmann.

    Args:
        ref_probs: [..., K]; need not sum to 1 (ones: no reference).
        rewards: [..., K].
        beta: strength of the tie.
        log_ratio: h, increasing, [..., K] -> [..., K]; infinite where f' never reaches c.

    Returns:
        [..., K].
    """
    ref, r = np.broadcast_arrays(np.asarray(ref_probs, dtype=np.float64), np.asarray(rewards, dtype=np.float64))

    def law(shift: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(ref * np.exp(log_ratio((r - shift[..., None]) / beta)))

    low, high = r.min(-1) - beta * 100.0, r.max(-1) + beta * 1e6
    for _ in range(200):
        middle = (low + high) / 2
        heavy = law(middle).sum(-1) > 1
        low, high = np.where(heavy, middle, low), np.where(heavy, high, middle)
    return law(high)


def _tilt(ref_probs: npt.ArrayLike, rewards: npt.ArrayLike, beta: float) -> Array:
    """log ref + r/β [..., K]."""
    if not beta > 0:
        raise ValueError(f"beta={beta}, a temperature must be positive")
    ref, r = _law(ref_probs), np.asarray(rewards, dtype=np.float64)
    if ref.shape != r.shape:
        raise ValueError(f"shapes differ: {ref.shape} and {r.shape}")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(ref) + r / beta)


def _law(probs: npt.ArrayLike) -> Array:
    """Probabilities as float64; refuses what is none."""
    p = np.asarray(probs, dtype=np.float64)
    if (p < 0).any() or not np.allclose(p.sum(-1), 1, atol=1e-6):
        raise ValueError(f"not a law: sums to {p.sum(-1)}")
    return p
