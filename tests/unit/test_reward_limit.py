"""benchmarks/reward_model.py: the limit of accuracy, what a model reaches, and the parts in which it is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from prefopt.world import World

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "reward_model.py"
SPEC = importlib.util.spec_from_file_location("reward_model", PATH)
assert SPEC is not None
assert SPEC.loader is not None
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

ANSWERS = (("Hugo.", "a"), ("Felix.", "tie"), ("Emma.", "b"))


def test_nobody_is_above_the_limit_and_who_knows_the_probabilities_reaches_it() -> None:
    p = np.array([0.3, 0.9, 0.5])
    assert benchmark.best(p).tolist() == [0.7, 0.9, 0.5]
    assert benchmark.reached(p, p - 0.5).tolist() == [0.7, 0.9, 0.5]
    assert benchmark.reached(p, 0.5 - p).round(12).tolist() == [0.3, 0.1, 0.5]


def test_pairs_are_told_by_request_by_author_and_by_what_differs() -> None:
    world, rng = World(0), np.random.default_rng(0)
    pairs = []
    for n, asked in enumerate(world.requests(40, seed=1)):
        b = world.draft(asked, rng) if n % 2 else "no such answer"
        pairs.append({"meta": asked.meta, "response_a": world.draft(asked, rng), "response_b": b, "by": ["sampled", "written"][n % 2]})
    found = dict(benchmark.parts(pairs))
    assert found["all"].all()
    assert found["written answers"].tolist() == [n % 2 == 1 for n in range(40)]
    assert found["sampled answers"].tolist() == found["differ in fluent"].tolist() == [n % 2 == 0 for n in range(40)]
    assert sum(mask.astype(int) for name, mask in found.items() if name.startswith("asks for")).tolist() == [1] * 40
    assert found["asks for fact"].tolist() == [pair["meta"]["slice"] == "fact" for pair in pairs]


def test_pairs_of_judgements_know_who_wrote_their_answers(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Who runs it?"}]
    files = {
        "world/heldout.jsonl": [{"prompt": prompt, "completions": ["Ada.", "Hugo."]}],
        "label/pairs.jsonl": [{"prompt": prompt, "response_a": "Ada.", "response_b": b, "label": label} for b, label in ANSWERS],
        "label/record.json": [{"stage": {"annotators": "gold"}}],
    }
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "heldout.txt").write_text("".join(f"{tmp_path}/label/pairs.jsonl:{n}\n" for n in (1, 2, 3)))
    pairs, names = benchmark.held_out(tmp_path)
    assert names == ["gold"]
    assert [(row["response_b"], row["by"]) for row in pairs] == [("Hugo.", "written"), ("Emma.", "sampled")]
