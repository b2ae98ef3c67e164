"""The loop: what may not change the result (micro-batches, layout, interruption), and what must (method, reference, best step)."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt.data.preflight import Preflight
from prefopt.errors import DataError, ModelError, OptionError, TrainingError
from prefopt.losses.explain import logged
from prefopt.losses.methods import METHODS
from prefopt.losses.metrics import METRICS_OF_STEPS
from prefopt.model.load import load_causal
from prefopt.model.selfcheck import go_back
from prefopt.pack.prepare import Prepared
from prefopt.rollout.policy import RewardModel
from prefopt.settings import HeadSettings, LoraSettings, ReferenceSettings, TrainSettings
from prefopt.training import checkpoint, loop
from prefopt.training import setup as jobs
from prefopt.training.coupling import couple, mismatched_kl
from prefopt.training.fit import fit
from prefopt.training.loop import evaluate
from prefopt.training.lora import add_adapter
from prefopt.training.rounds import measure
from prefopt.training.setup import Setup, build_job
from prefopt.training.signals import Interrupted
from prefopt.training.stream import Rows
from prefopt.types import TokenTree
from tests.tiny import random_tree, tiny_model
from tests.worlds import UNTIMED, language_model, losses_of, metrics_of, rows_for, run

AT_REFERENCE = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "ipo": 25.0,
    "hinge": 1.0,
    "nca": 2 * math.log(2),
    "kto": 0.5,
    "apo_zero": 1.0,
    "bco": math.log(2),
}
COUPLED = [name for name, row in METHODS.items() if row.coupling]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_saves_a_model_that_transformers_opens(method: str, tmp_path: Path) -> None:
    found = run(tmp_path, method, heldout=4)
    losses = losses_of(tmp_path)
    assert len(losses) == found.steps == 4
    assert all(map(math.isfinite, losses))
    assert ("eval/reward" if METHODS[method].online else "eval/loss") in found.metrics
    _assert_told(method, metrics_of(tmp_path))
    scorer = METHODS[method].reads == "scores"
    opened = (AutoModelForSequenceClassification if scorer else AutoModelForCausalLM).from_pretrained(found.model)
    start = language_model(method).model.state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in opened.state_dict().items())


def _assert_told(method: str, rows: list[dict[str, float]]) -> None:
    """Its page names every metric that it logs, and none that never comes."""
    told = dict(logged(METHODS[method])).keys() | METRICS_OF_STEPS.keys()
    logs = {"rewards/NAME/mean" if key == "rewards/even/mean" else key for row in rows for key in row if not key.startswith("eval/")}
    with_others = {"step", "completions/min_length", "completions/max_length"}  # told with the mean
    assert logs <= told | with_others
    asked_for = {"objective/kl", *(key for key in told if key.startswith("kl/")), *UNTIMED, "skipped_steps"}
    of_pairs = {key for key in told if key.startswith("rewards/")} if method == "orm" else set()  # which these rows are not
    assert told - logs <= asked_for | of_pairs


@pytest.mark.parametrize(("method", "value"), AT_REFERENCE.items())
def test_the_first_loss_is_the_one_theory_gives_at_policy_equal_reference(method: str, value: float, tmp_path: Path) -> None:
    run(tmp_path, method, train={"steps": 1})
    assert losses_of(tmp_path)[0] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("method", ["sft", "dpo", "simpo", "orpo", "pl_dpo", "reward", "prm", *COUPLED])
def test_micro_batches_and_layout_do_not_change_the_result(method: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", method, heldout=5)
    for name, train in {
        "single": {"micro_tokens": 1},
        "two": {"micro_tokens": 150},
        "padded": {"layout": "padded", "micro_tokens": 60},
    }.items():
        other = run(tmp_path / name, method, heldout=5, train=train)
        for mine, theirs in zip(metrics_of(tmp_path / "whole"), metrics_of(tmp_path / name), strict=True):
            assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5), name
        _assert_same_weights(whole.model, other.model, 2e-4)


@pytest.mark.parametrize("method", ["dpo", "bco", "reward"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    method: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": 7, "precision": precision, "micro_tokens": 200, "warmup": 2, "schedule": "cosine"}
    extra = {} if method == "reward" else {"reference": ReferenceSettings(sync_every=2, sync_rate=0.5)}
    straight = run(tmp_path / "straight", method, train=train, heldout=4, **extra)
    _stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted, match="SIGTERM after step 4 of 7"):
        run(tmp_path / "stopped", method, train=train, heldout=4, **extra)
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model").exists()
    resumed = run(tmp_path / "stopped", method, train=train, heldout=4, **extra)
    assert metrics_of(tmp_path / "straight") == metrics_of(tmp_path / "stopped")
    _assert_same_weights(straight.model, resumed.model, 0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reference", [ReferenceSettings(), ReferenceSettings(sync_every=1, sync_rate=0.1)])
def test_an_adapter_its_dropout_and_its_reference_survive_a_stop_to_the_bit(
    precision: str, reference: ReferenceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"lora": LoraSettings(rank=2, dropout=0.3), "reference": reference}
    straight = run(tmp_path / "straight", train={"steps": 5, "precision": precision}, **asked)
    _stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", train={"steps": 5, "precision": precision}, **asked)
    monkeypatch.undo()
    resumed = run(tmp_path / "stopped", train={"steps": 5, "precision": precision}, **asked)
    assert metrics_of(tmp_path / "straight") == metrics_of(tmp_path / "stopped")
    _assert_same_weights(straight.model, resumed.model, 0.0)


@pytest.mark.parametrize("measured", [evaluate, measure, mismatched_kl, lambda job, trees: job.reference.logps(job.lay_out(trees))])
def test_nothing_is_measured_under_dropout(measured: Callable[..., Any]) -> None:
    trees, setup = rows_for("kto", 4), Setup(method="kto", lora=LoraSettings(rank=2, dropout=0.5))
    with ExitStack() as stack:
        job = build_job(setup, language_model(), trees, stack, print)
        for name, weight in job.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight.data)
        job.reference.sync(job.model, 1.0)
        first, second = (str(measured(job, trees)) for _ in range(2))
        assert first == second
        assert job.model.training


@pytest.mark.parametrize("rank", [0, 2])
def test_a_gpu_goes_back_once_through_the_model_as_it_will_be_trained(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def watched(model: Any, tree: TokenTree, *, reads: str) -> None:
        dtypes = {weight.dtype for weight in model.parameters()}
        adapted = any("lora_" in name for name, _ in model.named_parameters())
        seen.append((dtypes, model.training, adapted, tree.index, reads))
        go_back(model, tree, reads=reads)

    monkeypatch.setattr(jobs, "go_back", watched)
    setup = Setup(method="dpo", train=TrainSettings(precision="bf16"), lora=LoraSettings(rank=rank))
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(jobs, "COMPILED", devices)
        with ExitStack() as stack:
            assert not build_job(setup, language_model(), rows_for("dpo", 4), stack, print).padded
    assert seen == [({torch.bfloat16}, True, rank > 0, 0, "logps")]


def test_a_gpu_that_cannot_go_back_trains_padded_unless_its_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(error: Exception, layout: str = "auto") -> tuple[bool, list[str]]:
        def fails(*_: Any, **__: Any) -> None:
            raise error

        said: list[str] = []
        monkeypatch.setattr(jobs, "go_back", fails)
        with ExitStack() as stack:
            setup = Setup(method="dpo", train=TrainSettings(layout=layout))
            return build_job(setup, language_model(), rows_for("dpo", 4), stack, said.append).padded, said

    monkeypatch.setattr(jobs, "COMPILED", ("cpu",))
    padded, said = start(RuntimeError("out of shared memory\nRequired: 1"))
    assert padded
    assert said[-1].startswith("self-check: out of shared memory; training on the padded path")
    with pytest.raises(ModelError, match="cannot be trained packed: out of shared memory"):
        start(RuntimeError("out of shared memory"), "packed")
    with pytest.raises(TrainingError, match="out of memory"):
        start(torch.OutOfMemoryError("CUDA out of memory"))


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, train={"save_every": 2})
    with pytest.raises(TrainingError, match="other settings or data"):
        run(tmp_path, train={"save_every": 2, "learning_rate": 1e-4})


def test_a_run_that_was_out_of_memory_goes_on_in_smaller_passes(tmp_path: Path) -> None:
    run(tmp_path, train={"save_every": 2})
    (newest, *_) = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    shutil.rmtree(newest)
    (tmp_path / "model" / "model.safetensors").unlink()
    before = losses_of(tmp_path)
    run(tmp_path, train={"save_every": 2, "micro_tokens": 64})
    assert losses_of(tmp_path) == pytest.approx(before, rel=1e-5)


def test_lora_trains_only_the_adapter_and_leaves_a_merged_model(tmp_path: Path) -> None:
    found = run(tmp_path, lora=LoraSettings(rank=4), train={"learning_rate": 1e-2})
    assert losses_of(tmp_path)[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses_of(tmp_path)[-1] < math.log(2)
    assert (found.model.parent / "adapter" / "adapter_model.safetensors").exists()
    merged, start = load_file(found.model / "model.safetensors"), language_model().model.state_dict()
    assert not any("lora" in name for name in merged)
    assert torch.equal(merged["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    assert not torch.equal(merged["model.layers.0.self_attn.q_proj.weight"], start["model.layers.0.self_attn.q_proj.weight"])


def test_an_adapter_of_a_tied_embedding_is_refused() -> None:
    """Merging would change the output head, which trained without it."""
    for tied in (True, False):
        model = tiny_model()
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        settings = LoraSettings(rank=4, targets=["embed_tokens", "q_proj"])
        if not tied:
            assert add_adapter(model, settings, scorer=False, seed=0)
            continue
        with pytest.raises(OptionError, match="the embedding of this model is its output head"):
            add_adapter(model, settings, scorer=False, seed=0)


def test_one_layer_may_be_named_without_a_list(tmp_path: Path) -> None:
    for name, targets in (("word", "q_proj"), ("list", ["q_proj"]), ("pattern", r".*\.q_proj")):
        run(tmp_path / name, lora=LoraSettings(rank=2, targets=targets))
    assert losses_of(tmp_path / "word") == losses_of(tmp_path / "list") == losses_of(tmp_path / "pattern")


def test_a_reward_models_head_learns_beside_its_adapter(tmp_path: Path) -> None:
    found = run(tmp_path, "reward", lora=LoraSettings(rank=4), train={"learning_rate": 1e-2})
    start = language_model("reward").model.state_dict()
    assert not torch.equal(load_file(found.model / "model.safetensors")["score.weight"], start["score.weight"])


@pytest.mark.parametrize("method", ["dpo", "wpo", "pl_dpo"])
@pytest.mark.parametrize("lora", [LoraSettings(), LoraSettings(rank=2)])
def test_a_cached_reference_gives_the_same_run(method: str, lora: LoraSettings, tmp_path: Path) -> None:
    kept = run(tmp_path / "kept", method, heldout=4, lora=lora)
    for name in ("first", "second"):
        cached = run(tmp_path / name, method, heldout=4, lora=lora, reference=ReferenceSettings(cache=True), train={"micro_tokens": 90})
        for mine, theirs in zip(metrics_of(tmp_path / "kept"), metrics_of(tmp_path / name), strict=True):
            assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
        _assert_same_weights(kept.model, cached.model, 2e-4)


@pytest.mark.parametrize("lora", [LoraSettings(), LoraSettings(rank=2)])
def test_a_hard_sync_puts_the_loss_back_to_its_start(lora: LoraSettings, tmp_path: Path) -> None:
    train = {"steps": 6, "learning_rate": 1e-2, "warmup": 0}
    run(tmp_path / "hard", lora=lora, train=train, reference=ReferenceSettings(sync_every=3))
    losses = losses_of(tmp_path / "hard")
    assert losses[3] == pytest.approx(math.log(2), rel=1e-4)
    assert losses[2] < math.log(2) - 1e-3
    run(tmp_path / "none", lora=lora, train=train, reference=ReferenceSettings(sync_every=3, sync_rate=0.0))
    run(tmp_path / "off", lora=lora, train=train)
    assert losses_of(tmp_path / "none") == pytest.approx(losses_of(tmp_path / "off"), rel=1e-5)


def test_a_mixed_in_row_adds_its_loss(tmp_path: Path) -> None:
    for name, method, mix in (("dpo", "dpo", {}), ("sft", "sft", {}), ("both", "dpo", {"sft": 0.5})):
        run(tmp_path / name, method, mix=mix, train={"steps": 1})
    first = {name: losses_of(tmp_path / name)[0] for name in ("dpo", "both")}
    assert first["both"] > first["dpo"]


def test_a_metric_nobody_measures_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"eval/acuracies is not measured"):
        run(tmp_path, heldout=4, train={"keep_best": "eval/acuracies", "eval_every": 1})
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("method", "name"), [("kto", "eval/rewards/chosen"), ("reward_ties", "eval/rewards/accuracies")])
def test_a_metric_that_the_first_row_does_not_count_in_is_measured(method: str, name: str, tmp_path: Path) -> None:
    """A thumb down is no chosen answer, and a tie has no winner."""
    first = rows_for(method, 1, start=15)[0].branches
    assert first[0].label is False if method == "kto" else first[0].rank == first[1].rank
    assert name in run(tmp_path, method, rows=15, heldout=3, train={"keep_best": name, "eval_every": 4}).metrics


def test_an_epoch_may_be_a_part(tmp_path: Path) -> None:
    assert run(tmp_path, rows=8, train={"steps": None, "epochs": 1.5, "batch_size": 4}).steps == 3


@pytest.mark.parametrize(("watched", "best_of"), [("eval/loss", min), ("eval/logps/rejected", max)])
def test_the_best_step_is_kept_and_patience_stops(watched: str, best_of: Callable[..., Any], tmp_path: Path) -> None:
    """A loss should fall, anything else rise."""
    constant = {"schedule": "constant", "warmup": 0}
    train = {"steps": 30, "learning_rate": 0.05, "eval_every": 1, "keep_best": watched, "patience": 3, **constant}
    found = run(tmp_path, heldout=6, train=train)
    rows = [row for row in metrics_of(tmp_path) if watched in row]
    best = best_of(rows, key=lambda row: row[watched])
    assert found.stopped == "early"
    assert found.steps == best["step"] + 3
    again = run(tmp_path / "short", heldout=6, train=train | {"patience": 0, "steps": int(best["step"])})
    assert again.steps == best["step"]
    kept, reached = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, tmp_path / "short"))
    assert all(torch.equal(kept[name], reached[name]) for name in reached), "the weights are those of the best step"


JUDGED = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0, "steps": 6, "eval_every": 1, "keep_best": "eval/loss"}


def _judge(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Evaluations find these losses; the process is killed in the one after them, unless the run is over."""
    left = iter(losses)

    def evaluated(self: Rows, first: int | None = None) -> dict[str, float]:
        value = 0.0 if first else next(left, None)
        if value is None:
            raise KeyboardInterrupt
        return {"eval/loss": value}

    monkeypatch.setattr(Rows, "evaluate", evaluated)


def _is_model_of_step(step: int, model: Path, folder: Path) -> None:
    """As a run of so many steps leaves it."""
    _assert_same_weights(model, run(folder, train=JUDGED | {"steps": step, "eval_every": 0, "keep_best": None}).model, 0.0)


@pytest.mark.parametrize(
    ("save_every", "killed", "again", "best"),
    [
        (3, (0.5, 0.3, 0.4, 0.2), (0.6, 0.6, 0.6), 2),
        (3, (0.5, 0.3, 0.4, 0.4, 0.2), (0.1, 0.6, 0.6), 4),
        (0, (0.5, 0.3), (0.1, 0.6, 0.6, 0.6, 0.6, 0.6), 1),
    ],
    ids=["the checkpoint names the best", "the best is before that of the killed run", "there is no checkpoint"],
)
def test_a_killed_run_that_is_not_repeated_leaves_no_best_weights(
    save_every: int, killed: Sequence[float], again: Sequence[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill a GPU need not find the same numbers again."""
    train = JUDGED | {"save_every": save_every}
    _judge(monkeypatch, *killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", heldout=2, train=train)
    _judge(monkeypatch, *again)
    found = run(tmp_path / "run", heldout=2, train=train)
    _is_model_of_step(best, found.model, tmp_path / "short")
    left = {checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints" / "best")}
    assert left <= {2, best}


def test_an_evaluation_that_failed_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made up for at the next start, and that start may be killed before it has a checkpoint of its own."""
    train = JUDGED | {"steps": 4, "eval_every": 2, "keep_best": None}
    evaluate, fails = Rows.evaluate, iter([True])

    def evaluated(self: Rows, first: int | None = None) -> dict[str, float]:
        if next(fails, False):
            raise DataError("the judge is down", fix="start it")
        return evaluate(self, first)

    monkeypatch.setattr(Rows, "evaluate", evaluated)
    with pytest.raises(DataError):
        run(tmp_path, heldout=2, train=train)
    for _ in range(2):
        step = Rows.step
        monkeypatch.setattr(Rows, "step", lambda self, number: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, heldout=2, train=train)
        monkeypatch.setattr(Rows, "step", step)
    run(tmp_path, heldout=2, train=train)
    assert [row["step"] for row in metrics_of(tmp_path) if "eval/loss" in row] == [2, 4]


def test_a_run_that_goes_on_from_the_checkpoint_before_the_last_has_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _judge(monkeypatch, 0.5, 0.4, 0.3, 0.2, 0.1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", heldout=2, train=JUDGED | {"save_every": 2})
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    _judge(monkeypatch, 0.6, 0.6, 0.6, 0.6)
    found = run(tmp_path / "run", heldout=2, train=JUDGED | {"save_every": 2})
    _is_model_of_step(2, found.model, tmp_path / "short")


def test_best_weights_that_are_gone_are_missed_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _judge(monkeypatch, 0.5, 0.4, 0.6)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, heldout=2, train=JUDGED | {"save_every": 3})
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    _judge(monkeypatch, 0.6, 0.6, 0.6)
    with pytest.raises(TrainingError, match="the weights of step 2, the best so far, are gone"):
        run(tmp_path, heldout=2, train=JUDGED | {"save_every": 3})


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path: Path) -> None:
    model = language_model()
    with torch.no_grad():
        model.model.lm_head.weight[5] = float("nan")
    with pytest.raises(TrainingError, match="loss of step 1 is nan") as caught:
        run(tmp_path, "sft", model=model, train={"layout": "padded"})
    kept = json.loads((tmp_path / "not-finite.json").read_text())
    assert kept["rows"]
    assert kept["rows"][0]["where"].startswith("rows.jsonl:")
    assert "not-finite.json" in caught.value.fix


@pytest.mark.parametrize("method", ["dpo", "aot"])
def test_options_reach_the_loss_of_a_batch_and_of_the_whole_step(method: str, tmp_path: Path) -> None:
    found = []
    for beta in (0.1, 1.0):
        run(tmp_path / str(beta), method, options={"beta": beta}, train={"steps": 3, "learning_rate": 1e-3})
        found.append(losses_of(tmp_path / str(beta)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5), "where policy and reference agree beta is nothing"
    assert abs(found[0][-1] - found[1][-1]) > 1e-3


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path: Path) -> None:
    model = language_model()
    model.model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient norm of step 1 is (nan|inf)"):
        run(tmp_path, "sft", model=model)
    assert json.loads((tmp_path / "not-finite.json").read_text())["rows"]


def test_bf16_stays_close_to_fp32_and_its_masters_are_fp32(tmp_path: Path) -> None:
    run(tmp_path / "fp32", train={"steps": 12})
    run(tmp_path / "bf16", train={"steps": 12, "precision": "bf16", "save_every": 12})
    assert losses_of(tmp_path / "bf16") == pytest.approx(losses_of(tmp_path / "fp32"), abs=0.08)
    saved = load_file(tmp_path / "bf16" / "checkpoints" / "step-00000012" / "tensors.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if "weight/" in name} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "sft", "reference": ReferenceSettings(cache=True)}, "no reference"),
        ({"method": "kto", "reference": ReferenceSettings(cache=True)}, "other rows"),
        ({"method": "kto", "train": {"batch_size": 1}}, "a step has one row"),
        ({"lora": LoraSettings(targets=["q_proj"])}, "read by lora.rank alone"),
        ({"reference": ReferenceSettings(cache=True, sync_every=2)}, "cannot follow"),
        ({"options": {"betta": 0.1}}, "betta"),
        ({"options": {"beta": "big"}}, "beta"),
        ({"train": {"keep_best": "eval/loss"}}, "held-out"),
        ({"train": {"patience": 2}}, "patience"),
        ({"heldout": 4, "train": {"keep_best": "eval/nothing", "eval_every": 1}}, "not measured"),
        ({"heldout": 4, "train": {"keep_best": "eval/loss"}}, "one evaluation"),
        ({"lora": LoraSettings(rank=2, targets=["no_such_layer"])}, "no_such_layer"),
        ({"lora": LoraSettings(rank=2), "reference": ReferenceSettings(path="other", sync_every=2)}, "follow an adapter"),
        ({"method": "iterative_dpo", "lora": LoraSettings(rank=2), "reference": ReferenceSettings(path="other")}, "never be read"),
        ({"reference": ReferenceSettings(sync_rate=0.5)}, "read by reference.sync_every alone"),
        ({"method": "aot", "lora": LoraSettings(rank=2, dropout=0.1)}, "dropout"),
        ({"rows": 0}, "no rows"),
    ],
)
def test_settings_that_cannot_mean_what_they_say_are_refused(changes: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=match):
        run(tmp_path, changes.pop("method", "dpo"), **changes)
    assert not (tmp_path / "model").exists()


def test_a_method_that_needs_margins_refuses_rows_without(tmp_path: Path) -> None:
    whole = rows_for("odpo", 4)
    trees = [replace(tree, margin=None) for tree in whole]
    for train, heldout in ((trees, []), (whole, trees)):
        with pytest.raises(DataError, match=r"rows.jsonl:1: odpo needs a column `margin`"):
            fit(Setup(method="odpo"), language_model(), Prepared(train, heldout, Preflight(None, None)), out=tmp_path)


def test_a_step_of_one_row_has_no_other_row_to_take_a_reference_point_from() -> None:
    with ExitStack() as stack:
        trees = rows_for("kto", 4)
        job = build_job(Setup(method="kto"), language_model(), trees, stack, print)
        for weight in job.model.parameters():
            torch.nn.init.normal_(weight.data, std=0.1)
        assert float(mismatched_kl(job, trees)) != 0
        assert float(mismatched_kl(job, trees[:1])) == 0


@pytest.mark.parametrize(("train", "heldout"), [((0.5, -1.5), ()), ((0.5, 0.0), (0.5, -1.5))])
def test_a_preference_is_not_counted_less_than_no_time(train: tuple, heldout: tuple, tmp_path: Path) -> None:
    """A negative margin would train form=scaled backwards; the other forms mean something by it."""
    rows = rows_for("reward_graded", 4)
    made = [replace(tree, margin=margin) for tree, margin in zip(rows, (*train, *heldout), strict=False)]
    data, steps = Prepared(made[:2], made[2:], Preflight(None, None)), TrainSettings(steps=1)
    told = rf"rows.jsonl:{len(made)}: reward_graded form=scaled .* cannot be -1.5"
    with pytest.raises(DataError, match=told):
        fit(Setup(method="reward_graded", options={"form": "scaled"}), language_model("reward"), data, out=tmp_path / "scaled")
    fit(Setup(method="reward_graded", options={"form": "soft"}, train=steps), language_model("reward"), data, out=tmp_path / "soft")


def ensemble(bag: float) -> Setup:
    """Four members that each learn from this share of the rows."""
    return Setup(method="reward", heads=HeadSettings(count=4, bag=bag), train=TrainSettings(seed=1))


def test_every_row_has_a_member_to_learn_from_it_and_held_out_rows_have_all() -> None:
    rows, device = rows_for("reward", 60), torch.device("cpu")
    for bag in (0.05, 0.5):
        learns = jobs.who_learns(ensemble(bag), rows, rows[40:], device)
        assert learns is not None
        drawn = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < bag
        some = drawn[:40].any(1)
        assert torch.equal(learns[:40][some], drawn[:40][some])
        assert (learns[:40][~some].sum(1) == 1).all()
        assert not some.all()
        assert learns[40:].all()


def test_held_out_rows_are_judged_by_the_whole_ensemble() -> None:
    """Loss and accuracy are means over all members, however small their shares."""
    rows, found = rows_for("reward", 20), []
    for bag in (0.01, 1.0):
        model = language_model("reward")
        torch.manual_seed(0)
        model.model.score = torch.nn.Linear(model.model.score.in_features, 4, bias=False)
        model.model.config.num_labels = model.model.num_labels = 4
        with ExitStack() as stack:
            job = build_job(ensemble(bag), model, rows, stack, print, heldout=rows[12:])
            found.append(evaluate(job, rows[12:]))
    assert found[0] == pytest.approx(found[1])


def test_a_coupled_method_takes_another_rows_loss_in(tmp_path: Path) -> None:
    run(tmp_path / "one", "aot", mix={"wpo": 0.5, "sft": 0.1})
    run(tmp_path / "many", "aot", mix={"wpo": 0.5, "sft": 0.1}, train={"micro_tokens": 60})
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "many"), rel=1e-4)


def test_a_rank_without_rows_knows_what_couples_the_others() -> None:
    trees = rows_for("bco", 2)
    with ExitStack() as stack:
        job = build_job(Setup(method="bco"), language_model(), trees, stack, print)
        assert couple(job, trees, [], {}).known["delta"] == 0


def test_mismatched_rows_fit_in_a_model_with_a_table_of_positions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    long = [random_tree(rng, *shape, index=i) for i, shape in enumerate([(120, (8, 5)), (3, (125, 70))] * 2)]
    fit(Setup(method="kto"), language_model(family="gpt2"), Prepared(long, [], Preflight(None, None)), out=tmp_path)


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = language_model()
    other.tokenizer.add_tokens(["another"])
    other.model.resize_token_embeddings(98)
    other.save(tmp_path / "other")
    with pytest.raises(ModelError, match="vocabulary"):
        run(tmp_path / "run", reference=ReferenceSettings(path=str(tmp_path / "other")))


def test_another_model_can_be_the_reference(tmp_path: Path) -> None:
    language_model(seed=5).save(tmp_path / "other")
    run(tmp_path / "run", reference=ReferenceSettings(path=str(tmp_path / "other")))
    assert losses_of(tmp_path / "run")[0] != pytest.approx(math.log(2), rel=1e-3)


def test_a_reference_of_another_shape_cannot_follow_the_policy(tmp_path: Path) -> None:
    other = language_model(seed=5)
    other.model.model.layers.append(deepcopy(other.model.model.layers[-1]))
    other.model.config.num_hidden_layers += 1
    other.save(tmp_path / "other")
    reference = ReferenceSettings(path=str(tmp_path / "other"))
    with pytest.raises(ModelError, match="another shape than the policy"):
        run(tmp_path / "run", reference=replace(reference, sync_every=100))
    run(tmp_path / "run", reference=reference, train={"steps": 1})


def test_a_stopped_run_goes_on_where_the_folder_of_its_models_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model(seed=5).save(tmp_path / "one" / "other")
    reference = [ReferenceSettings(path=str(tmp_path / name / "other")) for name in ("one", "two")]
    _stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        run(tmp_path / "one" / "run", reference=reference[0])
    monkeypatch.undo()
    (tmp_path / "one").rename(tmp_path / "two")
    assert run(tmp_path / "two" / "run", reference=reference[1]).steps == 4


@pytest.mark.parametrize("method", ["reward", "dpo", "ppo"])
def test_an_adapter_on_weights_in_bf16_computes_in_what_is_asked(method: str, tmp_path: Path) -> None:
    model = language_model(method)
    model.model.to(torch.bfloat16)
    found = run(tmp_path, method, model=model, lora=LoraSettings(rank=2), train={"precision": "fp32"})
    assert found.steps == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_model_is_read_as_the_policy_computes(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model(seed=5).save(tmp_path / "other")
    asked = []
    monkeypatch.setattr(jobs, "load_causal", lambda settings: (asked.append(settings.dtype), load_causal(settings))[1])
    run(tmp_path / "run", reference=ReferenceSettings(path=str(tmp_path / "other")), train={"steps": 1, "precision": precision})
    assert asked == [precision]


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    model = language_model()
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    run(tmp_path / "checkpointed", model=model)
    assert losses_of(tmp_path / "plain") == pytest.approx(losses_of(tmp_path / "checkpointed"), rel=1e-5)


@pytest.mark.slow  # the compiler takes most of a minute
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_run(tmp_path: Path) -> None:
    run(tmp_path / "plain", train={"steps": 2})
    run(tmp_path / "compiled", train={"steps": 2, "compile": True})
    assert losses_of(tmp_path / "plain") == pytest.approx(losses_of(tmp_path / "compiled"), rel=1e-4)


def test_a_model_that_cannot_be_written_is_told_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model()

    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        run(tmp_path, model=model)
    assert not (tmp_path / "model").exists()
    assert not [path for path in tmp_path.iterdir() if "writing" in path.name]


def test_a_disk_without_room_for_the_model_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.training.fit.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(TrainingError, match="are free on this disk"):
        run(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("family", ["mamba", "gemma2", "gpt2", "mixtral"])
def test_other_families_train(family: str, tmp_path: Path) -> None:
    run(tmp_path, model=language_model(family=family))
    assert losses_of(tmp_path)[0] == pytest.approx(math.log(2), rel=1e-4)


def _stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process SIGTERM in the middle of step number `steps`."""
    real = loop.train_step

    def stopping(job, trees, step, lr_factor):  # type: ignore[no-untyped-def]
        if step + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(job, trees, step, lr_factor)

    monkeypatch.setattr("prefopt.training.fit.train_step", stopping)


def _assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], atol=tolerance, rtol=tolerance)


# --- soft labels --------------------------------------------------------------------------------------------------------


def soft_rows(*labels: float | bool) -> list[TokenTree]:
    """Thumbs with these labels."""
    made = rows_for("orm", len(labels))
    return [replace(t, branches=(replace(t.branches[0], label=label),)) for t, label in zip(made, labels, strict=True)]


def test_an_outcome_label_may_be_soft(tmp_path: Path) -> None:
    """The first loss is the cross-entropy by hand; true and 1 are one label, 0.5 is neither."""
    labels = (0.25, 0.9, True, False)
    model, trees = language_model("orm"), soft_rows(*labels)
    assert isinstance(model, RewardModel)
    p = 1 / (1 + np.exp(-np.array(model.tree_scores(trees))))
    y = np.array(labels, dtype=float)
    train = TrainSettings(steps=1, batch_size=4, learning_rate=1e-3, seed=1)
    fit(Setup(method="orm", train=train), model, Prepared(trees, [], Preflight(None, None)), out=tmp_path)
    assert losses_of(tmp_path) == pytest.approx([float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())], rel=1e-5)


@pytest.mark.parametrize("method", ["kto", "bco", "apo_zero_unpaired"])
def test_thumbs_are_not_soft(method: str, tmp_path: Path) -> None:
    data = Prepared(soft_rows(True, 0.9), [], Preflight(None, None))
    with pytest.raises(DataError, match=rf"rows.jsonl:2: {method} learns from thumbs up and down.*\n.*train orm"):
        fit(Setup(method=method), language_model(method), data, out=tmp_path)
