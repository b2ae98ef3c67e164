"""Reward hacking happens in the world when nothing holds the policy, and does not behind the fences: the recipe's claim, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Prefopt

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BUDGET = 3.0
"""Of the recipe's fenced run, nats an answer."""


@pytest.mark.slow
def test_gold_falls_without_fences_and_not_behind_them(prefopt: Prefopt, tmp_path: Path) -> None:
    quickstart = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    taught = [stage for stage in quickstart["stages"] if stage["kind"] in ("world", "create", "pretrain", "sft")]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"stages": taught}))
    assert prefopt("run", tmp_path / "base.yaml", "--out", tmp_path / "base").code == 0
    base, out = tmp_path / "base" / "sft" / "model", tmp_path / "hacking"
    told = (f"model.path={base}", f"hacked-answers.baseline={base}", f"fenced-answers.baseline={base}")
    done = prefopt("run", RECIPES / "reward-hacking.yaml", "--out", out, *told)
    assert done.code == 0, done.err

    hacked, fenced = ({row["model"]: row for row in gold(out / f"{name}-answers")} for name in ("hacked", "fenced"))
    assert hacked["hacked"]["high"] < hacked["sft"]["low"]
    assert fenced["fenced"]["low"] > hacked["hacked"]["high"]
    assert fenced["fenced"]["value"] > fenced["sft"]["value"], "what was gained before the fall is kept"
    paid = [row["reward"] for row in metrics(out / "hacked")]
    assert sum(paid[-5:]) > sum(paid[:5])
    assert "fallen" in {row["verdict"] for row in watched(out / "hacked")}, "the monitor saw it"

    held = metrics(out / "fenced")
    assert max(row["objective/kl"] - row["kl/error"] for row in held) <= BUDGET, "what was learned from kept the budget"
    late = [row["objective/kl"] for row in held[-20:]]
    assert sum(late) / len(late) == pytest.approx(BUDGET, rel=0.1), "and used it"


def gold(folder: Path) -> list[dict[str, Any]]:
    """The mean gold reward of each model on all held-out requests."""
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return [row for row in rows if (row["metric"], row["slice"], row["difference_from"]) == ("gold", "all", "")]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What was logged of each round."""
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "reward" in row]


def watched(folder: Path) -> list[dict[str, Any]]:
    """What the monitor found."""
    return [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]
