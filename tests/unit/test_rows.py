"""Rows of an evaluation: written, read again, and refused when they are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prefopt.errors import DataError
from prefopt.evaluate.rows import Figure, figure, from_json, read, to_json
from prefopt.stats import clustered_mean, wilson


@pytest.mark.parametrize("interval", [wilson(8, 10), clustered_mean([0.0, 1.0, 1.0]), clustered_mean([1.0, 0.0], ["a", "a"])])
def test_a_row_comes_back_as_it_was_written(interval: object) -> None:
    row = figure("refusal", interval, model="dpo", slice="harmful", difference_from="sft", data_sha256="ab")  # type: ignore[arg-type]
    text = json.dumps(to_json(row), allow_nan=False)
    again = from_json(json.loads(text))
    assert to_json(again) == to_json(row)
    assert again.df == row.df
    assert math.isnan(again.std_error) == math.isnan(row.std_error)


def test_an_old_row_without_tests_is_read() -> None:
    old = {"metric": "kl", "value": 1.5, "low": 1.0, "high": 2.0, "n": 3, "method": "t", "slice": "all", "model": "dpo", "later": 1}
    assert from_json(old).value == 1.5
    assert math.isnan(from_json(old).std_error)


@pytest.mark.parametrize("change", [{"value": None}, {"value": "high"}, {"metric": 3}, {"model": None}, {"n": True}, {"value": math.inf}])
def test_what_is_no_row_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(change))):
        from_json({"metric": "kl", "value": 1.5, "model": "dpo", **change}, "evaluation.json: row 1")


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"rows": 3}'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(DataError, match="evaluation"):
            read(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text('{"rows": [3]}')
    with pytest.raises(DataError, match="row 1"):
        read(tmp_path / "evaluation.json")
    row = Figure(metric="kl", value=1.0, low=0.0, high=2.0, n=3, method="t", model="dpo")
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": [to_json(row)]}))
    assert to_json(read(tmp_path / "evaluation.json")[0]) == to_json(row)
