"""Rows of any known layout, from any known file, as `Example`s; one at a time, so memory stays flat however large the data are."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.files import RawRow, find, raw_rows
from prefopt.data.formats import Layout, detect
from prefopt.data.schema import Row, is_transcript
from prefopt.errors import DataError
from prefopt.types import Example

_DIALOGUE_COLUMNS = ("prompt", "chosen", "rejected", "completion")


@dataclass(frozen=True, slots=True)
class Table:
    """One file, saved folder or hub name: the layout its first row gives away, that row's columns, and the rows, read once.

    `hh` says that its strings are HH dialogues ("Human: ... Assistant: ..."), which become messages.
    """

    path: str
    layout: Layout
    columns: tuple[str, ...]
    hh: bool
    rows: Iterator[RawRow]

    def parse(self, row: RawRow) -> Example:
        """One of its rows as an `Example`.

        Raises:
            DataError: the row does not fit the layout.
        """
        return self.layout.read(Row(row.fields, row.where, self.hh))


def read(paths: str | Sequence[str], *, limit: int | None = None) -> Iterator[Example]:
    """Every row of `paths`, in order, as an `Example` whose `where` is "file:line" (":row" where a file has no lines).

    Args:
        paths: files, folders of files, glob patterns, `datasets` folders, hub names ("owner/name" or "owner/name:split").
        limit: stop after so many rows.

    Raises:
        DataError: nothing to read, or a row that does not fit the layout of its file.
    """
    if limit is not None and limit < 1:
        raise DataError(f"data.limit={limit} leaves no rows", fix="set it to 1 or more, or leave it out")
    examples = (table.parse(row) for table in tables(paths) for row in table.rows)
    yield from itertools.islice(examples, limit)


def tables(paths: str | Sequence[str]) -> Iterator[Table]:
    """The files of `paths` one after another, each with its layout known and its rows not yet read.

    Raises:
        DataError: a path or file that holds nothing, or columns that fit no layout.
    """
    for path in [paths] if isinstance(paths, str) else paths:
        for name in expand(str(path)):
            yield open_table(name)


def expand(path: str) -> list[str]:
    """The files and names a path or glob pattern stands for.

    Raises:
        DataError: there are none.
    """
    if Path(path).exists() or not glob.has_magic(path):
        return find(path)
    names = sorted(glob.glob(path))
    if not names:
        raise DataError("no file fits this pattern", where=path, fix="quote the pattern and check the folder")
    return names


def open_table(path: str) -> Table:
    """One file, saved folder or hub name.

    Raises:
        DataError: it holds no rows, or its columns fit no layout.
    """
    rows = raw_rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError("no rows", where=path, fix="the file is empty; check the step that wrote it")
    # One decision a file: a text that happens to begin with "Human:" further down does not change how it is read.
    hh = any(is_transcript(first.fields.get(name)) for name in _DIALOGUE_COLUMNS)
    layout = detect(first.fields, first.where)
    return Table(path, layout, tuple(first.fields), hh, itertools.chain([first], rows))
