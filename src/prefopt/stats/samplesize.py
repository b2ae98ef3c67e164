"""How many observations it takes."""

from __future__ import annotations

import math

from scipy import stats


def power(effect: float, deviation: float, n: float, *, alpha: float = 0.05, two_sided: bool = True) -> float:
    """The chance that a z test of n observations finds an effect.

    Phi(|effect| sqrt(n) / deviation - z_alpha), plus for a two-sided test the chance of the wrong tail  (Cohen 1988, "Statistical Power
    Analysis", sec. 2.2, with normal quantiles).

    Args:
        effect: true mean less the bound, in the observations' units.
        deviation: standard deviation of one observation (of a win or a loss: sqrt(p (1 - p)), at most one half).
        n: observations, or independent clusters of them.
        alpha: chance of finding an effect where there is none.
        two_sided: whether an effect in either direction counts.

    Raises:
        ValueError: deviation or n not positive, or alpha outside (0, 1).

    >>> round(power(0.1, 0.5, 200), 3)
    0.807
    """
    _check(deviation, alpha)
    if n <= 0:
        raise ValueError(f"n is {n}; it must be positive")
    z = float(stats.norm.ppf(1 - alpha / (1 + two_sided)))
    shift = abs(effect) * math.sqrt(n) / deviation
    return float(stats.norm.cdf(shift - z) + (stats.norm.cdf(-shift - z) if two_sided else 0.0))


def sample_size(effect: float, deviation: float, *, power: float = 0.8, alpha: float = 0.05, two_sided: bool = True) -> int:
    """Observations needed to find an effect with the given power: ceil(((z_alpha + z_power) deviation / effect)²).

    Cohen 1988, sec. 2.4, with normal quantiles.

    Args:
        effect: true mean less the bound, not zero.
        deviation: standard deviation of one observation.
        power: chance of finding the effect.
        alpha: chance of finding an effect where there is none.
        two_sided: whether an effect in either direction counts.

    Raises:
        ValueError: no effect, a deviation that is not positive, or chances outside (0, 1).

    >>> sample_size(0.1, 0.5)
    197
    """
    _check(deviation, alpha)
    if effect == 0 or not math.isfinite(effect):
        raise ValueError(f"an effect of {effect} takes infinitely many observations")
    if not 0 < power < 1:
        raise ValueError(f"power is {power}; it lies between 0 and 1")
    quantiles = stats.norm.ppf(1 - alpha / (1 + two_sided)) + stats.norm.ppf(power)
    return max(2, math.ceil((float(quantiles) * deviation / effect) ** 2))


def win_rate_sample_size(rate: float, *, against: float = 0.5, ties: float = 0.0, power: float = 0.8, alpha: float = 0.05) -> int:
    """Prompts needed to show that a true win rate differs from `against` (two-sided).

    The variance of a score that is 1, 1/2 or 0 is rate (1 - rate) - ties / 4.

    Args:
        rate: the true win rate, ties one half.
        against: the rate to tell it from.
        ties: share of ties.
        power: chance of showing it.
        alpha: chance of showing a difference where there is none.

    Raises:
        ValueError: rates that are equal or impossible.

    >>> win_rate_sample_size(0.6)
    189
    """
    variance = rate * (1 - rate) - ties / 4
    if not 0 <= rate <= 1 or not 0 <= ties <= 1 or variance < 0:
        raise ValueError(f"a win rate of {rate} with {ties} ties is impossible")
    return sample_size(rate - against, max(math.sqrt(variance), 1e-9), power=power, alpha=alpha)


def _check(deviation: float, alpha: float) -> None:
    if not deviation > 0:
        raise ValueError(f"deviation is {deviation}; it must be positive")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it lies between 0 and 1")
