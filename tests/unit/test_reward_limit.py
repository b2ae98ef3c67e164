"""benchmarks/reward_model.py: the limit of accuracy, what a model reaches, and the parts in which it is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from prefopt.world import World, write

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "reward_model.py"
SPEC = importlib.util.spec_from_file_location("reward_model", PATH)
assert SPEC is not None
assert SPEC.loader is not None
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_nobody_is_above_the_limit_and_who_knows_the_probabilities_reaches_it() -> None:
    p = np.array([0.3, 0.9, 0.5])
    assert benchmark.best(p).tolist() == [0.7, 0.9, 0.5]
    assert benchmark.reached(p, p - 0.5).tolist() == [0.7, 0.9, 0.5]
    assert benchmark.reached(p, 0.5 - p).round(12).tolist() == [0.3, 0.1, 0.5]


def test_pairs_are_told_by_request_by_author_and_by_what_differs(tmp_path: Path) -> None:
    sizes = {"pretrain": 1, "sft": 1, "prompts": 1, "heldout": 40}
    rows = [json.loads(line) for line in write(tmp_path / "world", sizes, answers=2)["heldout"].read_text().splitlines()]
    world = World(0)
    pairs = []
    for n, row in enumerate(rows):
        a, b = row["completions"] if n % 2 else (row["completions"][0], "no such answer")
        pairs.append({"prompt": row["prompt"], "meta": row["meta"], "response_a": a, "response_b": b})
    found = dict(benchmark.parts(tmp_path, pairs))
    assert found["all"].all()
    assert found["written answers"].tolist() == [n % 2 == 1 for n in range(40)]
    assert (found["written answers"] ^ found["sampled answers"]).all()
    assert sum(mask.astype(int) for name, mask in found.items() if name.startswith("asks for")).tolist() == [1] * 40
    assert found["asks for fact"].tolist() == [row["meta"]["slice"] == "fact" for row in rows]
    differ = [world.judge(p["meta"], p["response_a"]).fluent != world.judge(p["meta"], p["response_b"]).fluent for p in pairs]
    assert found["differ in fluent"].tolist() == differ
