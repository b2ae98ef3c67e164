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
    """A bound on KL that is kept: the coefficient rises as the bound comes near, and the run ends when that is not enough.

    β <- β exp(½ (m - aim)/aim), at least β/1.35 and at most 2 β,  m = KL + 6 · (smoothed rise of KL a round)

    KL answers a change of β only after some rounds, so the controller looks six rounds ahead, and does not lower β while KL would reach the
    aim by itself within twenty: β would be far too low when it arrives. On policies that answer within 3 to 20 rounds, noisy ones too, it
    settles just below `aim`. One answer with an enormous log-ratio can carry the mean of a
    round, so a rise by more than half the budget is read as half the budget. `spent` is true once KL has been above the budget for
    `patience` rounds without falling and without coming back; the caller stops there and keeps the last weights that were within.

    Args:
        budget: nats of KL(pi || ref) per answer, the mean of sums over tokens.
        initial: the coefficient to begin with.
        aim: the share of the budget to settle at.
        patience: rounds above the budget before giving up.

    >>> budget = KLBudget(2.0, initial=0.1)
    >>> [round(budget.update(kl, 64), 3) for kl in (0.5, 1.9, 3.0)]
    [0.103, 0.205, 0.411]
    """

    AHEAD, ARRIVES, GAIN, RISE, FALL, SMOOTH, JUMP = 6, 20, 0.5, 2.0, 1.35, 0.5, 0.5

    def __init__(self, budget: float, *, initial: float = 0.05, aim: float = 0.95, patience: int = 10) -> None:
        require(budget > 0, "kl.budget", budget, "positive")
        require(initial > 0, "kl.coefficient", initial, "positive where a budget has to be kept")
        require(0 < aim <= 1, "aim", aim, "in (0, 1]")
        super().__init__(initial)
        self.budget, self.aim, self.patience = float(budget), aim * budget, patience
        self.above, self.last, self.slope = 0, 0.0, 0.0

    @property
    def spent(self) -> bool:  # type: ignore[override]
        """Whether the budget could not be kept."""
        return self.above >= self.patience

    def within(self, kl: float) -> bool:
        """Whether this KL keeps the budget."""
        return kl <= self.budget

    def update(self, kl: float, n: int) -> float:
        """The coefficient after a round whose KL was `kl` nats, the mean over its `n` answers of sums over tokens."""
        within = self.within(kl)
        if math.isfinite(kl):
            kl = min(kl, self.last + self.JUMP * self.budget)
            self.slope = self.SMOOTH * self.slope + (1 - self.SMOOTH) * (kl - self.last)
            self.last = kl
            step = self.GAIN * (kl + self.AHEAD * self.slope - self.aim) / self.aim
            step = max(step, 0.0) if kl + self.ARRIVES * self.slope > self.aim else step
            self.coefficient *= math.exp(max(-math.log(self.FALL), min(math.log(self.RISE), step)))
        self.above = 0 if within else self.above + (self.slope >= 0 or not math.isfinite(kl))
        return self.coefficient

    def state(self) -> dict[str, Any]:
        """See `FixedKL`."""
        return {name: vars(self)[name] for name in ("coefficient", "above", "last", "slope")}
