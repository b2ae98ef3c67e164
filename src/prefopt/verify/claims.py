"""CLAIMS: for every row of METHODS what it must learn, and the population from which it must.

Worlds of two prompts and fifteen completions. In `MANY` answers have four levels of strength; in `TWO` they are good (3) or bad (1),
where losses that are no likelihood of Bradley-Terry have closed forms too; in `FAR` both strengths are squares (4, 1). Each answer is
compared with six others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import permutations
from math import lcm
from typing import Any

import numpy as np

from prefopt.exact import World
from prefopt.losses.methods import METHODS
from prefopt.settings import KLSettings
from prefopt.verify import population as drawn
from prefopt.verify import sampled as s
from prefopt.verify import theory as t
from prefopt.verify.learn import Kind, learn
from prefopt.verify.population import Counts, Population
from prefopt.verify.sampled import Everything

PROMPTS = ((1, 2), (2, 1))
MANY = World(PROMPTS, 3, 3, ((3, 1, 4, 2, 1, 4, 2, 3, 1, 2, 4, 3, 1, 2, 3), (2, 4, 1, 3, 3, 1, 2, 4, 1, 3, 2, 1, 4, 2, 1)))
FAR = World(PROMPTS, 3, 3, ((4, 1, 1, 4, 1, 4, 4, 1, 1, 4, 1, 1, 4, 1, 4), (1, 4, 4, 1, 4, 4, 1, 1, 4, 1, 1, 4, 1, 4, 1)))
TWO = World(PROMPTS, 3, 3, ((3, 1, 1, 3, 1, 3, 3, 1, 1, 3, 1, 1, 3, 1, 3), (1, 3, 3, 1, 3, 3, 1, 1, 3, 1, 1, 3, 1, 3, 1)))


def compared(world: World) -> Counts:
    """[K, K] 1 where two completions are compared: neighbours at distances 1, 2 and 5 on a ring."""
    k = np.arange(len(world.completions))
    apart = np.abs(k[:, None] - k)
    return np.isin(np.minimum(apart, len(k) - apart), (1, 2, 5)).astype(np.int64)


def _strengths(world: World) -> tuple[Counts, Counts]:
    s = np.array(world.strengths)
    return s[:, :, None], s[:, None, :]


def bradley_terry() -> Population:
    """i beats j s_i times and loses s_j times."""
    return drawn.pairs(MANY, compared(MANY) * _strengths(MANY)[0])


def apart() -> Population:
    """Bradley-Terry within two halves of the answers that are never compared with each other."""
    half = np.arange(len(MANY.completions)) < 8
    return drawn.pairs(MANY, compared(MANY) * (half[:, None] == half) * _strengths(MANY)[0])


def flipped() -> Population:
    """The same with a quarter of the labels flipped: 3 s_i + s_j wins of 4 (s_i + s_j)."""
    mine, other = _strengths(MANY)
    return drawn.pairs(MANY, compared(MANY) * (3 * mine + other))


def with_margins() -> Population:
    """Bradley-Terry with margins m_i - m_j, m counting up and down over the completions."""
    margin = np.array([[k % 3 for k in range(15)], [k % 2 for k in range(15)]])
    return drawn.pairs(MANY, compared(MANY) * _strengths(MANY)[0], margin)


def rao_kupper() -> Population:
    """Rao and Kupper's law with theta 2: i beats j s_i (s_j + 2 s_i) times, and 3 s_i s_j times it is a tie."""
    mine, other = _strengths(MANY)
    return drawn.pairs(MANY, compared(MANY) * mine * (other + 2 * mine), ties=np.triu(compared(MANY)) * 3 * mine * other)


def davidson() -> Population:
    """Davidson's law with nu 1: i beats j s_i times, and sqrt(s_i s_j) times it is a tie."""
    mine, other = _strengths(FAR)
    ties = np.sqrt(mine * other).astype(np.int64)
    return drawn.pairs(FAR, compared(FAR) * mine, ties=np.triu(compared(FAR)) * ties)


def against_the_shortest() -> Population:
    """Every answer is compared with the one of a single token, and with no other."""
    star = np.zeros((15, 15), dtype=np.int64)
    star[0, 1:] = star[1:, 0] = 1
    return drawn.pairs(MANY, star * _strengths(MANY)[0])


def good_and_bad() -> Population:
    """Good beats bad three times in four; equals win in turn."""
    mine, other = _strengths(TWO)
    return drawn.pairs(TWO, compared(TWO) * np.where(mine == other, 2, mine))


def opposed() -> Population:
    """Every good answer against every bad one, winning three times in four; no others."""
    mine, other = _strengths(TWO)
    return drawn.pairs(TWO, np.where(mine == other, 0, mine))


def certain() -> Population:
    """Good always beats bad; equals are not compared."""
    mine, other = _strengths(TWO)
    return drawn.pairs(TWO, compared(TWO) * (mine > other))


def cyclic() -> Population:
    """Each pair compared four times with one to three wins, whatever the other pairs say."""
    upper = np.triu(np.random.default_rng(0).integers(1, 4, (2, 15, 15)), 1)
    return drawn.pairs(MANY, compared(MANY) * (upper + np.triu(4 - upper, 1).transpose(0, 2, 1) * (upper.transpose(0, 2, 1) > 0)))


def thumbs() -> Population:
    """s thumbs up, 5 - s down."""
    up = np.array(MANY.strengths)
    return drawn.labels(MANY, up, 5 - up)


def mostly_liked() -> Population:
    """3 s thumbs up, s down: nothing is lost altogether, so KTO's reference point is above 0."""
    s = np.array(MANY.strengths)
    return drawn.labels(MANY, 3 * s, s)


def rankings() -> Population:
    """All orders of fifteen triples, as often as Plackett-Luce draws them."""
    counts: dict[tuple[int, ...], list[int]] = {}
    for k in range(15):
        orders = list(permutations((k, (k + 1) % 15, (k + 4) % 15)))
        often = [_whole([_plackett_luce([strengths[i] for i in order]) for order in orders]) for strengths in TWO.strengths]
        counts |= {order: list(n) for order, n in zip(orders, zip(*often, strict=True), strict=True)}
    return drawn.rankings(TWO, counts)


def _plackett_luce(strengths: list[int]) -> Fraction:
    """Probability of three completions in this order."""
    return Fraction(strengths[0], sum(strengths)) * Fraction(strengths[1], sum(strengths[1:]))


def _whole(shares: list[Fraction]) -> list[int]:
    """The smallest whole numbers in these proportions."""
    scale = lcm(*(share.denominator for share in shares))
    return [int(share * scale) for share in shares]


def demonstrations() -> Population:
    """s draws of each completion."""
    return drawn.demonstrations(MANY, np.array(MANY.strengths))


def lopsided() -> Population:
    """One completion a prompt is drawn forty times more."""
    favoured = np.eye(15, dtype=np.int64)[[5, 10]]
    return drawn.demonstrations(MANY, np.array(MANY.strengths) + 40 * favoured)


def steps() -> Population:
    """Labelled steps."""
    return drawn.steps(MANY)


@dataclass(frozen=True)
class Claim:
    """What a method does, in words and as a distance that must vanish."""

    method: str
    says: str
    learns_from: Callable[[], Population]
    distance: Callable[[Any], float]
    options: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)
    """apo_down alone lowers everything and has no optimum but on the edge."""
    patience: int = 1
    """How many times the usual steps it needs: three where the minimum lies at the edge, with completions of probability 0."""
    learners: tuple[Kind, ...] = ("table", "transformer")
    bound: float | None = None
    """The largest distance allowed, where it is not that of the learner."""

    def tried(self, learner: Kind) -> float:
        """Learn, and measure the distance."""
        return self.distance(learn(self.method, self.learns_from(), self.options, learner, mix=self.mix, patience=self.patience))


FREE = KLSettings(coefficient=0.0, place="reward")
IN_REWARD, IN_ADVANTAGE, IN_LOSS = (replace(FREE, coefficient=0.5, place=place) for place in ("reward", "advantage", "loss"))
K3 = replace(IN_LOSS, estimator="k3")


@dataclass(frozen=True)
class SampledClaim(Claim):
    """The same of a method that samples its own answers: every answer stands for itself, as often as the policy would give it.

    `distance` is a function of `sampled.Everything`. Groups have `size` answers; `kl` says what KL costs and where it is paid.
    """

    size: int = 1
    kl: KLSettings = FREE

    def tried(self, learner: Kind) -> float:
        """Learn from everything there is, and measure the distance."""
        whole = Everything(METHODS[self.method], self.options, self.learns_from(), learner, size=self.size, kl=self.kl)
        return self.distance(whole)


def answered() -> Population:
    """Every answer, weighed by its probability under the policy."""
    return drawn.demonstrations(MANY, np.array(MANY.strengths))


OPTIMUM = "the Boltzmann optimum ref e^(r/β)/Z"
BY_TOKEN = "ref e^(Q/β)/Z at each token, Q its mean reward, k2"
SLOPES = "pi in proportion to the slopes: "
HALF = {"beta": 0.5}


def _gradient(
    method: str,
    loss: s.Loss,
    options: Mapping[str, Any] | None = None,
    *,
    size: int = 1,
    kl: KLSettings = FREE,
) -> SampledClaim:
    """The expected gradient is that of `loss`, whose docstring says what it is."""
    says = f"the gradient of {(loss.__doc__ or '').partition('. ')[0].rstrip('.')}"
    how = f", {'ρ ' if kl.ratio else ''}{kl.estimator or 'k2'}" if kl.place == "loss" else ", KL in the advantage"
    says += "" if kl.place == "reward" else how
    return SampledClaim(method, says, answered, s.gradient(loss), options or {}, size=size, kl=kl, bound=1e-4)


CLAIMS: tuple[Claim, ...] = (
    # demonstrations
    Claim("pretrain", "the law of the data", demonstrations, t.law(t.data_law)),
    Claim("sft", "the law of the data", demonstrations, t.law(t.data_law)),
    Claim("dft", "the most frequent next token, surely", lopsided, t.law(t.greedy)),
    # functions of the margin: the law is ref e^h, h from the preferences
    Claim("dpo", OPTIMUM, bradley_terry, t.law(t.boltzmann), HALF),
    Claim("dpo", "two halves never compared: Boltzmann within each", apart, t.law(t.parts), HALF),
    Claim("dpo", "forward KL: ref / (1 - (r-λ)/β)", bradley_terry, t.tie(t.forward_kl), {"beta": 1.0, "divergence": "forward_kl"}),
    Claim("dpo", "JS: ref / (2 e^((λ-r)/β) - 1)", bradley_terry, t.tie(t.jensen_shannon), {"beta": 0.5, "divergence": "js"}),
    Claim("dpo", "alpha ½: ref (1 - (r-λ)/2β)^-2", bradley_terry, t.tie(t.half), {"beta": 0.5, "divergence": "alpha", "alpha": 0.5}),
    Claim("cdpo", "gap logit(p(1-ε) + (1-p)ε)", good_and_bad, t.two_levels(t.cdpo), HALF),
    Claim("cdpo", "certain labels: gap log((1-ε)/ε)", certain, t.two_levels(lambda o, p: t.cdpo(o, 1.0)), HALF),
    Claim("robust_dpo", "a quarter flipped: ref e^(r/β)/Z", flipped, t.law(t.boltzmann), {"beta": 0.5, "label_smoothing": 0.25}),
    Claim("ipo", "least squares of (p-½)/β, cycles and all", cyclic, t.law(t.ipo), HALF),
    Claim("ipo", "averaged: the same per token", cyclic, t.law(t.ipo), {"beta": 0.5, "length_normalized": True}),
    Claim("hinge", "gap 1 wherever p > ½", good_and_bad, t.two_levels(lambda o, p: 1.0), HALF),
    Claim("exo", "gap (2p-1) log((1-ε)/ε)", good_and_bad, t.two_levels(t.exo), {"beta": 0.5, "label_smoothing": 0.1}),
    Claim("discopop", "gap at the least p l(z) + (1-p) l(-z)", good_and_bad, t.two_levels(t.discopop), {"beta": 0.5, "tau": 1.0}),
    Claim("discopop", "τ = 0.05: shrinks certain gaps to -0.1186", certain, t.two_levels(t.discopop_trap), learners=("table",)),
    Claim("odpo", "Boltzmann of r + α m, margins m_i - m_j", with_margins, t.reward(t.odpo), {"beta": 0.5, "alpha": 0.5}),
    Claim("wpo", "ref e^(r/β)/Z, whatever the weights", bradley_terry, t.law(t.boltzmann), HALF),
    Claim("rdpo", "Boltzmann of r - α n", bradley_terry, t.reward(t.rdpo), {"beta": 0.5, "alpha": 0.2}),
    Claim("ld_dpo", "Boltzmann, at αβ after the first token", against_the_shortest, t.law(t.ld_dpo), {"beta": 0.7, "alpha": 0.5}),
    Claim("dpo_norm", "ref e^(n(r-λ)/β)", bradley_terry, t.law(t.dpo_norm), {"beta": 2.0}),
    Claim("chipo", "z + log z = (r-λ)/β, z = pi/ref", bradley_terry, t.tie(t.chi_squared), {"beta": 0.5, "r_max": 10.0}),
    Claim("dpop", "without penalty: ref e^(r/β)/Z", bradley_terry, t.law(t.boltzmann), {"beta": 0.5, "penalty": 0.0}),
    Claim("dpop", SLOPES + "1 + λ if u < 0", opposed, t.balanced(t.dpop), {"beta": 0.5, "penalty": 0.2}),
    Claim("rpo", SLOPES + "DPO, -α/n", bradley_terry, t.balanced(t.rpo), HALF),
    # functions of both log-ratios
    Claim("nca", SLOPES + "σ(βu), σ(βv)", bradley_terry, t.balanced(t.nca), HALF),
    Claim("bco_pair", SLOPES + "σ(-βu), σ(βv)", bradley_terry, t.balanced(t.bco_pair), HALF),
    Claim("sppo", SLOPES + "u - 1/2β, v + 1/2β", bradley_terry, t.balanced(t.sppo), HALF),
    Claim("apo_zero", SLOPES + "σ'(βu), σ'(βv)", bradley_terry, t.balanced(t.apo_zero), HALF, patience=3),
    Claim("apo_down", SLOPES + "σ'(βu), σ'(βD), NLL", bradley_terry, t.balanced(t.apo_down), HALF, mix={"sft": 0.5}),
    Claim("aot", SLOPES + "sorted margins", bradley_terry, t.aot, HALF),
    Claim("aot_unpaired", SLOPES + "sorted rewards", bradley_terry, t.aot_unpaired, {"beta": 0.5, "label_smoothing": 0.3}, patience=3),
    # no reference
    Claim("simpo", "e^(n(r-λ)/β), the gap less for γ", good_and_bad, t.law(t.simpo)),
    Claim("slic", "wins + (wins-losses)/λ, in the margin", bradley_terry, t.law(t.slic), {"delta": 20.0, "sft_weight": 4.0}, patience=3),
    Claim("cpo", SLOPES + "margin, -λ", bradley_terry, t.balanced(t.cpo, reference=False), {"beta": 0.5, "nll_weight": 0.5}, patience=2),
    Claim("orpo", SLOPES + "odds, NLL", bradley_terry, t.balanced(t.orpo, reference=False), {"weight": 1.0}, patience=3),
    # thumbs
    Claim("kto", SLOPES + "σ'(β(h-z0))", mostly_liked, t.thumbs(t.kto), HALF, patience=3),
    Claim("bco", SLOPES + "σ(βh-δ)", thumbs, t.thumbs(t.bco), HALF),
    Claim("apo_zero_unpaired", SLOPES + "σ'(βh)", thumbs, t.thumbs(t.apo_zero_unpaired), HALF, patience=3),
    # rankings, reward models
    Claim("pl_dpo", OPTIMUM, rankings, t.law(t.boltzmann), HALF),
    Claim("reward", "log s + margin, up to a constant", with_margins, t.scores),
    Claim("reward_ranking", "log s, up to a constant", rankings, t.scores, patience=2),
    Claim("reward_ties", "Rao-Kupper, theta 2: log s", rao_kupper, t.scores, {"tie_share": 1 / 3}),
    Claim("reward_ties", "Davidson, nu 1: log s", davidson, t.scores, {"tie_share": 1 / 3, "tie_law": "davidson"}, patience=3),
    Claim("reward_graded", "log s + margin, up to a constant", with_margins, t.scores),
    Claim("reward_graded", "soft: the margins themselves", with_margins, t.margins, {"form": "soft"}),
    Claim("orm", "the log-odds of thumbs up", thumbs, t.log_odds),
    Claim("prm", "the share of right steps at each prefix", steps, t.step_shares, patience=3),
    # the policy's own samples: gradients
    _gradient("reinforce", s.objective, kl=IN_REWARD),
    _gradient("reinforce_pp", s.objective, kl=IN_REWARD),
    _gradient("reinforce_pp_baseline", s.objective, size=2),
    _gradient("remax", s.objective, kl=IN_REWARD),
    _gradient("rloo", s.objective, size=2, kl=IN_REWARD),
    _gradient("rloo", s.objective, size=2, kl=IN_ADVANTAGE),
    _gradient("ppo", s.objective, {"lam": 1.0}, kl=IN_REWARD),
    _gradient("dr_grpo", s.objective, size=2, kl=IN_REWARD),
    _gradient("reinforce", s.by_token, kl=IN_LOSS),
    _gradient("reinforce", s.by_token, kl=replace(K3, ratio=True)),
    _gradient("reinforce", s.by_token_forward, kl=K3),
    _gradient("reinforce_pp_baseline", s.by_token_whitened, size=2, kl=IN_LOSS),
    _gradient("rloo", s.by_token, size=2, kl=IN_LOSS),
    _gradient("ppo", s.by_token, {"lam": 1.0}, kl=IN_LOSS),
    _gradient("dr_grpo", s.by_token_in_groups, size=2, kl=IN_LOSS),
    _gradient("grpo", s.signs_per_token, size=2),
    _gradient("gspo", s.signs_per_token, size=2),
    _gradient("dapo", s.signs, size=2),
    _gradient("cispo", s.signs, size=2),
    _gradient("online_dpo", s.online_dpo, HALF, size=2),
    _gradient("iterative_dpo", s.online_dpo, HALF, size=2),
    _gradient("online_ipo", s.online_ipo, HALF, size=2),
    _gradient("xpo", s.xpo, {"beta": 0.5, "alpha": 0.1}, size=2),
    # ... and where they lead
    SampledClaim("reinforce", OPTIMUM, answered, s.learned(s.boltzmann, 0.6), kl=IN_REWARD),
    SampledClaim("reinforce", BY_TOKEN, answered, s.learned(s.boltzmann_by_token), kl=IN_LOSS),
    SampledClaim("ppo", OPTIMUM, answered, s.learned(s.boltzmann, 0.6), {"lam": 1.0}, kl=IN_REWARD),
    SampledClaim("rloo", OPTIMUM, answered, s.learned(s.boltzmann, 0.6), size=2, kl=IN_REWARD, learners=("table",)),
    SampledClaim("remax", OPTIMUM, answered, s.learned(s.boltzmann, 0.6), kl=IN_REWARD, learners=("table",)),
    SampledClaim("dr_grpo", OPTIMUM, answered, s.learned(s.boltzmann, 0.6), size=2, kl=IN_REWARD, learners=("table",)),
    SampledClaim("best_of_n", "the law of the best of two", answered, s.imitated(s.best_of_two), size=2),
    SampledClaim("rejection_sampling", "ref where r >= 1", answered, s.imitated(s.good), {"threshold": 1.0}),
    SampledClaim("star", "ref where r >= 1", answered, s.imitated(s.good), {"threshold": 1.0}),
)
"""h is log pi/ref of a completion (u of a chosen, v of a rejected one), n its tokens, p how often good beats bad, and λ what makes a law
sum to 1 (in slic, cpo and dpop an option of that name)."""
