"""Rows whose completions are rated by the rewards of training: models, functions, endpoints, verifiers, their sums and penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prefopt.errors import DataError, OptionError, RewardError
from prefopt.pipeline.rows import Row, answers, ended, extra, write_rows
from prefopt.rollout.rewards import Rolled, Verdict, build
from prefopt.rollout.rewards.combine import Sum
from prefopt.rollout.sampler import Sample
from prefopt.settings import RewardSettings
from prefopt.text.chat import Renderer
from prefopt.types import Completion, Example, Text, as_answer, plain

TOGETHER = 256
"""Answers judged in one call, about as many as in a round of training; so many without a verdict, one after another, end the run."""


class _Judged(NamedTuple):
    """A completion of a row, as text and as if it had been sampled, and what it is worth."""

    rolled: Rolled
    content: Text
    verdict: Verdict

    def aside(self) -> Row:
        """What is kept of one that could not be judged."""
        row = self.rolled.example
        return {"prompt": plain(row.prompt), "completion": plain(self.content), "note": self.verdict.note, "where": row.where}


@dataclass
class Rewarded:
    """Rates the completions of rows.

    Args:
        settings: the reward.
        renderer: of the model whose tokens an answer is counted in; None where nothing counts them.

    Raises:
        OptionError, RewardError: the reward cannot be made, or counts tokens and there is no renderer.
    """

    settings: RewardSettings
    renderer: Renderer | None = None
    reward: Sum = field(init=False)
    unjudged: list[Row] = field(default_factory=list)
    judged: int = 0
    total: float = 0.0
    rows: int = 0

    def __post_init__(self) -> None:
        self.reward = build(self.settings)
        if self.renderer is None and self.reward.reads_tokens:
            what = "length penalties and completion_ids count tokens, and nothing says whose"
            raise OptionError(what, where="model.path", fix="name the model that the answers are of, such as --model ./my-model")

    def write(self, path: Path, examples: Sequence[Example]) -> str:
        """Write every row with a judged completion to `path`, and the others' completions beside it; a line that counts both.

        Raises:
            DataError: a row lacks a completion or what the reward reads. RewardError: the reward is wrong, or judges nothing.
        """
        told = ""
        try:
            self.rows = write_rows(path, self.scored(examples))
        except RewardError as error:
            told = f"the {self.judged} answers judged before are kept in {path.with_name(f'.{path.name}.part')}" if self.judged else ""
            raise RewardError(error.what, where=error.where, fix="; ".join(filter(None, (error.fix, told)))) from error
        finally:
            aside = path.with_name(f"{path.stem}.unjudged.jsonl")
            aside.unlink(missing_ok=True)
            if self.unjudged:
                write_rows(aside, self.unjudged)
        mean = f", mean reward {self.total / self.judged:.4g}" if self.judged else ""
        left = f"; left out, since they could not be judged: {len(self.unjudged)}, see {aside}" if self.unjudged else ""
        return f"{self.rows} rows, {self.judged} answers scored{mean}{left}"

    def scored(self, examples: Sequence[Example]) -> Iterator[Row]:
        """The rows, each with the completions that could be judged, their scores, what these are made of, and notes.

        Raises:
            RewardError: so many one after another could not be judged that the rest would not be either.
        """
        self.reward.check([replace(example, completions=()) for example in examples])
        missed = 0
        for asked in _together([self._asked(example) for example in examples]):
            verdicts = self.reward.judge([rolled for row in asked for rolled, _ in row])
            found = iter(verdicts)
            judged = [[_Judged(*one, next(found)) for one in row] for row in asked]
            self.unjudged += [one.aside() for row in judged for one in row if one.verdict.value is None]
            some = any(verdict.value is not None for verdict in verdicts)
            missed = 0 if some else missed + len(verdicts)
            if missed >= TOGETHER or (missed and not self.judged):
                what = f"none of {missed} answers could be judged: {verdicts[-1].note}"
                raise RewardError(what, where="reward", fix="mend the reward and give the same command again")
            yield from (made for row in judged for made in self._row(row))

    def _row(self, answered: Sequence[_Judged]) -> Iterator[Row]:
        """What is written of a row, if anything of it could be judged."""
        kept = [(one, score) for one in answered if (score := one.verdict.value) is not None]
        if not kept:
            return
        self.judged, self.total = self.judged + len(kept), self.total + sum(score for _, score in kept)
        row = kept[0][0].rolled.example
        yield {
            "prompt": plain(row.prompt),
            "completions": [plain(one.content) for one, _ in kept],
            "scores": [score for _, score in kept],
            "parts": [dict(one.verdict.parts) for one, _ in kept],
            "notes": [one.verdict.note for one, _ in kept],
            **({"finished": [one.rolled.sample.finished for one, _ in kept]} if "finished" in row.meta else {}),
            **extra(row),
        }

    def _asked(self, example: Example) -> list[tuple[Rolled, Text]]:
        """The completions of a row as if they had just been sampled; what is judged must not be taken for the right answer."""
        row = replace(example, completions=())
        return [(self._rolled(row, content, self._finished(example, at)), content) for at, content in enumerate(answers(example))]

    def _rolled(self, row: Example, content: Text, finished: bool) -> Rolled:
        """A completion as if it had just been sampled."""
        ids = np.zeros(0, dtype=np.int32)
        if self.renderer is not None:
            completion = Completion(content=as_answer(row.prompt, content), ended=finished)
            (tree,) = self.renderer.trees([replace(row, completions=(completion,))])
            ids = tree.branches[0].ids
        text = content if isinstance(content, str) else content[-1].content
        return Rolled(row, Sample(ids=ids, logps=np.zeros(len(ids), dtype=np.float32), text=text, finished=finished))

    def _finished(self, row: Example, at: int) -> bool:
        """Whether an answer ended by itself, as `prefopt generate` writes it down."""
        told = ended(row, at)
        if told is not None:
            return told
        if self.settings.missing_eos:
            what = "the row does not say which answers ended by themselves (`finished`, as prefopt generate writes it)"
            raise DataError(what, where=row.where, fix="leave reward.missing_eos out")
        return True


def _together(rows: Sequence[list[tuple[Rolled, Text]]]) -> Iterator[list[list[tuple[Rolled, Text]]]]:
    """Whole rows, so many at a time that one call judges about TOGETHER answers."""
    held: list[list[tuple[Rolled, Text]]] = []
    for row in rows:
        if held and sum(map(len, held)) + len(row) > TOGETHER:
            yield held
            held = []
        held.append(row)
    if held:
        yield held
