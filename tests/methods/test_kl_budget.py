"""A KL budget is kept: the controller and its fence on simulated policies, whose answer to a price is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from prefopt.losses.kl import KLBudget
from prefopt.losses.numeric import DomainError
from prefopt.training.online import PULLS

Policy = Callable[[float, float], float]
"""KL of the next round, from KL and the price; in units of the budget."""


def follows(lag: float, power: float = 1.0) -> Policy:
    """KL goes to (0.15/β)^power, a share 1/lag of the way each round, at any speed."""
    return lambda kl, price: kl + ((0.15 / price) ** power - kl) / lag


def moves(lag: float, power: float = 2.0, speed: float = 0.165) -> Policy:
    """As policies do that a limited learning rate moves: the distance √KL goes to (0.11/β)^(power/2), by at most `speed` a round."""

    def step(kl: float, price: float) -> float:
        x = math.sqrt(kl)
        return (x + max(-speed, min(speed, ((0.11 / price) ** (power / 2) - x) / lag))) ** 2

    return step


@dataclass
class Run:
    """What the loop does with a budget of 1: measure, pull back what is beyond, steer, move. √KL is even along the line to the start."""

    policy: Policy
    initial: float
    noise: float = 0.0
    seed: int = 0
    budget: KLBudget = field(init=False)
    true: list[float] = field(default_factory=list)
    pulled_back: int = 0

    def __post_init__(self) -> None:
        self.budget, self.rng = KLBudget(1.0, initial=self.initial), random.Random(self.seed)

    def measured(self, kl: float) -> float:
        return kl * self.rng.gauss(1, self.noise)

    def go(self, rounds: int) -> Run:
        kl = 0.0
        for _ in range(rounds):
            found, before = self.measured(kl), None
            for _ in range(PULLS):
                if not self.budget.beyond(found, self.noise * kl):
                    break
                before = found if before is None else before
                kl *= (self.budget.share(found) or 0.0) ** 2
                found = self.measured(kl)
                self.pulled_back += 1
            price = self.budget.update(found, 128, self.noise * kl, before=before)
            self.true.append(kl)
            if self.budget.spent:
                break
            kl = self.policy(kl, price)
        return self


POLICIES = {
    "slow": moves(10),
    "steady": moves(5, 1.0),
    "steep": moves(15, 3.0),
    "quick": follows(3),
    "middling": follows(8),
    "quick and steep": follows(3, 2.0),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("initial", [0.05, 0.15, 1.5])
def test_kl_settles_within_a_tenth_of_its_budget(name: str, initial: float) -> None:
    run = Run(POLICIES[name], initial).go(60)
    assert not run.budget.spent
    assert max(run.true) <= 1.0, "measured without noise, nothing beyond the budget is ever trained on"
    assert min(run.true[-10:]) >= 0.9


@pytest.mark.parametrize("name", POLICIES)
def test_so_it_does_where_measurements_are_noisy(name: str) -> None:
    """Ten runs with the standard error of 128 answers: never beyond by more than what noise hides, and within a tenth on average."""
    runs = [Run(POLICIES[name], 0.15, noise=0.065, seed=seed).go(60) for seed in range(10)]
    late = [kl for run in runs for kl in run.true[-20:]]
    assert not any(run.budget.spent for run in runs)
    assert 0.9 <= sum(late) / len(late) <= 1.0
    every = [kl for run in runs for kl in run.true]
    assert sum(kl > 1.1 for kl in every) <= 0.03 * len(every)
    assert max(every) <= 1.3


def test_an_update_that_leads_far_away_is_pulled_back() -> None:
    """A policy that leaps to five times the budget in a round, at any price below 0.5."""
    run = Run(lambda kl, price: 5.0 if price < 0.5 else 0.9 * kl + 0.1 * 0.9, 0.02).go(40)
    assert run.pulled_back
    assert max(run.true) <= 1.0
    assert not run.budget.spent


def test_a_budget_that_cannot_be_kept_is_spent() -> None:
    """A policy that no price holds: every round is pulled back to the aim, and the tenth in a row is the last."""
    run = Run(lambda kl, price: kl + 0.4, 0.1).go(60)
    assert run.budget.spent
    assert run.pulled_back == 10
    assert max(run.true) <= 1.0
    assert run.budget.coefficient > 5


def test_how_far_weights_are_pulled_back() -> None:
    """To the aim, where √KL is even along the line; not at all where the run began beyond, and wholly where KL is not finite."""
    budget = KLBudget(1.0, aim=0.81)
    assert budget.share(3.24) is None, "where it began is not known yet"
    budget.update(0.0, 8)
    assert budget.share(3.24) == pytest.approx(0.5)
    assert budget.share(math.nan) == 0.0
    other = KLBudget(1.0, aim=0.81)
    other.update(0.25, 8)
    assert other.share(1.69) == pytest.approx((0.9 - 0.5) / (1.3 - 0.5))
    far = KLBudget(1.0, aim=0.81)
    far.update(0.9, 8)
    assert far.share(3.24) is None


def test_a_run_that_begins_beyond_its_budget_may_come_back() -> None:
    """Nothing to pull back to: ten rounds without falling are too many, a slow fall is not."""
    falls, stays = KLBudget(1.0, initial=0.1), KLBudget(1.0, initial=0.1)
    for n in range(60):
        falls.update(max(0.9, 3 - 0.1 * n), 8)
        assert not falls.spent
    for n in range(10):
        assert not stays.spent, n
        stays.update(3.0, 8)
    assert stays.spent
    assert stays.coefficient > 2


def test_the_price_does_not_fall_while_kl_arrives() -> None:
    rising, resting = KLBudget(1.0, initial=0.1), KLBudget(1.0, initial=0.1)
    for n in range(7):
        before = rising.base
        rising.update((0.15 * n) ** 2, 8)
        assert n < 6 or rising.base == before
    for _ in range(12):
        resting.update(0.3, 8)
    assert resting.base < 0.1 * math.exp(-1)


def test_one_answer_cannot_multiply_the_price() -> None:
    wild, calm = KLBudget(1.0, initial=0.1), KLBudget(1.0, initial=0.1)
    for _ in range(20):
        wild.update(0.9, 8), calm.update(0.9, 8)
    wild.update(1e6, 8, error=1e6)
    calm.update(1.4, 8, error=1e6)
    assert wild.coefficient == pytest.approx(calm.coefficient, rel=0.05)


def test_what_is_beyond() -> None:
    budget = KLBudget(1.0)
    assert not budget.beyond(1.0, 0.0)
    assert not budget.beyond(1.05, 0.1)
    assert budget.beyond(1.2, 0.1)
    assert budget.beyond(math.nan, 0.0)
    assert math.isfinite(budget.update(math.nan, 8))
    assert math.isfinite(budget.update(0.5, 8, before=math.inf))
    with pytest.raises(DomainError):
        KLBudget(1.0, initial=0.0)


def test_its_state_comes_back() -> None:
    run, again = Run(POLICIES["quick"], 0.05).go(6), KLBudget(1.0, initial=3.0)
    again.load(run.budget.state())
    assert again.update(0.7, 8) == run.budget.update(0.7, 8)
    assert again.state() == run.budget.state()
