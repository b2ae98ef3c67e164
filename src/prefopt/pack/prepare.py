"""From the data section of a recipe to token trees: read, fit to the method, tokenize, cut, part, and account for every row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefopt.data.formats import advice, as_chat, closest
from prefopt.data.preflight import ALONE, CHUNKS, FITS, NO_PROMPT, SEEN_PROMPT, TIE, TOO_LONG, UNLABELLED, Preflight, Renderer, kind_of
from prefopt.data.read import read
from prefopt.data.split import overlap, prompt_key, sides
from prefopt.data.truncate import chunks, longest, truncate
from prefopt.errors import DataError, OptionError
from prefopt.pack.shelf import Shelf
from prefopt.settings import DataSettings
from prefopt.types import Example, TokenTree

COMPARED = ("pairs", "judgements", "rankings", "labels")
"""Kinds of data that compare answers; a ranking that one answer is left of has nothing for them."""


@dataclass(frozen=True)
class Prepared:
    """The trees to train on and those held out, and the account of how they came about."""

    train: Sequence[TokenTree]
    heldout: Sequence[TokenTree]
    preflight: Preflight


def prepare(
    settings: DataSettings,
    renderer: Renderer,
    *,
    data: str,
    max_length: int | None,
    room: int = 0,
    seed: int,
    say: Callable[[str], object] | None = None,
) -> Prepared:
    """Everything between `data.path` and the first batch.

    Args:
        settings: the data section.
        renderer: the model's.
        data: what the method learns from (`Method.data`).
        max_length: the model's longest sequence in tokens, None where it has none.
        room: tokens of an answer that is still to be sampled, which belong to the longest sequence too.
        seed: of the split into training and held-out rows.
        say: is given the preflight's table, before the data are refused or accepted.

    Raises:
        OptionError: settings that contradict each other, the method or the model.
        DataError: rows that cannot be read or do not fit the method, or data beyond a bound of the preflight.
    """
    check(settings, data)
    preflight = Preflight(renderer, _limit(settings.max_length, max_length, room))
    shelf = Shelf()
    prompts: list[bytes] = []  # what identifies the uncut prompt of each tree
    train = shelf.put(_trees(settings.path, prompts, settings, data, preflight))
    heldout = train[:0]
    if settings.eval_path is not None:
        heldout = shelf.put(_trees(settings.eval_path, prompts, settings, data, preflight))
    elif settings.eval_fraction:
        train, heldout = (train.pick(side) for side in sides(train, settings.eval_fraction, seed))
        if train and not heldout:
            fix = "set data.eval_path to other rows, or leave data.eval_fraction out"
            raise DataError("all rows are of one group or prompt, so none can be held out", where=train[0].where, fix=fix)
    for where in overlap(train, heldout, lambda tree: prompts[tree.index]):
        preflight.note(SEEN_PROMPT, where)
    preflight.kept.update(train=len(train), heldout=len(heldout))
    if say is not None:
        say(preflight.table())
    preflight.enforce(settings, data)
    return Prepared(train, heldout, preflight)


def check(settings: DataSettings, data: str) -> None:
    """Refuse settings that contradict each other or the method.

    Raises:
        OptionError: the first that does.
    """
    if settings.truncation == "chunk" and data != "text":
        what = f"chunk splits plain text, and this method learns from {data}, which no cut may part"
        fix = "use it with pretrain, or choose drop, prompt_left or completion_right"
        raise OptionError(what, where="data.truncation", fix=fix)
    if not 0 <= settings.eval_fraction < 1:
        what, fix = f"{settings.eval_fraction:g} is not in [0, 1)", "0.05 holds out a twentieth of the groups"
        raise OptionError(what, where="data.eval_fraction", fix=fix)
    if settings.eval_path is not None and settings.eval_fraction:
        what, fix = "data.eval_path is set too", "leave one out: held-out rows come from one place"
        raise OptionError(what, where="data.eval_fraction", fix=fix)
    if settings.max_length is not None and settings.max_length < 2:
        what = f"{settings.max_length} leaves no room for a prompt and an answer"
        raise OptionError(what, where="data.max_length", fix="set it to the longest prompt + answer")


def _limit(asked: int | None, model: int | None, room: int) -> int | None:
    """Tokens a row may have, less the `room` for an answer that is still to be sampled."""
    if asked is not None and model is not None and asked > model:
        what = f"{asked} is beyond the model's longest sequence, {model}"
        raise OptionError(what, where="data.max_length", fix=f"set it to {model} or less")
    most = model if asked is None else asked
    if most is not None and room >= most:
        whose = "the model takes" if asked is None else "data.max_length is"
        what = f"{room} new tokens leave no room for a prompt: {whose} {most} tokens"
        raise OptionError(what, where="rollout.max_new_tokens", fix=f"lower it below {most}")
    return None if most is None else most - room


def _trees(path: str | list[str], prompts: list[bytes], settings: DataSettings, data: str, preflight: Preflight) -> Iterator[TokenTree]:
    """The kept trees of `path`; `prompts` gets the key of each one's uncut prompt, at the place of its index."""
    renderer = preflight.renderer
    assert renderer is not None
    rows = _admitted(path, settings, data, preflight)
    for whole in _asked(renderer, rows) if data == "prompts" else renderer.trees(rows):
        was = _score_all(whole) if data == "text" else whole
        preflight.measure(was)
        if settings.truncation == "prompt_left" and was.group is None:
            was = replace(was, group=prompt_key(was).hex())  # what is cut of a prompt depends on its answers
        for tree in _fitted(was, settings, preflight, renderer.tokenizer.bos_token_id):
            prompts.append(prompt_key(tree if settings.truncation == "chunk" else was))
            yield replace(tree, index=len(prompts) - 1)


def _fitted(was: TokenTree, settings: DataSettings, preflight: Preflight, bos_id: int | None) -> list[TokenTree]:
    """What is trained on of a row: itself, cut or in chunks as asked where it is too long, or nothing; counted."""
    limit, how = preflight.max_length, settings.truncation
    if limit is None or how == "error" or longest(was) <= limit:
        return [was] if preflight.keep(was, was) else []
    if how == "chunk":
        parts = chunks(was, limit)
        preflight.note(CHUNKS, was.where, len(parts))
        return [part for part in parts if preflight.keep(part, part, ends=part is parts[-1])]
    tree = truncate(was, limit, how, bos_id=bos_id)
    if tree is None:
        preflight.drop(TOO_LONG, was.where)
        return []
    return [tree] if preflight.keep(was, tree) else []


def _asked(renderer: Renderer, rows: Iterator[Example]) -> Iterator[TokenTree]:
    """Prompts to be answered: trees without branches that keep their row."""
    waiting: deque[Example] = deque()

    def bare() -> Iterator[Example]:
        for row in rows:
            waiting.append(row)
            yield replace(row, completions=(), margin=None)

    for tree in renderer.trees(bare()):
        yield replace(tree, example=waiting.popleft())


def _admitted(path: str | Sequence[str], settings: DataSettings, data: str, preflight: Preflight) -> Iterator[Example]:
    """The rows fit for the method, as it reads them."""
    for row in read(path, limit=settings.limit):
        example = as_chat(row) if settings.chat else row
        alone = data in COMPARED and len(example.completions) == 1 and example.completions[0].rank is not None
        fitted = example if alone else fit(example, data)
        if not preflight.admit(replace(fitted, completions=()) if data == "prompts" else fitted):
            continue
        ranks = {completion.rank for completion in fitted.completions}
        # A pairwise method reads the untied pairs of a ranking; the Plackett-Luce law has no ties, and file order is no preference.
        tied = len(ranks) < len(fitted.completions) if data == "rankings" else ranks == {0}
        if alone:
            preflight.drop(ALONE, example.where)
        elif data in ("pairs", "rankings", "labels") and tied:
            preflight.drop(TIE, example.where)
        elif data == "steps" and all(label is None for c in fitted.completions for label in c.step_labels):
            preflight.drop(UNLABELLED, example.where)
        elif data == "prompts" and is_empty_prompt(fitted):
            preflight.drop(NO_PROMPT, example.where)
        else:
            yield fitted


def fit(example: Example, data: str) -> Example:
    """The row as a method of this data kind reads it.

    Raises:
        DataError: the row teaches something else; names the methods it fits.
    """
    kind = kind_of(example)
    if kind not in FITS[data]:
        raise _misfit(example, kind, data)
    if data == "demonstrations" and kind in ("pairs", "rankings"):
        return replace(example, completions=tuple(c for c in example.completions if c.rank == 0))
    if data == "labels" and kind == "pairs":
        return replace(example, completions=tuple(replace(c, label=c.rank == 0) for c in example.completions))
    return _question(example) if data == "prompts" else example


def _question(example: Example) -> Example:
    """A conversation in one piece as the turns up to its last answer, and that answer."""
    content = example.completions[0].content if len(example.completions) == 1 else ""
    if example.prompt != () or isinstance(content, str):
        return example
    last = max((i for i, message in enumerate(content) if message.role == "assistant"), default=len(content))
    return replace(example, prompt=content[:last], completions=(replace(example.completions[0], content=content[last:]),))


def is_empty_prompt(example: Example) -> bool:
    """Whether the prompt asks nothing."""
    return not (example.prompt.strip() if isinstance(example.prompt, str) else example.prompt)


def _misfit(example: Example, kind: str, data: str) -> DataError:
    from prefopt.losses.methods import METHODS

    methods = [name for name, method in METHODS.items() if kind in FITS[method.data]]
    fix = f"methods that fit: {', '.join(methods[:6])}{', ...' if len(methods) > 6 else ''}" if methods else ""
    what = f"the row is of the kind '{kind}', the method learns from '{data}'"
    if kind == "prompts":
        found = ["prompt", *example.meta]
        layout, mapping = closest(found, FITS[data])
        needs = f"{layout.name} needs {', '.join(layout.needs)}"
        what = f"the columns {', '.join(found)} are a prompt alone, the method learns from '{data}': {needs}"
        fix = f"perhaps {advice(layout, mapping)}" if len(mapping) > 1 else "sample completions first (kind: sample)"
    return DataError(what, where=example.where, fix=fix)


def _score_all(tree: TokenTree) -> TokenTree:
    """Every token of a one-answer row scored but the first, which nothing predicts."""
    (branch,) = tree.branches
    ids = np.concatenate([tree.prompt, branch.ids])
    scored = np.ones(len(ids) - 1, dtype=np.bool_)
    return replace(tree, prompt=ids[:1], branches=(replace(branch, ids=ids[1:], scored=scored),))
