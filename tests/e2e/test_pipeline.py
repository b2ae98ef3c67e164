"""Several stages in a row, and the commands that ask a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Prefopt, rows, write

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
Data = Callable[[str], Path]
SMALL = ("train.steps=2", "train.batch_size=8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_then_dpo_runs_once(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    paths = (f"model.path={base}", f"sft.data.path={data('demonstrations')}", f"dpo.data.path={data('pairs')}")
    recipe = ("run", RECIPES / "sft-then-dpo.yaml", "--out", tmp_path, *paths, *SMALL)
    done = prefopt(*recipe)
    assert done.code == 0, done.err
    assert (tmp_path / "report.html").stat().st_size > 1000
    record = json.loads((tmp_path / "dpo" / "record.json").read_text())
    assert str(tmp_path / "sft" / "model") in record["inputs"]

    again = prefopt(*recipe)
    assert again.out.count("already done") == 3
    changed = prefopt(*recipe, "beta=0.5")
    assert "[1/3] sft: already done" in changed.out
    assert "[2/3] dpo: beta: 0.1 -> 0.5; running again" in changed.out
    assert changed.out.count("already done") == 1


def test_the_quickstart_in_small(prefopt: Prefopt, tmp_path: Path) -> None:
    sizes = (
        "world.pretrain=60",
        "world.sft=60",
        "world.prompts=12",
        "world.heldout=10",
        "hidden_size=32",
        "intermediate_size=64",
        "layers=1",
    )
    done = prefopt("quickstart", "--out", tmp_path, *sizes, *SMALL, "rollout.max_new_tokens=12", "dpo.train.eval_every=1")
    assert done.code == 0, done.err
    evaluation = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    assert {row["metric"] for row in evaluation["rows"]}
    report = (tmp_path / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert f"report: {tmp_path}" in done.out


def test_generated_answers_are_scored_and_trained_on(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    sampling = ("rollout.samples=3", "rollout.max_new_tokens=8", "rollout.seed=4")
    done = prefopt("generate", "--model", base, "--data", data("prompts"), "--out", answers, *sampling)
    assert done.code == 0, done.err
    found = lines(answers)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows("prompts")]
    assert [row["meta"] for row in found] == [{"number": i} for i in range(24)]
    assert {(len(row["completions"]), len(row["finished"])) for row in found} == {(3, 3)}
    prefopt("generate", "--model", base, "--data", data("prompts"), "--out", tmp_path / "twice.jsonl", *sampling)
    assert lines(tmp_path / "twice.jsonl") == found

    done = prefopt("score", "--model", base, "--data", answers, "--out", scores)
    assert done.code == 0, done.err
    assert [row["completions"] for row in lines(scores)] == [row["completions"] for row in found]
    assert all(score < 0 for row in lines(scores) for score in row["scores"])
    more = ("train.steps=1", "data.max_dropped=1")
    done = prefopt("train", "pl_dpo", "--model", base, "--data", scores, "--out", tmp_path / "run", *more)
    assert done.code == 0, done.err


def test_implicit_rewards_are_zero_at_the_start_and_grow(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    command = ("--data", data("pairs"), "--out", tmp_path / "scores.jsonl", "--reference", base)
    assert prefopt("score", "--model", base, *command).code == 0
    assert all(abs(score) < 1e-4 for row in lines(tmp_path / "scores.jsonl") for score in row["scores"])

    settings = ("train.steps=10", "train.batch_size=12", "train.learning_rate=1e-2")
    done = prefopt("train", "dpo", "--model", base, "--data", data("pairs"), "--out", tmp_path / "run", *settings)
    assert done.code == 0, done.err
    assert prefopt("score", "--model", tmp_path / "run" / "model", *command, "beta=0.1").code == 0
    scored = lines(tmp_path / "scores.jsonl")
    assert all(row["ranks"] == [0, 1] and row["scores"][0] > row["scores"][1] for row in scored)
    once = [row["scores"] for row in scored]
    assert prefopt("score", "--model", tmp_path / "run" / "model", *command, "beta=0.2").code == 0
    for small, large in zip(once, [row["scores"] for row in lines(tmp_path / "scores.jsonl")], strict=True):
        assert large == pytest.approx([2 * s for s in small], rel=1e-4)


def test_a_reward_model_scores_and_ranks(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    settings = ("train.steps=15", "train.batch_size=12", "train.learning_rate=1e-2")
    done = prefopt("train", "reward", "--model", base, "--data", data("pairs"), "--out", tmp_path / "rm", *settings)
    assert done.code == 0, done.err
    model = tmp_path / "rm" / "model"
    assert AutoModelForSequenceClassification.from_pretrained(model).num_labels == 1
    assert prefopt("score", "--model", model, "--data", data("pairs"), "--out", tmp_path / "s.jsonl").code == 0
    right = [row["scores"][0] > row["scores"][1] for row in lines(tmp_path / "s.jsonl")]
    assert sum(right) >= 22
    refused = prefopt("score", "--model", model, "--data", data("pairs"), "--out", tmp_path / "t.jsonl", "--reference", base)
    assert refused.code == 2
    assert "a reward model is measured against no reference" in refused.err
    assert not (tmp_path / "t.jsonl").exists()
    refused = prefopt("generate", "--model", model, "--data", data("prompts"), "--out", tmp_path / "t.jsonl")
    assert refused.code == 2, "a reward model does not write"


def test_scores_do_not_depend_on_the_order_of_rows(prefopt: Prefopt, base: Path, tmp_path: Path) -> None:
    mixed = rows("pairs", 9)
    for name, content in (("forth", mixed), ("back", mixed[::-1])):
        write(tmp_path / f"{name}.jsonl", content)
        assert prefopt("score", "--model", base, "--data", tmp_path / f"{name}.jsonl", "--out", tmp_path / f"{name}-scores.jsonl").code == 0
    forth, back = (lines(tmp_path / f"{name}-scores.jsonl") for name in ("forth", "back"))
    for row, other in zip(forth, back[::-1], strict=True):
        assert row["prompt"] == other["prompt"]
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-3)


def test_rows_without_answers_cannot_be_scored(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    done = prefopt("score", "--model", base, "--data", data("prompts"), "--out", tmp_path / "s.jsonl")
    assert done.code == 2
    assert "prompts.jsonl:1: the row has no completion" in done.err
    assert not (tmp_path / "s.jsonl").exists()


# --- labels


def labelled(tmp_path: Path, prefopt: Prefopt, *settings: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs made of the world's ideal answers, its drafts and one empty one."""
    import numpy as np

    from prefopt.world import World

    world, rng = World(0), np.random.default_rng(0)
    made: list[Any] = []
    for request in world.requests(40, seed=3):
        answers = [world.ideal(request), *(world.draft(request, rng) for _ in range(3)), " "]
        prompt = [message.to_dict() for message in request.prompt]
        made.append({"prompt": prompt, "completions": answers, "finished": [True] * 5, "meta": dict(request.meta)})
    write(tmp_path / "samples.jsonl", made)
    (tmp_path / "recipe.yaml").write_text(f"stages: [{{kind: label, data: {{path: {tmp_path}/samples.jsonl}}}}]")
    done = prefopt("run", tmp_path / "recipe.yaml", *settings, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    return lines(tmp_path / "out" / "label" / "pairs.jsonl"), json.loads((tmp_path / "out" / "label" / "record.json").read_text())


def test_annotators_prefer_what_is_better_and_are_shown_it_on_either_side(prefopt: Prefopt, tmp_path: Path) -> None:
    from prefopt.world import World

    pairs, record = labelled(tmp_path, prefopt, "pairs=3")
    world = World(0)
    gold = [(world.gold(p["meta"], p["response_a"]), world.gold(p["meta"], p["response_b"]), p["label"]) for p in pairs]
    differ = [(a - b, label) for a, b, label in gold if abs(a - b) > 0.5]
    right = sum((gap > 0) == (label == "a") for gap, label in differ)
    assert right / len(differ) > 0.9
    sides = [side for p in pairs for side in ("response_a", "response_b") if world.gold(p["meta"], p[side]) == 1.0]
    assert 0.35 < sides.count("response_a") / len(sides) < 0.65
    assert record["pairs"] == len(pairs) == record["labelled"]
    assert record["empty"] == 40
    assert all(p["response_a"].strip() and p["response_b"].strip() and p["response_a"] != p["response_b"] for p in pairs)
    assert len({(json.dumps(p["prompt"]), frozenset((p["response_a"], p["response_b"]))) for p in pairs}) == len(pairs)


def test_several_votes_and_kept_ties(prefopt: Prefopt, tmp_path: Path) -> None:
    pairs, record = labelled(tmp_path, prefopt, "votes=3", "annotators=[brisk, polite]", "ties=keep", "pairs=3")
    assert {len(p["votes"]) for p in pairs} == {3}
    assert {vote["annotator"] for p in pairs for vote in p["votes"]} == {"brisk", "polite"}
    assert sum(p["label"] == "tie" for p in pairs) == record["tie"] > 0
    for pair in pairs:
        counts = sorted((sum(v["label"] == label for v in pair["votes"]) for label in "ab"), reverse=True)
        assert pair["label"] == "tie" or counts[0] > counts[1]


@pytest.mark.parametrize(
    ("settings", "part"),
    [(("annotators=golden",), "did you mean 'gold'?"), (("data.path=PAIRS",), "not of the synthetic world"), (("votes=0",), "at least 1")],
)
def test_labels_that_cannot_be_given(prefopt: Prefopt, data: Data, tmp_path: Path, settings: tuple[str], part: str) -> None:
    labelled(tmp_path, prefopt)
    given = [s.replace("PAIRS", str(data("pairs"))) for s in settings]
    done = prefopt("run", tmp_path / "recipe.yaml", *given, "--out", tmp_path / "other")
    assert done.code == 2
    assert part in done.err
    assert not (tmp_path / "other" / "label" / "pairs.jsonl").exists()


# --- new models


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "olmo2"])
def test_a_new_model_of_each_family_opens_and_speaks(data: Data, tmp_path: Path, family: Any) -> None:
    import prefopt
    from prefopt.data.read import read
    from prefopt.pipeline.create import create
    from prefopt.pipeline.kinds import CreateOptions

    shape = CreateOptions(family=family, vocab_size=300, hidden_size=16, intermediate_size=32, layers=1, heads=4, kv_heads=2, max_length=64)
    parameters = create(read(str(data("demonstrations"))), shape, tmp_path / "m")
    policy = prefopt.load(str(tmp_path / "m"))
    assert parameters == sum(p.numel() for p in policy.model.parameters())
    assert policy.max_length == 64
    assert policy.renderer.decode(policy.tokenizer("Größe: 3 €\n\t漢字")["input_ids"]) == "Größe: 3 €\n\t漢字"
    (values,) = (policy.logprobs([[{"role": "user", "content": "Say red."}]], [[{"role": "assistant", "content": "red"}]]),)
    assert math.isfinite(values[0])


def test_digits_stand_alone_and_words_do_not() -> None:
    from prefopt.pipeline.create import build_tokenizer
    from prefopt.pipeline.kinds import CreateOptions

    tokenizer = build_tokenizer(["The price is 1234 crowns."] * 50, CreateOptions(vocab_size=300))
    assert tokenizer.tokenize("The price 1234") == ["The", "Ġprice", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.tokenize("<|im_start|>user<|im_end|>")[0] == "<|im_start|>"


def test_the_same_seed_makes_the_same_model(data: Data, tmp_path: Path) -> None:
    from prefopt.data.read import read
    from prefopt.pipeline.create import create
    from prefopt.pipeline.kinds import CreateOptions

    def weights(name: str, seed: int) -> bytes:
        shape = CreateOptions(vocab_size=300, hidden_size=16, intermediate_size=32, layers=1, heads=2, seed=seed)
        create(read(str(data("demonstrations"))), shape, tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("heads=3", "hidden_size 256 is no multiple of heads 3"),
        ("kv_heads=3", "kv_heads 3"),
        ("vocab_size=100", "vocab_size=260"),
        ("family=mamba", "llama"),
    ],
)
def test_shapes_that_cannot_be(prefopt: Prefopt, data: Data, tmp_path: Path, setting: str, part: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"stages: [{{kind: create, data: {{path: {data('demonstrations')}}}}}]")
    done = prefopt("run", tmp_path / "recipe.yaml", setting, "--out", tmp_path / "out")
    assert done.code == 2
    assert part in done.err
    assert not (tmp_path / "out" / "create" / "model").exists()
