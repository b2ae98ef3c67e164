"""Chat templates: where one comes from, and what it puts between the messages, learned by asking it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import TemplateError, did_you_mean
from prefopt.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": (),
    "plain": (),
}
"""Names of the templates that come with the package, and the tokens each needs in the vocabulary."""

WAYS_OUT = (
    f"Set model.chat_template=NAME or FILE (built-in: {', '.join(BUILT_IN)}; plain suits any tokenizer), "
    "give prompts and completions as plain strings, or use another model."
)

Render = Callable[[Sequence[Message], bool], str]
"""Messages and whether to add the generation prompt -> text."""


def resolve(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """The Jinja source to use: a built-in name, a file, Jinja source itself, or (None) the tokenizer's own, if it has one.

    Raises:
        TemplateError: an unknown name, or a built-in template whose control tokens the tokenizer does not have.
    """
    if template is None:
        own = tokenizer.chat_template
        return str(own.get("default") or next(iter(own.values()))) if isinstance(own, dict) else own
    if template in BUILT_IN:
        missing = [token for token in BUILT_IN[template] if token not in tokenizer.get_added_vocab()]
        if missing:
            raise TemplateError(
                f"the template '{template}' needs the token {missing[0]}, which this tokenizer does not have",
                where="model.chat_template",
                fix="Use model.chat_template=plain, or add the token to the tokenizer and the model.",
            )
        return (files("prefopt.text") / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    if "{{" in template or "{%" in template:
        return template
    if Path(template).is_file():
        return Path(template).read_text(encoding="utf-8")
    raise TemplateError(
        f"'{template}' is neither a built-in template nor a file", where="model.chat_template", fix=did_you_mean(template, BUILT_IN)
    )


DAY = date(2024, 7, 26)
"""What templates that print today's date are told it is: otherwise the same rows would be other tokens tomorrow. Llama 3's own fallback."""
_DATES = {f"%{code}": DAY.strftime(f"%{code}") for code in "aAbBcCdDeFgGhHIjmMprRSTuUVwWxXyYzZ"}
_DATES |= {f"%-{code}": _DATES[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSUWy"}
_NOW = (
    "{% macro strftime_now(format) %}{% for part in format.split('%%') %}{{ '' if loop.first else '%' }}"
    f"{{% set said = part{''.join(f'|replace({code!r}, {text!r})' for code, text in _DATES.items())} %}}"
    "{{ raise_exception('the date format ' ~ format ~ ' is unknown') if '%' in said else said }}{% endfor %}{% endmacro %}\n"
)
"""What a template is told instead of the time, in front of it: a macro, since transformers hands a template no function."""


@cache
def dated(template: str) -> str:
    """The template that is told DAY whenever it asks for today's date, by a line before it where it does."""
    return _NOW + template if "strftime_now" in template else template


START, END = "", "end"
_WORDS = ("qxvone", "qxvtwo", "qxvsix", "qxvten", "qxvnil")
"""Contents no template trims, escapes or holds itself."""


class Joint(NamedTuple):
    """What a template writes between the contents of two messages: `text` where a `before` is followed by an `after`."""

    before: str
    after: str
    text: str


def joints(render: Render) -> tuple[Joint, ...]:
    """Everything the template writes around contents in conversations of one and two exchanges, with and without system.

    Raises:
        TemplateError: the template drops or changes what a message says.
    """
    found: dict[Joint, None] = {}
    for roles in (("user", "assistant"), ("user", "assistant") * 2, ("system", *("user", "assistant") * 2)):
        messages = [Message(role, word) for role, word in zip(roles, _WORDS, strict=False)]
        try:
            between = _between(render(messages, False), [message.content for message in messages])
        except TemplateError:
            if roles[0] == "system":  # many templates have no system role
                continue
            raise
        found.update(dict.fromkeys(Joint(*joint) for joint in zip((START, *roles), (*roles, END), between, strict=True)))
    return tuple(sorted(found, key=lambda joint: -len(joint.text)))


def _between(text: str, words: Sequence[str]) -> list[str]:
    """What stands before, between and after the words."""
    parts = []
    for word in words:
        before, seen, text = text.partition(word)
        if not seen:
            raise TemplateError("the chat template leaves out what a message says", fix=WAYS_OUT)
        parts.append(before)
    return [*parts, text]


def parse(text: str, known: Sequence[Joint]) -> tuple[Message, ...]:
    """The messages a rendered conversation holds, the inverse of rendering for contents without control tokens.

    Raises:
        TemplateError: the text is no rendering of this template.
    """
    messages: list[Message] = []
    role, at = START, 0
    while True:
        joint = next((j for j in known if j.before == role and _fits(j, text, at)), None)
        if joint is None:
            raise TemplateError(f"not a conversation of this chat template from character {at} on: {text[at : at + 40]!r}")
        if joint.after == END:
            return tuple(messages)
        begin = at + len(joint.text)
        ends = [_next(j, text, begin) for j in known if j.before == joint.after]
        role, at = joint.after, min((end for end in ends if end >= 0), default=len(text))
        messages.append(Message(role, text[begin:at]))


def _fits(joint: Joint, text: str, at: int) -> bool:
    return text[at:] == joint.text if joint.after == END else text.startswith(joint.text, at)


def _next(joint: Joint, text: str, begin: int) -> int:
    """Where the joint next begins, -1 for nowhere."""
    if joint.after != END:
        return text.find(joint.text, begin)
    at = len(text) - len(joint.text)
    return at if at >= begin and text.endswith(joint.text) else -1
