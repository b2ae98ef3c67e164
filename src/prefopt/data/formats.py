"""The layouts rows come in: one small function a layout, and the table that tells them apart by their columns.

String prompts stay strings and are used without a chat template. Alpaca, ShareGPT, HH dialogues, UltraFeedback instructions and
question/answer rows are conversations by nature and become messages.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prefopt.data.schema import Row, is_transcript, transcript
from prefopt.errors import DataError
from prefopt.types import Completion, Example, Message, Text


class Parsed(NamedTuple):
    """What a layout's function makes of a row."""

    prompt: Text
    completions: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout: the columns that give it away (`needs`), others it reads, and what its rows teach (`kind`)."""

    name: str
    needs: tuple[str, ...]
    kind: str
    parse: Callable[[Row], Parsed]
    reads: tuple[str, ...] = ()

    def read(self, row: Row) -> Example:
        """One row as an `Example`, completions best first; columns the layout does not read go to `meta`.

        Raises:
            DataError: a column is missing or its value is of the wrong kind.
        """
        prompt, completions = _with_system(row, _harmonise(row, self.parse(row)), self.kind)
        used = {*self.needs, *self.reads, "tools", "margin", *(("system",) if self.kind != "text" else ())}
        meta = _meta(row, used)
        return Example(
            prompt=prompt,
            completions=tuple(sorted(completions, key=lambda c: c.rank or 0)),
            tools=row.tools(),
            margin=row.number("margin"),
            where=row.where,
            source=meta.get("source") if isinstance(meta.get("source"), str) else "",  # type: ignore[arg-type]
            group=_group(row, meta),
            meta=meta,
        )


# --- what every layout shares ---------------------------------------------------------------------------------------


def _meta(row: Row, used: Collection[str]) -> dict[str, Any]:
    """Unread columns; a `meta` object is spread among them."""
    inner = row.fields.get("meta")
    spread = dict(inner) if isinstance(inner, Mapping) else {}
    rest = {k: v for k, v in row.fields.items() if k not in used and v is not None and not (k == "meta" and isinstance(v, Mapping))}
    return {**rest, **spread}


def _group(row: Row, meta: Mapping[str, Any]) -> str | None:
    group = meta.get("group")
    if group is None or isinstance(group, str):
        return group
    if isinstance(group, bool | float) or not isinstance(group, int):
        raise row.wrong("group", group, "a string or a whole number")
    return str(group)


def _harmonise(row: Row, parsed: Parsed) -> Parsed:
    """Prompt and completions in one form: all strings or all messages; a prompt repeated at the head of every completion is cut."""
    prompt, completions = parsed
    if isinstance(prompt, str) and not any(isinstance(c.content, tuple) for c in completions):
        return parsed
    contents = [c.content if isinstance(c.content, tuple) else (Message("assistant", c.content),) for c in completions]
    asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    asks = bool(asked) and asked[-1].role == "user"  # else messages of any role may follow, as in a conversation without a prompt
    whole = [content[0].role for content in contents if asks and content and content[0].role in ("system", "user")]
    opening = _opening(prompt, contents) if whole else ()
    if not opening and asked and contents and all(content[: len(asked)] == asked for content in contents):
        opening = asked
    if whole and not opening:
        what = f"the prompt ends with a question, and a completion begins with a message of the {whole[0]} that is not the prompt's"
        raise DataError(what, where=row.where, fix="give answers alone, or whole conversations that all begin with the prompt")
    contents = [content[len(opening) :] for content in contents]
    return Parsed(opening or asked, [replace(c, content=content) for c, content in zip(completions, contents, strict=True)])


def _opening(prompt: Text, contents: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """The first turns that whole conversations share and that say what the prompt says, but for spaces and a system message more.

    A prompt that is a string may be any question among them, or blank: it is what two conversations share, or the first question of one.
    """
    shared = contents[0][: _common_prefix(contents)]
    ends = [i for i, turn in enumerate(shared, 1) if turn.role == "user"]
    if not isinstance(prompt, str):
        first = int(shared[:1] != () and shared[0].role == "system" != prompt[0].role)
        return shared[: next((i for i in ends if _said(shared[first:i]) == _said(prompt)), 0)]
    found = [i for i in ends if prompt.strip() in ("", shared[i - 1].content.strip())]
    return shared if found and len(contents) > 1 else shared[: min(found, default=0)]


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


def _with_system(row: Row, parsed: Parsed, kind: str) -> Parsed:
    """The conversation with the column `system` as its first message. A row that has one is a conversation; a plain text is none."""
    if kind == "text" or not row.fields.get("system"):
        return parsed
    first = Message("system", row.string("system"))
    prompt, completions = parsed
    if isinstance(prompt, str):
        asked = (Message("user", prompt),) if prompt.strip() else ()
        prompt, completions = _harmonise(row, Parsed(asked, completions))
    assert isinstance(prompt, tuple)
    if prompt:
        return Parsed(_led(row, first, prompt), completions)
    return Parsed(prompt, [replace(c, content=_led(row, first, c.content)) for c in completions])  # type: ignore[arg-type] # messages


def _led(row: Row, first: Message, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages or messages[0].role != "system":
        return (first, *messages)
    if messages[0].content.strip() != first.content.strip():
        fix = "leave one of them out"
        raise DataError("the column 'system' and the conversation's own system message differ", where=row.where, fix=fix)
    return messages


def _pair(chosen: Text, rejected: Text, scores: tuple[float | None, float | None] = (None, None)) -> list[Completion]:
    return [Completion(content=chosen, rank=0, score=scores[0]), Completion(content=rejected, rank=1, score=scores[1])]


def _common_prefix(conversations: Sequence[tuple[Message, ...]]) -> int:
    """How many first turns conversations share, leaving each its last one."""
    shared, most = 0, min(map(len, conversations)) - 1
    while shared < most and all(turns[shared] == conversations[0][shared] for turns in conversations):
        shared += 1
    return shared


def _dense_ranks(keys: Sequence[float]) -> list[int]:
    """0 for the smallest key, equal keys sharing a rank."""
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


def as_chat(example: Example) -> Example:
    """The row with a string prompt as one user turn and string answers as the assistant's; plain text and messages stay."""
    if isinstance(example.prompt, tuple) or (not example.prompt and len(example.completions) == 1):
        return example
    completions = (replace(c, content=(Message("assistant", c.content),)) if isinstance(c.content, str) else c for c in example.completions)
    return replace(example, prompt=(Message("user", example.prompt),), completions=tuple(completions))


# --- one function a layout ------------------------------------------------------------------------------------------


def _text(row: Row) -> Parsed:
    return Parsed("", [Completion(content=row.string("text"))])


def _messages(row: Row) -> Parsed:
    return Parsed((), [Completion(content=row.as_messages(row.get("messages"), "messages"))])


def _sharegpt(row: Row) -> Parsed:
    return Parsed((), [Completion(content=row.as_messages(row.get("conversations"), "conversations"))])


def _prompt(row: Row) -> Parsed:
    return Parsed(row.text("prompt"), [])


def _prompt_completion(row: Row) -> Parsed:
    return Parsed(row.text("prompt"), [Completion(content=_answer(row, "completion"))])


def _unpaired(row: Row) -> Parsed:
    label = row.as_label(row.get("label"), "label")
    return Parsed(row.text("prompt"), [Completion(content=_answer(row, "completion"), label=label)])


def _answer(row: Row, column: str) -> Text:
    """A completion's text; in an HH file what follows "Assistant:", or the whole dialogue with the prompt at its head."""
    value = row.get(column)
    if not row.hh or not isinstance(value, str):
        return row.as_text(value, column)
    said = row.as_string(value, column)
    prompt, whole = row.text("prompt"), transcript(said, answered=True) if is_transcript(said) else ()
    if whole and (isinstance(prompt, str) or (len(whole) > len(prompt) and whole[: len(prompt)] == prompt)):
        return whole
    return transcript("Assistant: " + said) or (Message("assistant", ""),)


def _dialogue(row: Row, column: str) -> Text:
    """A whole conversation; the empty answer that an HH dialogue may end with is kept, to be counted."""
    value = row.get(column)
    if row.hh and is_transcript(value):
        return transcript(row.as_string(value, column), answered=True)
    return row.as_text(value, column)


def _preference(row: Row) -> Parsed:
    columns = ("chosen", "rejected")
    if any(_are_strings(row.fields.get(name)) for name in columns):
        lists = [_strings(row, name) for name in columns]
        return Parsed(row.text("prompt"), [Completion(content=text, rank=rank) for rank, texts in enumerate(lists) for text in texts])
    scores = (row.number("score_chosen"), row.number("score_rejected"))
    return Parsed(row.text("prompt"), _pair(_answer(row, "chosen"), _answer(row, "rejected"), scores))


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], str)


def _strings(row: Row, column: str) -> list[str]:
    """The answers of a column of several (RewardBench 2), or its only one."""
    given = row.get(column)
    texts = [given] if isinstance(given, str) else row.items(column)
    return [row.as_string(text, f"{column}[{i}]") for i, text in enumerate(texts)]


def _implicit_preference(row: Row) -> Parsed:
    scores = (row.number("score_chosen"), row.number("score_rejected"))
    chosen, rejected = _dialogue(row, "chosen"), _dialogue(row, "rejected")
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(
            "'chosen' and 'rejected' are strings and there is no 'prompt' column, so the prompt is not known",
            where=row.where,
            fix=_renames(guess_mapping(("prompt",), list(row.fields)))
            or "add a 'prompt' column, or give whole conversations as lists of {role, content} messages",
        )
    shared = _common_prefix((chosen, rejected))
    if not shared:
        raise DataError(
            "'chosen' and 'rejected' share no first message, so there is no common prompt",
            where=row.where,
            fix="both must begin with the same turns, or give a 'prompt' column",
        )
    return Parsed(chosen[:shared], _pair(chosen[shared:], rejected[shared:], scores))


def _sharegpt_preference(row: Row) -> Parsed:
    prompt = row.as_messages(row.get("conversations"), "conversations")
    return Parsed(prompt, _pair(row.text("chosen"), row.text("rejected")))


def _judged_pair(row: Row) -> Parsed:
    label = row.get("label") if "label" in row.fields else _plurality(row)
    if label not in ("a", "b", "tie"):
        raise row.wrong("label", label, '"a", "b" or "tie"')
    ranks = {"a": (0, 1), "b": (1, 0), "tie": (0, 0)}[label]
    answers = (_answer(row, "response_a"), _answer(row, "response_b"))
    both = zip(answers, ranks, _ended(row, 2), strict=True)
    return Parsed(row.text("prompt"), [Completion(content=c, rank=r, ended=ended) for c, r, ended in both])


def _plurality(row: Row) -> str:
    """The label most votes agree on; a tie when no label has strictly more than every other."""
    votes: Counter[object] = Counter()
    for i, vote in enumerate(row.items("votes")):
        if not isinstance(vote, Mapping) or vote.get("label") not in ("a", "b", "tie"):
            raise row.wrong(f"votes[{i}]", vote, 'an object with a label "a", "b" or "tie"')
        votes[vote["label"]] += 1
    ranked = votes.most_common(2)
    if not ranked:
        raise row.wrong("votes", row.fields["votes"], "at least one vote")
    return "tie" if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else str(ranked[0][0])


def _ranking(row: Row) -> Parsed:
    contents = [row.as_text(v, f"completions[{i}]") for i, v in enumerate(row.items("completions"))]
    if not contents:
        return _unanswered(row.text("prompt"))
    scores = _numbers(row, "scores", len(contents))
    ranks = _numbers(row, "ranks", len(contents)) or [-score for score in scores]
    if len(ranks) != len(contents):
        raise row.wrong("scores" if "scores" in row.fields else "ranks", None, "a list of numbers, one for each completion")
    known: list[float] | list[None] = scores or [None] * len(contents)
    rows = zip(contents, _dense_ranks(ranks), known, _ended(row, len(contents)), strict=True)
    return Parsed(row.text("prompt"), [Completion(content=c, rank=r, score=s, ended=ended) for c, r, s, ended in rows])


def _unanswered(prompt: Text) -> Parsed:
    """A list of no answers, counted as an empty one."""
    return Parsed(prompt, [Completion(content="", rank=0)])


def _ended(row: Row, count: int) -> list[bool]:
    """Which answers ended by themselves, as prefopt writes of those it sampled (`finished`); all where the row does not say."""
    said = row.fields.get("finished")
    told = list(said) if isinstance(said, Sequence) and not isinstance(said, str) else []
    return [bool(one) for one in told] if len(told) == count and all(isinstance(one, bool) for one in told) else [True] * count


def _numbers(row: Row, name: str, count: int) -> list[float]:
    """One number for each completion, or an empty list when the column is not there."""
    if not row.has(name):
        return []
    numbers = [row.as_number(v, f"{name}[{i}]") for i, v in enumerate(row.items(name))]
    if len(numbers) != count:
        raise DataError(f"{count} completions but {len(numbers)} in '{name}'", where=row.where, fix="give one for each completion")
    return numbers


def _ultrafeedback(row: Row) -> Parsed:
    contents, scores = [], []
    for i, item in enumerate(row.items("completions")):
        if not isinstance(item, Mapping) or "response" not in item or "overall_score" not in item:
            raise row.wrong(f"completions[{i}]", item, "an object with 'response' and 'overall_score'")
        contents.append((Message("assistant", row.as_string(item["response"], f"completions[{i}].response")),))
        scores.append(row.as_number(item["overall_score"], f"completions[{i}].overall_score"))
    ranked = zip(contents, _dense_ranks([-score for score in scores]), scores, strict=True)
    prompt = (Message("user", row.string("instruction")),)
    if not contents:
        return _unanswered(prompt)
    return Parsed(prompt, [Completion(content=c, rank=r, score=s) for c, r, s in ranked])


def _stepwise(row: Row) -> Parsed:
    return Parsed(row.text("prompt"), [_steps(row, "completions")])


def _process(row: Row) -> Parsed:
    return Parsed(row.text("problem" if "problem" in row.fields else "prompt"), [_steps(row, "steps")])


def _steps(row: Row, column: str) -> Completion:
    r"""A completion in steps, "\n" between them; a step's text ends with the newline that closes it, so the steps join to the content."""
    bare = [row.as_string(v, f"{column}[{i}]") for i, v in enumerate(row.items(column))]
    steps = tuple(step if step.endswith("\n") else step + "\n" for step in bare[:-1]) + tuple(bare[-1:])
    labels = row.step_labels("labels", len(steps))
    if not steps:
        return Completion(content="", steps=("",), step_labels=(None,))  # an empty answer, which is counted
    if not steps[-1] and labels[-1] is not None and len(steps) > 1:
        raise DataError("the last step is empty and has a label", where=row.where, fix="leave out the step and its label")
    return Completion(content="".join(steps), steps=steps, step_labels=labels)


def _alpaca(row: Row) -> Parsed:
    return Parsed(_instruction(row), [Completion(content=(Message("assistant", row.string("output")),))])


def _instruction_preference(row: Row) -> Parsed:
    return Parsed(_instruction(row), _pair(row.text("chosen"), row.text("rejected")))


def _instruction(row: Row) -> tuple[Message, ...]:
    """The conversation up to the answer: `history`, then `instruction` (or `question`) with its `input` below."""
    turns = []
    for i, turn in enumerate(row.items("history") if row.has("history") else ()):
        if isinstance(turn, str) or not isinstance(turn, Sequence) or len(turn) != 2:
            raise row.wrong(f"history[{i}]", turn, "a list of two strings, instruction and answer")
        said = [row.as_string(v, f"history[{i}]") for v in turn]
        turns += [Message("user", said[0]), Message("assistant", said[1])]
    request = row.string("instruction" if "instruction" in row.fields else "question")
    if row.has("input") and row.string("input").strip():
        request = f"{request}\n\n{row.string('input')}"
    return (*turns, Message("user", request))


def _question_answer(row: Row) -> Parsed:
    prompt = (Message("user", row.string("question")),)
    return Parsed(prompt, [Completion(content=(Message("assistant", row.string("answer")),))])


SCORES = ("score_chosen", "score_rejected")

LAYOUTS: tuple[Layout, ...] = (
    Layout("stepwise", ("prompt", "completions", "labels"), "steps", _stepwise),
    Layout("ranking by scores", ("prompt", "completions", "scores"), "rankings", _ranking, ("ranks",)),
    Layout("ranking by ranks", ("prompt", "completions", "ranks"), "rankings", _ranking),
    Layout("process labels", ("problem", "steps", "labels"), "steps", _process),
    Layout("process labels", ("prompt", "steps", "labels"), "steps", _process),
    Layout("UltraFeedback", ("instruction", "completions"), "rankings", _ultrafeedback),
    Layout("preference", ("prompt", "chosen", "rejected"), "pairs", _preference, SCORES),
    Layout("ShareGPT preference", ("conversations", "chosen", "rejected"), "pairs", _sharegpt_preference),
    Layout("Alpaca preference", ("instruction", "chosen", "rejected"), "pairs", _instruction_preference, ("input", "history")),
    Layout("question preference", ("question", "chosen", "rejected"), "pairs", _instruction_preference),
    Layout("preference, implicit prompt", ("chosen", "rejected"), "pairs", _implicit_preference, SCORES),
    Layout("judged pair", ("prompt", "response_a", "response_b", "label"), "pairs", _judged_pair),
    Layout("judged pair, votes only", ("prompt", "response_a", "response_b", "votes"), "pairs", _judged_pair),
    Layout("prompt, completion, label", ("prompt", "completion", "label"), "labels", _unpaired),
    Layout("prompt, completion", ("prompt", "completion"), "demonstrations", _prompt_completion),
    Layout("messages", ("messages",), "demonstrations", _messages),
    Layout("ShareGPT", ("conversations",), "demonstrations", _sharegpt),
    Layout("Alpaca", ("instruction", "output"), "demonstrations", _alpaca, ("input", "history")),
    Layout("question, answer", ("question", "answer"), "demonstrations", _question_answer),
    Layout("text", ("text",), "text", _text),
    Layout("prompt only", ("prompt",), "prompts", _prompt),
)
"""Tried in this order: the first whose needed columns are all there is the one."""


# --- which layout ---------------------------------------------------------------------------------------------------

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "instruction", "input", "problem", "context", "request", "user"),
    "completion": ("response", "answer", "output", "reply", "target", "solution", "generation", "assistant"),
    "chosen": ("winner", "preferred", "better", "accepted", "good", "positive", "win", "response_j", "selected"),
    "rejected": ("loser", "dispreferred", "worse", "refused", "bad", "negative", "lose", "response_k", "unselected"),
    "label": ("thumbs_up", "liked", "rating", "feedback", "preference", "winner"),
    "completions": ("responses", "answers", "candidates", "generations", "outputs"),
    "scores": ("rewards", "ratings", "score"),
    "messages": ("conversation", "dialog", "dialogue", "turns", "chat"),
    "text": ("content", "document", "body"),
    "response_a": ("answer_a", "completion_a", "response_1", "output_1"),
    "response_b": ("answer_b", "completion_b", "response_2", "output_2"),
}


def detect(columns: Iterable[str], where: str = "") -> Layout:
    """The layout of rows with these columns.

    Raises:
        DataError: no layout fits; says what was found, what the closest layout needs, and a guess at the mapping.
    """
    found = list(columns)
    for layout in LAYOUTS:
        if all(name in found for name in layout.needs):
            return layout
    columns = ", ".join(map(repr, found)) or "none"
    layout, mapping = closest(found)
    if not mapping:
        fix = "rows need for example text; messages; prompt and completion; or prompt, chosen and rejected"
        raise DataError(f"no known layout has the columns {columns}", where=where, fix=fix)
    what = f"no known layout has the columns {columns}; the closest, {layout.name}, needs {', '.join(layout.needs)}"
    raise DataError(what, where=where, fix=f"perhaps {advice(layout, mapping)}")


def advice(layout: Layout, mapping: Mapping[str, str]) -> str:
    """What a guessed mapping asks for: "rename 'winner' to 'chosen' and add rejected"."""
    missing = ", ".join(name for name in layout.needs if name not in mapping)
    return " and ".join(part for part in (_renames(mapping), missing and f"add {missing}") if part)


def _renames(mapping: Mapping[str, str]) -> str:
    renames = ", ".join(f"'{column}' to '{name}'" for name, column in mapping.items() if name != column)
    return f"rename {renames}" if renames else ""


def closest(found: Sequence[str], kinds: Collection[str] = ()) -> tuple[Layout, dict[str, str]]:
    """The layout most of whose columns can be recognised among `found`, with the fewest renames, and which column stands for which.

    Only layouts of `kinds` are looked at, where some are given.
    """
    guesses = [(layout, guess_mapping(layout.needs, found)) for layout in LAYOUTS if not kinds or layout.kind in kinds]

    def fitness(guess: tuple[Layout, dict[str, str]]) -> tuple[float, int, int]:
        layout, mapping = guess
        return len(mapping) / len(layout.needs), len(mapping), sum(name == column for name, column in mapping.items())

    return max(guesses, key=fitness)


def guess_mapping(needs: Iterable[str], found: Sequence[str]) -> dict[str, str]:
    """Needed column -> found column: the same name, a known synonym, or a close spelling; each found column is used once."""
    free = [name for name in found if name not in needs]
    mapping = {}
    for name in needs:
        lowered = {column.lower(): column for column in reversed(free)}
        options = [s for s in SYNONYMS.get(name, ()) if s in lowered] + difflib.get_close_matches(name, lowered, n=1, cutoff=0.75)
        if name in found:
            mapping[name] = name
        elif options:
            mapping[name] = lowered[options[0]]
            free.remove(mapping[name])
    return mapping
