"""Field checks: the values of a row as strings, messages and numbers, or a `DataError` that names the file, row and column."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import DataError, did_you_mean
from prefopt.types import Message, Text

ROLE_OF_SPEAKER = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""ShareGPT speakers ("from") and the chat roles they stand for."""

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def is_transcript(value: object) -> bool:
    """Whether a string is an HH dialogue: "Human: ...", turns parted by blank lines."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def transcript(text: str, *, answered: bool = False) -> tuple[Message, ...]:
    r"""The turns of an HH dialogue ("\n\nHuman: ...\n\nAssistant: ...").

    A speaker who goes on after a marker of the same name has one turn, a blank line between its parts; an empty last Assistant turn
    only asks for the answer and is left out, or is the answer where one was `answered`.
    """
    _, *parts = _TURN.split(text.strip())
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = ROLE_OF_SPEAKER[speaker.lower()]
        before = turns.pop().content + "\n\n" if turns and turns[-1].role == role else ""
        turns.append(Message(role, (before + content.strip()).strip()))
    if not answered and turns and turns[-1] == Message("assistant", ""):
        turns.pop()
    return tuple(turns)


def describe(value: object) -> str:
    """A value as a user would name it: "null", "a number (3)", "a list of 2"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value:.6g})" if isinstance(value, float) or abs(value) < 10**9 else "a number"
    if isinstance(value, str):
        return f"a string ({value[:40]!r})" if len(value) <= 40 else f"a string ({value[:37]!r}...)"
    if isinstance(value, Mapping):
        return f"an object with keys {', '.join(map(str, list(value)[:5])) or 'none'}"
    return f"a list of {len(value)}" if isinstance(value, Sequence) else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and the place it came from. `hh` says that the strings of its file are HH dialogues.

    Every method takes a column's name (or a value and what to call it) and raises `DataError` when the value is not of the asked kind.
    """

    fields: Mapping[str, Any]
    where: str = ""
    hh: bool = False

    def wrong(self, name: str, value: object, expected: str, fix: str = "") -> DataError:
        """The error for a value of the wrong kind."""
        return DataError(
            f"'{name}' is {describe(value)}, expected {expected}", where=self.where, fix=fix or "mend the value or remove the row"
        )

    def get(self, name: str) -> Any:
        """A column's value; it must be there."""
        if name not in self.fields:
            found = ", ".join(self.fields) or "none"
            raise DataError(f"column '{name}' is missing; found {found}", where=self.where, fix="earlier rows of this file have it")
        return self.fields[name]

    def has(self, name: str) -> bool:
        """Whether a column is there and not null."""
        return self.fields.get(name) is not None

    def string(self, name: str) -> str:
        """A column of plain text."""
        return self.as_string(self.get(name), name)

    def text(self, name: str) -> Text:
        """A column that is a string or messages."""
        return self.as_text(self.get(name), name)

    def items(self, name: str) -> Sequence[Any]:
        """A column that is a list."""
        value = self.get(name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.wrong(name, value, "a list")
        return value

    def number(self, name: str) -> float | None:
        """A column that is a finite number, or absent or null."""
        return self.as_number(self.fields[name], name) if self.has(name) else None

    def as_string(self, value: object, name: str) -> str:
        """Text that can be tokenized."""
        if not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            what = f"'{name}' holds a lone surrogate at character {error.start}"
            raise DataError(what, where=self.where, fix="it is not valid text; mend the \\u escape") from None
        return value

    def as_text(self, value: object, name: str) -> Text:
        """A string, or messages; a string of an HH file becomes messages."""
        if isinstance(value, str):
            checked = self.as_string(value, name)
            return transcript(checked) if self.hh and is_transcript(checked) else checked
        if isinstance(value, Mapping):
            return self.as_messages([value], name)
        if isinstance(value, Sequence):
            return self.as_messages(value, name)
        raise self.wrong(name, value, "a string or a list of messages")

    def as_messages(self, value: object, name: str) -> tuple[Message, ...]:
        """Messages as {role, content} or, in ShareGPT's words, {from, value}."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.wrong(name, value, "a list of messages {role, content}")
        return tuple(self._message(item, f"{name}[{i}]") for i, item in enumerate(value))

    def _message(self, item: object, name: str) -> Message:
        if not isinstance(item, Mapping):
            raise self.wrong(name, item, "a message {role, content}")
        if "from" in item and "value" in item:
            return Message(self._role(item["from"], f"{name}.from"), self.as_string(item["value"], f"{name}.value"))
        role = item.get("role")
        if not isinstance(role, str) or not role:
            raise self.wrong(f"{name}.role", role, "a role such as user, assistant or system")
        extra = {str(k): v for k, v in item.items() if k not in ("role", "content") and v is not None}
        content = item.get("content")
        if content is None and "tool_calls" in extra:
            content = ""
        return Message(role, self.as_string(content, f"{name}.content"), extra)

    def _role(self, speaker: object, name: str) -> str:
        if not isinstance(speaker, str) or speaker.lower() not in ROLE_OF_SPEAKER:
            fix = did_you_mean(speaker, ROLE_OF_SPEAKER) if isinstance(speaker, str) else ""
            raise self.wrong(name, speaker, "a known speaker", fix)
        return ROLE_OF_SPEAKER[speaker.lower()]

    def as_number(self, value: object, name: str) -> float:
        """A finite number; booleans are not numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise DataError(f"'{name}' is not a finite number", where=self.where, fix="mend or remove the row")
        return number

    def as_label(self, value: object, name: str) -> bool | float:
        """Thumbs up or down: true, false, 1 or 0; or a soft label between 0 and 1."""
        if isinstance(value, int | float) and 0 <= value <= 1:
            return bool(value) if value in (0, 1) else float(value)
        raise self.wrong(name, value, "true, false or a number in [0, 1]")

    def step_labels(self, name: str, steps: int) -> tuple[float | None, ...]:
        """One label in [0, 1], a boolean or null for each step."""
        labels = tuple(self._step_label(v, f"{name}[{i}]") for i, v in enumerate(self.items(name)))
        if len(labels) != steps:
            raise DataError(f"{steps} steps but {len(labels)} in '{name}'", where=self.where, fix="give one label (or null) for each step")
        return labels

    def _step_label(self, value: object, name: str) -> float | None:
        if value is None or isinstance(value, bool):
            return None if value is None else float(value)
        number = self.as_number(value, name)
        if not 0 <= number <= 1:
            raise self.wrong(name, value, "a label in [0, 1], a boolean or null")
        return number

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The `tools` column: a list of JSON schemas, or the same as a JSON string."""
        value = self.fields.get("tools")
        if isinstance(value, str) and value:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self.wrong("tools", value, "a list of objects, or that as JSON") from None
        if not value:
            return ()
        if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
            raise self.wrong("tools", value, "a list of objects, or that as JSON")
        return tuple(value)
