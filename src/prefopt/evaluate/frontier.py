"""The frontier suite: how much reward there is to be had at each distance to the baseline, and how much of it the best of n answers gets.

N answers of the baseline to each request, with rewards r_1..N, stand for all that it could say; each has the probability 1/N:

    optimum      p_i = e^{r_i/β} / Σ_j e^{r_j/β},  reward E_x[Σ p_i r_i],  KL E_x[Σ p_i log(N p_i)],  a point for each β
    best of n    reward E_x[mean of the maximum of n of the N answers],  KL at most log n - (n-1)/n       (arXiv 2401.01879)

No policy has more reward at its KL than the optimum of max E[r] - β KL. The p_i are self-normalised importance weights, so what is told
is an estimate of it: 1/Σ p_i² answers a request carry it (its effective sample size), and it ends where their mean falls below `FEWEST`,
since of what is rarer than the answers drawn nothing is known. The best of n is unbiased in reward; its KL is less where rewards tie.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefopt.evaluate import judges, truth
from prefopt.evaluate.bench import Answers, Bench, Findings
from prefopt.evaluate.rows import Figure
from prefopt.exact import best_of_n_kl_bound, boltzmann, kl
from prefopt.stats import clustered_mean

DRAWS = 32
"""Answers of the baseline to each request; more where rollout.samples asks for more."""
FEWEST = 4.0
"""Effective answers a request that a point of the optimum must stand on."""
TEMPERATURES = np.geomspace(10.0, 0.02, 48)
"""β of the points, in units of the rewards' spread within a request."""


@dataclass(frozen=True)
class Optimum:
    """A point of the estimated optimum."""

    beta: float
    kl: float
    reward: float
    low: float
    high: float
    effective: float


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    if bench.baseline is None:
        return "a baseline"
    if judges.named(bench) not in ("gold", "reward") or not bench.can_answer:
        return "a policy, rows with a prompt, and a reward of single answers (the world's own, or judge.path=REWARD_MODEL)"
    needed = "rollout.temperature=1, no top_p, top_k or min_p and no constraint: only then are the answers those that the KL is about"
    return "" if bench.rollout.plain else needed


def run(bench: Bench) -> Findings:
    """Draw answers of the baseline, and see what could be made of them."""
    assert bench.baseline is not None
    rollout = replace(bench.rollout, samples=max(DRAWS, bench.rollout.samples), seed=bench.rollout.seed + 1)
    wide = replace(bench, rollout=rollout, drawn={})
    drawn = wide.answers(bench.baseline, bench.requests())
    metric, rewards = judged(bench, drawn)
    rewards_XN, clusters = rewards.reshape(-1, rollout.samples), drawn.clusters[:: rollout.samples]
    counts = [2**k for k in range(rollout.samples.bit_length()) if 2**k <= rollout.samples // 2]
    best = {n: clustered_mean(expected_best(rewards_XN, n), clusters) for n in counts}
    figures: list[Figure] = [bench.figure(f"{metric}_best_of_{n}", found, who=bench.baseline) for n, found in best.items() if n > 1]
    curve = optimum(rewards_XN, clusters)
    notes = {
        "metric": metric,
        "draws": rollout.samples,
        "fewest": FEWEST,
        "best_of_n": [
            {"n": n, "kl": best_of_n_kl_bound(n), "reward": found.value, "low": found.low, "high": found.high} for n, found in best.items()
        ],
        "optimum": [vars(point) for point in curve],
    }
    return Findings(figures, {"frontier": notes}, told=_told(best[counts[-1]].value, counts[-1], curve))


def judged(bench: Bench, own: Answers) -> tuple[str, np.ndarray]:
    """The name of the reward, and that of every answer."""
    if judges.named(bench) == "gold":
        return "gold", truth.column(own, "gold")
    return "reward", judges.scores(bench, own)


def expected_best(rewards_XN: np.ndarray, n: int) -> np.ndarray:
    """E[max of n of the N answers, drawn without putting back] of each request, from the order statistics: C(i-1, n-1)/C(N, n) of the i-th.

    >>> expected_best(np.array([[3.0, 1.0, 2.0]]), 2).round(4).tolist()  # (2 + 3 + 3)/3
    [2.6667]
    """
    size = rewards_XN.shape[1]
    weights = np.array([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])
    return np.asarray(np.sort(rewards_XN, axis=1) @ weights)


def optimum(rewards_XN: np.ndarray, clusters: Sequence[Hashable] | None = None) -> list[Optimum]:
    """The frontier from β = ∞ (the baseline itself) to where too few answers carry it; requests of one cluster go together."""
    law_XN = np.full(rewards_XN.shape, 1 / rewards_XN.shape[1])
    spread = float(np.sqrt(rewards_XN.var(axis=1).mean()))
    found: list[Optimum] = []
    for beta in (math.inf, *(TEMPERATURES * spread if spread > 0 else ())):
        p_XN = boltzmann(law_XN, rewards_XN, float(beta))
        effective = float((1 / (p_XN**2).sum(axis=1)).mean())
        if effective < FEWEST:
            break
        reward = clustered_mean((p_XN * rewards_XN).sum(axis=1), clusters)
        found.append(Optimum(float(beta), float(kl(p_XN, law_XN).mean()), reward.value, reward.low, reward.high, effective))
    return found


def _told(best: float, n: int, curve: Sequence[Optimum]) -> str:
    end = curve[-1]
    return f"best of {n} {best:.2f}; optimum {end.reward:.2f} at {end.kl:.2f} nats (estimated from {end.effective:.0f} answers a request)"
