"""Checkpoints: exact, whole or absent, whatever happens while they are written."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from prefopt.errors import TrainingError
from prefopt.training import checkpoint

STATE = {"step": 3, "order": [2**70, -1], "best": 0.1 + 0.2, "note": "é"}


def tensors(value: float, size: int = 4) -> dict[str, torch.Tensor]:
    return {"weight/a": torch.full((size,), float(value)), "step/a": torch.tensor(float(value))}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- round trip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_tensors_come_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    written = {"x": torch.arange(6).reshape(2, 3).to(dtype).T, "scalar": torch.tensor(1).to(dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    read, state = checkpoint.load(checkpoint.save(tmp_path, 3, written, STATE))
    assert state == STATE
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], tensor)


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    read, _ = checkpoint.load(checkpoint.save(tmp_path, 1, {"odd": odd}, {}))
    assert torch.equal(read["odd"].view(torch.int32), odd.view(torch.int32))


def test_generators_go_on_where_they_were() -> None:
    two = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    torch.randn(3, generator=two[0])
    text = checkpoint.generator_states(two)
    expected = [torch.randn(5, generator=generator) for generator in two]
    others = [torch.Generator(), torch.Generator()]
    checkpoint.set_generator_states(others, text)
    for other, numbers in zip(others, expected, strict=True):
        assert torch.equal(torch.randn(5, generator=other), numbers)


def test_the_generator_of_a_gpu_is_kept_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (torch.Generator(), torch.Generator())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    assert checkpoint.default_generators() == [torch.default_generator, gpus[1]]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 100_000_000, 99_999_999):
        checkpoint.save(tmp_path, step, tensors(step), {"step": step}, keep=2)
    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000000"


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    assert checkpoint.restore(tmp_path / "absent") is None
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert checkpoint.latest(tmp_path) is None


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {"run": 1})
    checkpoint.save(tmp_path, 1, tensors(2), {"run": 2})
    assert names(tmp_path) == ["step-00000001"]
    restored = checkpoint.restore(tmp_path)
    assert restored
    assert restored.state == {"run": 2}


@pytest.mark.parametrize("killed_at", ["draft", "aside"])
def test_killed_in_the_middle_of_a_replacement(tmp_path: Path, killed_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the new one is in place the old one counts, and after that the new one, although the old one is still there."""
    checkpoint.save(tmp_path, 1, tensors(1), {"run": 1})
    rename, discard = Path.rename, checkpoint._discard

    def renamed(path: Path, target: Path) -> Path:
        if killed_at == "draft" and path.name.startswith(checkpoint.WRITING):
            raise KeyboardInterrupt
        return rename(path, target)

    def discarded(path: Path) -> None:
        if killed_at == "aside" and path.exists():
            raise KeyboardInterrupt
        discard(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renamed)
        patch.setattr(checkpoint, "_discard", discarded)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 1, tensors(2), {"run": 2})
    restored = checkpoint.restore(tmp_path, say=pytest.fail)
    assert restored
    assert restored.state == {"run": 1 if killed_at == "draft" else 2}
    checkpoint.save(tmp_path, 1, tensors(3), {"run": 3}, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.load(tmp_path / "step-00000001")[1] == {"run": 3}


# --- damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {"step": 1})
    path = checkpoint.save(tmp_path, 2, tensors(2), {"step": 2}) / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if damage == "delete":
        path.unlink()
    with pytest.raises(TrainingError, match="damaged") as caught:
        checkpoint.load(path.parent)
    assert "step-00000002" in caught.value.where
    said: list[str] = []
    restored = checkpoint.restore(tmp_path, say=said.append)
    assert restored
    assert restored.state == {"step": 1}
    assert torch.equal(restored.tensors["weight/a"], torch.ones(4))
    assert len(said) == 1
    assert "step-00000002" in said[0]
    if file != "manifest.json":  # damage of the manifest itself may show at any file
        assert file in said[0]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (checkpoint.save(tmp_path, 1, tensors(1), {}) / "state.json").write_text("{}  ")
    with pytest.raises(TrainingError, match="no earlier checkpoint is whole"):
        checkpoint.restore(tmp_path, say=lambda _: None)


# --- a disk that fills up -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_where_the_next_start_goes_on_from_is_told(tmp_path: Path) -> None:
    """Best weights alone are nothing to go on from."""
    checkpoint.save(tmp_path / "best", 3, tensors(1, 10), {}, keep=None)
    assert [checkpoint.goes_on(folder)[:16] for folder in (tmp_path, tmp_path / "best")] == ["it begins anew, "] * 2
    checkpoint.save(tmp_path, 2, tensors(1, 10), {})
    assert {checkpoint.goes_on(folder) for folder in (tmp_path, tmp_path / "best")} == {"it goes on from step-00000002"}


@pytest.mark.parametrize("size", [200_000, 130_000, 129_400])
def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path, size: int) -> None:
    """The tensors, then the last few kilobytes of the JSON, do not fit beside the first checkpoint (half a megabyte)."""
    folder = small_disk / "checkpoints"
    checkpoint.save(folder, 1, tensors(1, 129_000), {"step": 1})
    with pytest.raises(TrainingError, match="step 2 could not be written") as caught:
        checkpoint.save(folder, 2, tensors(2, size), {"padding": "x" * 20_000})
    assert "No space left" in caught.value.what
    assert "goes on from step-00000001" in caught.value.fix
    assert names(folder) == ["step-00000001"]
    restored = checkpoint.restore(folder)
    assert restored
    assert restored.state == {"step": 1}
    checkpoint.save(folder, 3, tensors(3, 1000), {"step": 3})


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from prefopt.errors import TrainingError
from prefopt.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"a": torch.ones(8)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(folder, 2, {"a": torch.ones(8192)}, {"step": 2})
except TrainingError as error:
    print(error)
print(checkpoint.restore(folder).state, len(list(folder.iterdir())))
"""


def test_a_file_size_limit_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The same without root: writing fails after 4096 bytes."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True, timeout=120)
    assert "step 2 could not be written" in done.stdout
    assert done.stdout.splitlines()[-1] == "{'step': 1} 1"


# --- a process killed at any moment ---------------------------------------------------------------------------------------


def _save_for_ever(folder: Path, reported: Connection) -> None:
    for count in itertools.count(1):
        checkpoint.save(folder, count // 2, tensors(count, 20_000), {"count": count})
        reported.send(count)


@pytest.mark.parametrize("trial", range(8))
def test_killed_in_the_middle_there_is_always_a_whole_checkpoint(tmp_path: Path, trial: int) -> None:
    """SIGKILL at a random moment of a loop that saves every step twice: what was reported as saved is never lost."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(tmp_path, sender))
    process.start()
    reported = receiver.recv()
    time.sleep(0.2 * random.Random(trial).random())
    process.kill()
    process.join()
    while receiver.poll():
        reported = receiver.recv()
    restored = checkpoint.restore(tmp_path, say=pytest.fail)
    assert restored
    assert reported <= restored.state["count"] <= reported + 1
    assert torch.equal(restored.tensors["weight/a"], torch.full((20_000,), float(restored.state["count"])))
    checkpoint.save(tmp_path, 10**6, tensors(0), {}, keep=1)
    assert names(tmp_path) == ["step-01000000"]


STAGES = ["save_file", "_describe", "_flush", "_put", "_discard"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_every_stage(tmp_path: Path, stage: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption before or after any part of the saving leaves the old or the new checkpoint, whole, and no rubbish."""
    checkpoint.save(tmp_path, 1, tensors(1), {"step": 1})
    checkpoint.save(tmp_path, 2, tensors(2), {"step": 2})
    original = getattr(checkpoint, stage)

    def interrupted(*args: object) -> object:
        if when == "after":
            original(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, tensors(3), {"step": 3}, keep=1)
    restored = checkpoint.restore(tmp_path, say=pytest.fail)
    assert restored
    assert float(restored.tensors["weight/a"][0]) == restored.state["step"] in (2, 3)
    checkpoint.save(tmp_path, 4, tensors(4), {"step": 4}, keep=1)
    assert names(tmp_path) == ["step-00000004"]
