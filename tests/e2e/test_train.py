"""`prefopt train`: what a run leaves behind, going on after a stop, and what bad input gets."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import OptionError
from prefopt.losses.methods import METHODS
from prefopt.pipeline.run import Fault
from tests.e2e.conftest import Prefopt, rows

ROOT = Path(__file__).resolve().parents[2]
Data = Callable[[str], Path]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def settled(folder: Path) -> list[dict[str, Any]]:
    """Metrics without the speeds, which differ from run to run."""
    return [{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in metrics(folder)]


def test_a_run_leaves_a_model_and_its_evidence(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command = ("train", "dpo", "--model", base, "--data", data("pairs"), "--out", tmp_path / "run", "beta=0.2")
    settings = ("train.steps=3", "train.batch_size=8", "train.learning_rate=1e-3", "data.eval_fraction=0.25")
    done = prefopt(*command, *settings)
    assert done.code == 0, done.err
    assert "rows read" in done.out
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"model", "recipe.yaml", "record.json", "outputs.json", "metrics.jsonl", "preflight.json", "tokens.json"} <= names

    first, *_, last = metrics(run)
    assert math.isclose(first["loss"], math.log(2), abs_tol=1e-5)
    assert {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen", "kl", "grad_norm", "lr"} <= first.keys()
    assert {"eval/loss", "eval/rewards/accuracies"} <= last.keys()

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    before = AutoModelForCausalLM.from_pretrained(base)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Say red."}], tokenize=False, add_generation_prompt=True)
    assert any((a != b).any() for a, b in zip(model.parameters(), before.parameters(), strict=True))

    tokens = json.loads((run / "tokens.json").read_text())[0]["sequences"]
    assert [s["name"] for s in tokens] == ["chosen", "rejected"]
    scored = "".join(text for text, on in tokens[0]["tokens"] if on)
    assert scored.startswith("It is ")
    assert scored.endswith("<|im_end|>")
    record = json.loads((run / "record.json").read_text())
    assert set(record["inputs"]) == {str(base), str(data("pairs"))}
    assert record["steps"] == 3

    again = prefopt(*command, *settings)
    assert again.code == 0
    assert "already done" in again.out
    other = prefopt(*command, *settings, "train.seed=1")
    assert other.code == 2
    assert "train.seed: 0 -> 1" in other.err
    assert "--overwrite" in other.err
    assert prefopt(*command, *settings, "train.seed=1", "--overwrite").code == 0


def scorer(folder: Path) -> str:
    """A reward function in a file: the number of letters, odd or even."""
    path = folder / "rewards.py"
    path.write_text("def letters(completions, **columns):\n    return [float(len(text) % 2) for text in completions]\n")
    return f"{path}:letters"


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_recipe_takes_two_steps(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path, method: str) -> None:
    path = data(METHODS[method].data)
    recipe = ROOT / "recipes" / "methods" / f"{method}.yaml"
    settings = ("train.steps=2", "train.batch_size=6", "train.learning_rate=1e-3")
    if METHODS[method].online:
        settings += (f"reward.function={scorer(tmp_path)}", "reward.model=null", "reward.verifier=null", "rollout.max_new_tokens=8")
        settings += ("reward.overlong_buffer=4",) if method == "dapo" else ("critic.path=null",) if method == "ppo" else ()
    done = prefopt("run", recipe, f"model.path={base}", f"data.path={path}", *settings, "--out", tmp_path)
    assert done.code == 0, done.err
    steps = [row for row in metrics(tmp_path / method) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    assert (tmp_path / method / "model" / "model.safetensors").exists()


def test_grpo_from_the_command_line(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    command = ("train", "grpo", "--model", base, "--data", data("prompts"), "--out", tmp_path / "run")
    settings = ("train.steps=2", "train.batch_size=4", "rollout.samples=4", "rollout.max_new_tokens=8", "train.learning_rate=1e-3")
    done = prefopt(*command, *settings, f"reward.function={scorer(tmp_path)}")
    assert done.code == 0, done.err
    assert {"reward", "reward_std", "kl", "completions/mean_length", "rewards/letters/mean"} <= metrics(tmp_path / "run")[0].keys()
    kept = (tmp_path / "run" / "rollouts" / "round-000001.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["completions"]) for line in kept] == [4] * 4
    for wrong, says in (
        ((), "nothing rates the answers"),
        (("reward.verifier=math",), "answer"),
        ((f"reward.function={scorer(tmp_path)}", "rollout.samples=1"), "set rollout.samples=8"),
        ((f"reward.function={scorer(tmp_path)}", "rollout.max_new_tokens=4000"), "max_length|max_new_tokens"),
    ):
        refused = prefopt(*command, *settings, *wrong, "--overwrite")
        assert refused.code == 2, refused.out
        assert re.search(says, refused.err), refused.err
        assert len(refused.err.strip().splitlines()) <= 6
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "  "}\n')
    on_nothing = ("train", "grpo", "--model", base, "--data", empty, "--out", tmp_path / "no", *settings)
    refused = prefopt(*on_nothing, f"reward.function={scorer(tmp_path)}")
    assert refused.code == 2
    assert "empty prompt" in refused.err


def test_a_run_whose_reward_fails_goes_on_with_the_mended_one(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    broken = "CALLS = []\ndef letters(completions):\n    CALLS.append(1)\n    return [None if CALLS[1:] else 1.0 for _ in completions]\n"
    (tmp_path / "rewards.py").write_text(broken)
    command = ("train", "grpo", "--model", base, "--data", data("prompts"), "--out", tmp_path / "run")
    settings = ("train.steps=3", "train.batch_size=4", "rollout.samples=4", "rollout.max_new_tokens=8", "train.learning_rate=1e-3")
    failed = prefopt(*command, *settings, f"reward.function={tmp_path / 'rewards.py'}:letters")
    assert failed.code == 2
    assert "mend the reward and give the same command again" in failed.err
    mended = prefopt(*command, *settings, f"reward.function={scorer(tmp_path)}", "reward.timeout=20")
    assert mended.code == 0, mended.err
    assert "rewards.py has changed" in mended.out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]
    entry = json.loads((tmp_path / "run" / "record.json").read_text())
    assert entry["seconds"] > entry["sittings"][0]["seconds"] > 0
    assert entry["sittings"][0]["stage"]["reward"]["timeout"] == 10


def test_adapters_are_merged_into_a_model_anybody_opens(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    command = ("train", "dpo", "--model", base, "--data", data("pairs"), "--out", tmp_path / "run", "train.steps=2")
    done = prefopt(*command, "lora.rank=2", "train.learning_rate=1e-2")
    assert done.code == 0, done.err
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_a_run_that_is_stopped_goes_on_to_the_same_end(base: Path, data: Data, tmp_path: Path) -> None:
    def command(out: str, *more: str) -> list[str]:
        flags = ["train", "dpo", "--model", str(base), "--data", str(data("pairs")), "--out", str(tmp_path / out)]
        settings = ["train.epochs=25", "train.batch_size=6", "train.learning_rate=1e-3", "train.save_every=25"]
        return [sys.executable, "-m", "prefopt.cli", *flags, *settings, *more]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(command("parts"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    log, deadline = tmp_path / "parts" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 5) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM after step" in err.splitlines()[-2]
    assert not (tmp_path / "parts" / "outputs.json").exists()

    done = subprocess.run(command("parts"), check=True, capture_output=True, text=True, env=environment)
    assert "going on" in done.stdout
    assert settled(tmp_path / "parts") == settled(tmp_path / "whole")
    weights = [(tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_from_python(base: Path, data: Data, tmp_path: Path) -> None:
    import prefopt

    how = {"model": base, "data": data("pairs"), "out": tmp_path / "run", "beta": 0.3, "train": {"steps": 2, "batch_size": 6}}
    result = prefopt.train("dpo", **how, **{"train.learning_rate": 1e-3})
    assert result.steps == 2
    assert math.isfinite(result.metrics["loss"])
    assert result.record["stage"]["beta"] == 0.3
    assert result.record["stage"]["train"]["learning_rate"] == 1e-3
    assert prefopt.train("dpo", **how, **{"train.learning_rate": 1e-3}).metrics == result.metrics
    policy = prefopt.load(str(result.model))
    assert len(policy.logprobs(["Say red."], ["red"])) == 1
    with pytest.raises(OptionError, match=r"prefopt\.train: train\.stesp: unknown key"):
        prefopt.train("dpo", model=base, data=data("pairs"), out=tmp_path / "no", train={"stesp": 2})
    assert not (tmp_path / "no").exists()


def test_a_process_takes_its_device_before_its_model_is_loaded(
    base: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt import train
    from prefopt.pipeline import stages
    from prefopt.training import distributed

    order: list[str] = []
    for module, name in ((distributed, "start"), (stages, "open_model")):
        does = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _does=does, _name=name, **k: (order.append(_name), _does(*a, **k))[1])
    train("dpo", model=base, data=data("pairs"), out=tmp_path, train={"steps": 1})
    assert order[:2] == ["start", "open_model"]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, "fp32"),
        ({"lora": {"rank": 2}}, "auto"),
        ({"lora": {"rank": 2}, "train.precision": "fp32"}, "fp32"),
        ({"model.dtype": "bf16"}, "bf16"),
    ],
)
def test_masters_do_not_start_from_rounded_weights(
    base: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str
) -> None:
    from prefopt import train
    from prefopt.pipeline import stages

    class Asked(Exception):
        pass

    def opened(settings: Any, **_: Any) -> None:
        raise Asked(settings.dtype)

    monkeypatch.setattr(stages, "open_model", opened)
    with pytest.raises(Fault, match=f"Asked: {dtype}$"):
        train("dpo", model=base, data=data("pairs"), out=tmp_path, **options)


# --- bad input

PAIR = rows("pairs", 1)[0]
BAD_ROWS: dict[str, tuple[str, list[str]]] = {
    "empty file": ("", ["no rows"]),
    "malformed JSON": (json.dumps(PAIR) + '\n{"prompt": "a", "chosen": \n', ["rows.jsonl:2"]),
    "not an object": ("[1, 2]\n", ["rows.jsonl"]),
    "a misnamed column": (json.dumps({"prompt": "a", "winner": "b", "loser": "c"}), ["rows.jsonl:1", "winner"]),
    "a column of numbers": (json.dumps({**PAIR, "chosen": 3}), ["rows.jsonl:1", "chosen"]),
    "messages without content": (json.dumps({**PAIR, "chosen": [{"role": "assistant", "content": 5}]}), ["rows.jsonl:1"]),
    "an empty answer": (json.dumps({**PAIR, "chosen": ""}), ["rows.jsonl:1", "empty"]),
    "identical answers": (json.dumps({**PAIR, "rejected": PAIR["chosen"]}), ["rows.jsonl:1", "identical"]),
    "demonstrations for a pairwise method": (json.dumps(rows("demonstrations", 1)[0]), ["rows.jsonl:1", "pairs"]),
    "longer than the model": (json.dumps({**PAIR, "chosen": "very " * 500}), ["rows.jsonl:1", "data.truncation"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_told_and_nothing_is_half_written(prefopt: Prefopt, base: Path, tmp_path: Path, name: str) -> None:
    text, parts = BAD_ROWS[name]
    (tmp_path / "rows.jsonl").write_text(text)
    refused(prefopt, tmp_path, parts, "--model", base, "--data", tmp_path / "rows.jsonl")


def refused(prefopt: Prefopt, tmp_path: Path, parts: list[str], *arguments: object, method: str = "dpo") -> None:
    """Exit code 2, at most three lines on standard error, no model and no outputs.json."""
    done = prefopt("train", method, *arguments, "--out", tmp_path / "run", "train.steps=1")
    assert done.code == 2, done.err
    told = [line for line in done.err.splitlines() if not line.startswith("self-check")]
    assert len(told) <= 3
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err
    assert not (tmp_path / "run" / "outputs.json").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_folder_without_weights(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((base / name).read_bytes())
    refused(prefopt, tmp_path, ["no weights", "model.init=random"], "--model", bare, "--data", data("pairs"))


def test_a_folder_that_is_no_model(prefopt: Prefopt, data: Data, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(prefopt, tmp_path, ["config.json"], "--model", tmp_path / "empty", "--data", data("pairs"))


def test_a_reference_of_another_vocabulary(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from prefopt.pipeline.create import create
    from prefopt.pipeline.kinds import CreateOptions
    from prefopt.types import Completion, Example

    shape = CreateOptions(vocab_size=300, hidden_size=32, intermediate_size=64, layers=1, heads=2, max_length=128)
    create([Example(prompt="", completions=(Completion(content="other words entirely " * 3),))], shape, tmp_path / "other")
    arguments = ("--model", base, "--data", data("pairs"), f"reference.path={tmp_path / 'other'}")
    refused(prefopt, tmp_path, ["vocabulary"], *arguments)


def test_a_model_without_a_chat_template(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bare = tmp_path / "bare"
    bare.mkdir()
    for path in base.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(bare)
    refused(prefopt, tmp_path, ["chat template", "model.chat_template"], "--model", bare, "--data", data("pairs"))


def test_settings_that_contradict_each_other(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    arguments = ("--model", base, "--data", data("pairs"))
    refused(prefopt, tmp_path, ["train.eval_every", "data.eval_fraction"], *arguments, "train.eval_every=1")


def test_answers_that_leave_no_room_for_a_prompt(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    asked = ("train", "rloo", "--model", base, "--data", data("prompts"), "--out", tmp_path / "out", "reward.verifier=gold")
    done = prefopt(*asked, "rollout.max_new_tokens=128")
    assert done.code == 2
    assert "rollout.max_new_tokens: 128 new tokens leave no room for a prompt: the model takes 128 tokens" in done.err


def test_a_loss_that_is_no_number_keeps_its_batch(prefopt: Prefopt, base: Path, data: Data, tmp_path: Path) -> None:
    command = (
        "--model",
        base,
        "--data",
        data("demonstrations"),
        "--out",
        tmp_path / "run",
        "train.learning_rate=1e30",
        "train.grad_clip=0",
    )
    done = prefopt("train", "sft", *command, "train.steps=20", "train.warmup=0")
    assert done.code == 2, done.err
    assert "step" in done.err
    assert (tmp_path / "run" / "not-finite.json").exists()
    assert not (tmp_path / "run" / "outputs.json").exists()
