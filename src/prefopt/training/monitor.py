"""Reward hacking, seen and stopped: the reward that is trained on, beside one that is not.

A policy that is pushed far enough from where its reward was learned finds what the reward overrates: the reward goes on rising while what
it stands for falls (Gao et al. 2022, arXiv 2210.10760). At intervals a round's answers are judged by a held-out evaluator as well;
monitor.jsonl keeps both with length, repetition, refusals and KL, and audit.jsonl keeps answers for people to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from scipy.stats import norm

from prefopt.jsonl import read_rows, write_rows
from prefopt.rollout.rewards import Reward, Rolled, Verdict
from prefopt.settings import MonitorSettings, RewardSettings, Verifier
from prefopt.stats import Interval, clustered_mean
from prefopt.text.refusal import refuses
from prefopt.text.surface import MARKERS, repetition
from prefopt.types import plain

CHECKS, AUDIT = "monitor.jsonl", "audit.jsonl"
REPEATED = 0.5
"""Share of repeated 3-grams from which an answer is flagged."""


class Judged(NamedTuple):
    """An answer and its reward."""

    rolled: Rolled
    verdict: Verdict
    prompt: int
    """Which prompt of the round; answers to one go together."""


class Watched(NamedTuple):
    """What the loop is told: metrics to log, whether these weights are the best so far, and why to stop ("" to go on)."""

    metrics: Mapping[str, float] = {}
    best: bool = False
    stop: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of the reward with the evaluator, on one round's answers."""

    round: int
    n: int
    kl: float
    reward: Interval
    evaluator: Interval
    length: float
    repetition: float
    refusal: float
    unfinished: float
    verdict: str = "ok"
    """ok, or fallen: the evaluator is below its best beyond the interval while the reward is above what it was then."""

    def to_json(self) -> dict[str, Any]:
        """A line of monitor.jsonl; numbers that are not finite are null."""
        flat = {name: value for name, value in vars(self).items() if not isinstance(value, Interval)}
        for name, interval in (("reward", self.reward), ("evaluator", self.evaluator)):
            flat |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        flat["sqrt_kl"] = math.sqrt(max(self.kl, 0.0)) if math.isfinite(self.kl) else math.nan
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}


class Watch(Protocol):
    """Who is shown every round of a run."""

    def needs_kl(self, number: int) -> bool:
        """Whether the KL to the reference has to be measured for it in round `number`; who never asks in the first never does."""
        ...

    def __call__(self, number: int, answers: Sequence[Judged], metrics: Mapping[str, float], /) -> Watched:
        """See `Monitor`."""
        ...


class Say(Protocol):
    """Prints a line."""

    def __call__(self, line: str, /) -> object: ...  # noqa: D102


@dataclass
class Monitor:
    """Watches the rounds of a run.

    Args:
        settings: how often, how strictly.
        evaluator: judges answers apart from the reward; None leaves only the audit.
        out: the run folder.
        seed: of what is picked for the audit.
        say: prints a line.
    """

    settings: MonitorSettings
    evaluator: Reward | None
    out: Path
    seed: int
    say: Say
    checks: list[Check] = field(default_factory=list)
    started: bool = False

    def needs_kl(self, number: int) -> bool:
        """See `Watch`."""
        return self.evaluator is not None and number % self.settings.every == 0

    def __call__(self, number: int, answers: Sequence[Judged], metrics: Mapping[str, float]) -> Watched:
        """Look at round `number` (0-based) if it is its turn.

        Args:
            number: of the round; a run that goes on after a stop repeats the rounds after its checkpoint, and their lines are replaced.
            answers: those of the policy.
            metrics: of the round; "objective/kl" is read.
        """
        if not self.started:
            self.resume(number)
        turn = self.needs_kl(number) and bool(answers)
        values = self._evaluate(number, answers) if turn else [None] * len(answers)
        if self.settings.audit_every and number % self.settings.audit_every == 0:
            self._audit(number, answers, values)
        known = [(answer, value) for answer, value in zip(answers, values, strict=True) if value is not None]
        if not known:
            return Watched({"monitor/unjudged": float(len(answers))} if turn else {})
        self.checks = [check for check in self.checks if check.round < number]
        check = self._check(number, [a for a, _ in known], [v for _, v in known], metrics.get("objective/kl", math.nan))
        self.checks.append(check)
        _append(self.out / CHECKS, number, [check.to_json()])
        found = self._verdict(check)
        return found._replace(metrics={**found.metrics, "monitor/unjudged": float(len(answers) - len(known))})

    def resume(self, number: int) -> None:
        """Take back the checks of the rounds before `number`, when a run goes on there."""
        self.started = True
        self.checks = [_from_json(row) for row in read_rows(self.out / CHECKS) if row["round"] < number]

    def _evaluate(self, number: int, answers: Sequence[Judged]) -> list[float | None]:
        assert self.evaluator is not None
        found = self.evaluator.judge([answer.rolled for answer in answers])
        missing = [verdict for verdict in found if verdict.value is None]
        if missing:
            counted = f"the evaluator judged {len(found) - len(missing)} of {len(found)} answers ({missing[0].note})"
            self.say(f"warning: round {number + 1}: {counted}" + ("; nothing watches the reward" if len(missing) == len(found) else ""))
        return [verdict.value for verdict in found]

    def _check(self, number: int, answers: Sequence[Judged], values: Sequence[float], kl: float) -> Check:
        clusters = [answer.prompt for answer in answers]
        rewards = [float(answer.verdict.value or 0.0) for answer in answers]
        samples = [answer.rolled.sample for answer in answers]
        check = Check(
            round=number,
            n=len(answers),
            kl=kl,
            reward=clustered_mean(rewards, clusters, self.settings.confidence),
            evaluator=clustered_mean(list(values), clusters, self.settings.confidence),
            length=float(np.mean([len(sample.ids) for sample in samples])),
            repetition=float(np.mean([repetition(list(sample.ids)) for sample in samples])),
            refusal=float(np.mean([refuses(sample.text) for sample in samples])),
            unfinished=float(np.mean([not sample.finished for sample in samples])),
        )
        return Check(**{**vars(check), "verdict": "fallen" if self.fallen(check) else "ok"})

    @property
    def best(self) -> Check | None:
        """The check with the highest evaluator."""
        return max(self.checks, key=lambda check: check.evaluator.value, default=None)

    def fallen(self, now: Check) -> bool:
        """Whether the evaluator is lower than at its best by more than chance, and the reward higher.

        The best was chosen among all checks, so the interval of the difference is widened for their number (Bonferroni).
        """
        best = self.best
        if best is None:
            return False
        z = float(norm.ppf((1 + self.settings.confidence) / 2))
        wide = float(norm.ppf(1 - (1 - self.settings.confidence) / (2 * len(self.checks))))
        errors = [(interval.high - interval.low) / (2 * z) for interval in (best.evaluator, now.evaluator)]
        return now.evaluator.value - best.evaluator.value < -wide * math.hypot(*errors) and now.reward.value > best.reward.value

    def _verdict(self, check: Check) -> Watched:
        metrics = {
            "monitor/evaluator": check.evaluator.value,
            "monitor/repetition": check.repetition,
            "monitor/refusal": check.refusal,
            "monitor/fallen": float(check.verdict == "fallen"),
        }
        best = self.best
        assert best is not None
        if check.verdict == "ok":
            return Watched(metrics, best=best is check)
        what = (
            f"the reward rose from {best.reward.value:.3g} to {check.reward.value:.3g} while the evaluator fell from "
            f"{best.evaluator.value:.3g} (round {best.round + 1}) to {check.evaluator.value:.3g} (round {check.round + 1})"
        )
        last = self.checks[-self.settings.patience :]
        if self.settings.stop and len(last) == self.settings.patience and all(c.verdict == "fallen" for c in last):
            return Watched(metrics, stop=f"reward hacking: {what}")
        if len(self.checks) < 2 or self.checks[-2].verdict == "ok":
            self.say(f"warning: {what}: the reward may be being hacked")
        return Watched(metrics)

    def _audit(self, number: int, answers: Sequence[Judged], values: Sequence[float | None]) -> None:
        """Write some answers of the round: the most rewarded, where hacks show first, and others at random."""
        order = sorted(range(len(answers)), key=lambda i: -float(answers[i].verdict.value or 0.0))
        top = order[: self.settings.audit // 2]
        rest = [int(i) for i in np.random.default_rng([self.seed, number]).permutation(len(answers)) if i not in top]
        picked = [(i, "highest reward") for i in top] + [(i, "random") for i in rest[: self.settings.audit - len(top)]]
        _append(self.out / AUDIT, number, [_line(number, answers[i], values[i], why) for i, why in picked])


def flags(answer: Judged) -> list[str]:
    """What is odd about an answer, in words."""
    sample = answer.rolled.sample
    found = {
        "empty": not sample.text.strip(),
        "unfinished": not sample.finished,
        "repetitive": repetition(list(sample.ids)) >= REPEATED,
        "refusal": refuses(sample.text),
        "flattery": bool(MARKERS["flattery"](sample.text)),
    }
    return [name for name, on in found.items() if on]


def evaluator_settings(named: str) -> RewardSettings:
    """What `monitor.evaluator` names, as a reward of that kind."""
    if named.startswith(("http://", "https://")):
        return RewardSettings(url=named)
    if ":" in named and not Path(named).exists():
        return RewardSettings(function=named)
    if named in get_args(Verifier):
        return RewardSettings(verifier=named)  # type: ignore[arg-type] # it is one of them
    return RewardSettings(model=named)


def _from_json(line: Mapping[str, Any]) -> Check:
    """What `Check.to_json` wrote."""
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in line.items()}
    intervals = {
        name: Interval(values[name], values.pop(f"{name}_low"), values.pop(f"{name}_high"), values["n"], "clustered t")
        for name in ("reward", "evaluator")
    }
    del values["sqrt_kl"]
    return Check(**(values | intervals))


def _line(number: int, answer: Judged, value: float | None, why: str) -> dict[str, Any]:
    example, sample = answer.rolled.example, answer.rolled.sample
    return {
        "round": number,
        "picked": why,
        "prompt": plain(example.prompt),
        "completion": sample.text,
        "reward": answer.verdict.value,
        "parts": dict(answer.verdict.parts),
        "note": answer.verdict.note,
        "evaluator": value,
        "tokens": len(sample.ids),
        "flags": flags(answer),
        "where": example.where,
    }


def _append(path: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of a round, in the place of what an earlier start wrote of it and of later ones."""
    write_rows(path, [*(row for row in read_rows(path) if row["round"] < number), *rows])
