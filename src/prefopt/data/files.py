"""Raw rows out of files, one at a time: JSON Lines, JSON, CSV, Parquet, each also gzipped, and `datasets` folders and hub names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from prefopt.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_SPLIT_WORDS = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval|heldout)(?:[^a-z]|$)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 16


class RawRow(NamedTuple):
    """A row as its file holds it, and the place ("prefs.jsonl:17": the line, or the row where a file has no lines)."""

    where: str
    fields: Mapping[str, Any]


def find(path: str) -> list[str]:
    """The files and names a path of the user stands for: itself, or a folder's data files in order.

    Raises:
        DataError: nothing is there, or a folder mixes training and test files.
    """
    place = Path(path)
    if place.is_dir() and not _is_saved_dataset(path):
        return _files_of(place)
    if place.exists() or _is_saved_dataset(path) or _is_hub_name(path):
        return [path]
    siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    hint = did_you_mean(place.name, siblings) if siblings and len(siblings) < 200 else ""
    raise DataError("no such file or folder", where=path, fix=hint or "give a file, a folder or a hub name (owner/name)")


def _files_of(folder: Path) -> list[str]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and _kind(p) and not p.name.startswith("."))
    if not files:
        raise DataError(f"no data files in this folder (looked for {', '.join(SUFFIXES)}, also .gz)", where=str(folder), fix="name a file")
    splits = sorted({match[1] for p in files if (match := _SPLIT_WORDS.search(p.name.lower()))})
    if len(splits) > 1:
        raise DataError(f"the folder holds several splits ({', '.join(splits)})", where=str(folder), fix="name the files to read")
    return [str(p) for p in files]


def _is_hub_name(path: str) -> bool:
    """Whether a path that is not there can be "owner/name" or "owner/name:split": not a file's name, not in a folder we have."""
    name = _name_and_split(path)[0]
    return bool(_HUB_NAME.fullmatch(name)) and not _kind(Path(name)) and not Path(name).parent.is_dir()


def _name_and_split(path: str) -> tuple[str, str]:
    """What stands before and after a last ":"; a path that is there has no split."""
    name, colon, split = path.rpartition(":")
    return (name, split) if colon and not Path(path).exists() else (path, "")


def _is_saved_dataset(path: str) -> bool:
    """Whether `path`, its split aside, is a folder that the datasets library wrote."""
    folder = Path(_name_and_split(path)[0])
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, "" when it is none we know."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in SUFFIXES else ""


def raw_rows(path: str) -> Iterator[RawRow]:
    """The rows of one file, saved `datasets` folder or hub name, read as they are asked for.

    Raises:
        DataError: the file cannot be opened, decoded or parsed; names the line.
    """
    place = Path(path)
    if _is_saved_dataset(path) or _is_hub_name(path):
        yield from _from_datasets(path)
        return
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    kind = _kind(place)
    if not kind:
        raise DataError(f"not a data file by its name; known are {', '.join(SUFFIXES)}, also .gz", where=path, fix="rename it")
    try:
        yield from readers.get(kind, _json)(place)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason})", where=path, fix="convert the file to UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip file ({error})", where=path, fix="fetch or make the file again") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=path) from None


def _open_text(path: Path) -> IO[str]:
    # utf-8-sig also takes the byte order mark some spreadsheets write; newline="" leaves line ends to the reader of CSV
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# --- JSON -----------------------------------------------------------------------------------------------------------


def _json(path: Path) -> Iterator[RawRow]:
    """One object a line, or one list of objects, told apart by the first character."""
    with _open_text(path) as stream:
        first = stream.read(_CHUNK).lstrip()[:1]
        stream.seek(0)
        rows = _json_array(stream, str(path)) if first == "[" else _json_lines(stream, str(path))
        for where, value in rows:
            if not isinstance(value, dict):
                raise DataError(f"expected an object, found {type(value).__name__}", where=where, fix='write {"column": value, ...}')
            yield RawRow(where, value)


def _json_lines(stream: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise DataError(f"malformed JSON: {error.msg} at column {error.colno}", where=where, fix=_JSON_FIX) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"JSON that cannot be read ({str(error)[:60]})", where=where, fix=_JSON_FIX) from None


_JSON_FIX = "each line must be one JSON object, or the whole file one list of objects"


def _json_array(stream: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    """The items of a list, without ever holding the list."""
    cursor = _Cursor(stream)
    before = "["
    while cursor.peek() != "]" or before == "[":
        where = f"{name}:{cursor.line}"
        if cursor.peek() != before:
            raise _malformed(f"expected '{before}', found {cursor.peek() or 'the end of the file'}", where)
        cursor.at += 1
        if before == "[" and cursor.peek() == "]":
            break
        before, where = ",", f"{name}:{cursor.line}"
        try:
            yield where, cursor.item()
        except json.JSONDecodeError as error:
            raise _malformed(error.msg, where) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(str(error)[:60], where) from None
    cursor.at += 1
    if cursor.peek():
        raise _malformed("text after the list", f"{name}:{cursor.line}")


class _Cursor:
    """A place in a stream of JSON, over a buffer that grows until a value is whole."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._buffer, self._lines, self.at = stream, "", 1, 0
        self._decoder = json.JSONDecoder()

    @property
    def line(self) -> int:
        """The line of the next character that is not a space."""
        self.peek()
        return self._lines + self._buffer.count("\n", 0, self.at)

    def peek(self) -> str:
        """The next character that is not a space, "" at the end; moves to it."""
        while True:
            while self.at < len(self._buffer) and self._buffer[self.at].isspace():
                self.at += 1
            if self.at < len(self._buffer) or not self._more(_CHUNK):
                return self._buffer[self.at : self.at + 1]

    def item(self) -> Any:
        """The next value."""
        size = _CHUNK
        while True:
            try:
                value, self.at = self._decoder.raw_decode(self._buffer, self.at)
                return value
            except json.JSONDecodeError as error:
                # An error well inside the buffer is real; one at its end, or a string without one, may only need more text.
                real = error.pos + 16 < len(self._buffer) and not error.msg.startswith("Unterminated")
                if real or not self._more(size):
                    raise
                size *= 2

    def _more(self, size: int) -> bool:
        chunk = self._stream.read(size)
        self._lines += self._buffer.count("\n", 0, self.at)
        self._buffer, self.at = self._buffer[self.at :] + chunk, 0
        return bool(chunk)


def _malformed(message: str, where: str) -> DataError:
    return DataError(f"malformed JSON: {message}", where=where, fix=_JSON_FIX)


# --- tables ---------------------------------------------------------------------------------------------------------

_TYPED_CELLS = (
    *("label", "labels", "scores", "ranks", "margin", "score_chosen", "score_rejected", "steps", "completions", "votes", "finished"),
    *("messages", "conversations", "history", "tools", "meta"),
)


def _csv(path: Path) -> Iterator[RawRow]:
    """A header and a row a line, or over several lines where a quoted cell holds a line break."""
    csv.field_size_limit(sys.maxsize)
    with _open_text(path) as stream:
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if None in cells or None in cells.values():
                    found = len([v for k, v in cells.items() if k is not None and v is not None]) + len(cells.get(None) or ())
                    what = f"{found} cells, but the header has {len(reader.fieldnames or ())}"
                    raise DataError(what, where=where, fix="quote cells that hold the delimiter or a line break")
                yield RawRow(where, {name: _cell(name, value) for name, value in cells.items()})
        except csv.Error as error:
            raise DataError(f"malformed CSV: {error}", where=f"{path}:{reader.line_num + 1}", fix="quote every text cell") from None


def _cell(name: str, value: str) -> Any:
    """A CSV cell; JSON in a column that cannot be text (empty is null there), and messages ("[{...") in any column."""
    typed = name in _TYPED_CELLS
    if typed and not value.strip():
        return None
    if not typed and not re.match(r"\s*\[\s*\{", value):
        return value
    try:
        parsed = json.loads(value.lower() if value in ("True", "False", "TRUE", "FALSE") else value)
    except (ValueError, RecursionError):
        return value
    return parsed if typed or _are_messages(parsed) else value


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, dict) and ({"role", "content"} <= v.keys() or {"from", "value"} <= v.keys()) for v in value
    )


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
    try:
        with pq.ParquetFile(source) as table:
            batches = table.iter_batches(batch_size=256)
            number = 0
            for batch in batches:
                for number, fields in enumerate(batch.to_pylist(), number + 1):  # noqa: B020  (counts on over the batches)
                    yield RawRow(f"{path}:{number}", _unfilled(fields))
    except pa.ArrowException as error:
        raise DataError(f"not a readable Parquet file ({str(error).splitlines()[0][:80]})", where=str(path), fix="make it again") from None


def _from_datasets(path: str) -> Iterator[RawRow]:
    """A folder written by `Dataset.save_to_disk`, or a hub name, with ":split" after it where it is not the train split."""
    name, split = _name_and_split(path)
    rows = _load_dataset(name, split)
    for number, fields in enumerate(rows, 1):
        yield RawRow(f"{path}:{number}", _unfilled(fields))


def _unfilled(value: Any, tools: bool = False) -> Any:
    """A value of an Arrow table whose tools, and calls of them, lack again the keys that others have: Arrow fills them with nulls."""
    if isinstance(value, dict):
        return {k: _unfilled(v, tools or k in ("tools", "tool_calls")) for k, v in value.items() if v is not None or not tools}
    return [_unfilled(item, tools) for item in value] if isinstance(value, list) else value


def _load_dataset(name: str, split: str) -> Any:
    import datasets

    saved = Path(name).is_dir()
    try:
        if not saved:
            return datasets.load_dataset(name, split=split or "train", streaming=True)
        data = datasets.load_from_disk(name)
    except Exception as error:  # the library raises many kinds, all of them the user's to mend
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise DataError(f"cannot be loaded with the datasets library: {reason}", where=name, fix="check the name and the split") from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    wanted = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else "")
    if wanted not in data:
        raise DataError(f"holds the splits {', '.join(data)}", where=name, fix=f"name one of its splits, as in {name}:{next(iter(data))}")
    return data[wanted]
