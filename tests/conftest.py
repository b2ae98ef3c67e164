"""Tiny real parts shared by tests: models of many families, trees, a tokenizer, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits, and the workers share the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.real import DATA


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference caches of a test stay in its own folder."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped without it."""
    if not DATA.exists():
        pytest.skip(f"the real data sets (docs/results.md) are neither in {DATA} nor where PREFOPT_DATA says")
    return DATA
