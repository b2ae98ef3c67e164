"""Nobody moves a number unseen: every way of running the same steps meets the recorded losses and gradient norms."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from prefopt.losses.methods import METHODS
from tests.golden import record
from tests.golden import trajectory as golden
from tests.ranks import together

ROOT = record.ROOT
FEW = ("sft", "dpo", "kto", "bco", "pl_dpo", "reward", "prm")
"""A method of each kind of data and of coupling, for what is too slow for all."""
ALONE = {name for name, row in METHODS.items() if row.coupling == "batch" or row.online}
"""Methods that sort the rows of a step or sample, and refuse several processes."""


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_as_recorded(method: str) -> None:
    assert list(golden.departures(golden.trajectory(method), golden.recorded(method))) == []


@pytest.mark.parametrize("method", METHODS)
def test_padded_rows_in_small_micro_batches_meet_the_same_file(method: str) -> None:
    found = golden.trajectory(method, steps=5, layout="padded", micro_tokens=60)
    assert list(golden.departures(found, golden.recorded(method))) == []


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"micro_tokens": 1}, {"micro_tokens": 70}, {"layout": "padded"}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_other_packings_meet_the_same_file(method: str, train: dict[str, object]) -> None:
    assert list(golden.departures(golden.trajectory(method, **train), golden.recorded(method))) == []


@pytest.mark.parametrize("methods", [FEW, pytest.param(tuple(METHODS), marks=pytest.mark.slow)], ids=["few", "all"])
def test_two_ranks_meet_the_same_file(methods: tuple[str, ...], tmp_path: Path) -> None:
    shared = [method for method in methods if method not in ALONE]
    lines = ["import sys", "from pathlib import Path", "from tests.golden.trajectory import trajectory", "for method in sys.argv[2:]:"]
    (tmp_path / "train.py").write_text("\n".join([*lines, "    trajectory(method, out=Path(sys.argv[1]) / method)"]))
    together(tmp_path / "train.py", str(tmp_path), *shared)
    for method in shared:
        assert list(golden.departures(golden.series_of(tmp_path / method), golden.recorded(method))) == [], method


def test_every_recording_is_whole_and_has_a_reason() -> None:
    """A file changed without a line under "Changes numbers" fails here, and a row without a file too."""
    files = {path.stem for path in golden.FOLDER.glob("*.json")}
    assert files == METHODS.keys()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for method in METHODS:
        found = golden.recorded(method)
        assert {len(found[name]) for name in golden.SERIES} == {golden.STEPS}, method
        assert record.given(found["reason"], changelog), f"{method}: no line of the changelog says {found['reason']!r}"


# --- the recorder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings and changelog of a test, on a clean tree, with a trajectory that takes no time."""
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "uncommitted", list)
    monkeypatch.setattr(golden, "trajectory", lambda method: {"loss": [1.0, 0.5], "grad_norm": [2.0, 1.0]})
    (tmp_path / "CHANGELOG.md").write_text("### Changes numbers\n\n- DPO halves its\n  loss.\n\n## 0.1\n\n- elsewhere said\n")
    return tmp_path


def test_a_dirty_tree_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "uncommitted", lambda: ["src/prefopt/losses/pairwise.py"])
    with pytest.raises(SystemExit, match=r"commit first.*pairwise"):
        record.main(["dpo"])
    assert not (folder / "dpo.json").exists()


def test_what_counts_as_dirty(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "tests" / "golden").mkdir(parents=True)
    (tmp_path / "tests" / "golden" / "keep").write_text("")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "tests" / "golden" / "dpo.json").write_text("{}")
    (tmp_path / "CHANGELOG.md").write_text("")
    (tmp_path / "loop.py").write_text("")
    assert record.uncommitted(tmp_path) == ["tests/golden/keep", "loop.py"]


def test_moved_numbers_need_words_of_the_changelog(folder: Path) -> None:
    golden.write("dpo", {"loss": [1.0, 1.0], "grad_norm": [2.0, 1.0]}, golden.FIRST)
    for reason in ("", "because", "elsewhere said"):
        with pytest.raises(SystemExit, match=r"loss of step 2 is 0.5, recorded 1.0. Say why"):
            record.main(["dpo", "--reason", reason])
    record.main(["dpo", "--reason", "DPO halves its loss."])
    assert golden.recorded("dpo")["loss"] == [1.0, 0.5]
    assert golden.recorded("dpo")["reason"] == "DPO halves its loss."


def test_new_rows_are_recorded_and_unmoved_ones_left_alone(folder: Path) -> None:
    record.main(["dpo"])
    assert golden.recorded("dpo")["reason"] == golden.FIRST
    before = (folder / "dpo.json").read_text()
    record.main(["dpo", "--reason", "DPO halves its loss."])
    assert (folder / "dpo.json").read_text() == before


def test_a_departure_is_seen() -> None:
    expected = {"loss": [1.0, 2.0], "grad_norm": [1.0, 0.0]}
    assert list(golden.departures({"loss": [1.00005, 2.0], "grad_norm": [1.0, 1e-7]}, expected)) == []
    assert list(golden.departures({"loss": [1.001], "grad_norm": [1.0]}, expected)) == ["loss of step 1 is 1.001, recorded 1.0"]
    assert len(list(golden.departures({"loss": [float("nan")], "grad_norm": [1.0]}, expected))) == 1
