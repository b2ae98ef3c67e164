"""A recipe: the stages of a run, read from YAML or from the command line and checked before anything starts.

    defaults:                      # optional: what every stage takes that reads the section and does not say otherwise
      train: {seed: 1}
    stages:
      - kind: sft                  # a row of `prefopt methods`, or world, create, sample, score, label, evaluate, report
        data: {path: demos.jsonl}
      - kind: dpo
        name: align                # the kind, when not given
        beta: 0.1                  # the kind's own options stand in the stage itself
        mix: {sft: 0.2}            # plus 0.2 times the sft loss on the same data
        model: {path: "${sft.model}"}
        data: {path: prefs.jsonl}

`${name.output}` is an output of an earlier stage. Command-line options come last: `align.beta=0.3` sets a key of one stage;
`train.steps=10` sets it in every stage that reads it, save where the recipe wires it to an earlier stage. Paths are relative to
the folder the command is started in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_origin

from prefopt.errors import OptionError, did_you_mean
from prefopt.pipeline import contradictions, kinds
from prefopt.pipeline.check import check, check_keys, check_value, found, hints
from prefopt.pipeline.kinds import MIX, SECTIONS, Kind
from prefopt.pipeline.source import COMMAND_LINE, Key, Override, Source, parse_override
from prefopt.pipeline.source import read as read_source

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_OWN_KEYS = ("kind", "name")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One checked stage. `sections` maps a section's name to its settings; `options` are the kind's own."""

    kind: str
    name: str
    sections: Mapping[str, Any]
    options: Mapping[str, Any]
    mix: Mapping[str, float]

    @property
    def references(self) -> list[tuple[str, str]]:
        """The (stage, output) pairs this stage waits for, in order of appearance, once each."""
        found = [text.partition(".") for value in _strings(self.to_dict()) for text in _REFERENCE.findall(value)]
        return list(dict.fromkeys((name, output) for name, _, output in found))

    def resolve(self, outputs: Mapping[str, Mapping[str, str]]) -> Stage:
        """The stage with every `${name.output}` replaced by what that stage wrote."""

        def fill(value: Any) -> Any:
            if isinstance(value, str):
                return _REFERENCE.sub(lambda m: outputs[m[1].partition(".")[0]][m[1].partition(".")[2]], value)
            if is_dataclass(value) and not isinstance(value, type):
                return replace(value, **{f.name: fill(getattr(value, f.name)) for f in fields(value)})
            if isinstance(value, Mapping):
                return {k: fill(v) for k, v in value.items()}
            return [fill(v) for v in value] if isinstance(value, list) else value

        return replace(self, sections=fill(self.sections), options=fill(self.options))

    def to_dict(self) -> dict[str, Any]:
        """Everything a stage was told or left at its default, as plain values."""
        sections = {name: vars(settings) for name, settings in self.sections.items()}
        return {"kind": self.kind, "name": self.name, **self.options, **({MIX: dict(self.mix)} if self.mix else {}), **sections}


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they run; `name` is the file's."""

    name: str
    stages: tuple[Stage, ...]


def load(path: Path, arguments: Sequence[str] = ()) -> Recipe:
    """A recipe file with the `key=value` arguments of the command line.

    Raises:
        OptionError: anything unknown, missing or of the wrong type, with file, line, column and the nearest right word.
    """
    return build(read_source(path), [parse_override(a) for a in arguments])


def single(stage: Mapping[str, Any], overrides: Iterable[Override], name: str = COMMAND_LINE) -> Stage:
    """One stage from values instead of a file: `prefopt train` and `prefopt.train`."""
    return build(Source(name, {"stages": [dict(stage)]}), overrides).stages[0]


def build(source: Source, overrides: Iterable[Override] = ()) -> Recipe:
    """The checked recipe of a parsed document."""
    _check_top(source)
    places = range(len(source.values["stages"]))
    stages = [_head(source, i) for i in places]
    _check_names(source, stages)
    _apply_defaults(source, stages)
    for override in sorted(overrides, key=_decides_nothing):  # first what says which options and sections there are
        stages = [_head(source, i) for i in places]
        _apply(source, stages, override)
    stages = [_head(source, i) for i in places]
    checked = [_stage(source, i, head.name, head.kind) for i, head in enumerate(stages)]
    _check_references(source, checked, [head.kind for head in stages])
    for i, stage in enumerate(checked):
        _check_together(source, ("stages", i), stage, checked[:i])
    return Recipe(Path(source.name).stem, tuple(checked))


@dataclass(frozen=True)
class _Head:
    """A stage's kind and name, known before its sections are checked."""

    name: str
    kind: Kind


def _check_top(source: Source) -> None:
    top = source.values
    if not isinstance(top, dict) or not isinstance(top.get("stages"), list) or not top["stages"]:
        raise OptionError(
            "expected `stages:`, a list of mappings with `kind:`", where=source.at(("stages",)), fix="see recipes/methods/dpo.yaml"
        )
    for key in top:
        if key not in ("stages", "defaults"):
            raise OptionError("unknown key", where=f"{source.at((key,))}: {key}", fix=did_you_mean(key, ("stages", "defaults")))
    defaults = top.setdefault("defaults", {})
    if not isinstance(defaults, dict):
        raise OptionError(f"expected a mapping of sections, found {found(defaults)}", where=f"{source.at(('defaults',))}: defaults")
    for section, values in defaults.items():
        if section not in SECTIONS:
            where = f"{source.at(('defaults', section))}: defaults.{section}"
            raise OptionError("unknown section", where=where, fix=did_you_mean(section, SECTIONS))
        check_keys(SECTIONS[section], values, source, ("defaults", section), f"defaults.{section}")


def _head(source: Source, i: int) -> _Head:
    values, where = source.values["stages"][i], source.at(("stages", i))
    if not isinstance(values, dict):
        raise OptionError(f"a stage is a mapping of keys, found {found(values)}", where=where, fix="write `- kind: sft`")
    kind, name = values.get("kind"), values.get("name", values.get("kind"))
    if not isinstance(kind, str):
        raise OptionError("a stage needs `kind:`", where=where, fix="a method of `prefopt methods`, or " + ", ".join(kinds.KINDS))
    try:
        known = kinds.get(kind, values)
    except OptionError as error:
        raise OptionError(error.what, where=f"{source.at(('stages', i, 'loss'))}: {error.where}", fix=error.fix) from None
    except KeyError:
        raise OptionError(
            f"unknown kind '{kind}'", where=f"{source.at(('stages', i, 'kind'))}: kind", fix=did_you_mean(kind, kinds.names())
        ) from None
    if not isinstance(name, str) or not _NAME.match(name) or (name in (*SECTIONS, MIX, "defaults") and name not in kinds.names()):
        where = f"{source.at(('stages', i, 'name'))}: name"
        raise OptionError(f"'{name}' cannot name a stage", where=where, fix="use letters, digits, - and _, and no section's name")
    return _Head(name, known)


def _check_names(source: Source, stages: Sequence[_Head]) -> None:
    seen: dict[str, int] = {}
    for i, head in enumerate(stages):
        if head.name in seen:
            raise OptionError(
                f"two stages are named '{head.name}'", where=source.at(("stages", i, "name")), fix="give each its own `name:`"
            )
        seen[head.name] = i


def _apply_defaults(source: Source, stages: Sequence[_Head]) -> None:
    """Give every stage the defaults of the sections it reads, where it does not set the key itself."""
    for section, values in source.values["defaults"].items():
        for name, value in values.items():
            for i, head in enumerate(stages):
                stage = source.values["stages"][i]
                given = stage.get(section) or {}
                if isinstance(given, dict) and name not in given and name in _keys(head.kind, section):
                    source.put(("stages", i, section, name), value, source.at(("defaults", section, name)))


def _keys(kind: Kind, section: str) -> Mapping[str, Any]:
    """The keys a kind reads in a section; those of `mix` are methods."""
    return hints(kind.sections[section]) if section in kind.sections and section != MIX else {}


def _apply(source: Source, stages: Sequence[_Head], override: Override) -> None:
    """Set one `key=value`: in the stage it names, or in every stage that reads the key."""
    head, *rest = override.key
    by_name = {stage.name: i for i, stage in enumerate(stages)}
    if override.key[-1] in _OWN_KEYS:
        raise OptionError("a stage's kind and name are the recipe's", where=f"{override.origin}: {override.dotted}", fix="edit the recipe")
    readers = [i for i, stage in enumerate(stages) if _reads(stage.kind, override.key)]
    if head in by_name and rest and not readers:  # where some stage reads it, `reward` is the section, not the method
        source.put(("stages", by_name[head], *rest), override.value, override.origin)
        return
    if not readers:
        raise _unread(stages, override)
    free = [i for i in readers if not _wired(source, i, override.key)]
    if not free:
        names = ", ".join(f"{stages[i].name}.{override.dotted}" for i in readers)
        raise OptionError(
            "every stage that reads it takes it from an earlier stage",
            where=f"{override.origin}: {override.dotted}",
            fix=f"name the stage, as in {names}",
        )
    for i in free:
        source.put(("stages", i, *override.key), override.value, override.origin)


def _decides_nothing(override: Override) -> bool:
    """Whether what a stage reads does not depend on it."""
    return override.key[-1] != "loss" and MIX not in override.key


def _reads(kind: Kind, key: Sequence[str]) -> bool:
    if len(key) == 1:
        return key[0] in kind.options
    if key[0] not in kind.sections:
        return False
    if key[0] == MIX:
        return len(key) == 2
    hint = _keys(kind, key[0]).get(key[1])
    return hint is not None and (len(key) == 2 or (len(key) == 3 and get_origin(hint) is dict))


def _wired(source: Source, i: int, key: Sequence[str]) -> bool:
    value = source.values["stages"][i]
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    return any(_REFERENCE.search(text) for text in _strings(value))


def _unread(stages: Sequence[_Head], override: Override) -> OptionError:
    """Why a key of the command line reaches no stage: misspelt, or not read by these kinds."""
    key, where = override.key, f"{override.origin}: {override.dotted}"
    here = ", ".join(dict.fromkeys(stage.kind.name for stage in stages))
    if len(key) > 1 and key[0] in SECTIONS:
        if key[1] in hints(SECTIONS[key[0]]):
            return OptionError(f"not read by {here}", where=where, fix="leave it out")
        return OptionError("unknown key", where=where, fix=did_you_mean(key[1], hints(SECTIONS[key[0]])))
    known = [name for stage in stages for name in _every_key(stage.kind) if name not in SECTIONS]
    return OptionError(f"not an option of {here}", where=where, fix=_suggest(override.dotted, known) or "prefopt methods NAME shows them")


def _every_key(kind: Kind) -> list[str]:
    return [*kind.options, *kind.sections, *(f"{section}.{name}" for section in kind.sections for name in _keys(kind, section))]


def _suggest(name: str, known: Sequence[str]) -> str:
    """The key that ends in `name` (learning_rate -> train.learning_rate), or else the one most like it; "" where none is."""
    inside = [k for k in known if k.endswith(f".{name}")]
    near = f"did you mean '{inside[0]}'?" if inside else did_you_mean(name, known)
    return near if near.startswith("did") else ""


def _stage(source: Source, i: int, name: str, kind: Kind) -> Stage:
    """Check one stage: every key is the kind's own option or a section it reads."""
    values, key = source.values["stages"][i], ("stages", i)
    for given in values:
        if given not in (*_OWN_KEYS, *kind.options, *kind.sections):
            raise _unknown(source, (*key, given), kind)
    options = {
        option: check_value(hint, values[option], f"{source.at((*key, option))}: {option}") if option in values else kind.defaults[option]
        for option, hint in kind.options.items()
    }
    given = {s: _section(values, s) for s in kind.sections if s != MIX}
    given = {s: {**kind.presets.get(s, {}), **v} if isinstance(v, dict) else v for s, v in given.items()}
    sections = {s: check(kind.sections[s], v, source, (*key, s), s) for s, v in given.items()}
    mix = _mix(source, (*key, MIX), _section(values, MIX))
    return Stage(kind=kind.name, name=name, sections=sections, options=options, mix=mix)


def _check_together(source: Source, key: Key, stage: Stage, before: Sequence[Stage]) -> None:
    """Whether a stage's settings go together, with the place in the recipe where they do not."""
    try:
        contradictions.check(stage, before)
    except OptionError as error:
        place = tuple(error.where.split(".")) if error.where else ()
        raise OptionError(error.what, where=f"{source.at((*key, *place))}: {error.where or stage.kind}", fix=error.fix) from None


def _section(values: Mapping[str, Any], section: str) -> Any:
    """What a stage says of a section; a section left empty (`data:`) is one without keys."""
    given = values.get(section)
    return {} if given is None else given


def _unknown(source: Source, key: Key, kind: Kind) -> OptionError:
    given = str(key[-1])
    where = f"{source.at(key)}: {given}"
    if given in (*SECTIONS, MIX):
        return OptionError(f"{kind.name} does not read this section", where=where, fix="it reads " + ", ".join(kind.sections))
    fix = _suggest(given, [*_every_key(kind), *_OWN_KEYS]) or "it reads " + ", ".join([*kind.options, *kind.sections])
    return OptionError(f"not an option of {kind.name}", where=where, fix=fix)


def _mix(source: Source, key: Key, values: Any) -> dict[str, float]:
    """The weights of the losses mixed in, each a row of METHODS."""
    if not values:
        return {}
    from prefopt.losses.methods import METHODS

    if not isinstance(values, dict):
        raise OptionError(f"expected METHOD: weight, found {found(values)}", where=f"{source.at(key)}: mix", fix="write mix: {sft: 0.2}")
    for name in values:
        if name not in METHODS:
            raise OptionError("not a method", where=f"{source.at((*key, name))}: mix.{name}", fix=did_you_mean(name, METHODS))
    return {name: float(check_value(float, value, f"{source.at((*key, name))}: mix.{name}")) for name, value in values.items()}


def _check_references(source: Source, stages: Sequence[Stage], kinds_now: Sequence[Kind]) -> None:
    """Every `${name.output}` names an earlier stage and one of its outputs."""
    earlier: dict[str, tuple[str, ...]] = {}
    for i, (stage, kind) in enumerate(zip(stages, kinds_now, strict=True)):
        for key, text in _places(source.values["stages"][i], ("stages", i)):
            for reference in _REFERENCE.findall(text):
                _check_reference(reference, earlier, f"{source.at(key)}: {'.'.join(map(str, key[2:]))}")
        earlier[stage.name] = kind.outputs


def _check_reference(reference: str, earlier: Mapping[str, tuple[str, ...]], where: str) -> None:
    name, _, output = reference.partition(".")
    known = [f"{stage}.{out}" for stage, outputs in earlier.items() for out in outputs]
    if name not in earlier:
        fix = did_you_mean(reference, known) if known else "it is the first stage; give a path"
        raise OptionError(f"${{{reference}}} names no earlier stage", where=where, fix=fix)
    if output not in earlier[name]:
        what = f"${{{reference}}}: the stage '{name}' has no output '{output}'"
        raise OptionError(what, where=where, fix="its outputs: " + ", ".join(f"${{{name}.{o}}}" for o in earlier[name]))


def _places(value: Any, key: Key) -> Iterable[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _places(item, (*key, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _places(item, (*key, i))


def _strings(value: Any) -> list[str]:
    return [text for _, text in _places(value, ())]
