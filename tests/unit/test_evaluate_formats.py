"""Other tools' files say what evaluation.json says, in their shapes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from prefopt.evaluate import formats, suites
from prefopt.pipeline.kinds import FormatName
from prefopt.world import World
from tests.benches import Scripted, bench_of, figures_in, rows_of

WORLD = World(0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, rng = tmp_path_factory.mktemp("formats"), np.random.default_rng(0)
    requests = WORLD.requests(30, seed=5, split="heldout")
    policies = Scripted("dpo", [WORLD.ideal(r) for r in requests]), Scripted("sft", [WORLD.draft(r, rng) for r in requests])
    suites.run("world", bench_of(out, *policies, rows=rows_of(requests), formats=get_args(FormatName)))
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_recipe_knows_every_format() -> None:
    assert set(get_args(FormatName)) == set(formats.FORMATS)


def test_alpaca_eval(written: Path) -> None:
    outputs, notes = load(written / "alpaca_eval" / "model_outputs.json"), load(written / "alpaca_eval" / "annotations.json")
    assert outputs[0].keys() == {"instruction", "output", "generator"}
    assert len(outputs) == len(notes) == 30
    assert {note["preference"] for note in notes} <= {1.0, 1.5, 2.0}
    with (written / "alpaca_eval" / "leaderboard.csv").open() as file:
        (line,) = csv.DictReader(file)
    rate = figures_in(written)["win_rate", "dpo", "all", ""]["value"]
    assert float(line["win_rate"]) == pytest.approx(100 * rate)
    assert float(line["discrete_win_rate"]) == pytest.approx(100 * rate)
    assert np.mean([note["preference"] - 1 for note in notes]) == pytest.approx(rate)
    assert int(line["n_wins"]) + int(line["n_wins_base"]) + int(line["n_draws"]) == int(line["n_total"]) == 30
    assert float(line["length_controlled_winrate"]) > 50


def test_inspect(written: Path) -> None:
    log = load(written / "inspect" / "inspect.json")
    assert (log["version"], log["status"]) == (2, "success")
    assert len(log["samples"]) == log["results"]["total_samples"] == 30
    assert log["samples"][0]["scores"]["gold"]["value"] == 1.0
    assert log["results"]["scores"][0]["metrics"]["gold[all]"]["value"] == pytest.approx(1.0)


def test_lm_eval(written: Path) -> None:
    found = load(written / "lm_eval" / "results_prefopt.json")
    row = figures_in(written)["gold", "dpo", "arithmetic", ""]
    assert found["results"]["prefopt_arithmetic"]["gold,none"] == row["value"]
    assert found["results"]["prefopt_arithmetic"]["gold_stderr,none"] == row["std_error"]
    samples = [json.loads(line) for line in (written / "lm_eval" / "samples_prefopt.jsonl").read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] == list(range(30))
    assert samples[0]["gold"] == 1.0
    assert {"doc_hash", "prompt_hash", "target", "arguments", "resps", "filtered_resps"} <= samples[0].keys()
