"""Methods that learn from their own samples, given every sample there is, weighed by its probability.

All groups of answers to a prompt are formed, judged by the world's reward and led through what a round of training does: measure, subtract
KL, make advantages (or ranks, or a choice), pack, and the row's loss. Importance weights carry the probabilities, so that the mean over the
groups is the expectation over samples. Theory says what it should be in terms of the laws alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt import exact
from prefopt.losses.methods import Method
from prefopt.losses.ragged import segment_sum
from prefopt.model.attention import packed_attention
from prefopt.model.forward import policy_logps
from prefopt.model.reference import FrozenReference
from prefopt.rollout.rewards import Verdict
from prefopt.rollout.sampler import Sample
from prefopt.settings import KLSettings, OnlineSettings, TrainSettings
from prefopt.training.job import Penalty
from prefopt.training.loop import train_step
from prefopt.training.optim import Optimizer, schedule
from prefopt.training.rounds import Answer, Group, Made, measure, trees_of, untold
from prefopt.types import TokenTree
from prefopt.verify.learn import NO_LOAD, RATES, STEPS, Array, Kind, Table, WholeJob, transformer
from prefopt.verify.population import Population

Loss = Callable[["Everything", Tensor], Tensor]
"""A number to be minimised, from the log-probs [P, K] of all answers."""
AWAY = 0.5
"""How far the policy is moved from the reference before gradients are compared."""
BASELINE = 0.5
"""What a running baseline has come to in the rounds before."""


class Everything:
    """A policy, its reference, and all its answers.

    Args:
        method: a row of METHODS that samples.
        options: the method's, where they differ from the defaults.
        population: the world's completions, laid out once.
        kind: who learns.
        size: answers to a group.
        kl: what KL costs, and where it is paid.
    """

    def __init__(
        self,
        method: Method,
        options: Mapping[str, Any],
        population: Population,
        kind: Kind,
        *,
        size: int,
        kl: KLSettings,
    ) -> None:
        assert method.online is not None
        self.method, self.online, self.options = method, method.online, {**method.options, **options}
        self.population, self.world, self.kind, self.size, self.held = population, population.world, kind, size, kl
        self.kl = float(kl.coefficient or 0)
        self.settings = TrainSettings(schedule="linear", warmup=0.1, grad_clip=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            words = self.world.vocabulary
            self.model: Any = Table(population.whole.tokens, words) if kind == "table" else transformer(words, scorer=False)
        self.start: Any = copy.deepcopy(self.model)
        self.job = WholeJob(
            method=method,
            options=dict(options),
            model=self.model,
            optimizer=Optimizer(self.model, self.settings, RATES[kind]),
            reference=FrozenReference(self.start),
            lay_out=population.led_to_the_row,
            micro_tokens=10**9,
            load=NO_LOAD,
            room=self.world.length,
            penalty=Penalty(self.kl, kl.estimator or "k2", kl.ratio) if kl.place == "loss" else None,
        )

    def attending(self, stack: ExitStack) -> None:
        """Inside the stack, transformers attend over trees."""
        for model in (self.model, self.start) if self.kind == "transformer" else ():
            stack.enter_context(packed_attention(model))

    def move(self) -> None:
        """Take the policy away from the reference."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.requires_grad:
                    weight.add_(AWAY * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))

    def log_law(self, model: Any) -> Tensor:
        """Log-probs [P, K] of all answers, differentiable."""
        whole = self.population.whole
        return segment_sum(policy_logps(model, whole).logps_T, whole.sequence_T, whole.sequences).reshape(len(self.world.prompts), -1)

    def law(self, model: Any) -> Array:
        """Probabilities [P, K]."""
        with torch.no_grad():
            return np.asarray(self.log_law(model).double().exp().numpy())

    def trees(self) -> list[TokenTree]:
        """What a round learns from; `margin` of a tree is the probability of its group."""
        probs, last = self.law(self.model), self.law(self.start if self.online.explores else self.model)
        groups, weights = [], []
        for p, tree in enumerate(self.population.everything):
            greedy = float(self.world.rewards[p, probs[p].argmax()])
            for members in product(range(len(self.world.completions)), repeat=self.size):
                weight = float(np.prod([*(probs[p, k] for k in members[:-1]), last[p, members[-1]]]))
                answers = tuple(self._answer(p, k, own=not self.online.explores or place == 0) for place, k in enumerate(members))
                groups.append(Group(replace(tree, branches=(), margin=weight), answers, greedy))
                weights += [weight * len(self.world.completions) ** self.size] * self.size
        measured = measure(self.job, [untold(group) for group in groups])
        measured = [{**part, "old_values": _values(part["old_logps"])} for part in measured]
        made = Made(groups, measured, self.kl, self.held, OnlineSettings(), baseline=BASELINE)
        found = self.online(made.columns(self.online), self.options)
        signals = made.signals(found, whitened=False)
        weighed = [
            {**parts, "weights": np.full(len(part["old_logps"]), w, np.float32)}
            for parts, part, w in zip(signals, measured, weights, strict=True)
        ]
        return trees_of(groups, weighed, found, 10**9)

    def _answer(self, p: int, k: int, *, own: bool) -> Answer:
        ids = np.array(self.world.completions[k], dtype=np.int32)
        return Answer(
            Sample(ids=ids, logps=np.zeros(len(ids), np.float32), text="", finished=True), Verdict(float(self.world.rewards[p, k])), own
        )

    def train(self, trees: Callable[[], list[TokenTree]], patience: float) -> None:
        """Steps of training on what `trees` gives, until the learning rate has fallen to 0."""
        total = round(patience * STEPS[self.kind])
        factor = schedule(self.settings, total)
        for step in range(total):
            train_step(self.job, trees(), step, factor(step))


def _values(logps: Array) -> Array:
    """A critic that knows nothing, but speaks of each state alone: a function of the probability of what was said before."""
    return np.asarray(np.sin(1.0 + 3.0 * (logps.cumsum() - logps)))


# --- what is compared ---------------------------------------------------------------------------------------------------


def gradient(loss: Loss) -> Callable[[Everything], float]:
    """1 - cosine of the angle between the method's expected gradient and that of `loss`, away from the reference."""

    def distance(whole: Everything) -> float:
        with ExitStack() as stack:
            whole.attending(stack)
            whole.move()
            batch = whole.population.led_to_the_row(whole.trees())
            terms = whole.job.terms(whole.job.look(batch))
            parts = [t.weight * (t.values * batch.margin_N if t.unit == "pair" else t.values).sum() for t in terms]
            mine = torch.stack(parts).sum()
            ours, theirs = (_flat(whole.model, value) for value in (mine, loss(whole, whole.log_law(whole.model))))
        return 1 - float(F.cosine_similarity(ours, theirs, dim=0))

    return distance


def learned(law: Callable[[Everything, Array], Array], patience: float = 1) -> Callable[[Everything], float]:
    """Total variation from `law` after training on fresh rounds, one a step."""

    def distance(whole: Everything) -> float:
        with ExitStack() as stack:
            whole.attending(stack)
            whole.train(whole.trees, patience)
            return float(exact.total_variation(whole.law(whole.model), law(whole, whole.law(whole.start))).max())

    return distance


def imitated(law: Callable[[Everything, Array], Array], patience: float = 3) -> Callable[[Everything], float]:
    """Total variation from `law` after training on the first round alone."""

    def distance(whole: Everything) -> float:
        with ExitStack() as stack:
            whole.attending(stack)
            first = whole.trees()
            whole.train(lambda: first, patience)
            return float(exact.total_variation(whole.law(whole.model), law(whole, whole.law(whole.start))).max())

    return distance


def _flat(model: Any, value: Tensor) -> Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten().double() for w, g in zip(weights, found, strict=True)])


# --- theory -------------------------------------------------------------------------------------------------------------


def _rewards(whole: Everything) -> Tensor:
    return torch.tensor(whole.world.rewards)


def _both(whole: Everything, logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log-ratios [P, K] to the reference, probabilities of all pairs [P, K, K] without gradient, and who of them is better."""
    with torch.no_grad():
        ref = whole.log_law(whole.start)
        p, q = logp.exp(), (ref if whole.online.explores else logp).exp()
    better = torch.sign(_rewards(whole)[:, :, None] - _rewards(whole)[:, None, :])
    return logp - ref, p[:, :, None] * q[:, None, :], better


def objective(whole: Everything, logp: Tensor) -> Tensor:
    """β KL(pi || ref) - E[r], as a function of the law."""
    with torch.no_grad():
        ref = whole.log_law(whole.start)
    return (logp.exp() * (whole.kl * (logp - ref) - _rewards(whole))).sum()


def by_token(whole: Everything, logp: Tensor) -> Tensor:
    """β KL(pi || ref) of each next token - E[r]. The prefixes are the policy's own, and not differentiated."""
    before, mine, ref = _next_tokens(whole, logp)
    return whole.kl * (before * mine.exp() * (mine - ref)).sum() - (logp.exp() * _rewards(whole)).sum()


def by_token_forward(whole: Everything, logp: Tensor) -> Tensor:
    """β KL(ref || pi) of each next token - E[r]. The prefixes are the policy's own, and not differentiated."""
    before, mine, ref = _next_tokens(whole, logp)
    return whole.kl * (before * ref.exp() * (ref - mine)).sum() - (logp.exp() * _rewards(whole)).sum()


def by_token_in_groups(whole: Everything, logp: Tensor) -> Tensor:
    """β KL(pi || ref) of each next token - (1 - 1/n) E[r]. An answer is in the mean of n that it is compared with."""
    return by_token(whole, logp) + (logp.exp() * _rewards(whole)).sum() / whole.size


def by_token_whitened(whole: Everything, logp: Tensor) -> Tensor:
    """β KL(pi || ref) of each next token - (1 - 1/n) E[r]/σ. The spread σ is that of all differences from the mean of two."""
    apart = 0.5 * (whole.world.rewards[:, :, None] - whole.world.rewards[:, None, :])
    spread = float(np.repeat(apart, 2).std(ddof=1))
    earned = (1 - 1 / whole.size) / spread
    return by_token(whole, logp) + (1 - earned) * (logp.exp() * _rewards(whole)).sum()


def _next_tokens(whole: Everything, logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every prefix of one token or more [P, N]: the probability of all but its last token, and log-probs of that token then.

    The probability is without gradient; log-probs are the policy's and the reference's.
    """
    completions = whole.world.completions
    prefixes = sorted({word[:n] for word in completions for n in range(len(completions[-1]) + 1)})

    def masses(law: Tensor) -> Tensor:
        """Log-probs [P, 1 + N] of beginning with each prefix, the empty one first."""
        begins = torch.tensor([[word[: len(prefix)] == prefix for word in completions] for prefix in prefixes])
        return torch.where(begins, law[:, None], -torch.inf).logsumexp(-1)

    parent = torch.tensor([prefixes.index(prefix[:-1]) for prefix in prefixes[1:]])
    with torch.no_grad():
        ref = masses(whole.log_law(whole.start))
    mine = masses(logp)
    return mine.detach()[:, parent].exp(), mine[:, 1:] - mine[:, parent], ref[:, 1:] - ref[:, parent]


def signs(whole: Everything, logp: Tensor) -> Tensor:
    """-log pi of the better of two, + of the worse. Two answers differ by √2 standard deviations, whatever their rewards."""
    _, pairs, better = _both(whole, logp)
    return -(pairs * better * logp[:, :, None]).sum()


def signs_per_token(whole: Everything, logp: Tensor) -> Tensor:
    """-log pi per token of the better of two, + of the worse. GRPO's mean over the tokens of each answer divides by its length."""
    _, pairs, better = _both(whole, logp)
    return -(pairs * better * (logp / torch.tensor(whole.world.lengths))[:, :, None]).sum()


def online_dpo(whole: Everything, logp: Tensor) -> Tensor:
    """-log σ(β D) over pairs of the policy's answers."""
    h, pairs, better = _both(whole, logp)
    return -(pairs * (better > 0) * F.logsigmoid(whole.options["beta"] * (h[:, :, None] - h[:, None, :]))).sum()


def online_ipo(whole: Everything, logp: Tensor) -> Tensor:
    """(D - 1/2β)² over pairs of the policy's answers."""
    h, pairs, better = _both(whole, logp)
    return (pairs * (better > 0) * (h[:, :, None] - h[:, None, :] - 0.5 / whole.options["beta"]).square()).sum()


def xpo(whole: Everything, logp: Tensor) -> Tensor:
    """-log σ(β D) + α log pi(y'), y' the reference's answer."""
    h, pairs, better = _both(whole, logp)
    margin = whole.options["beta"] * (h[:, :, None] - h[:, None, :])
    return (pairs * better.abs() * (whole.options["alpha"] * logp[:, None, :] - F.logsigmoid(better * margin))).sum()


def boltzmann(whole: Everything, ref: Array) -> Array:
    """ref e^{r/β}/Z."""
    return exact.boltzmann(ref, whole.world.rewards, whole.kl)


def boltzmann_by_token(whole: Everything, ref: Array) -> Array:
    """At every prefix ref e^{Q/β}/Z, Q the mean reward of going on from each next token.

    KL in the loss prices each token where it stands, and not the KL of what the token leads to; in the reward it prices both.
    """
    completions, law = whole.world.completions, np.ones_like(ref)

    def value(begun: tuple[int, ...], p: int) -> float:
        inside = [k for k, word in enumerate(completions) if word[: len(begun)] == begun]
        if completions[inside[0]] == begun:
            return float(whole.world.rewards[p, inside[0]])
        tokens = sorted({completions[k][len(begun)] for k in inside})
        rewards = np.array([value((*begun, token), p) for token in tokens])
        branches = [[k for k in inside if completions[k][len(begun)] == token] for token in tokens]
        next_token = np.array([[ref[p, ks].sum() for ks in branches]]) / ref[p, inside].sum()
        chances = exact.boltzmann(next_token, rewards[None], whole.kl)[0]
        for ks, chance in zip(branches, chances, strict=True):
            law[p, ks] *= chance
        return float(chances @ rewards)

    for p in range(len(ref)):
        value((), p)
    return law


def best_of_two(whole: Everything, ref: Array) -> Array:
    """The law of the better of two draws of the reference."""
    return exact.best_of_n(ref, whole.world.rewards, 2)


def good(whole: Everything, ref: Array) -> Array:
    """The reference where the reward reaches the threshold."""
    kept = ref * (whole.world.rewards >= whole.options["threshold"])
    return np.asarray(kept / kept.sum(-1, keepdims=True))
