"""Who says which of two answers is better. A judge is a function of the bench and both models' answers; `JUDGES` names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefopt.errors import DataError, ModelError, OptionError
from prefopt.evaluate import truth
from prefopt.evaluate.bench import Answers, Bench
from prefopt.settings import JudgeSettings
from prefopt.stats.winrate import preference_scores
from prefopt.types import Completion, as_answer
from prefopt.world import panel


@dataclass(frozen=True)
class Verdicts:
    """Judgements of the model's answers against the baseline's, pair by pair.

    Attributes:
        by: who judged, in words.
        preferences: [n], 1 where the model's answer is better, 0 where the baseline's is, 0.5 for a tie.
        metric: the name of the judge's reward of a single answer, "" where it only compares.
        rewards: those rewards, the model's and the baseline's.
        notes: what else there is to say of the judging.
    """

    by: str
    preferences: np.ndarray
    metric: str = ""
    rewards: list[np.ndarray] = field(default_factory=list)
    notes: Mapping[str, Any] = field(default_factory=dict)


Judge = Callable[[Bench, Answers, Answers], Verdicts]


def gold(bench: Bench, mine: Answers, theirs: Answers) -> Verdicts:
    """The gold reward of the synthetic world."""
    rewards = [truth.column(own, "gold") for own in (mine, theirs)]
    return Verdicts("gold reward", preference_scores(*rewards), "gold", rewards)


def reward(bench: Bench, mine: Answers, theirs: Answers) -> Verdicts:
    """A reward model (`judge.path`)."""
    rewards = [scores(bench, own) for own in (mine, theirs)]
    return Verdicts(f"reward model {bench.judge.path}", preference_scores(*rewards), "reward", rewards)


def scores(bench: Bench, own: Answers) -> np.ndarray:
    """The rewards that the judge's reward model gives to answers, the stop token included where they have one."""
    model = bench.reward_model
    if not hasattr(model, "score"):
        raise ModelError("judge.path is no reward model", where=str(bench.judge.path), fix="train one with `prefopt train reward`")
    pairs = zip(own.rows, own.samples, strict=True)
    answers = [Completion(content=as_answer(row.prompt, sample.text), ended=sample.finished) for row, sample in pairs]
    return np.array(model.score(own.rows, answers), dtype=np.float64)


def annotator(bench: Bench, mine: Answers, theirs: Answers) -> Verdicts:
    """A simulated annotator of the synthetic world, biases and all; who is shown first is drawn."""
    (person,), rng = panel((bench.judge.annotator,)), bench.rng("annotator")
    said = []
    for row, a, b in zip(mine.rows, mine.texts, theirs.texts, strict=True):
        swap = rng.random() < 0.5
        choice = person.prefer(row.meta, *((b, a) if swap else (a, b)), rng)
        said.append(0.5 if choice == "tie" else float((choice == "a") != swap))
    return Verdicts(f"annotator '{bench.judge.annotator}'", np.array(said))


def ai(bench: Bench, mine: Answers, theirs: Answers) -> Verdicts:
    """A language model behind an OpenAI-compatible server (`judge.url`, `judge.model`), asked in both orders."""
    from prefopt.evaluate.ai import compare

    preferences, notes = compare(bench.judge, mine, theirs)
    return Verdicts(f"AI judge {bench.judge.model}", preferences, notes=notes)


JUDGES: dict[str, Judge] = {"gold": gold, "reward": reward, "annotator": annotator, "ai": ai}
"""judge.by -> the judge. People's labels (`labels`) come with their answers and are read by the preference suite."""


def named(bench: Bench) -> str:
    """`judge.by`, with auto decided: a reward model where judge.path is given, an AI where judge.url is, else the gold reward.

    Returns "" where nobody is there to judge.
    """
    if bench.judge.by != "auto":
        return bench.judge.by
    if bench.judge.path:
        return "reward"
    if bench.judge.url:
        return "ai"
    return "gold" if bench.rows and all(truth.known(row) for row in bench.requests()) else ""


def check(settings: JudgeSettings) -> None:
    """Refuse a judge that lacks an option.

    Raises:
        OptionError: with the option.
    """
    asked = "ai" if settings.by == "auto" and settings.url and not settings.path else settings.by
    for name in _NEEDS.get(asked, ()):
        if not getattr(settings, name):
            raise OptionError(f"judge.by={asked} needs judge.{name}", where="judge", fix=_HOW[asked])


def judge(bench: Bench, mine: Answers, theirs: Answers) -> Verdicts:
    """What the bench's judge says.

    Raises:
        OptionError: as in `check`.
        DataError: the judge needs rows of the synthetic world.
    """
    check(bench.judge)
    name = named(bench)
    if name in ("gold", "annotator") and not all(truth.known(row) for row in mine.rows):
        where = next(row.where for row in mine.rows if not truth.known(row))
        raise DataError(f"judge.by={name} needs rows of the synthetic world", where=where, fix="use judge.by=reward or judge.by=ai")
    return JUDGES[name](bench, mine, theirs)


_NEEDS = {"reward": ("path",), "ai": ("url", "model")}
_HOW = {
    "reward": "give judge.path=RM, a reward model's folder",
    "ai": "give judge.url=http://localhost:8000/v1 and judge.model=NAME",
}
