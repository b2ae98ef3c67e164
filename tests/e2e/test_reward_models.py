"""Reward models by command line: ensembles of three kinds, attributes, steps, ends of answers, a language head beside the score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.rollout.policy import RewardModel, load
from tests.e2e.conftest import Prefopt, rows, write

Data = Callable[[str], Path]
STEPS = ("train.steps=4", "train.batch_size=8", "train.learning_rate=3e-3")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(prefopt: Prefopt, base: Path, data: Path, out: Path, *options: str, method: str = "reward") -> Path:
    done = prefopt("train", method, "--model", base, "--data", data, "--out", out, *STEPS, *options)
    assert done.code == 0, done.err
    return out / "model"


def scores(prefopt: Prefopt, model: Path, data: Path, out: Path, *options: str) -> np.ndarray:
    done = prefopt("score", "--model", model, "--data", data, "--out", out, *options)
    assert done.code == 0, done.err
    return np.array([row["scores"] for row in read(out)])


def opened(path: Path) -> RewardModel:
    model = load(str(path))
    assert isinstance(model, RewardModel)
    return model


PROMPTS = [row["prompt"] for row in rows("pairs", 6)]
ANSWERS = [[{"role": "assistant", "content": row["chosen"]}] for row in rows("pairs", 6)]


def test_heads_on_one_trunk_are_an_ensemble_that_transformers_opens(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = trained(prefopt, base, data("pairs"), tmp_path / "run", "heads.count=3", "heads.rule=lower_bound", "heads.k=2")
    theirs = AutoModelForSequenceClassification.from_pretrained(model)
    assert theirs.config.num_labels == 3
    ours = opened(model)
    outputs = ours.outputs(PROMPTS, ANSWERS)
    assert outputs.shape == (6, 3)
    tree = ours._trees(PROMPTS, ANSWERS)[0]
    ids = torch.tensor([[*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]])
    torch.testing.assert_close(theirs(input_ids=ids).logits[0].double(), torch.tensor(outputs[0]), atol=1e-5, rtol=1e-4)

    found, reading = np.array(ours.score(PROMPTS, ANSWERS)), ours.reading
    z = (outputs - np.array(reading.mean)) / np.array(reading.std) if reading.mean else outputs
    np.testing.assert_allclose(found, (z.mean(1) - 2 * z.std(1)) / reading.temperature)


def test_members_learn_from_different_rows(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    whole = opened(trained(prefopt, base, data("pairs"), tmp_path / "whole", "heads.count=2", "heads.bag=1"))
    parts = opened(trained(prefopt, base, data("pairs"), tmp_path / "parts", "heads.count=2", "heads.bag=0.5"))
    a, b = (np.diff(model.outputs(PROMPTS, ANSWERS), axis=1).std() for model in (whole, parts))
    assert a != pytest.approx(b)


def test_attributes_have_heads_of_their_own_and_declared_weights(prefopt: Prefopt, base: Path, tmp_path: Path) -> None:
    """Rows say which attribute they judge: one wants the colour named, the other the opposite."""
    right = [{**row, "source": "helpful"} for row in rows("pairs", 16)]
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "source": "vague"} for row in rows("pairs", 16)]
    path = write(tmp_path / "both.jsonl", [*right, *turned])
    weights = ("heads.attributes.helpful=1", "heads.attributes.vague=-0.5", "train.steps=25")
    model = opened(trained(prefopt, base, path, tmp_path / "run", *weights))
    assert model.reading.outputs == ("helpful", "vague")
    bad = [[{"role": "assistant", "content": row["rejected"]}] for row in rows("pairs", 6)]
    gap = model.outputs(PROMPTS, ANSWERS) - model.outputs(PROMPTS, bad)
    assert (gap[:, 0] > 0).all()
    assert (gap[:, 1] < 0).all()
    score = np.array(model.score(PROMPTS, ANSWERS)) - np.array(model.score(PROMPTS, bad))
    np.testing.assert_allclose(score * model.reading.temperature, gap @ [1, -0.5], rtol=1e-4)
    said = prefopt("train", "reward", "--model", base, "--data", path, "--out", tmp_path / "no", "heads.attributes.helpful=1", *STEPS)
    assert said.code == 2
    assert "'vague', which is no attribute" in said.err


def test_separate_models_and_averaged_weights_need_no_special_case(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    members = [trained(prefopt, base, data("pairs"), tmp_path / f"m{seed}", f"train.seed={seed}") for seed in (0, 1)]
    alone = [scores(prefopt, m, data("pairs"), tmp_path / f"{i}.jsonl") for i, m in enumerate(members)]
    recipe = tmp_path / "ensemble.yaml"
    found = {}
    for rule in ("mean", "min", "lower_bound", "average_weights"):
        recipe.write_text(f"stages:\n  - kind: ensemble\n    members: ['{members[0]}', '{members[1]}']\n    rule: {rule}\n")
        done = prefopt("run", recipe, "--out", tmp_path / rule, *(["k=0.5"] if rule == "lower_bound" else []))
        assert done.code == 0, done.err
        found[rule] = scores(prefopt, tmp_path / rule / "ensemble" / "model", data("pairs"), tmp_path / f"{rule}.jsonl")
    readings = [opened(m).reading for m in members]
    z = np.stack([(a - r.center) / r.spread for a, r in zip(alone, readings, strict=True)])
    unit = np.mean([r.spread for r in readings])
    np.testing.assert_allclose(found["mean"], unit * z.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["min"], unit * z.min(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["lower_bound"], unit * (z.mean(0) - 0.5 * z.std(0)), rtol=1e-4, atol=1e-5)
    averaged = opened(tmp_path / "average_weights" / "ensemble" / "model").model.state_dict()
    first, second = (opened(m).model.state_dict() for m in members)
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)


def test_adapters_share_one_trunk(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    members = [trained(prefopt, base, data("pairs"), tmp_path / f"m{i}", "lora.rank=2", f"train.seed={i}") for i in (0, 1)]
    alone = [scores(prefopt, m, data("pairs"), tmp_path / f"{i}.jsonl") for i, m in enumerate(members)]
    paths = ", ".join(f"'{m.parent / 'adapter'}'" for m in members)
    recipe = tmp_path / "ensemble.yaml"
    recipe.write_text(f"stages:\n  - kind: ensemble\n    members: [{paths}]\n")
    done = prefopt("run", recipe, "--out", tmp_path / "all")
    assert done.code == 0, done.err
    folder = tmp_path / "all" / "ensemble" / "model"
    assert (folder / "base" / "model.safetensors").exists()
    assert not (folder / "member-1" / "model.safetensors").exists()
    readings = [opened(m).reading for m in members]
    z = np.stack([(a - r.center) / r.spread for a, r in zip(alone, readings, strict=True)])
    unit = np.mean([r.spread for r in readings])
    np.testing.assert_allclose(scores(prefopt, folder, data("pairs"), tmp_path / "s.jsonl"), unit * z.mean(0), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_an_ensemble(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    member = trained(prefopt, base, data("pairs"), tmp_path / "m")
    recipe = tmp_path / "ensemble.yaml"
    for members, says in ((f"['{member}']", "two members or more"), (f"['{member}', '{tmp_path}/none']", "none: a member is the folder")):
        recipe.write_text(f"stages:\n  - kind: ensemble\n    members: {members}\n")
        done = prefopt("run", recipe, "--out", tmp_path / "all")
        assert done.code == 2
        assert says in done.err


def test_steps_and_solutions(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    model = trained(prefopt, base, data("steps"), tmp_path / "run", method="prm")
    out = tmp_path / "s.jsonl"
    for how, of in (("product", np.prod), ("min", np.min), ("last", lambda p: p[-1]), ("mean", np.mean)):
        found = scores(prefopt, model, data("steps"), out, f"solution={how}")
        rows_ = read(out)
        assert [len(row["step_scores"][0]) for row in rows_] == [2] * 24
        np.testing.assert_allclose(found[:, 0], [of(row["step_scores"][0]) for row in rows_])
    default = scores(prefopt, model, data("steps"), out)
    assert default[0, 0] == pytest.approx(np.prod(read(out)[0]["step_scores"][0]))
    ours = opened(model)
    text = "It is blue.\nNot red."
    assert len(ours.step_scores([PROMPTS[0]], [[{"role": "assistant", "content": text}]])[0]) == 2
    done = prefopt("score", "--model", base, "--data", data("pairs"), "--out", out, "solution=min")
    assert done.code == 2
    assert "no process reward model" in done.err
    done = prefopt("score", "--model", model, "--data", data("steps"), "--out", out, "beta=2")
    assert done.code == 2
    assert "beta: a reward model's scores are multiplied by nothing" in done.err


def test_the_end_of_an_answer_is_seen(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    """The score is read at the last token: with pad == eos too, a text that ends is not the text that goes on."""
    model = opened(trained(prefopt, base, data("pairs"), tmp_path / "run"))
    (tree,) = model._trees(PROMPTS[:1], ANSWERS[:1])
    branch = tree.branches[0]
    assert int(branch.ids[-1]) in model.renderer.stop_ids
    from dataclasses import replace

    cut = replace(tree, branches=(replace(branch, ids=branch.ids[:-1], scored=branch.scored[:-1]),), index=1)
    for pad in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id):
        model.model.config.pad_token_id = pad
        whole, without = model.tree_scores([tree, cut])
        assert abs(whole - without) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_likelihood_on_the_trunk_of_a_reward_model(prefopt: Prefopt, data: Data, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    recipe = tmp_path / "create.yaml"
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "max_length": 128}
    stage = {"kind": "create", "data": {"path": str(data("pairs"))}, **shape, "tie_embeddings": tied}
    recipe.write_text(json.dumps({"stages": [stage]}))
    assert prefopt("run", recipe, "--out", tmp_path / "base").code == 0
    start = tmp_path / "base" / "create" / "model"
    model = trained(prefopt, start, data("pairs"), tmp_path / "run", "mix.sft=0.5", "train.steps=20")
    alone = trained(prefopt, start, data("pairs"), tmp_path / "alone", "train.steps=20")
    AutoModelForSequenceClassification.from_pretrained(model)
    policy = load(str(model), kind="policy")
    AutoModelForCausalLM.from_pretrained(model)
    before, without = load(str(start)), load(str(alone), kind="policy") if tied else None
    likely = [sum(p.logprobs(PROMPTS, ANSWERS)) for p in (policy, before)]  # type: ignore[union-attr]
    assert likely[0] > likely[1] + 10
    if without is not None:
        assert likely[0] > sum(without.logprobs(PROMPTS, ANSWERS)) + 10  # type: ignore[union-attr]
    bad = [[{"role": "assistant", "content": row["rejected"]}] for row in rows("pairs", 6)]
    scored = opened(model)
    assert np.mean(np.array(scored.score(PROMPTS, ANSWERS)) > np.array(scored.score(PROMPTS, bad))) == 1
