"""The mathematics of prefopt: plain tensors in, an unreduced tensor out, keyword-only hyper-parameters.

Importing this loads torch and nothing above it: no model, tokenizer, file or configuration is known here.
"""

from prefopt.losses.advantages import gae, group_advantages, leave_one_out, whiten
from prefopt.losses.kl import AdaptiveKL, KLBudget, kl_estimate
from prefopt.losses.listwise import pl_dpo, plackett_luce
from prefopt.losses.methods import METHODS, Method
from prefopt.losses.pairwise import (
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    cdpo,
    chipo,
    cpo,
    discopop,
    dpo,
    dpo_norm,
    dpop,
    exo,
    hinge,
    ipo,
    ld_dpo,
    nca,
    odpo,
    orpo,
    rdpo,
    robust_dpo,
    rpo,
    simpo,
    slic,
    sppo,
    wpo,
)
from prefopt.losses.policy import cispo, dr_grpo, gspo, ppo_clip, reinforce, xpo
from prefopt.losses.reward import bradley_terry, bradley_terry_ties, graded, outcome_bce, step_bce
from prefopt.losses.supervised import dft, nll
from prefopt.losses.unpaired import apo_zero_unpaired, bco, kto
from prefopt.losses.value import value_clip

__all__ = [
    "METHODS",
    "AdaptiveKL",
    "KLBudget",
    "Method",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "bradley_terry",
    "bradley_terry_ties",
    "cdpo",
    "chipo",
    "cispo",
    "cpo",
    "dft",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpop",
    "dr_grpo",
    "exo",
    "gae",
    "graded",
    "group_advantages",
    "gspo",
    "hinge",
    "ipo",
    "kl_estimate",
    "kto",
    "ld_dpo",
    "leave_one_out",
    "nca",
    "nll",
    "odpo",
    "orpo",
    "outcome_bce",
    "pl_dpo",
    "plackett_luce",
    "ppo_clip",
    "rdpo",
    "reinforce",
    "robust_dpo",
    "rpo",
    "simpo",
    "slic",
    "sppo",
    "step_bce",
    "value_clip",
    "whiten",
    "wpo",
    "xpo",
]
