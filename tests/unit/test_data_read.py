"""The same rows out of every kind of file; bad files end in one short message with file and line; memory stays flat."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.read import read, tables
from prefopt.errors import DataError
from prefopt.types import Example

ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": f'q{i}, "x"\nü'}], "completions": ["a", f"b{i}"], "scores": [0.5, i], "group": "g"}
    for i in range(5)
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "d.jsonl": jsonl,
    "lines.json": jsonl,
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n"),
    "d.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "d.csv": as_csv,
    "d.tsv": lambda rows: as_csv(rows, "\t"),
    "d.parquet": as_parquet,
}


def plain(examples: list[Example]) -> list[Any]:
    return [(e.prompt, e.completions, e.group) for e in examples]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_the_same(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(FORMS[name](ROWS)) if zipped else FORMS[name](ROWS))
    (tmp_path / "want.jsonl").write_bytes(jsonl(ROWS))
    examples = list(read(str(path)))
    assert plain(examples) == plain(list(read(str(tmp_path / "want.jsonl"))))
    assert len(examples) == 5
    assert examples[0].completions[0].score == 0.5
    assert examples[0].where.startswith(f"{path}:")


def test_where_is_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "b.json").write_text('\n[\n {"text":\n "x"},\n\n {"text": "y"}]\n')
    (tmp_path / "c.csv").write_text('text\n"x\nx"\ny\n')
    places = [[e.where.rpartition(":")[2] for e in read(str(tmp_path / name))] for name in ("a.jsonl", "b.json", "c.csv")]
    assert places == [["1", "3"], ["3", "6"], ["3", "4"]]


def test_nulls_that_arrow_fills_in_are_no_arguments(tmp_path: Path) -> None:
    import datasets

    def asked(**arguments: Any) -> dict[str, Any]:
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return {"messages": [{"role": "user", "content": "q"}, call], "tools": [{"function": {"name": "f", "parameters": arguments}}]}

    data = [asked(town="Alm"), asked(date="today")]
    datasets.Dataset.from_list(data).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "d.parquet").write_bytes(as_parquet(data))
    (tmp_path / "d.jsonl").write_bytes(jsonl(data))
    want = plain(list(read(str(tmp_path / "d.jsonl"))))
    assert plain(list(read(str(tmp_path / "d.parquet")))) == want
    assert plain(list(read(str(tmp_path / "saved")))) == want


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    (tmp_path / "want.jsonl").write_bytes(jsonl(ROWS))
    want = plain(list(read(str(tmp_path / "want.jsonl"))))
    assert plain(list(read(str(tmp_path / "one")))) == want
    assert plain(list(read(str(tmp_path / "two")))) == want
    assert plain(list(read(f"{tmp_path / 'two'}:test"))) == want[:1]
    with pytest.raises(DataError, match="holds the splits train, test"):
        list(read(f"{tmp_path / 'two'}:dev"))


def test_folders_patterns_lists_and_limit(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"part{i}.jsonl").write_bytes(jsonl([{"text": f"{i}a"}, {"text": f"{i}b"}]))
    (tmp_path / "README.md").write_text("no data")
    texts = lambda *a, **k: [e.completions[0].content for e in read(*a, **k)]  # noqa: E731
    assert texts(str(tmp_path)) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert texts(str(tmp_path / "part[12].jsonl"), limit=3) == ["1a", "1b", "2a"]
    assert texts([str(tmp_path / "part2.jsonl"), str(tmp_path / "part0.jsonl")], limit=9) == ["2a", "2b", "0a", "0b"]
    with pytest.raises(DataError, match="limit=0"):
        texts(str(tmp_path), limit=0)


def test_a_file_whose_name_is_a_pattern_too_is_read(tmp_path: Path) -> None:
    (tmp_path / "run[1].jsonl").write_bytes(jsonl([{"text": "x"}]))
    assert len(list(read(str(tmp_path / "run[1].jsonl")))) == 1


def test_a_table_says_which_answers_ended(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "scores": [1, 0], "finished": [True, False]}
    (tmp_path / "d.csv").write_bytes(as_csv([row]))
    (example,) = read(str(tmp_path / "d.csv"))
    assert [completion.ended for completion in example.completions] == [True, False]


def test_hh_is_decided_by_the_first_row(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "completion": "a"}, {"prompt": "Human: q", "completion": "a"}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "b.jsonl").write_bytes(jsonl(rows[::-1]))
    assert [type(e.prompt) for e in read(str(tmp_path / "a.jsonl"))] == [str, str]
    assert next(tables(str(tmp_path / "b.jsonl"))).hh


BAD_FILES: list[tuple[str, bytes, str, str]] = [
    ("d.jsonl", b"", "", "no rows"),
    ("d.json", b"[]", "", "no rows"),
    ("d.json", b" [ \n ] ", "", "no rows"),
    ("d.csv", b"text\n", "", "no rows"),
    ("d.jsonl", b'{"text": "x"}\n{"text": "y"\n', ":2", "malformed JSON: Expecting ',' delimiter at column 13"),
    ("d.jsonl", b'{"text": "x"}\n[1]\n', ":2", "expected an object, found list"),
    ("d.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", ":1", "JSON that cannot be read"),
    ("d.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", ":1", "JSON that cannot be read"),
    ("d.json", b'[{"text": "x"},\n{"text" "y"}]', ":2", "malformed JSON"),
    ("d.json", b'[{"text": "x"}\n{"text": "y"}]', ":2", "expected ',', found {"),
    ("d.json", b'[{"text": "x"},\n]', ":2", "malformed JSON: Expecting value"),
    ("d.json", b'[{"text": "x"}\n', ":2", "found the end of the file"),
    ("d.json", b'[{"text": "x"}]\n{}', ":2", "text after the list"),
    ("d.json", b'["x"]', ":1", "expected an object, found str"),
    ("d.json", b'{\n "data": []}', ":1", "malformed JSON"),
    ("d.jsonl", b'{"text": "\xff"}', "", "not UTF-8"),
    ("d.jsonl.gz", b"not gzip at all", "", "damaged gzip"),
    ("d.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-20], "", "damaged gzip"),
    ("d.csv", b"prompt,completion\na,b\nc\n", ":3", "1 cells, but the header has 2"),
    ("d.csv", b"prompt,completion\na,b,c\n", ":2", "3 cells, but the header has 2"),
    ("d.csv", b'text\n"a"b\n', ":2", "malformed CSV"),
    ("d.parquet", b"PAR1 no", "", "not a readable Parquet file"),
    ("d.txt", b"hello", "", "not a data file by its name"),
]


@pytest.mark.parametrize(("name", "content", "line", "says"), BAD_FILES, ids=[f"{n}-{s}" for n, _, _, s in BAD_FILES])
def test_bad_files_say_where_in_three_lines(tmp_path: Path, name: str, content: bytes, line: str, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read(str(path)))
    assert str(caught.value).startswith(f"{path}{line}: ")
    assert says in str(caught.value)
    assert str(caught.value).count("\n") <= 2


def test_rows_before_a_bad_line_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\nnonsense\n')
    rows = read(str(tmp_path / "d.jsonl"))
    assert next(rows).completions[0].content == "x"
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("name", ["prefs.jsonk", "prefs"])
def test_missing_paths_guess_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/prefs.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean 'prefs.jsonl'"):
        list(read(f"data/{name}"))
    with pytest.raises(DataError, match="no file fits this pattern"):
        list(read("data/*.csv"))


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files in this folder"):
        list(read(str(tmp_path)))
    for name in ("train-0.jsonl", "test-0.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        list(read(str(tmp_path)))


def test_hub_names_go_to_datasets_and_fail_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, split, streaming))
        if name == "no/body":
            raise ValueError("not on the hub\nlong story")
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [e.where for e in read("some/one:dev")] == ["some/one:dev:1"]
    assert asked == [("some/one", "dev", True)]
    with pytest.raises(DataError, match="not on the hub") as caught:
        list(read("no/body"))
    assert "long story" not in str(caught.value)


def test_csv_cells_are_read_by_their_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion,label\nq,True,True\n1,"[""x""]",0\n')
    rows = list(read(str(tmp_path / "a.csv")))
    assert [(r.prompt, r.completions[0].content, r.completions[0].label) for r in rows] == [("q", "True", True), ("1", '["x"]', False)]
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected,margin\nq,a,b,\nq,a,b,0.5\n")
    assert [r.margin for r in read(str(tmp_path / "b.csv"))] == [None, 0.5]


@pytest.mark.parametrize("array", [False, True])
def test_memory_is_flat(tmp_path: Path, array: bool) -> None:
    """5 MB of rows are read in 2 MB."""
    row = json.dumps({"prompt": "q" * 300, "chosen": "a" * 300, "rejected": "b" * 600})
    path = tmp_path / "d.json"
    path.write_text("[" + ",\n".join([row] * 4_000) + "]" if array else "\n".join([row] * 4_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read(str(path))) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_json_item_longer_than_the_buffer(tmp_path: Path) -> None:
    rows = [{"text": "x\\" * 100_000, "n": 1.5}, {"text": "[{]}", "n": -1e5}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert [e.completions[0].content for e in read(str(tmp_path / "d.json"))] == [row["text"] for row in rows]


def test_a_malformed_item_is_found_without_reading_on(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('[{"text" 1},' + '{"text": "xxxxxxxxxxxxxxxx"},' * 100_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="malformed JSON"):
            list(read(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_data_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, prefopt.data.read, prefopt.data.check, prefopt.data.split, prefopt.data.truncate;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
