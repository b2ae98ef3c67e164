"""Worlds small enough to enumerate, where what theory says of preference optimization is a number: float64, numpy, no model.

Laws are arrays whose last axis runs over all completions of a prompt; leading axes are prompts. Rewards, log-ratios and divergences
are in nats.
"""

from prefopt.exact.laws import (
    best_of_n,
    best_of_n_kl_bound,
    boltzmann,
    entropy,
    implicit_rewards,
    kl,
    kl_gradient,
    log_partition,
    objective,
    tilted,
    total_variation,
)
from prefopt.exact.preferences import (
    bradley_terry,
    components,
    dpo_gradient,
    dpo_loss,
    dpo_minimum,
    gumbel_winners,
    ipo_log_ratios,
    plackett_luce,
    recombine,
)
from prefopt.exact.worlds import World, completions

__all__ = [
    "World",
    "best_of_n",
    "best_of_n_kl_bound",
    "boltzmann",
    "bradley_terry",
    "completions",
    "components",
    "dpo_gradient",
    "dpo_loss",
    "dpo_minimum",
    "entropy",
    "gumbel_winners",
    "implicit_rewards",
    "ipo_log_ratios",
    "kl",
    "kl_gradient",
    "log_partition",
    "objective",
    "plackett_luce",
    "recombine",
    "tilted",
    "total_variation",
]
