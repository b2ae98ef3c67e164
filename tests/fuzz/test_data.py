"""Whatever the bytes of a file, reading and checking end in examples or in a PrefoptError of at most three lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.check import check
from prefopt.data.formats import LAYOUTS
from prefopt.data.preflight import Preflight
from prefopt.data.read import read
from prefopt.data.schema import Row, transcript
from prefopt.data.split import group_key
from prefopt.types import Example
from tests.fuzz.effort import FUZZ, short_errors

KEYS = sorted(
    {name for layout in LAYOUTS for name in (*layout.needs, *layout.reads)}
    | {"tools", "margin", "group", "meta", "source", "role", "content", "from", "value", "response", "overall_score", "tool_calls"}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["a", "b", "tie", "user", "human", "gpt", "Human: x\n\nAssistant: y", "\ud800", "[{", ""])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)


@st.composite
def fields(draw: Any) -> tuple[Any, dict[str, Any]]:
    """A layout with all its columns, holding anything."""
    layout = draw(st.sampled_from(LAYOUTS))
    names = [*layout.needs, *draw(st.lists(st.sampled_from(KEYS), max_size=4, unique=True))]
    return layout, {name: draw(JSON) for name in names}


@FUZZ
@given(fields(), st.booleans())
def test_any_values_give_an_example_or_a_short_error(drawn: tuple[Any, dict[str, Any]], hh: bool) -> None:
    layout, values = drawn
    with short_errors("d.jsonl:1: "):
        example = layout.read(Row(values, "d.jsonl:1", hh))
        assert isinstance(example, Example)
        Preflight().admit(example)
        group_key(example)


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5) | JSON, min_size=1, max_size=4), st.booleans())
def test_any_rows_in_a_file(tmp_path: Path, rows: list[Any], array: bool) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows) if array else "\n".join(json.dumps(row) for row in rows))
    with short_errors():
        assert all(isinstance(example, Example) for example in read(str(path)))
    check(str(path)).table()


@FUZZ
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["d.jsonl", "d.json", "d.csv", "d.jsonl.gz", "d.parquet"]),
)
def test_any_bytes_in_a_file(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with short_errors(str(tmp_path / name)):
        list(read(str(tmp_path / name)))


@FUZZ
@given(st.lists(st.sampled_from(["a", " ", "\n", "Human:", "\n\nHuman:", "\n\nAssistant:"]), max_size=12))
def test_transcripts_alternate(parts: list[str]) -> None:
    roles = [turn.role for turn in transcript("Human:" + "".join(parts))]
    assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
