"""Two gloo processes train as one: the same losses and weights as a single process on the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import together
from tests.worlds import metrics_of, run

SCRIPT = """
import sys
from pathlib import Path
from tests.worlds import run
for method in sys.argv[2:]:
    run(Path(sys.argv[1]) / method, method, heldout=5, train={"steps": 3, "save_every": 2})
"""
METHODS = ("dpo", "kto", "bco", "reward")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(SCRIPT)
    together(folder / "train.py", str(folder), *METHODS)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_as_one(method: str, two_ranks: Path, tmp_path: Path) -> None:
    run(tmp_path, method, heldout=5, train={"steps": 3, "save_every": 2})
    for mine, theirs in zip(metrics_of(tmp_path), metrics_of(two_ranks / method), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    one, both = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, two_ranks / method))
    for name, weight in one.items():
        torch.testing.assert_close(weight, both[name], atol=2e-4, rtol=2e-4)
