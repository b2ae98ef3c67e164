"""Messages and strings to token ids and scored mask, made together by one renderer.

Text first: the model's own chat template renders the conversation, and the places where each answer begins and ends are found
by rendering the conversation up to it. Then ids: the text is cut at those places and each piece is tokenized by itself, so that
no token spans the border of a prompt and its answer, as in sampling, where the prompt is tokenized before the answer exists.

What holds, and is tested on several template shapes:

* the text is what the tokenizer's `apply_chat_template` writes, up to the last answer's stop token (the line break that many
  templates put after it belongs to nobody and is left out), on a fixed day where a template prints today's date;
* what comes before an answer is the generation prompt, character for character;
* `parse` gives back the messages that were rendered;
* history only extends: a template that rewrites earlier turns once later ones follow is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from prefopt.errors import DataError, ModelError, PrefoptError, TemplateError
from prefopt.text.template import END, WAYS_OUT, Joint, dated, joints, parse, resolve
from prefopt.text.tokens import Tokens, fingerprint
from prefopt.types import Branch, Completion, Example, IntArray, Message, Text, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[Message, ...]
Tools = Sequence[Mapping[str, Any]]

_CHUNK = 512  # rows tokenized in one call: enough to use every core, little to keep in memory
_THOUGHTS = ("thinking", "reasoning", "reasoning_content")  # names of one field: templates read one or another


class _Piece(NamedTuple):
    """Text that is tokenized by itself; a `step` ends with it, labelled where `label` is not None."""

    text: str
    scored: bool
    label: float | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """An example as text: its prompt and the pieces of each branch."""

    example: Example
    prompt: str
    branches: list[list[_Piece]]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text to tokenize with the text that comes before it, the prompt first."""
        yield "", self.prompt
        for branch in self.branches:
            before = self.prompt
            for piece in branch:
                yield before, piece.text
                before = piece.text


class Renderer:
    """Turns rows into token trees with one tokenizer and one chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: a built-in name (chatml, llama3, gemma, mistral, plain), a Jinja file or Jinja source used in place of the
            tokenizer's own template.

    Raises:
        TemplateError: `template` cannot be used with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = resolve(tokenizer, template)
        self.tokens = Tokens(tokenizer)
        self._control = re.compile("|".join(map(re.escape, self.tokens.control)) or r"(?!)")

    # --- rows to trees

    def tree(self, example: Example, index: int = 0) -> TokenTree:
        """One row as a token tree, nothing cut.

        Strings become bos + prompt and completion + eos. Messages go through the template: every assistant turn of a completion
        is scored, its stop token included, and nothing else. Where no token comes before a branch its first token is not scored,
        since nothing predicts it.

        Raises:
            TemplateError: no template, or one that breaks a property training needs.
            DataError: a row that cannot be rendered, such as content that holds a control token.
        """
        return next(self.trees([example], index))

    def trees(self, examples: Iterable[Example], start: int = 0) -> Iterator[TokenTree]:
        """The trees of many rows in order, `index` counting from `start`; several times faster than `tree` row by row.

        While the tokenizer, which needs no Python, works on some rows, the next ones are rendered.
        """
        rows, numbers = iter(examples), count(start)
        waiting: list[tuple[list[_Plan], Future[list[IntArray]]]] = []

        def made() -> Iterator[TokenTree]:
            for plans, found in waiting:
                ids = iter(found.result())
                yield from (_assemble(plan, ids, next(numbers)) for plan in plans)
            waiting.clear()

        with ThreadPoolExecutor(1) as pool:
            try:
                while chunk := list(islice(rows, _CHUNK)):
                    plans = [self._plan(example) for example in chunk]
                    ids = pool.submit(self.tokens.follow, [text for plan in plans for text in plan.texts()])
                    yield from made()
                    waiting.append((plans, ids))
            except PrefoptError:
                yield from made()  # rows before one that is wrong come first, and so do their faults
                raise
            yield from made()

    def prompt_ids(self, prompt: Text, tools: Tools = ()) -> IntArray:
        """The tokens a sampler starts from: messages up to and with the generation prompt; a string after bos."""
        text = self._text(prompt, tools) if isinstance(prompt, str) else self._render(prompt, True, tools)
        return np.asarray(self.tokens.encode([text])[0], dtype=np.int32)

    # --- tokens back to text

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: the one that closes an assistant turn, then the tokenizer's eos.

        Raises:
            ModelError: there is none.
        """
        stops = [self._stop] if self.template else []
        stops += [str(self.tokenizer.eos_token)] if self.tokenizer.eos_token or not stops else []
        return tuple(dict.fromkeys(self.tokenizer.get_vocab()[stop] for stop in stops))

    def decode(self, ids: Sequence[int] | IntArray, prompt: Sequence[int] | IntArray = ()) -> str:
        """Text without control tokens; `prompt` are the ids it goes on from."""
        return self.tokens.decode(ids, after=prompt)

    def answer(self, ids: Sequence[int] | IntArray, prompt: Sequence[int] | IntArray = ()) -> str:
        """A sampled answer to messages, without what the template itself puts before an answer (a space in some formats)."""
        return self.tokens.decode(ids, after=prompt).removeprefix(self._lead)

    def parse(self, text: str) -> Messages:
        """The messages of a conversation as `apply_chat_template` writes it, for contents without control tokens.

        Raises:
            TemplateError: the text is no such conversation.
        """
        return parse(text, self._joints)

    def pieces(self, tree: TokenTree) -> list[list[tuple[str, bool]]]:
        """For each branch what every token of the whole sequence adds to the text, and whether it is scored."""
        unscored = [False] * len(tree.prompt)
        return [
            list(zip(self.tokens.token_texts([*tree.prompt, *branch.ids]), [*unscored, *branch.scored.tolist()], strict=True))
            for branch in tree.branches
        ]

    def identity(self) -> str:
        """A hash of everything that turns rows into ids: vocabulary, merges, special tokens and template."""
        return fingerprint(self.tokens.identity(), self.template)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer and the chat template in use, so that transformers and vLLM render as this renderer does."""
        self.tokenizer.save_pretrained(folder)
        if self.template is not None:
            (Path(folder) / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    # --- which text is scored

    def _plan(self, example: Example) -> _Plan:
        try:
            if isinstance(example.prompt, str):
                return _Plan(example, self._text(example.prompt, example.tools), [self._string(c) for c in example.completions])
            return self._conversation(example, example.prompt)
        except PrefoptError as error:
            raise type(error)(error.what, where=example.where or error.where, fix=error.fix) from error.__cause__

    def _text(self, prompt: str, tools: Tools) -> str:
        """A prompt that is a string, after bos."""
        if tools:
            fix = "Give the prompt as messages, set data.chat=true, or leave the column 'tools' out."
            raise DataError("the row has tools and its prompt is a string, which no template shows them in", fix=fix)
        bos = self.tokens.bos
        return prompt if prompt.startswith(bos) else bos + prompt

    def _string(self, completion: Completion) -> list[_Piece]:
        if not isinstance(completion.content, str):
            raise DataError("the prompt is a string and the completion is messages", fix="Give both as strings or both as messages.")
        content = completion.content.removesuffix(self._eos)
        return _steps(content, self._eos if completion.ended or not content else "", completion)

    def _conversation(self, example: Example, prompt: Messages) -> _Plan:
        answers = [_messages(completion) for completion in example.completions]
        opens = {answer[0].role == "assistant" for answer in answers} or {True}
        if len(opens) > 1:
            raise DataError("some completions begin with an assistant message and others do not")
        text = self._render(prompt, opens.pop(), example.tools) if prompt else ""
        branches = [
            self._turns(text, prompt, answer, completion, example.tools)
            for answer, completion in zip(answers, example.completions, strict=True)
        ]
        return _Plan(example, text, branches)

    def _turns(self, opening: str, prompt: Messages, answer: Messages, completion: Completion, tools: Tools) -> list[_Piece]:
        """The pieces of one completion after the text `opening`: unscored text and assistant turns, to the last stop token."""
        messages = prompt + answer
        turns = [k for k in range(len(prompt), len(messages)) if messages[k].role == "assistant"]
        if not turns:
            raise DataError("the completion has no assistant message to learn from", fix="Give its answer the role assistant.")
        whole = self._render(messages, False, tools)
        if not whole.startswith(opening):
            raise _altered(len(prompt) - 1, len(turns))
        pieces: list[_Piece] = []
        at = len(opening)
        for k in turns:
            final = k == len(messages) - 1
            before = (opening or self._header(tools)) if k == len(prompt) else self._render(messages[:k], True, tools)
            after = whole if final else self._render(messages[: k + 1], False, tools)
            turn = self._close(after[len(before) :])
            if not (after.startswith(before) and whole.startswith(before + turn)):
                raise _altered(k, len(turns))
            if at < len(before):
                pieces.append(_Piece(whole[at : len(before)], False))
            at = len(before) + len(turn)
            answered = self._ended(turn, final)
            stop = next((stop for stop in self._stops if answered.endswith(stop)), "")
            said = answered.removesuffix(stop)
            pieces += _steps(said, stop if completion.ended or not said else "", completion) if final else [_Piece(answered, True)]
        return pieces

    def _header(self, tools: Tools) -> str:
        """What the template writes before an answer that opens the conversation: a default system message, the assistant's name."""
        return self._render([Message("assistant", "qxvone")], False, tools).partition("qxvone")[0].removesuffix(self._lead)

    def _close(self, turn: str) -> str:
        """An assistant turn without what follows its stop token."""
        kept = turn.removesuffix(self._tail)
        body = kept.rstrip()
        return body if body.endswith(self._stops) else kept

    def _ended(self, turn: str, final: bool) -> str:
        """The turn with eos where the template writes no stop token."""
        if turn.endswith(self._stops):
            return turn
        if not final:
            raise TemplateError(
                "the chat template ends assistant turns without a stop token, so earlier turns would never end",
                fix="Give each answer as a row of its own (prompt and completion), or set model.chat_template.",
            )
        return turn + self._eos

    # --- what the template does

    def _render(self, messages: Sequence[Message], generation: bool, tools: Tools = ()) -> str:
        """The template's own text of a conversation."""
        if self.template is None:
            raise TemplateError("the rows hold messages and the model's tokenizer has no chat template", fix=WAYS_OUT)
        if not messages:
            raise DataError("the prompt has no messages", fix="Give at least one message, or a string.")
        for message in messages:
            self._check(message, self.template)
        self._refuse_control(_strings(tools), "a tool")
        if tools and "tools" not in self.template:
            raise TemplateError("the row has tools and the chat template does not show them to the model", fix=WAYS_OUT)
        said = [message.to_dict() for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                _unquoted(said) if "tojson" in self.template and not _TAKES_JSON.search(self.template) else said,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=dated(self.template),
                add_generation_prompt=generation,
                tokenize=False,
            )
        except jinja2.TemplateSyntaxError as error:
            whose = self.tokenizer.name_or_path or "the tokenizer"
            line = error.lineno - dated(self.template).removesuffix(self.template).count("\n")
            what = f"the chat template of {whose} is no Jinja from its line {line} on: {error.message}"
            raise TemplateError(what, fix=WAYS_OUT) from error
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}", fix=WAYS_OUT) from error
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            fix = "Mend the \\u escape it came from."
            raise DataError("a message or a tool holds a lone surrogate, which is no character", fix=fix) from error
        return str(text)

    def _check(self, message: Message, template: str) -> None:
        """Refuse content that would end a turn by itself, and what the template would leave out in silence."""
        shown = {key: value for key, value in message.extra.items() if value and key in template}
        self._refuse_control([message.content, *_strings(_unquoted(shown))], f"a message of the {message.role}")
        for key in message.extra.keys() & {"tool_calls", *_THOUGHTS}:
            if message.extra[key] and not any(name in template for name in (_THOUGHTS if key in _THOUGHTS else (key,))):
                raise TemplateError(f"a message has {key} and the chat template does not show it to the model", fix=WAYS_OUT)

    def _refuse_control(self, texts: Iterable[str], whose: str) -> None:
        for text in texts:
            if found := self._control.search(text):
                fix = "Remove it: the chat template writes control tokens itself."
                raise DataError(f"{whose} holds the control token {found[0]}", fix=fix)

    @cached_property
    def _joints(self) -> tuple[Joint, ...]:
        return joints(self._render)

    @cached_property
    def _closing(self) -> str:
        """What the template writes after the last answer."""
        return self._after_answer(END)

    def _after_answer(self, role: str) -> str:
        """What the template writes after an answer that a message of the role, or the end, follows."""
        return next(joint.text for joint in self._joints if (joint.before, joint.after) == ("assistant", role))

    @cached_property
    def _tail(self) -> str:
        """What the template writes after the stop token of the last answer: a line break, or an eos that ends the conversation."""
        *_, stop, after = self._closing.rpartition(self._stop)
        return after if stop else after[len(after.rstrip()) :]

    @cached_property
    def _stop(self) -> str:
        """The token that closes an assistant turn: the added token the template ends it with, otherwise eos.

        One that comes after it at the end of a conversation alone (Phi-3 writes eos there) closes the conversation, not the turn.
        """
        closing, next_turn = self._closing.rstrip(), self._after_answer("user")
        last = self._added_at_end(closing)
        turn = closing.removesuffix(last).rstrip()
        ended_before = next_turn.startswith(turn) and not next_turn.startswith(closing)
        return (self._added_at_end(turn) if ended_before else "") or last or self._eos

    def _added_at_end(self, text: str) -> str:
        added = sorted({*self.tokens.control, *self.tokenizer.get_added_vocab()}, key=len, reverse=True)
        return next((token for token in added if text.endswith(token)), "")

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        """A turn may also end with another control token than the usual one (a tool call)."""
        return (self._stop, *self.tokens.control)

    @cached_property
    def _lead(self) -> str:
        """What the template writes between the generation prompt and an answer."""
        user, assistant = Message("user", "qxvone"), Message("assistant", "qxvtwo")
        return self._render([user, assistant], False).partition("qxvtwo")[0].removeprefix(self._render([user], True))

    @cached_property
    def _eos(self) -> str:
        if not self.tokenizer.eos_token:
            raise ModelError("the tokenizer has no eos token to end an answer with", fix="Set eos_token in tokenizer_config.json.")
        return str(self.tokenizer.eos_token)


def _messages(completion: Completion) -> Messages:
    """A completion as messages; a string that answers messages is one assistant message."""
    content = completion.content
    messages = (Message("assistant", content),) if isinstance(content, str) else content
    if not messages:
        raise DataError("a completion has no messages", fix="Give at least one message of the role assistant.")
    return messages


_TAKES_JSON = re.compile(r"""\barguments(["']])? is (not )?string""")
"""A template that asks whether arguments are JSON already (Qwen3, Gemma 4) writes either form as it means to."""


def _unquoted(value: Any) -> Any:
    """Messages whose tool calls have the JSON of their arguments read: a template that writes JSON would write it a second time."""
    if isinstance(value, list | tuple):
        return [_unquoted(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {key: _object(item) if key == "arguments" else _unquoted(item) for key, item in value.items()}


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and objects, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _object(value: Any) -> Any:
    """The object that a string holds as JSON; anything else as it is."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _steps(text: str, stop: str, completion: Completion) -> list[_Piece]:
    """A scored text cut after each reasoning step; its stop token belongs to none, whatever the step says."""
    pieces, at = [], 0
    for step, label in zip(completion.steps, completion.step_labels, strict=bool(completion.step_labels)):
        end = _end_of(step, text, at)
        if end < 0:
            raise DataError(f"the step {step[:40]!r} is not in the completion after the steps before it")
        if end > at:
            pieces.append(_Piece(text[at:end], True, label))
            at = end
    rest = text[at:] + stop
    return [*pieces, _Piece(rest, True)] if rest else pieces


def _end_of(step: str, text: str, at: int) -> int:
    """Where a step ends in the text from `at` on; -1 for nowhere. Templates may trim the space around the whole text."""
    step = step if at else step.lstrip() or step
    begin = text.find(step, at)
    if begin >= 0:
        return begin + len(step)
    last, whole = step.rstrip(), text.rstrip()
    return len(whole) if last and whole[at:].endswith(last) else -1


def _altered(turn: int, turns: int) -> TemplateError:
    """The error for a template that does not only extend the history."""
    if turns == 1:
        return TemplateError("the chat template renders the prompt differently once the answer follows it", fix=WAYS_OUT)
    return TemplateError(
        f"the chat template rewrites message {turn + 1} or one before it once later messages follow",
        fix="Give each answer as a row of its own (prompt and completion), or set model.chat_template=NAME or FILE.",
    )


def _assemble(plan: _Plan, ids: Iterator[IntArray], index: int) -> TokenTree:
    """The tree of a plan from the ids of its texts, in the order of `_Plan.texts`."""
    example, prompt = plan.example, next(ids)
    pairs = zip(plan.branches, example.completions, strict=True)
    branches = tuple(_branch(pieces, [next(ids) for _ in pieces], completion, first=len(prompt) == 0) for pieces, completion in pairs)
    return TokenTree(
        prompt=prompt,
        branches=branches,
        index=index,
        margin=example.margin,
        where=example.where,
        source=example.source,
        group=example.group,
    )


def _branch(pieces: list[_Piece], ids: list[IntArray], completion: Completion, *, first: bool) -> Branch:
    scored = np.repeat([piece.scored for piece in pieces], [len(piece) for piece in ids])
    if first:
        scored[:1] = False
    ends = np.cumsum([len(piece) for piece in ids]) - 1
    steps = [(int(end), piece.label) for end, piece in zip(ends, pieces, strict=True) if piece.label is not None]
    return Branch(
        ids=np.concatenate(ids),
        scored=scored,
        rank=completion.rank,
        score=completion.score,
        label=completion.label,
        step_ends=tuple(end for end, _ in steps),
        step_labels=tuple(label for _, label in steps),
    )
