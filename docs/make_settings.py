"""Write docs/settings.md: every key of a recipe, section by section, with its type, its default and what it means.

    python docs/make_settings.py

All of it comes from the dataclasses of `prefopt.settings` and `prefopt.pipeline.kinds`. A test holds the page to them, so after a change
run the command again.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from make_methods import marked, table

from prefopt.losses.explain import plain
from prefopt.losses.methods import METHODS, Method
from prefopt.pipeline import kinds
from prefopt.pipeline.check import describe, hints
from prefopt.settings import GateRule, GateSettings

PAGE = Path(__file__).with_name("settings.md")
LEAD = """# Settings

The keys of a recipe's stages and of the command line (`train.learning_rate=1e-5`), with what they may be and what they are when not given.
The options of a method stand on [its page](methods/index.md), as do the defaults that are the method's own (`train.learning_rate`,
`rollout.samples`, those of `online` and `kl`). `mix: {sft: 0.2}` adds 0.2 times another row's loss on the same data. How recipes are
written and run: [Recipes and commands](recipes.md)."""
GROUPS: dict[str, Callable[[Method], bool]] = {
    "all methods": lambda method: True,
    "methods that learn from their own samples": lambda method: method.online is not None,
    "methods with a reference": lambda method: method.needs_reference or method.online is not None,
    "reward models": lambda method: method.reads == "scores",
}
"""What methods have in common -> which do."""


def meanings(cls: type) -> dict[str, str]:
    """Field -> its docstring, the string that follows it."""
    node = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(node, ast.ClassDef)
    found = {}
    for before, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[before.target.id] = inspect.cleandoc(after.value.value) if told else ""
    return found


def default(field: dataclasses.Field) -> str:
    """As a recipe would write it; empty where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return "" if field.default is dataclasses.MISSING else plain(field.default)


def keys(cls: type, prefix: str = "") -> list[str]:
    """The table of a settings class, after what the class says of itself."""
    said, types = meanings(cls), hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        value = default(field)
        told = marked(" ".join(said.get(field.name, "").removeprefix("Required. ").split()))
        rows.append((f"`{prefix}{field.name}`", f"`{value}`" if value else "required", marked(describe(types[field.name])), told))
    lead = marked(" ".join((inspect.getdoc(cls) or "").split()))
    return [lead, "", *table(("key", "default", "what it may be", "meaning"), rows)]


def readers() -> dict[tuple[str, type], list[str]]:
    """(section, its class) -> the kinds of stages that read it, methods first."""
    found: dict[tuple[str, type], list[str]] = {}
    every = [*(kinds.get(name) for name in METHODS), *kinds.KINDS.values(), kinds.BY_REWARD]
    for kind in every:
        for section, cls in kind.sections.items():
            if section != kinds.MIX and kind.name not in found.setdefault((section, cls), []):
                found[section, cls].append(kind.name)
    return found


def read_by(names: list[str]) -> str:
    """The kinds in words; methods by what they have in common where that is just these."""
    methods, others = [name for name in names if name in METHODS], [f"`{name}`" for name in names if name not in METHODS]
    common = (words for words, takes in GROUPS.items() if methods == [name for name, method in METHODS.items() if takes(method)])
    told = [next(common, ", ".join(f"[{name}](methods/{name}.md)" for name in methods))] if methods else []
    return ", ".join([*told, *others])


def chapters() -> Iterator[str]:
    """The lines of the page."""
    yield from (LEAD, "", "## Sections", "")
    for (section, cls), names in sorted(readers().items(), key=lambda item: list(kinds.SECTIONS).index(item[0][0])):
        title = section if cls is kinds.SECTIONS[section] else f"{section} of {', '.join(names)}"
        yield from (f"### {title}", "", f"Read by {read_by(names)}.", "", *keys(cls, f"{section}."))
    yield from ("## Options of stages that do not train", "", "They stand directly in the stage, beside `kind` and `name`.", "")
    for name, kind in kinds.KINDS.items():
        if kind.options:
            yield from (f"### {name}", "", *keys(getattr(kinds, f"{name.capitalize()}Options")))
    yield from ("## A gate's policy", "", "The file of `prefopt gate --policy` and of a gate stage's `policy` ([The gate](gate.md)).", "")
    yield from (*keys(GateSettings), "Each of `rules`:", "", *keys(GateRule))


def page() -> str:
    """docs/settings.md."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(chapters())).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
