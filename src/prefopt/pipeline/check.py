"""Values against their types: what a recipe's section may hold, and what to say when it does not."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from prefopt.errors import OptionError, did_you_mean
from prefopt.pipeline.source import Key, Source

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def check(cls: type, values: Any, source: Source, key: Key, label: str) -> Any:
    """A section of a recipe as its settings dataclass.

    Args:
        cls: the frozen dataclass whose fields are the keys.
        values: what the recipe says.
        source: where it was said.
        key: the section's place in the source.
        label: the section's name in messages.

    Raises:
        OptionError: an unknown or missing key or a value of the wrong type.
    """
    checked = check_keys(cls, values, source, key, label)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in checked:
            raise OptionError(
                f"required: {describe(hints(cls)[field.name])}",
                where=f"{source.at(key)}: {label}.{field.name}",
                fix=f"write it into the stage, or give {label}.{field.name}=... on the command line",
            )
    return cls(**checked)


def check_keys(cls: type, values: Any, source: Source, key: Key, label: str) -> dict[str, Any]:
    """The keys that are given, checked; those that are not may be missing."""
    if not isinstance(values, dict):
        raise OptionError(
            f"expected a mapping of keys, found {found(values)}",
            where=f"{source.at(key)}: {label}",
            fix=f"its keys: {', '.join(hints(cls))}",
        )
    checked = {}
    for name, value in values.items():
        where = f"{source.at((*key, name))}: {label}.{name}"
        if name not in hints(cls):
            raise OptionError("unknown key", where=where, fix=did_you_mean(name, hints(cls)))
        checked[name] = check_value(hints(cls)[name], value, where)
    return checked


def check_value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type: strict, but a whole number is a number and a list is a tuple.

    Raises:
        OptionError: it is of another type; the message lists the choices or says what is expected.
    """
    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        choices = [c for c in _choices(hint) if isinstance(value, str)]
        fix = did_you_mean(value, choices) if choices else ""
        raise OptionError(
            f"expected {describe(hint)}, found {found(value)}", where=where, fix=fix if fix.startswith("did") else ""
        ) from None


@functools.cache
def hints(cls: type) -> Mapping[str, Any]:
    """The fields of a settings class and their types, bounds included."""
    every = get_type_hints(cls, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def describe(hint: Any) -> str:
    """A type in words: "a whole number of at least 1", "linear or cosine", "text, a list of text or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{describe(args[0])} {_bounds(hint)}".strip()
    if origin is Literal:
        return _either([str(a) for a in args])
    if origin in (Union, types.UnionType):
        return _either([describe(a) for a in args])
    if origin in (list, dict):
        return f"a {'list' if origin is list else 'mapping'} of {' to '.join(map(describe, args))}"
    if origin is tuple:
        return f"a list of {len(args)} numbers {_bounds(args[0])}".strip()
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(hint: Any) -> str:
    """What an annotation bounds, as in "above 0 and below 1"; "" where it bounds nothing."""
    return " and ".join(f"{_BOUNDS[k]} {v:g}" for m in get_args(hint)[1:] for k, v in dataclasses.asdict(m).items())


def found(value: Any) -> str:
    """A value as the message quotes it, short, with its kind where that is the surprise."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    if value is None or isinstance(value, str):
        return text
    return f"{text} ({'a mapping' if isinstance(value, dict) else 'a list' if isinstance(value, list) else describe(type(value))})"


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [a for a in get_args(hint) if isinstance(a, str)]
    return [choice for a in get_args(hint) for choice in _choices(a)]


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
