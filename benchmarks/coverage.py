"""How often each 95% interval covers the truth, and how often the gate passes: a simulation for each, printed as a table.

python benchmarks/coverage.py [--runs 2000] [--only NAME]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from prefopt.evaluate.gate import Evidence, Placed, judge
from prefopt.evaluate.rows import figure
from prefopt.settings import GateRule, GateSettings
from prefopt.stats import (
    Interval,
    agreement_interval,
    bradley_terry,
    calibration_interval,
    cohen_kappa,
    expected_calibration_error,
    krippendorff_alpha,
    length_controlled_win_rate,
    score_rate,
)

Rng = np.random.Generator
Draw = Callable[[Rng], list[tuple[Interval, float]]]
"""One replication: intervals and the truths they should cover."""
PRIOR = [0.45, 0.45, 0.1]


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def wins(n: int, ties: float = 0.0, clusters: int = 0) -> Draw:
    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        p = np.repeat(rng.beta(3, 2, clusters), n // clusters) if clusters else np.full(n, 0.6)
        scores = np.where(rng.random(n) < ties, 0.5, (rng.random(n) < p).astype(float))
        names = np.repeat(np.arange(clusters), n // clusters).tolist() if clusters else None
        return [(score_rate(scores, clusters=names), 0.6 * (1 - ties) + 0.5 * ties)]

    return draw


def votes(rng: Rng, n: int, raters: int) -> np.ndarray:
    truth = rng.choice(3, size=n, p=PRIOR)
    return np.array([np.where(rng.random(n) < 0.8, truth, rng.choice(3, size=n, p=PRIOR)) for _ in range(raters)])


def kappa(n: int) -> Draw:
    a, b = votes(np.random.default_rng(9), 1_000_000, 2)
    truth = cohen_kappa(a, b)
    return lambda rng: [(agreement_interval("cohen", votes(rng, n, 2), rng=rng, draws=1000), truth)]


def alpha(n: int) -> Draw:
    truth = krippendorff_alpha(votes(np.random.default_rng(9), 200_000, 3).tolist())

    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        said = votes(rng, n, 3).astype(object)
        said[rng.random(said.shape) < 0.3] = None
        return [(agreement_interval("krippendorff", said.tolist(), rng=rng, draws=1000), truth)]

    return draw


def ratings(n: int, draws: int) -> Draw:
    theta = np.array([1.0, 0.4, 0.0, -0.3, -1.1])

    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        i = rng.integers(5, size=n)
        j = (i + rng.integers(1, 5, size=n)) % 5
        first = rng.random(n) < sigmoid(theta[i] - theta[j])
        pairs = np.stack([np.where(first, i, j), np.where(first, j, i)], axis=1)
        found = bradley_terry(pairs, 5, draws=draws, rng=rng)
        return list(zip(found.intervals(), theta - theta.mean(), strict=True))

    return draw


def calibration(n: int, scale: float) -> Draw:
    def rows(rng: Rng, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        margins = 1.5 * rng.normal(size=n)
        return sigmoid(scale * margins), (rng.random(n) < sigmoid(margins)).astype(float), sigmoid(margins)

    p, _, q = rows(np.random.default_rng(9), 4_000_000)
    codes = np.searchsorted(np.linspace(0, 1, 11)[1:-1], p)
    truth = float(np.abs(np.bincount(codes, weights=q - p)).sum() / len(p))

    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        p, y, _ = rows(rng, n)
        return [(calibration_interval(p, y, rng=rng, draws=500), truth)]

    return draw


def plain_calibration(n: int, scale: float) -> Draw:
    """The percentile bootstrap, which is not offered, for comparison."""
    corrected = calibration(n, scale)
    truth = corrected(np.random.default_rng(0))[0][1]

    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        margins = 1.5 * rng.normal(size=n)
        p, y = sigmoid(scale * margins), (rng.random(n) < sigmoid(margins)).astype(float)
        picked = rng.integers(n, size=(200, n))
        low, high = np.quantile([expected_calibration_error(p[k], y[k]) for k in picked], [0.025, 0.975])
        return [(Interval(0.0, float(low), float(high), n, "percentile"), truth)]

    return draw


def length(n: int, skill: float) -> Draw:
    def draw(rng: Rng) -> list[tuple[Interval, float]]:
        gap = rng.normal(40, 60, size=n)
        y = (rng.random(n) < sigmoid(skill + np.tanh(gap / gap.std(ddof=1)))).astype(float)
        return [(length_controlled_win_rate(y, 200 + gap, np.full(n, 200.0)), float(sigmoid(skill)))]

    return draw


INTERVALS: dict[str, Callable[[], Draw]] = {
    "win rate, n 100": lambda: wins(100),
    "win rate, 30% ties, n 200": lambda: wins(200, ties=0.3),
    "win rate, 50 prompts of 4": lambda: wins(200, clusters=50),
    "win rate, 50 prompts of 4, ties": lambda: wins(200, ties=0.3, clusters=50),
    "Cohen's kappa, n 100": lambda: kappa(100),
    "Krippendorff's alpha, n 100": lambda: alpha(100),
    "Bradley-Terry, Wald, n 300": lambda: ratings(300, 0),
    "Bradley-Terry, bootstrap, n 300": lambda: ratings(300, 500),
    "ECE, true 0 (calibrated), n 1000": lambda: calibration(1000, 1.0),
    "ECE, true 0.028, n 1000": lambda: calibration(1000, 1.2),
    "ECE, true 0.071, n 1000": lambda: calibration(1000, 1.6),
    "LC win rate, n 100": lambda: length(100, 0.5),
    "LC win rate, n 300": lambda: length(300, 0.0),
    "(not offered) ECE percentile, n 1000": lambda: plain_calibration(1000, 1.2),
}


def covers(draw: Draw, runs: int, seed: int = 3) -> float:
    """The share of intervals that cover their truth."""
    rng = np.random.default_rng(seed)
    hits = [found.low <= truth <= found.high for _ in range(runs) for found, truth in draw(rng)]
    return float(np.mean(hits))


def passes(rate: float, runs: int, n: int = 400, seed: int = 0) -> float:
    """How often a gate with one rule, win rate at least 0.5, passes a model whose true win rate is `rate`."""
    rng, rule = np.random.default_rng(seed), Placed(GateRule(metric="win_rate", at_least=0.5), "gate")
    found = 0
    for _ in range(runs):
        row = figure("win_rate", score_rate((rng.random(n) < rate).astype(float)), model="m")
        found += judge([rule], GateSettings(), [Evidence("evaluate", "m", "b", [row])]).verdict == "PASS"
    return found / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"{'interval, nominal 95%':<40}{'covers':>8}{'seconds':>9}   {options.runs} replications")
    for name, make in INTERVALS.items():
        if options.only.lower() in name.lower():
            started = time.perf_counter()
            print(f"{name:<40}{covers(make(), options.runs):>8.1%}{time.perf_counter() - started:>9.0f}", flush=True)
    for rate in (0.5, 0.6):
        if options.only.lower() in "gate":
            print(f"{f'gate passes at a true win rate of {rate:.0%}, n 400':<46}{passes(rate, 500):>8.1%}   500 replications", flush=True)


if __name__ == "__main__":
    main()
