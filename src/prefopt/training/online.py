"""The stream of methods that learn from their own samples: round after round of sampling, judging and measuring.

    prompts -> samples of the policy as it is -> rewards -> log-probs by the trainer -> KL and its coefficient -> advantages (or ranks, or a
    choice) -> token trees -> the steps of the round, by the same loop as everything else

Which prompts a round asks, and every random number of its samples, is a function of (seed, round), so a run that was stopped goes on to the
bit: a round that was under way lies in the checkpoint. Every answer with its reward is kept in rollouts/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import DataError, PrefoptError, RewardError
from prefopt.jsonl import write_rows
from prefopt.losses.kl import AdaptiveKL, FixedKL, KLBudget
from prefopt.pack.plan import Plan, share
from prefopt.pack.prepare import Prepared
from prefopt.rollout.policy import LanguageModel
from prefopt.rollout.rewards import Reward, Rolled, Verdict
from prefopt.rollout.sampler import Sample
from prefopt.training import distributed
from prefopt.training.job import Job
from prefopt.training.monitor import Judged, Watch
from prefopt.training.rounds import Answer, Group, Made, Round, from_tensors, measure, to_tensors, trees_of, untold
from prefopt.training.sampling import Source
from prefopt.training.setup import Setup
from prefopt.types import TokenTree, plain

Found = TypeVar("Found")
Asked = tuple[TokenTree, list[Answer], Answer | None]
"""A prompt, its answers, judged or not, and the greedy one where the method compares with it."""

EVALUATION = 2**31
"""The round number that draws the random numbers of held-out answers."""

PULLS = 3
"""How often the weights of one round are pulled back at most, where the first time was not enough."""

LAST = 4
"""Rounds' worth of prompts on which a run under a budget is measured at its end."""


class Rounds:
    """See the module; a `Stream`.

    Args:
        setup: the method and its settings.
        job: what is trained.
        model: the same as a language model, for its renderer.
        data: prompts to train on and held-out ones, trees without branches.
        reward: judges the answers.
        out: the run folder.
        say: prints a line.
        watch: see `Watch`.

    Raises:
        DataError: a prompt leaves no room for an answer, or lacks what the reward reads.
    """

    def __init__(
        self,
        setup: Setup,
        job: Job,
        model: LanguageModel,
        data: Prepared,
        reward: Reward,
        *,
        out: Path,
        say: Callable[[str], None],
        watch: Sequence[Watch] = (),
    ) -> None:
        assert setup.row.online is not None
        self.setup, self.job, self.model, self.reward, self.online = setup, job, model, reward, setup.row.online
        self.train, self.heldout, self.out, self.say, self.watch = data.train, data.heldout, out, say, watch
        per_round, self.per_pass = setup.round_size(len(self.train))
        self.per_steps = setup.online.epochs * self.per_pass
        self.plan = Plan(len(self.train), per_round, setup.train.seed)
        self.controller = controller(setup)
        self.baseline: float | None = None
        self.round: Round | None = None
        self.unjudged: list[tuple[TokenTree, Answer]] = []
        self.dropped: list[Group] = []
        self.reason = ""
        self.best: dict[str, Tensor] = {}
        self.unpulled: dict[str, Tensor] = {}
        """Weights as they came to the round that is being made, where it pulled them back."""
        self.hacked = False
        self.first = self._weights() if self.online.anew == "policy" or setup.held.budget is not None else {}
        self.source = Source(job, model, setup.rollout)
        self._check()

    # --- the stream

    @property
    def ended(self) -> str:
        """See `Stream`."""
        return self.reason

    @property
    def restarts(self) -> int:
        """See `Stream`."""
        return self.per_steps if self.online.anew == "policy" else 0

    def step(self, step: int) -> list[TokenTree]:
        """See `Stream`; the first step of a round samples it."""
        number, at = divmod(step, self.per_steps)
        if self.round is None or self.round.number != number:
            self.round = self._new(number)
        return self.round.part(at, self.per_pass, self.setup.train.seed)

    def metrics(self, step: int) -> Mapping[str, float]:
        """The round's, with its first step."""
        return self.round.metrics if self.round is not None and step % self.per_steps == 0 else {}

    def evaluate(self, first: int | None = None) -> dict[str, float]:
        """Reward, length and, with a reference, KL of one answer to each held-out prompt."""
        asked = self._ask(self.heldout[:first], EVALUATION, samples=1)
        if first is None:  # one answer that cannot be judged says nothing of the others
            self._some_judged(asked)
        groups = _judged(asked)
        found = {name: summary(groups).get(name, math.nan) for name in ("reward", "completions/mean_length")}
        if self._apart:
            found["objective/kl"] = self._kl(groups)[0] if groups else math.nan
        return {f"eval/{name}": value for name, value in found.items()}

    def finish(self) -> str:
        """Where a watch stopped the run, take back the weights it thought best. Where a budget was asked for, measure the KL once more, and
        pull the weights back if they are beyond it.
        """
        if self.hacked and self.best:
            self._put(self.best)
            return "keeping the weights of the best check"
        if not isinstance(self.controller, KLBudget):
            return ""
        budget, (kl, error), was = self.controller, self._kl_of_several_rounds(), ""
        limit = f"its budget of {budget.budget:g}"
        for _ in range(PULLS):
            if not budget.beyond(kl, error) or not self._pull_back(kl):
                break
            was = was or f"; it was {kl:.3g} before the weights were pulled back"
            kl, error = self._kl_of_several_rounds()
        where = "within" if kl <= budget.budget else "beyond" if budget.beyond(kl, error) else "at"
        return f"KL to the reference is {kl:.3g} nats an answer (standard error {error:.2g}), {where} {limit}{was}"

    def _kl_of_several_rounds(self) -> tuple[float, float]:
        """KL and its standard error on the prompts of the first rounds, for a KL that is known better than a round's own."""
        rows = dict.fromkeys(i for number in range(LAST) for i in self.plan.step(number))
        prompts, settings = [self.train[i] for i in rows], replace(self.setup.rollout, seed=self._seed(EVALUATION + 1))
        drawn = self._shared(prompts, lambda mine: self.source.sample(mine, settings, self.job.model))
        unjudged = [tuple(Answer(sample, Verdict(0.0)) for sample in row) for row in drawn]
        return self._kl([Group(prompt, answers) for prompt, answers in zip(prompts, unjudged, strict=True)])

    def state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Stream`; the round under way, if there is one."""
        plain: dict[str, Any] = {"controller": self.controller.state(), "baseline": self.baseline, "round": None}
        plain |= {"reason": self.reason, "hacked": self.hacked}
        tensors = {f"best/{name}": tensor for name, tensor in self.best.items()}
        if self.round is not None and step % self.per_steps:
            plain["round"] = self.round.number
            tensors |= {f"round/{name}": tensor for name, tensor in to_tensors(self.round.trees).items()}
        return tensors, plain

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """See `Stream`."""
        self.controller.load(state["controller"])
        if self.job.penalty is not None:
            self.job.penalty.coefficient = self.controller.coefficient
        self.baseline = state["baseline"]
        self.reason, self.hacked = state.get("reason", ""), state.get("hacked", False)
        self.best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best/")}
        if state["round"] is not None:
            stored = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("round/")}
            by_index = {tree.index: tree for tree in self.train}
            self.round = Round(state["round"], from_tensors(stored, by_index.__getitem__))

    # --- one round

    def _new(self, number: int) -> Round:
        """A round. Where it cannot be had, everything is left as before it: the run is kept so, and begins the round again."""
        held, baseline, reason, self.unpulled = self.controller.state(), self.baseline, self.reason, {}
        try:
            return self._made(number)
        except PrefoptError:
            self.controller.load(held)
            self.baseline, self.reason = baseline, reason
            if self.unpulled:
                self._put(self.unpulled)
            raise
        finally:
            self.unpulled = {}

    def _made(self, number: int) -> Round:
        """Sample, judge, measure, and make what the loss reads."""
        if self.online.anew == "reference" and self.job.reference is not None:
            self.job.reference.sync(self.job.model, 1.0)
        made = self._sampled(number)
        before = None
        for _ in range(PULLS):
            kl = self._kl_beyond(made)
            if kl is None or not self._pull_back(kl):
                break
            before = kl if before is None else before
            made = self._sampled(number)
        groups = made.groups
        metrics = summary(groups) | {"rollouts/unjudged": float(len(self.unjudged))}
        self._steer(made, metrics, before)
        trees = self._learn_from(made, metrics) if groups else []
        self._record(number, groups)
        self._look(number, groups, metrics)
        if self.online.anew == "policy" and not self.reason:  # the answers were the policy's as it had become
            self._put(self.first)
            for optimizer in self.job.optimizer.optimizers:
                optimizer.state.clear()
        return Round(number, trees, metrics)

    def _sampled(self, number: int) -> Made:
        """The answers of the round with what was measured of them."""
        self.unjudged, self.dropped = [], []
        groups = self._gather(number)
        measured = self._measure(groups) if groups and self._has_to_measure(number) else []
        return Made(groups, measured, 0.0, self.setup.held, self.setup.online, self.baseline)

    def _kl_beyond(self, made: Made) -> float | None:
        """The KL of a round that began beyond its budget, None of any other."""
        found = made.divergence()
        if found is None or not isinstance(self.controller, KLBudget):
            return None
        return found[0] if self.controller.beyond(*found) else None

    def _pull_back(self, kl: float) -> bool:
        """Move weights of this KL towards where the run began, until they should be within the budget; False where that cannot be."""
        assert isinstance(self.controller, KLBudget)
        share = self.controller.share(kl)
        if share is not None:
            now = self._weights()
            self.unpulled = self.unpulled or now
            self._put({name: torch.lerp(first, now[name], share) if share else first for name, first in self.first.items()})
        return share is not None

    def _look(self, number: int, groups: Sequence[Group], metrics: dict[str, float]) -> None:
        """Show the round to who watches; its answers are of the weights as they are now."""
        answers = [
            Judged(Rolled(_row(group.prompt), answer.sample), answer.verdict, at)
            for at, group in enumerate(groups)
            for answer in group.answers
            if answer.own
        ]
        first = distributed.rank() == 0  # who watches writes files, and is told by one rank alone
        told = distributed.together(lambda: [watch(number, answers, metrics) for watch in self.watch] if first else [])[0]
        for found in told:
            metrics |= found.metrics
            if found.best:
                self.best = self._weights()
            if found.stop:
                self.reason, self.hacked = found.stop, True

    def _learn_from(self, made: Made, metrics: dict[str, float]) -> list[TokenTree]:
        """The trees of the round; adds what was found out to its metrics."""
        made.coefficient = self.controller.coefficient
        columns = made.columns(self.online)
        found = self.online(columns, self.setup.options)
        if "rank" in found:
            found["rewards"] = columns["rewards"]  # how far apart two answers are is told by what they were ranked by
        if "returns" in found:
            metrics["critic/vf_explained_var"] = explained(columns["values"], found["returns"])
        if "baseline" in found:
            self.baseline = float(found["baseline"])
            metrics["reward_baseline"] = self.baseline
        whitened = self.setup.online.whiten if self.setup.online.whiten is not None else self.online.whiten
        trees = trees_of(made.groups, made.signals(found, whitened=whitened), found, self.setup.train.micro_tokens)
        metrics["rollouts/learned_from"] = float(sum(len(tree.branches) for tree in trees))
        return trees

    def _has_to_measure(self, number: int) -> bool:
        """Whether anything but the step's own forward pass is needed: not where all of a round is one step without a KL to know."""
        held, ratios = self.setup.held, "advantages" in self.online.gives or self.setup.held.ratio
        moved = self.per_steps > 1 or self.online.anew == "policy"  # steps that begin from other weights than sampled
        ratios = ratios and (moved or self.setup.online.importance_cap is not None)
        steered = held.target is not None or held.budget is not None or (bool(held.coefficient) and held.place != "loss")
        watched = self._apart and any(watch.needs_kl(number) for watch in self.watch)
        return ratios or steered or watched or self.online.has_critic

    @property
    def _apart(self) -> bool:
        """Whether there is a KL to a reference to know: one that is the policy of the round's beginning is no distance away."""
        return self.job.reference is not None and self.online.anew != "reference"

    def _steer(self, made: Made, metrics: dict[str, float], before: float | None) -> None:
        """Move the coefficient, and end the run when it cannot be kept."""
        found = made.divergence() if self._apart else None
        if found is None:
            return
        (kl, error), held = found, self.controller
        if isinstance(held, KLBudget):
            held.update(kl, len(made.lengths), error, before=before)
            metrics |= {"kl/error": error, "kl/smoothed": held.smoothed, "kl/pulled_back": 0.0 if before is None else before}
            if held.spent:
                what = f"KL went above its budget of {held.budget:g} nats an answer in {held.above} rounds without falling"
                self.reason = f"{what}, although the coefficient rose to {held.coefficient:.3g}"
        else:
            held.update(kl, len(made.lengths))
        if self.job.penalty is not None:
            self.job.penalty.coefficient = held.coefficient
        metrics |= {"objective/kl": kl, "kl/coefficient": held.coefficient}

    # --- sampling and judging

    def _gather(self, number: int) -> list[Group]:
        """The prompts of the round with those of their answers that could be judged.

        Raises:
            RewardError: the reward is wrong, or has judged nothing so far.
        """
        rows, kept, seen, drawn = self.plan.step(number), list[Group](), set[int](), list[Asked]()
        wanted, samples = len(rows), self.setup.rollout.samples
        dynamic = self.setup.replaces
        with_greedy = "greedy" in self.online.arguments
        for draw in range(self.setup.online.draws if dynamic else 1):
            seen.update(rows)
            asked = self._ask([self.train[i] for i in rows], number, draw, samples=samples)
            drawn += asked
            self._some_judged(drawn)
            self.unjudged += [(prompt, a) for prompt, answers, greedy in asked for a in _all(answers, greedy) if a.verdict.value is None]
            for group in _judged(asked):
                no_use = (with_greedy and math.isnan(group.greedy)) or (dynamic and group.undecided)
                (self.dropped if no_use else kept).append(group)
            rest = np.random.default_rng([self.setup.train.seed, number, draw, 1]).permutation(len(self.train))
            rows = [int(i) for i in rest if i not in seen][: wanted - len(kept)]
            if not rows:
                break
        self.dropped += kept[wanted:]
        return kept[:wanted]

    def _shared(self, prompts: Sequence[TokenTree], work: Callable[[Sequence[TokenTree]], list[Found]]) -> list[Found]:
        """What `work` makes of each prompt; every rank works on its share, and all hold all of it then."""
        ranks = distributed.world_size()
        mine = share(prompts, distributed.rank(), ranks)
        shares = distributed.together(lambda: work(mine) if mine else [])
        return [shares[i % ranks][i // ranks] for i in range(len(prompts))]

    def _ask(self, prompts: Sequence[TokenTree], *stamp: int, samples: int) -> list[Asked]:
        """Answers to each prompt, judged."""
        answered = self._shared(prompts, lambda mine: self._answered(mine, *stamp, samples=samples))
        return [(prompt, answers, greedy) for prompt, (answers, greedy) in zip(prompts, answered, strict=True)]

    def _answered(self, prompts: Sequence[TokenTree], *stamp: int, samples: int) -> list[tuple[list[Answer], Answer | None]]:
        """Judged answers to each prompt, and the greedy one where the method compares with it."""
        settings = replace(self.setup.rollout, samples=samples, seed=self._seed(*stamp))
        own = samples - 1 if self.online.explores and samples > 1 else samples
        drawn = self.source.sample(prompts, replace(settings, samples=own), self.job.model)
        mine = [[True] * own for _ in prompts]
        if own < samples and self.job.reference is not None:
            with self.job.reference.sampling() as model:
                other = self.source.sample(prompts, replace(settings, samples=1, seed=self._seed(*stamp, 1)), model)
            drawn = [[*a, *b] for a, b in zip(drawn, other, strict=True)]
            mine = [[*flags, False] for flags in mine]
        greedy: list[Answer | None] = [None] * len(prompts)
        if "greedy" in self.online.arguments:
            best = self.source.sample(prompts, replace(settings, samples=1, temperature=0.0), self.job.model)
            greedy = [row[0] for row in self._judge(prompts, best, [[True]] * len(prompts))]
        return list(zip(self._judge(prompts, drawn, mine), greedy, strict=True))

    def _judge(self, prompts: Sequence[TokenTree], drawn: Sequence[Sequence[Sample]], mine: Sequence[Sequence[bool]]) -> list[list[Answer]]:
        rolled = [Rolled(_row(tree), sample) for tree, samples in zip(prompts, drawn, strict=True) for sample in samples]
        try:
            found = self.reward.judge(rolled)
        except PrefoptError as error:
            raise self._kept(error, [(answer.example, answer.sample) for answer in rolled]) from error
        verdicts = iter(found)
        return [
            [Answer(sample, next(verdicts), own) for sample, own in zip(samples, flags, strict=True)]
            for samples, flags in zip(drawn, mine, strict=True)
        ]

    def _some_judged(self, asked: Sequence[Asked]) -> None:
        """Go on only where some of the answers could be judged, and some of the greedy ones.

        Raises:
            RewardError: none could; they are kept.
        """
        every = [answer for _, answers, _ in asked for answer in answers]
        for found in (every, [greedy for _, _, greedy in asked if greedy is not None]):
            if not found or any(answer.verdict.value is not None for answer in found):
                continue
            what = f"none of {len(found)} answers could be judged: {found[0].verdict.note}"
            error = RewardError(what, where="reward", fix="mend the reward and give the same command again")
            raise self._kept(error, [(_row(prompt), answer.sample) for prompt, answers, _ in asked for answer in answers])

    def _kept(self, error: PrefoptError, answers: Sequence[tuple[Any, Sample]]) -> PrefoptError:
        """The error, with the place where answers that would be lost are kept."""
        path = self.out / "rollouts" / f"unjudged{f'-{distributed.rank()}' if distributed.rank() else ''}.jsonl"
        write_rows(path, ({"prompt": plain(row.prompt), "completion": sample.text} for row, sample in answers))
        fix = " ".join(part for part in (error.fix, f"(the answers are kept in {path})") if part)
        return type(error)(error.what, where=error.where, fix=fix)

    def _seed(self, *stamp: int) -> int:
        """Of the samples of one call, whatever was sampled before."""
        key = (distributed.rank(),) if distributed.world_size() > 1 else ()
        words = np.random.SeedSequence([self.setup.train.seed, self.setup.rollout.seed, *stamp], spawn_key=key).generate_state(2)
        return int(words[0]) << 20 | int(words[1]) >> 12

    def _kl(self, groups: Sequence[Group]) -> tuple[float, float]:
        """KL to the reference, nats an answer, estimated on the policy's samples, and its standard error."""
        measured = measure(self.job, [untold(group) for group in groups], divergence=True)
        found = Made(groups, measured, 0.0, self.setup.held, self.setup.online, None).divergence()
        assert found is not None
        return found

    def _measure(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        return measure(self.job, [untold(group) for group in groups], divergence=self.job.reference is not None)

    # --- weights, files, checks

    def _weights(self) -> dict[str, Tensor]:
        return {name: master.detach().cpu().clone() for name, master in self.job.optimizer.weights.masters.items()}

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, master in self.job.optimizer.weights.masters.items():
            master.copy_(weights[name])
        self.job.optimizer.weights.publish()
        self.job.version += 1

    def _record(self, number: int, groups: Sequence[Group]) -> None:
        """Every judged answer of the round, for people and for later training: a ranking of scored completions a line; those from which
        nothing is learned, because others replaced them or nothing is known of the greedy one, stand last.
        """
        if distributed.rank():
            return
        rows = (
            {
                "prompt": plain(_row(group.prompt).prompt),
                "completions": [answer.sample.text for answer in group.answers],
                "scores": [answer.score for answer in group.answers],
                "parts": [dict(answer.verdict.parts) for answer in group.answers],
                "finished": [answer.sample.finished for answer in group.answers],
                "where": group.prompt.where,
                **({"tools": [dict(tool) for tool in _row(group.prompt).tools]} if _row(group.prompt).tools else {}),
            }
            for group in (*groups, *self.dropped)
        )
        write_rows(self.out / "rollouts" / f"round-{number + 1:06d}.jsonl", rows)
        if self.unjudged:
            path, (_, first) = self.out / "unjudged" / f"round-{number + 1:06d}.jsonl", self.unjudged[0]
            write_rows(path, (_aside(prompt, answer) for prompt, answer in self.unjudged))
            self.say(
                f"round {number + 1}: left out {len(self.unjudged)} answers that could not be judged ({first.verdict.note}), see {path}"
            )

    def _check(self) -> None:
        limit, room = self.model.max_length, self.setup.rollout.max_new_tokens
        for tree in (*self.train, *self.heldout):
            if limit is not None and len(tree.prompt) + room > limit:
                what = f"the prompt has {len(tree.prompt)} tokens, with {room} new ones more than the model's {limit}"
                raise DataError(what, where=tree.where, fix="lower rollout.max_new_tokens, or leave longer prompts out (data.max_length)")
        self.reward.check([_row(tree) for tree in (*self.train, *self.heldout)])
        self.source.check(self.train[:1])


def controller(setup: Setup) -> FixedKL:
    """What sets the coefficient of the KL penalty."""
    held = setup.held
    coefficient = float(held.coefficient or 0.0)
    if held.budget is not None:
        return KLBudget(held.budget, initial=coefficient)
    if held.target is not None:
        return AdaptiveKL(coefficient, held.target, held.horizon)
    return FixedKL(coefficient)


def summary(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards and lengths of the policy's own answers in a round, under the names users know; spreads are those of all answers compared."""
    answers = [answer for group in groups for answer in group.answers if answer.own]
    if not answers:
        return {}
    lengths = np.array([len(answer.sample.ids) for answer in answers])
    spreads = [np.std([answer.score for answer in group.answers], ddof=1) for group in groups if len(group.answers) > 1]
    parts = {name: [answer.verdict.parts[name] for answer in answers if name in answer.verdict.parts] for name in answers[0].verdict.parts}
    return {
        "reward": float(np.mean([answer.score for answer in answers])),
        "reward_std": float(np.mean(spreads)) if spreads else float(np.std([answer.score for answer in answers])),
        **{f"rewards/{name}/mean": float(np.mean(values)) for name, values in parts.items()},
        "frac_reward_zero_std": float(np.mean([group.flat for group in groups])),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([not answer.sample.finished for answer in answers])),
    }


def explained(values: Tensor, returns: Tensor) -> float:
    """The share of the returns' variance that the critic knew: 1 - Var(R - V)/Var(R); 0 where the returns have none."""
    total = float(returns.double().var(correction=0))
    return 1 - float((returns.double() - values.double()).var(correction=0)) / total if total else 0.0


def _judged(asked: Sequence[Asked]) -> list[Group]:
    """The answers that could be judged; prompts without any are left out."""
    groups = [
        Group(prompt, tuple(a for a in answers if a.verdict.value is not None), float("nan") if greedy is None else greedy.score)
        for prompt, answers, greedy in asked
    ]
    return [group for group in groups if group.answers]


def _all(answers: Sequence[Answer], greedy: Answer | None) -> list[Answer]:
    return [*answers, *([] if greedy is None else [greedy])]


def _row(tree: TokenTree) -> Any:
    assert tree.example is not None
    return tree.example


def _aside(prompt: TokenTree, answer: Answer) -> dict[str, Any]:
    """An answer that could not be judged, and why."""
    return {"prompt": plain(_row(prompt).prompt), "completion": answer.sample.text, "note": answer.verdict.note, "where": prompt.where}
