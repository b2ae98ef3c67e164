"""The data guard: rows that a model was trained on are no evidence of what it has learned.

A row counts as seen where its prompt is also a prompt of the training data (case, spacing and system messages aside), or where 13 words in
a row of it stand in a training row too. Thirteen words that more than ten training rows share are a form of words, not a copy, and do not
count. (Brown et al. 2020, arXiv 2005.14165, appendix C.) Requests of the synthetic world are made from templates and split by
what is filled in, so of them only the prompt counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import DataError
from prefopt.types import Example, Message, Text

GRAM = 13
COMMON = 10
"""Training rows that may share a 13-gram before it is taken for a form of words."""
NAMED = 4
"""Rows an error names; all of them are in seen.jsonl."""
FILE = "seen.jsonl"
ITEMS = "task_items_seen_in_training"
"""What evaluation.json says of the items of lm-eval's tasks that were seen and kept."""
KEPT, DROPPED, UNKNOWN = "rows_seen_in_training_kept", "rows_seen_in_training_dropped", "training_unknown"
"""What evaluation.json says of the rows that were seen, and of models whose training is not known."""
PROXY = "judge_is_the_trained_reward"
"""What it says where the judge is a reward model that one of the models was trained to please."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Training:
    """What trained the models of an evaluation: `rows` reads it anew, `files` names it, `unknown` says what could not be found out.

    A string among the rows says what could not be read there. `rewards` are the reward models that judged what they sampled.
    """

    rows: Callable[[], Iterable[Example | str]] = tuple
    files: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    rewards: tuple[str, ...] = ()

    def pleased(self, judge: str | None) -> bool:
        """Whether a reward model, by its path, is one that a model was trained to please."""
        return judge is not None and Path(judge).resolve() in {Path(path).resolve() for path in self.rewards}


class Seen(NamedTuple):
    """A row of the evaluation that the training data hold: where it is, where it is there, and how it was found."""

    where: str
    trained: str
    how: str


@dataclass
class _Index:
    """The prompts and 13-grams of the rows to evaluate on; `ends` holds the first and last word of each gram."""

    prompts: dict[str, list[str]] = field(default_factory=dict)
    grams: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    ends: set[tuple[str, str]] = field(default_factory=set)


def refuse(found: Sequence[Seen], total: int, out: Path) -> None:
    """Name the rows that were trained on, all of them in `out`/seen.jsonl.

    Raises:
        DataError: always.
    """
    named = ", ".join(f"{hit.where} ({hit.how} as {hit.trained})" for hit in found[:NAMED])
    more = f", and {len(found) - NAMED} more in {out / FILE}" if len(found) > NAMED else ""
    fix = "evaluate on other rows, leave these out with seen=drop, or accept them with seen=keep"
    raise DataError(f"{len(found)} of {total} rows were seen in training: {named}{more}", fix=fix)


def write(found: Sequence[Seen], out: Path) -> None:
    """Write `out`/seen.jsonl."""
    (out / FILE).write_text("".join(json.dumps(hit._asdict(), ensure_ascii=False) + "\n" for hit in found), encoding="utf-8")


def seen(rows: Iterable[Example], training: Iterable[Example | str]) -> tuple[list[Seen], list[str]]:
    """The rows that the training data hold, each once, in their order; and what of these data could not be read.

    Memory grows with `rows` alone; `training` is read once.
    """
    rows = list(rows)
    index = _indexed(rows)
    found: dict[str, Seen] = {}
    holders: dict[tuple[str, ...], dict[str, None]] = {}  # places, so that a row which two stages read is one row
    unread: list[str] = []
    for row in training:
        if isinstance(row, str):
            unread.append(row)
            continue
        for prompt in _prompts(row):
            for where in index.prompts.get(prompt, ()):
                found.setdefault(where, Seen(where, row.where, "same prompt"))
        for gram in set(_grams(row, index.ends)) & index.grams.keys():
            places = holders.setdefault(gram, {})
            if len(places) <= COMMON:
                places[row.where] = None
    for gram, places in holders.items():
        for where in index.grams[gram] if len(places) <= COMMON else ():
            found.setdefault(where, Seen(where, next(iter(places)), f"same {GRAM} words"))
    return [found[row.where] for row in rows if row.where in found], list(dict.fromkeys(unread))


def _indexed(rows: Iterable[Example]) -> _Index:
    index = _Index()
    for row in rows:
        for prompt in _prompts(row):
            index.prompts.setdefault(prompt, []).append(row.where)
        for gram in set(_grams(row, None)):
            index.grams.setdefault(gram, []).append(row.where)
    index.ends = {(gram[0], gram[-1]) for gram in index.grams}
    return index


def _prompts(row: Example) -> Iterator[str]:
    """The prompts of a row, normalised; a conversation has one before each answer."""
    if row.prompt:
        yield _normal(row.prompt)
        return
    for completion in row.completions:
        if isinstance(completion.content, str):
            yield _normal(completion.content)
            continue
        turns = completion.content
        yield from (_normal(turns[:i]) for i, turn in enumerate(turns) if turn.role == "assistant" and i)


def _normal(text: Text) -> str:
    """A prompt as it is compared: one that is a string is what a user says."""
    text = (Message("user", text),) if isinstance(text, str) else text
    return "\n".join(" ".join(f"{turn.role}: {turn.content}".casefold().split()) for turn in _spoken(text))


def _spoken(turns: Iterable[Message]) -> list[Message]:
    """The turns of a conversation without the system's, which many conversations share."""
    return [turn for turn in turns if turn.role != "system"]


def _grams(row: Example, ends: set[tuple[str, str]] | None) -> Iterator[tuple[str, ...]]:
    """Thirteen words in a row, of each text of the row; with `ends` only those that begin and end so."""
    if "world" in row.meta:
        return
    for text in (row.prompt, *(completion.content for completion in row.completions)):
        for part in (text,) if isinstance(text, str) else [turn.content for turn in _spoken(text)]:
            words = _WORD.findall(part.casefold())
            for i, pair in enumerate(zip(words, words[GRAM - 1 :], strict=False)):
                if ends is None or pair in ends:
                    yield tuple(words[i : i + GRAM])
