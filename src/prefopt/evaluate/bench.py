"""What a suite is given: the models, the rows and the settings; and answers, drawn once for all suites that ask for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.data.formats import as_chat
from prefopt.data.read import read, tables
from prefopt.errors import DataError, ModelError
from prefopt.evaluate import guard
from prefopt.evaluate.guard import Training
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.rows import figure as row_of
from prefopt.evaluate.table import kept
from prefopt.pack.prepare import Prepared, prepare
from prefopt.settings import DataSettings, JudgeSettings, RolloutSettings
from prefopt.stats import Interval, clustered_mean, score_rate
from prefopt.types import Example, Text, TokenTree, plain

if TYPE_CHECKING:
    from prefopt.rollout.sampler import Sample

Parts = list[tuple[str, np.ndarray]]


@dataclass(eq=False)
class Subject:
    """A model under evaluation: what tables call it, the hash of its folder, and how to open it; opened when first needed."""

    path: str
    name: str
    open: Callable[[], Any]
    sha256: str = ""

    @cached_property
    def model(self) -> Any:
        """The Policy or RewardModel."""
        return self.open()

    @property
    def policy(self) -> Any:
        """The same, which must be able to answer.

        Raises:
            ModelError: it is a reward model.
        """
        if not hasattr(self.model, "sample"):
            raise ModelError("a reward model gives no answers", where=self.path, fix="use suite: pairs or rewardbench, or give a policy")
        return self.model


@dataclass(frozen=True)
class Answers:
    """One model's answers, `rollout.samples` a request in turn; `rows` and `clusters` hold one entry an answer.

    Answers to one prompt are a cluster, however many rows ask it.
    """

    who: Subject
    rows: list[Example]
    clusters: list[Hashable]
    samples: list[Sample]

    @cached_property
    def texts(self) -> list[str]:
        """The answers."""
        return [sample.text for sample in self.samples]

    def only(self, mask: np.ndarray) -> Answers:
        """Those of the answers that `mask` names."""
        kept = np.flatnonzero(mask).tolist()
        return Answers(self.who, [self.rows[i] for i in kept], [self.clusters[i] for i in kept], [self.samples[i] for i in kept])


@dataclass
class Findings:
    """What a suite found: rows of evaluation.json, further notes there, rows of samples.jsonl, and a line to print."""

    figures: list[Figure] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    told: str = ""


@dataclass(eq=False)
class Bench:
    """Everything a suite may use.

    Attributes:
        model: what is evaluated. baseline: what it is compared with, or None.
        data: the data section. rollout: how answers are drawn. judge: who says which answer is better.
        seed: of every bootstrap and of the split of pairs. harm: what requests without a label are (see the safety suite).
        beta: of a policy's implicit reward, where probabilities are made of it.
        false_positive_rate: the bound at which the guardrail suite chooses its threshold.
        tasks: of lm-eval, by name or YAML file. shots: examples shown before each of their items; the task's own number where None.
        formats: other tools' files to write beside.
        out: the stage's folder. say: is given lines for the user. data_sha256: of the files.
        training: what the models were trained on. seen: what happens to rows of it. dropped: how many were left out.
        open: opens a further model by its path.
    """

    model: Subject
    baseline: Subject | None
    data: DataSettings
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    seed: int = 0
    harm: str = "auto"
    beta: float = 1.0
    false_positive_rate: float = 0.05
    tasks: Sequence[str] = ()
    shots: int | None = None
    formats: Sequence[str] = ()
    out: Path = Path()
    say: Callable[[str], object] = print
    data_sha256: str = ""
    training: Training = field(default_factory=Training)
    seen: str = "error"
    dropped: int = 0
    open: Callable[[str], Any] = lambda path: None
    drawn: dict[Hashable, list[Sample]] = field(default_factory=dict)

    @property
    def subjects(self) -> list[Subject]:
        """The model and, where there is one, the baseline."""
        return [self.model, *([self.baseline] if self.baseline else [])]

    @cached_property
    def rows(self) -> list[Example]:
        """Every row of the data; where a training stage with this data section and seed holds rows out, those.

        Where the data hold preferences, these are what is held out; rows of other files stay.

        Raises:
            DataError: there is none.
        """
        found = list(read(self.data.eval_path or self.data.path, limit=self.data.limit))
        if not found and not self.tasks:
            raise DataError("no rows to evaluate on", fix="give data (--data, data.path), or tasks of lm-eval (tasks=[arc_easy])")
        if self._holds_out:
            held = {tree.where for tree in self._prepared.heldout}
            found = [row for row in found if row.where in held or (self._preferences and not _compares(row))]
        return [as_chat(row) for row in found] if self.data.chat else found

    @cached_property
    def trees(self) -> list[TokenTree]:
        """The preferences of the files that hold some, as token trees: those held out, all of them where none are."""
        if not self._preferences:
            return []
        inside = {row.where for row in self.rows}  # data.limit counts the rows of all files
        return [tree for tree in (self._prepared.heldout if self._holds_out else self._prepared.train) if tree.where in inside]

    @property
    def _holds_out(self) -> bool:
        return self.data.eval_path is not None or bool(self.data.eval_fraction)

    @cached_property
    def _preferences(self) -> list[str]:
        """The files that hold some."""
        return [table.path for table in tables(self.data.path) if table.layout.kind in ("pairs", "rankings")]

    @cached_property
    def _prepared(self) -> Prepared:
        """What a training stage makes of the data: of the preferences where there are some, else of the prompts."""
        model, settings = self.model.model, replace(self.data, path=self._preferences or self.data.path)
        kind = "pairs" if self._preferences else "prompts"
        return prepare(settings, model.renderer, data=kind, max_length=model.max_length, seed=self.seed, say=self.say)

    @cached_property
    def reward_model(self) -> Any:
        """The judge's reward model (`judge.path`)."""
        return self.open(str(self.judge.path))

    def guard(self) -> dict[str, object]:
        """Refuse, leave out or note rows that the models were trained on; returns notes for the evaluation.

        Raises:
            DataError: there are such rows, and `seen` is "error".
        """
        found, unread = guard.seen(self.rows, self.training.rows()) if self.training.files else ([], [])
        notes: dict[str, object] = {"training_files_checked": len(self.training.files)}
        unknown = "; ".join([*self.training.unknown, *unread])
        notes |= {guard.UNKNOWN: unknown} if unknown else {}
        if self.training.pleased(self.judge.path):
            notes |= {guard.PROXY: True}
            self.say(f"  the judge {self.judge.path} is the reward that trained a model here: what pleases it is no evidence of quality")
        if not found:
            return notes
        guard.write(found, self.out)
        if self.seen == "error":
            guard.refuse(found, len(self.rows), self.out)
        if self.seen == "drop":
            places = {hit.where for hit in found}
            self.trees = [tree for tree in self.trees if tree.where not in places]
            self.rows, self.dropped = [row for row in self.rows if row.where not in places], len(found)
        return {**notes, guard.DROPPED if self.seen == "drop" else guard.KEPT: len(found)}

    @cached_property
    def can_answer(self) -> bool:
        """Whether there are requests, and every model answers requests."""
        return bool(self.requests()) and all(hasattr(who.model, "sample") for who in self.subjects)

    def requests(self, fits: Callable[[Example], bool] = lambda row: True) -> list[Example]:
        """The rows with a prompt that fit."""
        return [row for row in self.rows if row.prompt and fits(row)]

    def rng(self, name: str) -> np.random.Generator:
        """The randomness of one purpose."""
        return np.random.default_rng([self.seed, *name.encode()])

    def answers(self, who: Subject, rows: Sequence[Example], *, variant: str = "", policy: Any = None) -> Answers:
        """A model's answers; the same rows of the same model are answered once.

        Args:
            who: the model.
            rows: the requests.
            variant: names a changed way of asking (another template), which is another answer.
            policy: the policy to ask, where it is not the model as it is.
        """
        keys = [identity(row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if (who.path, variant, key) not in self.drawn}
        if missing:
            asked = (policy or who.policy).sample(list(missing.values()), self.rollout)
            self.drawn.update(((who.path, variant, key), samples) for key, samples in zip(missing, asked, strict=True))
        drawn = [self.drawn[who.path, variant, key] for key in keys]
        repeated = [row for row, samples in zip(rows, drawn, strict=True) for _ in samples]
        clusters = [key for key, samples in zip(keys, drawn, strict=True) for _ in samples]
        return Answers(who, repeated, clusters, list(itertools.chain.from_iterable(drawn)))

    # --- figures

    def figure(
        self,
        metric: str,
        interval: Interval,
        *,
        who: Subject | None = None,
        slice: str = "all",
        against: Subject | None = None,
        **more: Any,
    ) -> Figure:
        """An interval as a row that says which model and data it stands on; `against` is whom a comparison is with."""
        who = who or self.model
        hashes = {"model_sha256": who.sha256, "data_sha256": self.data_sha256, "baseline_sha256": against.sha256 if against else ""}
        return row_of(metric, interval, model=who.name, slice=slice, **hashes, **more)

    def compare(
        self, metric: str, values: Sequence[np.ndarray], clusters: Sequence[Hashable], parts: Parts, *, share: bool = False
    ) -> list[Figure]:
        """Means of each model and, with a baseline, of the paired difference, slice by slice.

        Args:
            metric: its name.
            values: an array of the model and one of the baseline, item by item on the same data.
            clusters: items that go together.
            parts: names of slices and their masks.
            share: the values are 0 or 1.
        """
        found = []
        for part, mask in parts:
            inside = kept(clusters, mask)
            for who, own in zip(self.subjects, values, strict=False):
                level = score_rate(own[mask], clusters=inside) if share else clustered_mean(own[mask], inside)
                found.append(self.figure(metric, level, who=who, slice=part))
            if self.baseline and len(values) > 1:
                interval = clustered_mean(values[0][mask] - values[1][mask], inside)
                found.append(self.figure(metric, interval, slice=part, against=self.baseline, difference_from=self.baseline.name))
        return found


def _compares(row: Example) -> bool:
    """Whether it is a row of a file of preferences."""
    return any(completion.rank is not None for completion in row.completions)


def slice_of(row: Example) -> str:
    """The part of the data a row belongs to: its `slice`, `subset`, `type` or `category`, else its source."""
    named = (row.meta.get(name) for name in ("slice", "subset", "type", "category"))
    return next((name for name in named if isinstance(name, str) and name), row.source or "data")


def plain_prompt(prompt: Text) -> str:
    """A prompt as people read it."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in prompt)


def sample_row(i: int, row: Example, answers: Sequence[Answers], **facts: Sequence[np.ndarray]) -> dict[str, Any]:
    """Answer `i` of every model as a row of samples.jsonl; each fact holds one column a model."""
    names = [own.who.name for own in answers]
    told = {name: {who: float(column[i]) for who, column in zip(names, columns, strict=True)} for name, columns in facts.items()}
    texts = {own.who.name: own.samples[i].text for own in answers}
    return {"prompt": plain_prompt(row.prompt), "slice": slice_of(row), "where": row.where, "answers": texts, **told}


def identity(row: Example) -> Hashable:
    """What a prompt is told apart by: all that a chat template reads of it."""
    return json.dumps([plain(row.prompt), *map(dict, row.tools)], sort_keys=True, default=str)
