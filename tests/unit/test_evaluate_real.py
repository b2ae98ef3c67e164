"""Real data: our refusal classifier beside people, string match and GPT-4 (XSTest); HHH and PandaLM as a reward bench; people's votes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.evaluate import suites
from prefopt.settings import DataSettings, JudgeSettings
from tests.benches import Spoken, bench_of, figures_in
from tests.worlds import language_model


def rows_of_file(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def cut(source: Path, out: Path, keep: Callable[[dict[str, Any]], bool]) -> Path:
    out.write_text("".join(json.dumps(row) + "\n" for row in rows_of_file(source) if keep(row)))
    return out


def test_our_classifier_agrees_with_people_more_than_string_match_or_gpt4(shared_data: Path, tmp_path: Path) -> None:
    """On the odd-numbered prompts of XSTest, which had no part in fitting the classifier."""

    def odd(row: dict[str, Any]) -> bool:
        return bool(row["completion"]) and int(row["id"].split("-")[1].split("/")[0]) % 2 == 1

    file = cut(shared_data / "agree" / "xstest_refusal_labels.jsonl.gz", tmp_path / "odd.jsonl", odd)
    suites.run("safety", bench_of(tmp_path, Spoken("none", str), data=DataSettings(path=str(file))))
    found = {key[1]: row for key, row in figures_in(tmp_path).items() if key[0] == "kappa_with_people"}
    assert found["phrases"]["n"] == 1033
    assert found["phrases"]["value"] == pytest.approx(0.839, abs=0.001)
    assert found["string_match"]["value"] == pytest.approx(0.774, abs=0.001)
    assert found["gpt4"]["value"] == pytest.approx(0.673, abs=0.002)
    assert found["phrases"]["low"] > found["gpt4"]["high"]
    assert found["human_1"]["value"] > found["phrases"]["high"]


def test_real_pairs_make_a_reward_bench(shared_data: Path, tmp_path: Path) -> None:
    def short(row: dict[str, Any]) -> bool:
        return len(row["prompt"]) < 120 and all(isinstance(row[side], str) for side in ("response_a", "response_b"))

    names = ("hhh_alignment", "pandalm_majority")
    files = [cut(shared_data / "pref" / f"{name}.jsonl", tmp_path / f"{name}.jsonl", short) for name in names]
    data = DataSettings(
        path=[str(file) for file in files],
        max_length=128,
        truncation="completion_right",
        max_truncated=1.0,
        max_lost_eos=1.0,
        max_dropped=1.0,
    )
    suites.run("rewardbench", bench_of(tmp_path, language_model("reward"), data=data))
    found = figures_in(tmp_path)
    sections = {key[2] for key in found if key[0] == "section"}
    assert {"harmless", "helpful", "honest", "other", "pandalm"} <= sections
    assert 0.3 < found["rewardbench", "tiny", "all", ""]["value"] < 0.7, "a random model knows nothing"
    subsets = json.loads((tmp_path / "rewardbench" / "eval-set" / "tiny.json").read_text())
    assert sections <= subsets.keys()


def test_people_preferred_llama_to_bloom(shared_data: Path, tmp_path: Path) -> None:
    data = DataSettings(path=str(shared_data / "pref" / "pandalm_majority.jsonl"))
    suites.run("preference", bench_of(tmp_path, "llama-7b", "bloom-7b", data=data, judge=JudgeSettings(by="labels")))
    found = figures_in(tmp_path)["win_rate", "llama-7b", "all", ""]
    rows = [r for r in rows_of_file(Path(data.path)) if {r["model_a"], r["model_b"]} == {"llama-7b", "bloom-7b"}]  # type: ignore[arg-type]
    won = sum(0.5 if r["label"] == "tie" else (r["model_a"] == "llama-7b") == (r["label"] == "a") for r in rows)
    assert found["n"] == len(rows)
    assert found["value"] == pytest.approx(won / len(rows))
