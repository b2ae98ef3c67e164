"""Two gloo processes train as one: the same losses and weights as a single process on the same steps."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt.errors import OptionError
from prefopt.settings import LoraSettings, ReferenceSettings
from prefopt.training import shard
from tests.ranks import together
from tests.worlds import language_model, metrics_of, run

SCRIPT = """
import sys
from pathlib import Path
from prefopt.errors import OptionError
from prefopt.settings import LoraSettings, ReferenceSettings
from prefopt.training import fit
from prefopt.training.signals import Interrupted
from tests.e2e.test_distributed import FOLLOWS
from tests.worlds import run
folder, kind = Path(sys.argv[1]), sys.argv[2]
train = {"steps": 3, "save_every": 2, "shard": kind == "shard"}
for method in sys.argv[3:]:
    run(folder / method, method, rows=13, heldout=5, train=train)
if kind == "copy":
    try:
        run(folder / "aot", "aot", rows=13, train=train)
    except OptionError as refusal:
        (folder / "refusal").write_text(str(refusal))
if kind == "shard":
    class Stops:
        requested = ""
        __enter__ = lambda self: self
        __exit__ = lambda *_: None
    def stopped(after):
        class Stop(Stops):
            calls = 0
            @property
            def requested(self):
                Stop.calls += 1
                return "SIGTERM" if Stop.calls >= after else ""
        return Stop
    for rate, changes in FOLLOWS.items():
        run(folder / rate, rows=13, **changes | {"train": changes["train"] | {"shard": True}})
    train = {"steps": 4, "shard": True, "precision": "bf16", "keep_best": "eval/loss", "eval_every": 1}
    sync = {"reference": ReferenceSettings(sync_every=2, sync_rate=0.5)}
    more = {"lora": {"lora": LoraSettings(rank=2, dropout=0.2)}, "sync": sync, "both": {"lora": LoraSettings(rank=2), **sync}}
    for name, changes in more.items():
        run(folder / name / "straight", heldout=5, train=train, **changes)
        real, fit.StopRequest = fit.StopRequest, stopped(2)
        try:
            run(folder / name / "parts", heldout=5, train=train, **changes)
        except Interrupted:
            fit.StopRequest = real
            run(folder / name / "parts", heldout=5, train=train, **changes)
            (folder / name / "stopped").write_text("")
"""
METHODS = ("dpo", "kto", "bco", "reward")
FOLLOWS: dict[str, dict[str, Any]] = {
    f"follows at {rate}": {
        "train": {"steps": 5, "learning_rate": 1e-2, "warmup": 0},
        "lora": LoraSettings(rank=2),
        "reference": ReferenceSettings(sync_every=2, sync_rate=rate),
    }
    for rate in (0.5, 1.0)
}
"""Runs whose reference is an adapter that follows the policy's."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of two processes, each with all of the weights ("copy") or a half of them ("shard")."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(SCRIPT)
    for kind in ("copy", "shard"):
        together(folder / "train.py", str(folder / kind), kind, *METHODS)
    return {kind: folder / kind for kind in ("copy", "shard")}


@pytest.mark.parametrize("kind", ["copy", "shard"])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_as_one(method: str, kind: str, ranks: dict[str, Path], tmp_path: Path) -> None:
    run(tmp_path, method, rows=13, heldout=5, train={"steps": 3, "save_every": 2})
    for mine, theirs in zip(metrics_of(tmp_path), metrics_of(ranks[kind] / method), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    one, both = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, ranks[kind] / method))
    assert one.keys() == both.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, both[name], atol=2e-4, rtol=2e-4)
    assert (tmp_path / "model" / "config.json").read_text() == (ranks[kind] / method / "model" / "config.json").read_text()


def test_a_loss_that_sorts_the_rows_of_a_step_is_refused(ranks: dict[str, Path]) -> None:
    """Each rank would sort its own half, which is another loss."""
    assert "mixes the rows of a step" in (ranks["copy"] / "refusal").read_text()


def test_a_split_model_is_written_whole(ranks: dict[str, Path]) -> None:
    opened = AutoModelForCausalLM.from_pretrained(ranks["shard"] / "dpo" / "model")
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in language_model().model.parameters())


@pytest.mark.parametrize("name", FOLLOWS)
def test_the_adapter_of_a_split_reference_follows_as_a_whole_one(name: str, ranks: dict[str, Path], tmp_path: Path) -> None:
    run(tmp_path, rows=13, **FOLLOWS[name])
    mine, theirs = metrics_of(tmp_path), metrics_of(ranks["shard"] / name)
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert abs(mine[3]["loss"] - math.log(2)) > 5e-3, "policy and reference have parted"
    one, both = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, ranks["shard"] / name))
    for part, weight in one.items():
        torch.testing.assert_close(weight, both[part], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["lora", "sync", "both"])
def test_a_split_run_that_was_stopped_ends_as_one_that_was_not(name: str, ranks: dict[str, Path]) -> None:
    straight, parts = (ranks["shard"] / name / part for part in ("straight", "parts"))
    assert (ranks["shard"] / name / "stopped").exists()
    assert metrics_of(straight) == metrics_of(parts)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (straight, parts)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"],
    ],
)
def test_launchers_start_the_ranks(launcher: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    together(tmp_path / "train.py", str(tmp_path / "two"), "copy", "dpo", command=[sys.executable, "-m", *launcher])
    run(tmp_path / "one", rows=13, heldout=5, train={"steps": 3, "save_every": 2})
    for mine, theirs in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two" / "dpo"), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
        assert mine["loss" if "loss" in mine else "eval/loss"] != 0


def test_ranks_count_their_passes_where_they_can_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def all_reduce(tensor: torch.Tensor, *_: object) -> None:
        raise Seen(tensor.device)

    monkeypatch.setattr(shard, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(shard.dist, "all_reduce", all_reduce)
    with pytest.raises(Seen, match="meta"):
        shard.as_many([], lambda: None)


def test_one_process_has_nothing_to_split_over(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train.shard: there is one process.*\n.*torchrun"):
        run(tmp_path, train={"shard": True})


def test_what_does_not_go_with_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train\.optimizer: does not work with train.shard"):
        run(tmp_path, train={"shard": True, "optimizer": "muon"})
