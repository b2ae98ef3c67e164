"""What is compared with what, and where the two are known to differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.parity import functions as f
from benchmarks.parity import ours, sampled, trainers
from benchmarks.parity.ours import Found, Models

from prefopt.losses import advantages as A
from prefopt.losses import pairwise, reward
from prefopt.losses import policy as P

PEERS = ("trl", "verl", "openrlhf")
HALF = {"beta": 0.3}


@dataclass(frozen=True)
class Case:
    """A comparison.

    Attributes:
        ours: method and options, as on the command line.
        peer: who, and its options.
        mine, theirs: compute them.
        differs: why they are not the same; "" where they must be.
        note: what to know although they agree.
        precision: float32 where the peer rounds to it.
        gradient_only: the peer's value means nothing (policy gradients).
    """

    ours: str
    peer: str
    mine: Callable[[], Found]
    theirs: Callable[[], Found]
    differs: str = ""
    note: str = ""
    precision: str = "float64"
    gradient_only: bool = False


def cases(models: Models, folder: Path, absent: Collection[str]) -> list[Case]:
    """All of them, without the peers that are not installed."""
    found = [*_dpo(models, folder), *_others(models, folder), *_policy(models, folder)]
    found += [] if "verl" in absent else _verl()
    return found + ([] if "openrlhf" in absent else _openrlhf())


def _said(method: str, options: Mapping[str, Any] | None = None, mix: Mapping[str, float] | None = None) -> str:
    words = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in (options or {}).items()]
    return " ".join([method, *words, *(f"mix.{name}={weight}" for name, weight in (mix or {}).items())])


def _trl(models: Models, folder: Path, trainer: str) -> Callable[..., Case]:
    """Cases of one of TRL's trainers: case(method, options, theirs, ...)."""
    titles = {"dpo": "DPOTrainer", "kto": "KTOTrainer", "reward": "RewardTrainer", "sft": "SFTTrainer", "cpo": "CPOTrainer (experimental)"}
    title, call = titles.get(trainer, "ORPOTrainer (experimental)"), getattr(trainers, trainer)
    precision = "float64" if trainer in ("cpo", "orpo") else "float32"

    def case(
        method: str, options: Mapping[str, Any], theirs: Mapping[str, Any], *, mix: Mapping[str, float] | None = None,
        backwards: bool = False, margins: bool = True, dtype: torch.dtype = torch.float64, **words: str,
    ) -> Case:  # fmt: skip
        shown = ", ".join(f"{name}={'+'.join(map(str, value)) if isinstance(value, list) else value}" for name, value in theirs.items())
        return Case(
            _said(method, options, mix),
            f"TRL {title}{': ' + shown if shown else ''}",
            partial(ours.loss, method, models, folder, options, mix, backwards=backwards, margins=margins),
            partial(call, models, folder, dtype=dtype, **theirs),
            precision=precision,
            **words,
        )

    return case


def _dpo(models: Models, folder: Path) -> list[Case]:
    case = _trl(models, folder, "dpo")

    def of(loss: str, **options: Any) -> dict[str, Any]:
        return {"loss_type": [loss], "beta": 0.3, **options}

    eps = {"beta": 0.3, "label_smoothing": 0.2}
    return [
        case("dpo", HALF, of("sigmoid")),
        case("dpo", {"beta": 0.3, "divergence": "forward_kl"}, of("sigmoid", f_divergence_type="forward_kl")),
        case("dpo", {"beta": 0.3, "divergence": "js"}, of("sigmoid", f_divergence_type="js_divergence")),
        case(
            "dpo",
            {"beta": 0.3, "divergence": "alpha", "alpha": 0.5},
            of("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
            dtype=torch.float32,
            note="TRL has no float64 here",
        ),
        case("dpo", HALF, of("sigmoid", label_smoothing=0.2), note="TRL ignores label_smoothing here"),
        case("cdpo", eps, of("sigmoid", label_smoothing=0.2), differs="TRL ignores label_smoothing with sigmoid; cDPO is not in TRL 1.16"),
        case("robust_dpo", eps, of("robust", label_smoothing=0.2)),
        case("hinge", HALF, of("hinge")),
        case("ipo", {"beta": 0.3, "length_normalized": True}, of("ipo")),
        case(
            "ipo",
            HALF,
            of("ipo"),
            differs="TRL means log-ratios over tokens; the paper's eq. 17 sums them. length_normalized=true is TRL's",
        ),
        case("exo", eps, of("exo_pair", label_smoothing=0.2)),
        case("nca", HALF, of("nca_pair")),
        case("bco_pair", HALF, of("bco_pair")),
        case("sppo", HALF, of("sppo_hard")),
        case("aot", eps, of("aot", label_smoothing=0.2)),
        case("aot_unpaired", eps, of("aot_unpaired", label_smoothing=0.2)),
        case("apo_zero", HALF, of("apo_zero")),
        case("apo_down", HALF, of("apo_down")),
        case("discopop", {"beta": 0.3, "tau": 0.05}, of("discopop", discopop_tau=0.05)),
        case("dpo_norm", HALF, of("sigmoid_norm")),
        case("ld_dpo", {"beta": 0.3, "alpha": 0.4}, of("sigmoid", ld_alpha=0.4)),
        case("wpo", HALF, of("sigmoid", use_weighting=True)),
        case("dpo", HALF, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3}, mix={"sft": 0.5}),
        case(
            "rpo",
            {"beta": 0.3, "alpha": 0.5},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3},
            differs="TRL means the likelihood over the batch's tokens, the paper over each answer's; dpo mix.sft=0.5 is TRL's",
        ),
    ]


def _others(models: Models, folder: Path) -> list[Case]:
    kto, scores, sft, cpo, orpo = (_trl(models, folder, name) for name in ("kto", "reward", "sft", "cpo", "orpo"))
    weighted = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    return [
        kto("kto", weighted, weighted, backwards=True, note="rows in the opposite order"),
        kto(
            "kto",
            weighted,
            weighted,
            differs="the reference point pairs a prompt with the next row's completion, in TRL with the one before",
        ),
        kto("apo_zero_unpaired", HALF, {"loss_type": "apo_zero_unpaired", "beta": 0.3}),
        scores("reward", {}, {}, margins=False),
        scores("reward", {"centering": 0.01}, {"margin": True, "center_rewards_coefficient": 0.01}),
        sft("sft", {}, {}),
        sft("dft", {}, {"loss_type": "dft"}),
        cpo("simpo", {"beta": 2.0, "gamma": 0.5}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}),
        cpo(
            "simpo",
            {"beta": 2.0, "gamma": 0.5},
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5},
            differs="TRL adds the NLL unless cpo_alpha=0; simpo mix.sft=1 is TRL's default",
        ),
        cpo("simpo", {"beta": 2.0, "gamma": 0.5}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}, mix={"sft": 1.0}),
        cpo("cpo", {"beta": 0.3, "nll_weight": 0.0}, {"beta": 0.3, "cpo_alpha": 1.0}, mix={"sft": 1.0}),
        cpo(
            "cpo",
            {"beta": 0.3, "nll_weight": 1.0},
            {"beta": 0.3, "cpo_alpha": 1.0},
            differs="TRL means the likelihood over the batch's tokens, the paper sums it; nll_weight=0 mix.sft=1 is TRL's",
        ),
        orpo(
            "orpo",
            {"weight": 0.1},
            {"beta": 0.1},
            differs="TRL, as the authors' code, takes the likelihood over prompt and answer; here it is over the answer alone",
        ),
    ]


def _policy(models: Models, folder: Path) -> list[Case]:
    """TRL's policy gradients: the losses on answers and advantages that are given."""

    def clipped(**options: Any) -> Callable[..., torch.Tensor]:
        return lambda now, drawn: P.ppo_clip(now, drawn.old, sampled.of_tokens(drawn), **options)

    def case(
        words: str, function: Callable[..., torch.Tensor], unit: str, kind: str = "grpo", how: Mapping[str, bool] | None = None,
        said: Mapping[str, str] | None = None, only: bool = False, **options: Any,
    ) -> Case:  # fmt: skip
        options = {"beta": 0.0, **options}
        shown = ", ".join(f"{name}={value}" for name, value in options.items() if name != "beta" or value)
        return Case(
            words,
            f"TRL {kind.upper()}Trainer{': ' + shown if shown else ''}",
            partial(sampled.ours, models, function, unit, **(how or {})),
            partial(sampled.trl, models, folder, kind, **(how or {}), **options),
            precision="float32",
            gradient_only=only,
            **(said or {}),
        )

    def tied(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return clipped()(now, drawn) + 0.04 * P.kl_penalty(now, drawn.reference)

    def tied_by_ratio(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return clipped()(now, drawn) + 0.04 * P.kl_penalty(now, drawn.reference, drawn.old)

    def gspo(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return P.gspo(now, drawn.old, sampled.of_tokens(drawn), drawn.batch.sequence_T, clip_low=0.1, clip_high=0.2)

    def dr_grpo(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return P.dr_grpo(now, drawn.old, sampled.of_tokens(drawn), torch.tensor(float(sampled.ROOM)))

    def cispo(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return P.cispo(now, drawn.old, sampled.of_tokens(drawn), max_ratio=1.2)

    def reinforce(now: torch.Tensor, drawn: Any) -> torch.Tensor:
        return P.reinforce(now, sampled.of_tokens(drawn))

    level = {"importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.2}
    positions = "with prompts of unequal length TRL pads on the left and gives no position ids, which GPT-2 needs"
    whole = "TRL clips the ratio of the whole answer, exp of a sum; the same while the policy is the one that sampled"
    return [
        case("ppo_clip, over answers", clipped(), "sequence", loss_type="grpo"),
        case("ppo_clip, over answers", clipped(), "sequence", how={"unequal": True}, said={"differs": positions}, loss_type="grpo"),
        case("ppo_clip + kl_penalty k3", tied, "sequence", loss_type="grpo", beta=0.04, use_bias_correction_kl=False),
        case("ppo_clip + ratio * kl_penalty k3", tied_by_ratio, "sequence", loss_type="grpo", beta=0.04, use_bias_correction_kl=True),
        case("ppo_clip, over tokens", clipped(), "token", loss_type="bnpo"),
        case("ppo_clip clip_high=0.28, over tokens", clipped(clip_high=0.28), "token", loss_type="dapo", epsilon_high=0.28),
        case("dr_grpo", dr_grpo, "sum", loss_type="dr_grpo"),
        case("gspo clip_low=0.1 clip_high=0.2", gspo, "sequence", loss_type="grpo", **level),
        case("cispo max_ratio=1.2, over tokens", cispo, "token", loss_type="cispo", epsilon_high=1.2),
        case("reinforce, sums over answers", reinforce, "sum", "rloo", {"moved": False}, {"note": "at the policy that sampled"}, only=True),
        case("reinforce, sums over answers", reinforce, "sum", "rloo", {"moved": True}, {"differs": whole}, only=True),
    ]


def _verl() -> list[Case]:
    answers, tokens = f.BY_ANSWER[f.SEQUENCE], "over tokens"
    halves = torch.full((len(f.REWARDS),), 0.5, dtype=torch.float64)
    by_group = A.group_advantages(f.REWARDS, f.GROUP, scale="none")
    dual = "verl always clips negative advantages at clip_ratio_c=3; dual_clip=3 is verl's"
    return [
        Case(f"ppo_clip dual_clip=3, {tokens}", "verl vanilla, token-mean", partial(f.our_policy, P.ppo_clip, unit="token", dual_clip=3.0), partial(f.verl_policy, "vanilla", unit="token")),
        Case(f"ppo_clip, {tokens}", "verl vanilla, token-mean", partial(f.our_policy, P.ppo_clip, unit="token"), partial(f.verl_policy, "vanilla", unit="token"), differs=dual),
        Case("ppo_clip clip_high=0.28 dual_clip=3, over answers", "verl vanilla, seq-mean-token-mean", partial(f.our_policy, P.ppo_clip, unit="sequence", clip_high=0.28, dual_clip=3.0), partial(f.verl_policy, "vanilla", unit="sequence", high=0.28)),
        Case("gspo", "verl gspo, seq-mean-token-mean", partial(f.our_gspo, low=0.1, high=0.2), partial(f.verl_policy, "gspo", unit="sequence", advantages=answers, low=0.1, high=0.2)),
        Case("cispo clip_low=0.2 clip_high=0.3", "verl cispo, token-mean", partial(f.our_policy, P.cispo, unit="token", clip_low=0.2, clip_high=0.3), partial(f.verl_policy, "cispo", unit="token", low=0.2, high=0.3)),
        Case("value_clip clip=0.3", "verl compute_value_loss", partial(f.our_value, 0.3), partial(f.verl_value, 0.3)),
        *(Case(f"kl_estimate {kind}", f"verl kl_penalty {kind}", partial(f.our_kl, kind), partial(f.verl_kl, kind)) for kind in ("k1", "k2", "k3")),
        Case("group_advantages", "verl grpo", lambda: f.our_answers(A.group_advantages(f.REWARDS, f.GROUP)), partial(f.verl_advantage, "grpo")),
        Case("group_advantages scale=none", "verl grpo, norm_adv_by_std_in_grpo=False", lambda: f.our_answers(by_group), partial(f.verl_advantage, "grpo", norm_adv_by_std_in_grpo=False)),
        Case("leave_one_out", "verl rloo", lambda: f.our_answers(A.leave_one_out(f.REWARDS, f.GROUP)), partial(f.verl_advantage, "rloo")),
        Case("reward_to_go gamma=0.9", "verl reinforce_plus_plus", lambda: f.values(A.reward_to_go(f.at_the_end()[f.MASK], f.LENGTHS, gamma=0.9)), partial(f.verl_advantage, "reinforce_plus_plus", gamma=0.9)),
        Case("group_whitened", "verl reinforce_plus_plus_baseline", lambda: f.our_answers(A.group_whitened(f.REWARDS, f.GROUP)), partial(f.verl_advantage, "reinforce_plus_plus_baseline"), differs="verl whitens over tokens, so long answers weigh more; here each answer counts once"),
        Case("whiten of group_advantages at each token", "verl reinforce_plus_plus_baseline", lambda: f.values(A.whiten(by_group[f.SEQUENCE])), partial(f.verl_advantage, "reinforce_plus_plus_baseline")),
        Case("against_greedy", "verl remax", lambda: f.our_answers(A.against_greedy(f.REWARDS, halves)), partial(f.verl_advantage, "remax")),
        Case("whiten of gae gamma=0.97 lam=0.9", "verl gae, advantages", partial(f.our_gae, 0.97, 0.9, whitened=True), partial(f.verl_gae, 0.97, 0.9, whitened=True)),
        Case("gae gamma=0.97 lam=0.9", "verl gae, returns", partial(f.our_gae, 0.97, 0.9, returns=True), partial(f.verl_gae, 0.97, 0.9, whitened=False)),
        Case("AdaptiveKL", "verl AdaptiveKLController", f.our_adaptive, f.verl_adaptive, note="verl feeds it the mean over tokens, here the sum of an answer"),
    ]  # fmt: skip


def _openrlhf() -> list[Case]:
    return [
        Case("cdpo label_smoothing=0.1", "OpenRLHF DPOLoss, label_smoothing=0.1", lambda: f.pair_loss(lambda *s: pairwise.cdpo(*s, beta=0.3, label_smoothing=0.1)), partial(f.openrlhf_dpo, beta=0.3, label_smoothing=0.1)),
        Case("ipo", "OpenRLHF DPOLoss, ipo", lambda: f.pair_loss(lambda *s: pairwise.ipo(*s, beta=0.3)), partial(f.openrlhf_dpo, beta=0.3, ipo=True), note="sums, where TRL means"),
        Case("reward", "OpenRLHF PairWiseLoss, margin", lambda: f.pair_loss(lambda c, r, m, _: reward.bradley_terry(c, r, margin=-m)), f.openrlhf_reward),
        Case("ppo_clip, over tokens", "OpenRLHF PolicyLoss", partial(f.our_policy, P.ppo_clip, unit="token"), partial(f.openrlhf_policy, unit="token")),
        Case("ppo_clip dual_clip=3, over answers", "OpenRLHF PolicyLoss, dual_clip=3, per sample", partial(f.our_policy, P.ppo_clip, unit="sequence", dual_clip=3.0), partial(f.openrlhf_policy, unit="sequence", dual=3.0)),
        Case("gspo", "OpenRLHF PolicyLoss, gspo", partial(f.our_gspo, low=0.1, high=0.2), partial(f.openrlhf_policy, "gspo", low=0.1, high=0.2, unit="sequence")),
        Case("value_clip clip=0.3", "OpenRLHF ValueLoss", partial(f.our_value, 0.3), partial(f.openrlhf_value, 0.3)),
        *(Case(f"kl_estimate {kind}", f"OpenRLHF compute_approx_kl {kind}", partial(f.our_kl, kind), partial(f.openrlhf_kl, kind), precision="float32") for kind in ("k1", "k2", "k3")),
        Case("gae gamma=0.97 lam=0.9", "OpenRLHF get_advantages_and_returns", partial(f.our_gae, 0.97, 0.9), partial(f.openrlhf_gae, 0.97, 0.9)),
    ]  # fmt: skip
