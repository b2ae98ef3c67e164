"""YAML that remembers where each value stood, so that every message can name file, line and column.

The scalars are those of YAML 1.2: `5e-6` is a number and only `true` and `false` are booleans (`yes`, `on` and `0x1` stay text).
Duplicate keys, tags and merge keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import OptionError

Key = tuple[str | int, ...]
"""The place of a value in the document: ("stages", 0, "train", "steps")."""

COMMAND_LINE = "command line"

_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), lambda text: None),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), lambda text: text.lower() == "true"),
    "int": (re.compile(r"^[-+]?[0-9]+$"), int),
    "float": (re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), float),
}


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalars above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the base class's name and type)


for _tag, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


@dataclass
class Source:
    """A document: plain values, and for each key where it was written ("recipe.yaml:3:5" or "command line")."""

    name: str
    values: Any = field(default_factory=dict)
    marks: dict[Key, str] = field(default_factory=dict)

    def at(self, key: Key) -> str:
        """Where `key`, or the closest thing around it that was written, stands."""
        while key and key not in self.marks:
            key = key[:-1]
        return self.marks.get(key, self.name)

    def put(self, key: Key, value: Any, mark: str) -> None:
        """Set one value, making the mappings on the way to it."""
        place = self.values
        for depth, (part, inside) in enumerate(pairwise(key), 1):
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
                self.marks[key[:depth]] = mark
            place = place[part]
            if not isinstance(place, list if isinstance(inside, int) else dict):
                raise OptionError(f"expected a mapping of keys, found {place!r}", where=f"{self.at(key[:depth])}: {part}")
        place[key[-1]] = value
        self.marks[key] = mark


def read(path: Path) -> Source:
    """A YAML file.

    Raises:
        OptionError: no such file, not YAML, a duplicate key or a tag; with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OptionError(f"cannot be read: {reason}", where=str(path), fix="give the path of a recipe, a YAML file") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Source:
    """A YAML text; `name` is what messages call it."""
    source = Source(name)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise OptionError(f"not YAML: {error.problem or error.context}", where=place, fix="mend the syntax at this place") from None
    except yaml.YAMLError as error:
        raise OptionError(f"not YAML: {str(error).splitlines()[0]}", where=name, fix="save it as plain UTF-8 text") from None
    if node is not None:
        source.values = _build(source, node, (), ())
    return source


def _build(source: Source, node: yaml.Node, key: Key, inside: tuple[yaml.Node, ...]) -> Any:
    """The plain value of a node; marks are noted on the way."""
    source.marks.setdefault(key, _mark(source, node))
    if node in inside:
        raise OptionError("an alias inside its own anchor", where=_mark(source, node), fix="write the value out")
    inside = (*inside, node)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(source, node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(source, item, (*key, i), inside) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = name_node.value
        if not isinstance(name_node, yaml.ScalarNode):
            raise OptionError("a key has to be a word", where=_mark(source, name_node), fix="write `key: value`")
        if name in values:
            first = source.marks[(*key, name)].rsplit(":", 2)[-2]
            raise OptionError(
                f"duplicate key, first given on line {first}", where=f"{_mark(source, name_node)}: {name}", fix="keep one of the two"
            )
        source.marks[(*key, name)] = _mark(source, name_node)
        values[name] = _build(source, value_node, (*key, name), inside)
    return values


def _scalar(source: Source, node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "str":
        return node.value
    if kind not in _SCALARS or not _SCALARS[kind][0].match(node.value):
        raise OptionError(f"the tag {node.tag} is not read here", where=_mark(source, node), fix="write the value without a tag")
    return _SCALARS[kind][1](node.value)


def _mark(source: Source, node: yaml.Node) -> str:
    return f"{source.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


@dataclass(frozen=True)
class Override:
    """One `key=value`: the dotted key in parts, and the value as YAML reads it."""

    key: tuple[str, ...]
    value: Any
    origin: str = COMMAND_LINE
    """What messages call the place it was written in."""

    @property
    def dotted(self) -> str:
        """The key as the user wrote it."""
        return ".".join(self.key)


def parse_override(argument: str) -> Override:
    """`train.learning_rate=5e-6`, `lora.targets=[q_proj, v_proj]`, `model.path=./base`.

    Raises:
        OptionError: there is no `=`, no key or no value.
    """
    dotted, equals, text = argument.partition("=")
    parts = tuple(dotted.strip().removeprefix("--").split("."))
    if not equals or not all(parts):
        raise OptionError(
            f"expected key=value, found '{argument}'",
            where=COMMAND_LINE,
            fix="options are written key=value, as in train.steps=100 or beta=0.1",
        )
    if not text.strip():
        raise OptionError("no value after '='", where=f"{COMMAND_LINE}: {dotted}", fix="give a value, or leave the option out")
    if text[0] in "[{'\"":
        return Override(parts, parse(text, f"{COMMAND_LINE}: {dotted}").values)
    for pattern, convert in _SCALARS.values():
        if pattern.match(text):
            return Override(parts, convert(text))
    return Override(parts, text)
