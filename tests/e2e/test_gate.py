"""From held-out requests to a verdict through the command line: recipes/ship.yaml with each of the three ends a gate has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Prefopt

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("rollout.max_new_tokens=4", "rollout.samples=1")
RULES = {
    "PASS": "- {metric: log_ratio, at_most: 50}\n- {metric: length_words, compare: ratio, at_most: 3}",
    "FAIL": "- {metric: log_ratio, at_most: 50}\n- {metric: gold, at_least: 0.5}",
    "INCONCLUSIVE": "- {metric: log_ratio, at_most: 50}\n- {metric: win_rate, at_least: 0.5}",
}
"""Answers of a model with random weights are worth the least there is, whoever gives them: all ties."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data: Callable[[str], Path]) -> Path:
    """A folder with `base`, `dpo` (one step later) and `heldout.jsonl` of the synthetic world."""
    import prefopt as package
    from prefopt.data.read import read
    from prefopt.pipeline.create import create
    from prefopt.pipeline.kinds import CreateOptions
    from prefopt.world import write

    folder = tmp_path_factory.mktemp("ship")
    shape = CreateOptions(vocab_size=320, hidden_size=32, intermediate_size=64, layers=1, heads=2, max_length=256)
    create(read([str(data("pairs"))]), shape, folder / "base")
    package.train("dpo", model=folder / "base", data=data("pairs"), out=folder / "dpo", train={"steps": 1, "batch_size": 8})
    write(folder, {"heldout": 40}, 0)
    return folder


def shipping(models: Path, out: Path, *more: str) -> tuple[str, ...]:
    paths = (f"model.path={models / 'dpo' / 'model'}", f"evaluate.baseline={models / 'base'}", f"data.path={models / 'heldout.jsonl'}")
    return ("run", str(ROOT / "recipes" / "ship.yaml"), "--out", str(out), *paths, *SHORT, *more)


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 3)])
def test_every_verdict_has_its_exit_code(verdict: str, code: int, models: Path, prefopt: Prefopt, tmp_path: Path) -> None:
    policy, run = tmp_path / "gate.yaml", models / "run"
    policy.write_text(f"rules:\n{RULES[verdict]}\n")
    done = prefopt(*shipping(models, run, f"gate.policy={policy}"))
    assert done.code == code, done.err
    assert f"gate: {verdict}" in done.out
    assert json.loads((run / "gate" / "gate.json").read_text())["verdict"] == verdict
    page = (run / "report.html").read_text()
    assert verdict in page
    assert "run the gate again" not in page
    assert prefopt("gate", run, "--check").code == code
    assert prefopt(*shipping(models, run, f"gate.policy={policy}")).code == code, "a finished gate says the same again"


def test_a_verdict_ends_with_what_it_rests_on(models: Path, prefopt: Prefopt, tmp_path: Path) -> None:
    place = tmp_path / "first"
    shutil.copytree(models, place, ignore=shutil.ignore_patterns("run"))
    policy = place / "gate.yaml"
    policy.write_text(f"rules:\n{RULES['PASS']}\n")
    assert prefopt(*shipping(place, place / "run", f"gate.policy={policy}")).code == 0
    told = (place / "run" / "gate" / "gate.json").read_text()
    assert str(tmp_path) not in told
    assert set(json.loads(told)["models"]) == {"../../dpo/model", "../../base"}
    assert json.loads(told)["policy"]["name"] == "../../gate.yaml"

    moved = place.rename(tmp_path / "second")
    assert prefopt("gate", moved / "run", "--check").code == 0
    config = moved / "dpo" / "model" / "config.json"
    original = config.read_text()
    config.write_text(original + "\n")
    refused = prefopt("gate", moved / "run", "--check")
    assert refused.code == 1
    assert "changed since are ../../dpo/model" in refused.err
    anew = prefopt("gate", moved / "run", "--policy", moved / "gate.yaml", "--out", tmp_path / "anew.json")
    assert anew.code == 2
    assert "the model ../../dpo/model has changed since it was evaluated" in anew.err
    config.write_text(original)
    assert prefopt("gate", moved / "run", "--check").code == 0
    evaluation = moved / "run" / "evaluate" / "evaluation.json"
    evaluation.write_text(evaluation.read_text().replace('"log_ratio"', '"kl"'))
    refused = prefopt("gate", moved / "run", "--check")
    assert refused.code == 1
    assert "../evaluate/evaluation.json" in refused.err

    (moved / "gate.yaml").write_text(f"rules:\n{RULES['FAIL']}\n")
    again = prefopt(*shipping(moved, moved / "run", f"gate.policy={moved / 'gate.yaml'}"))
    assert again.code == 1, "other paths and other rules: everything is measured again"
    assert "already done" not in again.out
