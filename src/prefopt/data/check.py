"""`prefopt data check`: what some data hold, row by row, without training on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.files import RawRow
from prefopt.data.formats import as_chat
from prefopt.data.preflight import FITS, MENDABLE, Preflight, Renderer
from prefopt.data.read import Table, expand, open_table
from prefopt.errors import PrefoptError
from prefopt.types import Example, TokenTree

SHOWN = 10  # problems that are told one by one; the rest are only counted
_CHUNK = 256  # rows tokenized together


@dataclass
class Checked:
    """One file: its layout and columns, and how many rows were read."""

    path: str
    layout: str
    columns: tuple[str, ...]
    rows: int = 0


@dataclass
class Check:
    """The outcome: the files, the preflight's counts, and the rows that cannot be read or rendered (the first of them in full)."""

    preflight: Preflight
    files: list[Checked] = field(default_factory=list)
    problems: list[PrefoptError] = field(default_factory=list)
    failed: int = 0

    @property
    def sound(self) -> bool:
        """Whether every row can be trained on: read, rendered, answered, and within the length asked for."""
        dropped = any(reason in self.preflight.dropped for reason in MENDABLE)
        return not (self.failed or dropped or self.preflight.too_long.count)

    def trouble(self, error: PrefoptError) -> None:
        """Count a row or file that cannot be used."""
        self.failed += 1
        if len(self.problems) < SHOWN:
            self.problems.append(error)

    def table(self) -> str:
        """The outcome as plain lines."""
        lines = []
        for file in self.files:
            lines += [f"{file.path}: {file.layout}, {file.rows} rows", f"  columns        {', '.join(file.columns)}"]
        lines += [self.preflight.table()] if self.preflight.rows else []
        fits = [data for data, kinds in FITS.items() if self.preflight.kinds and set(self.preflight.kinds) <= set(kinds)]
        lines += [f"  fits methods that learn from {', '.join(fits)}"] if fits else []
        if self.failed:
            more = f"; the first {SHOWN}:" if self.failed > SHOWN else ":"
            lines += [f"{self.failed} that cannot be used{more}", *(str(problem) for problem in self.problems)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "sound": self.sound,
            "files": [{"path": f.path, "layout": f.layout, "columns": list(f.columns), "rows": f.rows} for f in self.files],
            "failed": self.failed,
            "problems": [str(problem) for problem in self.problems],
            **self.preflight.to_dict(),
        }


def check(
    paths: str | Sequence[str],
    *,
    renderer: Renderer | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> Check:
    """Read every row and count what the preflight counts; bad rows are collected, not raised.

    Args:
        paths: what `read` takes.
        renderer: a model's; with it the rows are tokenized and the counts are in tokens too.
        max_length: longest prompt + completion in tokens, counted against.
        limit: only the first rows of each file.
        chat: read strings as turns of a conversation (`data.chat`).

    Raises:
        DataError: a path stands for nothing.
    """
    outcome = Check(Preflight(renderer, max_length))
    for path in [paths] if isinstance(paths, str) else paths:
        for name in expand(str(path)):
            examples = itertools.islice(_examples(name, outcome), limit)
            admitted = filter(outcome.preflight.admit, map(as_chat, examples) if chat else examples)
            _measure(admitted, outcome)
    return outcome


def _examples(name: str, outcome: Check) -> Iterator[Example]:
    """The rows of one file that can be read."""
    try:
        table = open_table(name)
        file = Checked(name, table.layout.name + (", HH dialogues" if table.hh else ""), table.columns)
        outcome.files.append(file)
        for row in table.rows:
            file.rows += 1
            if (example := _parse(table, row, outcome)) is not None:
                yield example
    except PrefoptError as error:  # the file itself; what was read before it stands
        outcome.trouble(error)


def _parse(table: Table, row: RawRow, outcome: Check) -> Example | None:
    try:
        return table.parse(row)
    except PrefoptError as error:
        outcome.trouble(error)
        return None


def _measure(examples: Iterator[Example], outcome: Check) -> None:
    """Take the rows as tokens; without a renderer they are only read."""
    while chunk := list(itertools.islice(examples, _CHUNK)):
        for tree in _trees(chunk, outcome):
            outcome.preflight.measure(tree)
            outcome.preflight.keep(tree, tree)


def _trees(chunk: list[Example], outcome: Check) -> Iterator[TokenTree]:
    """The trees of a chunk; where one row cannot be rendered, the others are taken one by one."""
    renderer = outcome.preflight.renderer
    if renderer is None:
        return
    try:
        trees = list(renderer.trees(chunk))
    except PrefoptError:
        trees = [tree for example in chunk for tree in _alone(example, renderer, outcome)]
    yield from trees


def _alone(example: Example, renderer: Renderer, outcome: Check) -> list[TokenTree]:
    try:
        return list(renderer.trees([example]))
    except PrefoptError as error:
        outcome.trouble(error)
        return []
