"""A round of an on-policy run as data: prompts with judged answers, what was measured of each token, and the trees made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.losses.advantages import discounted, whiten
from prefopt.losses.online import Online
from prefopt.model.forward import evaluating
from prefopt.rollout.rewards import Verdict
from prefopt.rollout.sampler import Sample
from prefopt.settings import KLSettings, OnlineSettings
from prefopt.stats import clustered_mean
from prefopt.training import distributed
from prefopt.training.job import Job
from prefopt.types import SIGNALS, Branch, TokenTree

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """A sampled answer and what it is worth; `own` is False for a sample of the reference."""

    sample: Sample
    verdict: Verdict
    own: bool = True

    @property
    def score(self) -> float:
        """Its reward; nan where it could not be judged."""
        return float("nan") if self.verdict.value is None else self.verdict.value

    @property
    def earned(self) -> float:
        """Its reward before any penalty."""
        return self.score if self.verdict.earned is None else self.verdict.earned


@dataclass(frozen=True)
class Group:
    """A prompt and the answers to it that could be judged; `greedy` is the reward of the greedy one, where a method asks for it."""

    prompt: TokenTree
    answers: tuple[Answer, ...]
    greedy: float = float("nan")

    @property
    def flat(self) -> bool:
        """Whether all answers got the same reward."""
        return len({answer.score for answer in self.answers}) <= 1

    @property
    def undecided(self) -> bool:
        """Whether no answer earned more than another, penalties aside: what dynamic sampling replaces (DAPO asks which are correct)."""
        return len({answer.earned for answer in self.answers}) <= 1


@dataclass
class Round:
    """What a round's optimizer steps read: trees for as many passes as asked, and the metrics of the round."""

    number: int
    trees: list[TokenTree]
    metrics: dict[str, float] = field(default_factory=dict)

    def part(self, at: int, per_pass: int, seed: int) -> list[TokenTree]:
        """The trees of the round's step `at`: every pass is a fresh order of all prompts, cut into `per_pass` parts.

        How many trees hold the answers to a prompt, which is a matter of packing, decides nothing.
        """
        epoch, place = divmod(at, per_pass)
        prompts: dict[int, list[TokenTree]] = {}
        for tree in self.trees:
            prompts.setdefault(tree.index, []).append(tree)
        whole = list(prompts.values())
        order = np.random.default_rng([seed, self.number, epoch]).permutation(len(whole))
        return [tree for i in np.array_split(order, per_pass)[place] for tree in whole[i]]


# --- measured by the trainer --------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(job: Job, trees: Sequence[TokenTree], *, divergence: bool = False) -> list[dict[str, Array]]:
    """For every branch of the trees, in order: log-probs of policy and reference and the critic's values, arrays of its tokens.

    With `divergence` also the KL of the policy's distribution to the reference's at each token.
    """
    found: dict[int, list[dict[str, Array]]] = {}
    for batch in job.batches([replace(tree, index=i) for i, tree in enumerate(trees)]):
        with evaluating(job.model):
            view = job.look(batch, divergence=divergence)
        columns = {"old_logps": view.logps_T, "ref_logps": view.ref_logps_T, "kl": view.kl_T, "old_values": view.values_T}
        sizes = batch.length_S.tolist()
        parts = {name: [p.numpy() for p in column.float().cpu().split(sizes)] for name, column in columns.items() if column is not None}
        for s, tree in enumerate(batch.prompt_S.tolist()):
            found.setdefault(int(batch.index_P[tree]), []).append({name: part[s] for name, part in parts.items()})
    every = {i: branches for part in distributed.together(lambda: found) for i, branches in part.items()}
    return [branch for i in range(len(trees)) for branch in every[i]]


def stand_in(tree: TokenTree) -> TokenTree:
    """A prompt with two short answers made of its own tokens, on which a run is checked before anything is sampled."""
    ids = tree.prompt[:8]
    return replace(tree, branches=(Branch(ids=ids, scored=np.ones(len(ids), dtype=np.bool_)),) * 2, example=None)


def untold(group: Group) -> TokenTree:
    """The group as a tree, before anything but the rewards is known of its answers."""
    return replace(group.prompt, branches=tuple(_branch(answer) for answer in group.answers), example=None)


def _branch(answer: Answer) -> Branch:
    ids, score = answer.sample.ids, answer.score
    signals = {"sampled": answer.sample.logps.astype(np.float32)}
    return Branch(ids=ids, scored=np.ones(len(ids), dtype=np.bool_), score=score, label=answer.own, signals=signals)


# --- from rewards to what the loss reads --------------------------------------------------------------------------------


@dataclass
class Made:
    """The flat columns of a round: S answers, T tokens, and what the method's function made of them."""

    groups: Sequence[Group]
    measured: Sequence[Mapping[str, Array]]
    coefficient: float
    held: KLSettings
    settings: OnlineSettings
    baseline: float | None = None

    def __post_init__(self) -> None:
        answers = [answer for group in self.groups for answer in group.answers]
        self.lengths = torch.tensor([len(answer.sample.ids) for answer in answers], dtype=torch.int64)
        self.scores = torch.tensor([answer.score for answer in answers], dtype=torch.float64)
        self.group = torch.tensor([g for g, group in enumerate(self.groups) for _ in group.answers], dtype=torch.int64)
        self.sequence = torch.repeat_interleave(torch.arange(len(answers)), self.lengths)

    def tokens(self, name: str) -> Tensor:
        """A measured column [T], float64."""
        return torch.from_numpy(np.concatenate([part[name] for part in self.measured])).double()

    @property
    def drift(self) -> Tensor | None:
        """k1 of every token [T]: log pi - log pi_ref; None where there is no reference or it was not asked."""
        if not self.measured or "ref_logps" not in self.measured[0]:
            return None
        return self.tokens("old_logps") - self.tokens("ref_logps")

    def divergence_of_answers(self) -> Tensor | None:
        """KL(pi || pi_ref) of the next token summed over the tokens of each answer [S]; its mean is the KL of answers. None likewise."""
        if not self.measured or "kl" not in self.measured[0]:
            return None
        return torch.zeros(len(self.lengths), dtype=torch.float64).index_add(0, self.sequence, self.tokens("kl"))

    def divergence(self) -> tuple[float, float] | None:
        """KL of the policy's own answers and its standard error, by prompts; the error is 0 where one prompt leaves it unknown."""
        kl_S = self.divergence_of_answers()
        if kl_S is None:
            return None
        own = torch.tensor([answer.own for group in self.groups for answer in group.answers])
        found = clustered_mean(kl_S[own].numpy(), self.group[own].tolist())
        return found.value, 0.0 if math.isnan(found.std_error) else found.std_error

    def columns(self, online: Online) -> dict[str, Any]:
        """What `online.make` may ask for."""
        cost = self.coefficient * drift if self.held.place == "reward" and (drift := self.drift) is not None else None
        spent = None if cost is None else torch.zeros_like(self.scores).index_add(0, self.sequence, cost)
        rewards = self.scores if spent is None else self.scores - spent
        if "lengths" in online.arguments:
            rewards = self._at_tokens(rewards, cost, spent)
        return {
            "rewards": rewards,
            "group": self.group,
            "lengths": self.lengths,
            "values": self.tokens("old_values") if online.has_critic else None,
            "greedy": torch.tensor([group.greedy for group in self.groups], dtype=torch.float64)[self.group],
            "baseline": None if self.baseline is None else torch.tensor(self.baseline, dtype=torch.float64),
        }

    def _at_tokens(self, rewards: Tensor, cost: Tensor | None, spent: Tensor | None) -> Tensor:
        """Rewards [T]: the score on an answer's last token, what KL costs at its token or there too."""
        ends = self.lengths.cumsum(0) - 1
        if cost is None or spent is None or self.settings.reward_at == "answer":
            return torch.zeros(len(self.sequence), dtype=torch.float64).index_add(0, ends, rewards)
        return (-cost).index_add(0, ends, rewards + spent)

    def advantages(self, made: Tensor, *, whitened: bool) -> Tensor:
        """Advantages of tokens [T] from those of answers or tokens."""
        found = made if len(made) == len(self.sequence) else made[self.sequence]
        if self.held.place == "advantage" and self.drift is not None:
            found = found - self.coefficient * discounted(self.drift, self.lengths, 1.0)
        return whiten(found) if whitened else found

    def signals(self, found: Mapping[str, Tensor], *, whitened: bool) -> list[dict[str, Array]]:
        """The signals of every answer."""
        flat: dict[str, Tensor] = {"advantages": self.advantages(found["advantages"], whitened=whitened)} if "advantages" in found else {}
        if "returns" in found:
            flat |= {"returns": found["returns"], "old_values": self.tokens("old_values")}
        if self.measured:
            flat["old_logps"] = self.tokens("old_logps")
            if self.settings.importance_cap is not None:
                sampled = torch.from_numpy(np.concatenate([a.sample.logps for group in self.groups for a in group.answers]))
                flat["weights"] = (flat["old_logps"] - sampled).exp().clamp(max=self.settings.importance_cap)
        sizes = self.lengths.tolist()
        parts = {name: [part.float().numpy() for part in column.split(sizes)] for name, column in flat.items()}
        return [{name: part[s] for name, part in parts.items()} for s in range(len(sizes))]


def trees_of(groups: Sequence[Group], signals: Sequence[Mapping[str, Array]], found: Mapping[str, Tensor], room: int) -> list[TokenTree]:
    """What is trained on: answers that are kept, with their ranks and signals; prompts without a contrast of ranks are left out.

    Args:
        groups: prompts and answers.
        signals: of every answer, in order.
        found: what the method's function gave.
        room: positions a tree may take; a larger one is cut into several with the same prompt, unless its answers are compared.
    """
    trees, s = [], 0
    for group in groups:
        branches = []
        for branch in untold(group).branches:
            if "keep" not in found or bool(found["keep"][s]):
                rank = int(found["rank"][s]) if "rank" in found else None
                score = float(found["rewards"][s]) if "rewards" in found else branch.score
                branches.append(replace(branch, rank=rank, score=score, signals={**branch.signals, **signals[s]}))
            s += 1
        if "rank" in found and len({branch.rank for branch in branches}) < 2:
            continue
        tree = replace(group.prompt, branches=tuple(branches), example=None)
        trees += [tree] if "rank" in found else _cut(tree, room)
    return trees


def _cut(tree: TokenTree, room: int) -> list[TokenTree]:
    parts: list[list[Branch]] = []
    size = room + 1
    for branch in tree.branches:
        if size + len(branch.ids) > room:
            parts.append([])
            size = len(tree.prompt)
        parts[-1].append(branch)
        size += len(branch.ids)
    return [replace(tree, branches=tuple(part)) for part in parts]


# --- kept in a checkpoint -----------------------------------------------------------------------------------------------


def to_tensors(trees: Sequence[TokenTree]) -> dict[str, Tensor]:
    """The trees of a round as flat tensors, to the bit."""
    branches = [(n, tree, branch) for n, tree in enumerate(trees) for branch in tree.branches]
    facts = [(n, tree.index, len(b.ids), -1 if b.rank is None else b.rank, int(bool(b.label))) for n, tree, b in branches]
    found = {
        "facts": torch.tensor(facts, dtype=torch.int64).reshape(-1, 5),
        "scores": torch.tensor([branch.score for _, _, branch in branches], dtype=torch.float64),
        "ids": _joined([branch.ids for _, _, branch in branches], np.int32),
    }
    named = [name for name in SIGNALS if branches and name in branches[0][2].signals]
    return found | {f"signal.{name}": _joined([branch.signals[name] for _, _, branch in branches], np.float32) for name in named}


def from_tensors(tensors: Mapping[str, Tensor], prompt: Callable[[int], TokenTree]) -> list[TokenTree]:
    """What `to_tensors` was given; `prompt` finds the tree of a row."""
    facts = tensors["facts"].tolist()
    sizes = [fact[2] for fact in facts]
    ids = [part.numpy() for part in tensors["ids"].split(sizes)]
    signals = {name[7:]: [p.numpy() for p in tensor.split(sizes)] for name, tensor in tensors.items() if name.startswith("signal.")}
    trees: dict[int, TokenTree] = {}
    for i, (number, index, size, rank, label) in enumerate(facts):
        branch = Branch(
            ids=ids[i],
            scored=np.ones(size, dtype=np.bool_),
            rank=None if rank < 0 else rank,
            score=float(tensors["scores"][i]),
            label=bool(label),
            signals={name: parts[i] for name, parts in signals.items()},
        )
        tree = trees.get(number) or replace(prompt(index), branches=(), example=None)
        trees[number] = replace(tree, branches=(*tree.branches, branch))
    return [trees[number] for number in sorted(trees)]


def _joined(parts: Sequence[Array], dtype: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([*parts, np.zeros(0)]).astype(dtype))
