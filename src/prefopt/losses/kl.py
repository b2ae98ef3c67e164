"""KL to the reference: estimates from sampled tokens, and controllers of its coefficient.

With x ~ pi and d = log pi - log pi_ref: E[k1] = E[k3] = KL(pi || ref), and k2 is off by O(d³). No clamp, where verl and OpenRLHF cut at
10 nats: a rare token far from the reference is what the penalty is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.numeric import EXP_CAP, exp_tangent, log_ratio, require

KINDS = ("k1", "k2", "k3")


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """One-sample estimates of KL(pi || ref) at each token (or answer).

    k1 = d,  k2 = d²/2,  k3 = e^-d - 1 + d,  d = log pi - log pi_ref  (Schulman 2020, joschu.net/blog/kl-approx.html).

    k1 is unbiased and may be negative; k3 is unbiased and never negative, but heavy-tailed where ref >> pi; k2 has bias O(d³). As rewards
    (-β k1, detached) k1 is right. As a loss see `policy.kl_penalty`. open-instruct counts them from 0: its 2 is k3.

    Args:
        logps: log pi of sampled tokens, nats, any shape.
        ref_logps: of the reference; never differentiated.
        kind: k1, k2 or k3.

    Returns:
        The same shape.

    >>> [round(kl_estimate(torch.tensor(-1.0), torch.tensor(-2.0), kind).item(), 4) for kind in ("k1", "k2", "k3")]
    [1.0, 0.5, 0.3679]
    """
    require(kind in KINDS, "kind", kind, "k1, k2 or k3")
    d = log_ratio(logps, ref_logps)
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    return torch.where(-d <= EXP_CAP, (-d).clamp(max=EXP_CAP).expm1(), exp_tangent(-d) - 1) + d


class FixedKL:
    """A coefficient that stays."""

    spent = False

    def __init__(self, initial: float) -> None:
        require(initial >= 0, "kl.coefficient", initial, "at least 0")
        self.coefficient = float(initial)

    def update(self, kl: float, n: int) -> float:
        """The same coefficient."""
        return self.coefficient

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"coefficient": self.coefficient}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        vars(self).update(state)


class AdaptiveKL(FixedKL):
    """The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2).

    β <- β (1 + clip(KL/target - 1, -0.2, 0.2) n / horizon)

    KL is the mean over answers of the SUM over tokens, as in that paper (their target: 6 nats); verl and OpenRLHF feed the mean over
    tokens, whose target is smaller by the length. KL = target leaves β as it is; β stays positive.

    >>> AdaptiveKL(0.5, target=6.0, horizon=1000).update(12.0, 250)
    0.525
    """

    def __init__(self, initial: float, target: float, horizon: int) -> None:
        require(initial > 0, "kl.coefficient", initial, "positive for an adaptive controller")
        require(target > 0, "kl.target", target, "positive")
        require(horizon > 0, "kl.horizon", horizon, "positive")
        super().__init__(initial)
        self.target, self.horizon = float(target), horizon

    def update(self, kl: float, n: int) -> float:
        """The coefficient after `n` more answers whose KL was `kl` nats, the mean of sums; a KL that is not finite changes nothing."""
        if math.isfinite(kl):
            error = max(-0.2, min(0.2, kl / self.target - 1))
            self.coefficient *= max(0.1, 1 + error * n / self.horizon)
        return self.coefficient

    def state(self) -> dict[str, Any]:
        """See `FixedKL`."""
        return {"coefficient": self.coefficient}


class KLBudget(FixedKL):
    """A bound on KL that is kept: a controller brings KL to `aim`, and weights that went beyond the budget are pulled back by the caller.

    β = b exp(2 (m/aim - 1)),  ln b <- ln b + 0.4 ln(m/aim),  √m = √KL smoothed over rounds, with its trend (Holt)

    A proportional-integral controller of ln β (as Stooke et al. 2020, arXiv 2007.03964, steer a Lagrange multiplier), with both errors
    held in [-1/2, 1]: what is bought at next to no price is drift. √KL is smoothed since it is the distance, and grows evenly where the
    policy moves evenly. b does not fall where m would reach the aim by itself within three rounds. One answer with an enormous log-ratio
    can carry the mean of a round, so a rise by more than a quarter of the budget is read as that.

    The fence needs no model of the policy. Where KL is `beyond` the budget by more than its standard error, the caller moves the weights
    back on the straight line to where the run began (Ramé et al. 2024, arXiv 2406.16768), to the `share` of the way at which √KL is that
    of the aim, and measures them. One such round may be noise; in the (k+1)-th in a row the price rises, b <- b min(2, max(1.1,
    (KL - error)/budget)^k), with the KL before. `spent` is true after `patience` rounds in a row. A run that began beyond its budget cannot
    be pulled back; there it is rounds in which KL does not fall that count.

    Args:
        budget: nats of KL(pi || ref) per answer, the mean of sums over tokens.
        initial: the coefficient to begin with: b, which is β where KL is at its aim.
        aim: the share of the budget to settle at.
        patience: rounds beyond the budget before giving up.

    >>> budget = KLBudget(2.0, initial=0.1)
    >>> [round(budget.update(kl, 64), 3) for kl in (0.0, 0.5, 1.0, 1.5, 2.0, 2.2)]
    [0.03, 0.025, 0.02, 0.02, 0.025, 0.04]
    """

    AT_ONCE, IN_TIME, ARRIVES, SMOOTH, TREND, JUMP, LEAST, MOST = 2.0, 0.4, 3, 0.5, 0.3, 0.25, 1.1, 2.0

    def __init__(self, budget: float, *, initial: float = 0.05, aim: float = 0.97, patience: int = 10) -> None:
        require(budget > 0, "kl.budget", budget, "positive")
        require(initial > 0, "kl.coefficient", initial, "positive where a budget has to be kept")
        require(0 < aim <= 1, "aim", aim, "in (0, 1]")
        super().__init__(initial)
        self.budget, self.aim, self.patience = float(budget), aim * budget, patience
        self.base, self.distance, self.trend, self.above = float(initial), 0.0, 0.0, 0
        self.start: float | None = None

    @property
    def smoothed(self) -> float:
        """KL smoothed over rounds, nats an answer."""
        return self.distance**2

    @property
    def spent(self) -> bool:  # type: ignore[override]
        """Whether the budget could not be kept."""
        return self.above >= self.patience

    def beyond(self, kl: float, error: float) -> bool:
        """Whether it is above the budget by more than its standard error; a KL that is not finite is."""
        return not kl - error <= self.budget

    def share(self, kl: float) -> float | None:
        """How far from where the run began weights of this KL may stay, 0 to 1; None where it began beyond its aim."""
        if self.start is None or self.start >= self.aim:
            return None
        start = math.sqrt(max(0.0, self.start))
        return max(0.0, min(1.0, (math.sqrt(self.aim) - start) / (math.sqrt(kl) - start))) if math.isfinite(kl) and kl > self.aim else 0.0

    def update(self, kl: float, n: int, error: float = 0.0, *, before: float | None = None) -> float:
        """The coefficient after a round whose KL was `kl` nats, the mean over its `n` answers of sums over tokens, with its standard error.

        `before` is the KL of the weights as they came, where they were pulled back.
        """
        if self.start is None and math.isfinite(kl):
            self.start, self.distance = kl, math.sqrt(max(0.0, kl))
        if math.isfinite(kl):
            self._follow(kl, pulled=before is not None)
        stays = before is None and self.beyond(kl, error) and not (math.isfinite(kl) and self.trend < 0)
        if before is not None or stays:
            self.above += 1
            over = ((kl if before is None else before) - error) / self.budget
            self.base *= min(self.MOST, max(self.LEAST, over) ** (self.above - 1)) if math.isfinite(over) else self.MOST
        elif not self.beyond(kl, error):
            self.above = 0
        self.coefficient = self.base * math.exp(self.AT_ONCE * max(-0.5, min(1.0, self.smoothed / self.aim - 1)))
        return self.coefficient

    def _follow(self, kl: float, *, pulled: bool) -> None:
        """Move the smoothed distance, its trend, and the price by its error; weights pulled back have no trend and lower no price."""
        self.trend = 0.0 if pulled else self.trend
        expected, kl = self.distance + self.trend, max(0.0, min(kl, self.smoothed + self.JUMP * self.budget))
        distance = max(0.0, expected + self.SMOOTH * (math.sqrt(kl) - expected))
        self.trend += self.TREND * (distance - self.distance - self.trend)
        self.distance = distance
        error = max(-0.5, min(1.0, math.log(max(self.smoothed, 1e-9) / self.aim)))
        arrives = max(0.0, distance + self.ARRIVES * self.trend) ** 2 > self.aim
        self.base *= math.exp(self.IN_TIME * (max(error, 0.0) if pulled or arrives else error))

    def state(self) -> dict[str, Any]:
        """See `FixedKL`."""
        return {name: vars(self)[name] for name in ("coefficient", "base", "distance", "trend", "above", "start")}
