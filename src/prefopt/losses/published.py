"""PUBLISHED: the values the papers themselves used, beside the defaults here.

Only what could be read in the paper, in its authors' code or in a source that quotes it by section; a setting that is missing was not
found, not chosen. "App." is an appendix, "sec." a section, of the paper in the method's row unless another is named.

The defaults are one set for each family, so that its methods can be compared at an equal tie to the reference, for a full fine-tune of
about 7B parameters. So they differ from the values of a paper that trained a small model, an adapter or on one task.
"""

from __future__ import annotations

from collections.abc import Mapping

APO = {"beta": "0.1 (published version, sec. 5.2)", "train.learning_rate": "2e-7 (published version, sec. 5.2)"}
AOT = {"beta": "0.01 (caption of fig. 2)"}
BCO = {"beta": "0.01 (app. C)", "train.learning_rate": "5e-7 (app. C)", "train.batch_size": "128 (app. C)"}
REINFORCE = {
    "kl.coefficient": "0.03 for TL;DR, 0.1 for HH (app. C)",
    "train.learning_rate": "1e-6 (app. C)",
    "train.batch_size": "512 (app. C)",
}
GLOBAL = {"clip_low": "0.2 (v1, table 1)", "clip_high": "0.2 (v1, table 1)", "train.learning_rate": "5e-7 (v1, table 1)"}

PUBLISHED: Mapping[str, Mapping[str, str]] = {
    # demonstrations
    "pretrain": {"train.learning_rate": "3e-4 at 350M, 2e-4 at 1.3B, 1.2e-4 at 6.7B (table 2.1)"},
    "sft": {"train.epochs": "16, the best of them by a reward model (sec. 3.5)"},
    "dft": {"train.learning_rate": "5e-5 (sec. 4.1)", "train.batch_size": "256 (sec. 4.1)"},
    # preference pairs and a reference
    "dpo": {
        "beta": "0.1; 0.5 for TL;DR (app. B)",
        "train.learning_rate": "1e-6, with RMSprop (app. B)",
        "train.batch_size": "64 (app. B)",
    },
    "cdpo": {"label_smoothing": "between 0 and 0.5, and 0, which is DPO, unless given (authors' code)"},
    "robust_dpo": {
        "beta": "0.1 (app. B)",
        "label_smoothing": "0.1 (sec. 6)",
        "train.learning_rate": "1e-3 (app. B)",
        "train.batch_size": "16 (app. B)",
    },
    "ipo": {
        "train.learning_rate": "0.01, on a bandit (published version, app. C.1)",
        "train.batch_size": "90, on a bandit (published version, app. C.1)",
    },
    "hinge": {"beta": "0.05, the best of 0.005, 0.05 and 0.5 (sec. 5.2)"},
    "exo": {
        "beta": "0.1 (app. B)",
        "label_smoothing": "1e-3, recommended",
        "train.learning_rate": "1e-6 (app. B)",
        "train.batch_size": "64 (app. B)",
    },
    "discopop": {
        "beta": "0.05 (app. B.1)",
        "tau": "0.05 (app. E)",
        "train.learning_rate": "5e-7 (app. B.1)",
        "train.batch_size": "64 (app. B.1)",
    },
    "odpo": {
        "beta": "0.1 to 5 for sentiment, 0.05 to 0.5 for toxicity (swept)",
        "alpha": "1; 0 to 1 in an ablation, at beta 0.5",
        "train.learning_rate": "5e-7 (authors' code)",
    },
    "wpo": {"beta": "0.01 (sec. 4)", "train.learning_rate": "5e-7 (authors' code)", "train.epochs": "1 (authors' code)"},
    "ld_dpo": {"alpha": "chosen for each model; 0.5 is best for Llama-3-8B-Instruct"},
    "dpo_norm": {
        "beta": "5 (table 20)",
        "train.learning_rate": "5e-7 at 8B, 2e-7 at 70B (table 20)",
        "train.batch_size": "128 (table 20)",
        "train.epochs": "1 (table 20)",
    },
    "rpo": {
        "beta": "0.1, of 0.05 to 1 (sec. 3.1)",
        "alpha": "1, of 0.25 to 2 (sec. 3.1)",
        "train.learning_rate": "7e-7 (sec. 3.1)",
        "train.batch_size": "16 (sec. 3.1)",
    },
    "nca": {"beta": "0.01 (app. C)", "train.learning_rate": "5e-6 (app. C)", "train.batch_size": "32 (app. C)"},
    "bco_pair": BCO,
    "sppo": {"beta": "1e-3 (sec. 5)", "train.learning_rate": "5e-7 (sec. 5)", "train.batch_size": "64 (sec. 5)"},
    "apo_zero": APO,
    "apo_down": APO,
    "aot": AOT,
    "aot_unpaired": AOT,
    # preference pairs without a reference
    "simpo": {
        "beta": "2 for base models, 2.5 for instruct models (table 8)",
        "gamma": "0.3 to 1.6 (table 8)",
        "train.learning_rate": "3e-7 to 1e-6 (table 8)",
        "train.batch_size": "128 (app. B)",
        "train.epochs": "1 (app. B)",
    },
    "slic": {"delta": "1 (arXiv version)", "train.learning_rate": "1e-5 (arXiv version)", "train.batch_size": "32 (arXiv version)"},
    "cpo": {
        "beta": "0.1 (sec. 4.2)",
        "nll_weight": "1 (sec. 3)",
        "train.learning_rate": "1e-4 (authors' code)",
        "train.epochs": "1 (sec. 4.2)",
    },
    "orpo": {
        "weight": "0.1 for Mistral, 0.2 for Llama-2, 0.25 for Phi-2 (sec. 6.1)",
        "train.learning_rate": "8e-6 (app. C)",
        "train.epochs": "10, the best by evaluation loss (app. C)",
    },
    # thumbs up and down
    "kto": {
        "beta": "0.1, close to the best on most data (sec. 4.1)",
        "desirable_weight": "1 to 1.33 on balanced data (eq. 8)",
        "undesirable_weight": "1 on balanced data (eq. 8)",
    },
    "bco": BCO,
    "apo_zero_unpaired": {key: f"{value}, of the form for pairs" for key, value in APO.items()},
    # reward models
    "reward": {
        "centering": "0.01 (2312.09244)",
        "train.learning_rate": "9e-6 (app. C.2)",
        "train.batch_size": "64, with 4 to 9 answers each (app. C.2)",
        "train.epochs": "1; more of them overfit (app. C.2)",
    },
    "reward_graded": {"form": "scaled, with strengths of 1, 2 and 3; it beat margin, which equalled plain Bradley-Terry"},
    "orm": {"train.learning_rate": "1e-5 (table 1)", "train.epochs": "1 (table 1)"},
    "prm": {"train.epochs": "2 (appendix)"},
    # the policy's own samples, judged
    "reinforce": REINFORCE,
    "reinforce_pp": {
        **GLOBAL,
        "gamma": "1 (v1, table 1)",
        "rollout.samples": "1 (v9, sec. 4.1)",
        "kl.coefficient": "0.01, 0.001 for mathematics (v1, table 1)",
    },
    "reinforce_pp_baseline": {**GLOBAL, "kl.estimator": "k2 (v9, eq. 8); its coefficient is not told"},
    "remax": {
        "rollout.samples": "1, and the greedy one",
        "kl.coefficient": "0.05 (authors' code)",
        "online.epochs": "1 (authors' code)",
        "train.learning_rate": "1e-6 (authors' code)",
    },
    "rloo": {"rollout.samples": "2 and 4", **REINFORCE},
    "ppo": {
        "clip_low": "0.2 (table 3)",
        "clip_high": "0.2 (table 3)",
        "gamma": "0.99 in games (table 3); no discount in 2203.02155 (app. C.4)",
        "lam": "0.95 (table 3)",
        "kl.coefficient": "0.02 in 2203.02155 (app. C.4)",
        "online.epochs": "10 (table 3), 3 (table 5); 1 in 2203.02155 (app. C.4)",
        "train.batch_size": "64, of 512 a round, in 2203.02155 (app. C.4)",
        "rollout.temperature": "1 in 2203.02155 (app. C.4)",
    },
    "grpo": {
        "clip_low": "named, its value never told",
        "clip_high": "named, its value never told",
        "rollout.samples": "64 (sec. 4.2)",
        "kl.coefficient": "0.04 (sec. 4.2)",
        "online.epochs": "1 (sec. 4.2)",
        "train.learning_rate": "1e-6 (sec. 4.2)",
        "train.batch_size": "1024, of prompts or of answers is not told (sec. 4.2)",
    },
    "dr_grpo": {
        "clip_low": "0.2 (table 6)",
        "clip_high": "0.2 (table 6)",
        "rollout.samples": "8 (table 6)",
        "kl.coefficient": "0 (table 6)",
        "train.learning_rate": "1e-6 (table 6)",
        "rollout.temperature": "1 (table 6)",
    },
    "dapo": {
        "clip_low": "0.2 (sec. 4.1)",
        "clip_high": "0.28 (sec. 4.1)",
        "rollout.samples": "16 (sec. 4.1)",
        "kl.coefficient": "0 (sec. 2.3)",
        "train.learning_rate": "1e-6 (sec. 4.1)",
        "train.batch_size": "512 answers; 512 prompts a round (sec. 4.1)",
    },
    "gspo": {"clip_low": "3e-4 (sec. 5.1)", "clip_high": "4e-4 (sec. 5.1)", "kl.coefficient": "0: the term is left out"},
    "cispo": {
        "clip_low": "left open",
        "clip_high": "tuned, its value never told; 5 as the largest weight in 2510.13786",
        "kl.coefficient": "0: there is no such term",
    },
    "online_dpo": {
        "beta": "0.1",
        "rollout.samples": "2",
        "train.learning_rate": "5e-7, with Adafactor",
        "train.batch_size": "128",
    },
    "online_ipo": {"beta": "1 in 2402.04792"},
    "best_of_n": {
        "rollout.samples": "32 for HH",
        "train.learning_rate": "2e-5",
        "online.epochs": "2",
        "online.prompts": "2048",
    },
    "rejection_sampling": {
        "rollout.samples": "100 (sec. 3.3)",
        "rollout.temperature": "0.7 (sec. 3.3)",
        "train.learning_rate": "2e-5 for its fine-tuning without samples (app. A.1)",
        "train.batch_size": "128 for its fine-tuning without samples (app. A.1)",
        "online.epochs": "3 (table 5)",
    },
    "star": {
        "online.prompts": "10000 (authors' code)",
        "online.epochs": "40 steps in the first round, a fifth more in each after it (authors' code)",
        "train.learning_rate": "1e-6 (authors' code)",
        "train.batch_size": "8 packed sequences (authors' code)",
    },
}
"""Method -> option or setting -> the paper's value in a few words. Rows that share a paper share its values."""

UNCHECKED = "The paper's own values are not shown: they could not be checked."
WITHOUT: Mapping[str, str] = {
    "rdpo": UNCHECKED,
    "dpop": UNCHECKED,
    "chipo": UNCHECKED,
    "pl_dpo": "The paper derives this loss in its appendix and tells no values for it; those of dpo are a start.",
    "reward_ties": UNCHECKED,
    "reward_ranking": UNCHECKED,
    "xpo": UNCHECKED,
    "iterative_dpo": UNCHECKED,
}
"""Method -> why it has no row in PUBLISHED."""
