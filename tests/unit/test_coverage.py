"""The quick form of benchmarks/coverage.py: intervals cover about as often as they say, and one that is not offered does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["win rate, 30% ties, n 200", "win rate, 50 prompts of 4, ties", "Bradley-Terry, Wald, n 300", "LC win rate, n 300"]
)
def test_cheap_intervals_cover(coverage: ModuleType, name: str) -> None:
    """Of 300 at 95%, below 91% has a chance of 0.2%."""
    assert 0.91 <= coverage.covers(coverage.INTERVALS[name](), 300) <= 0.985


def test_the_percentile_interval_of_ece_does_not_cover(coverage: ModuleType) -> None:
    assert coverage.covers(coverage.INTERVALS["(not offered) ECE percentile, n 1000"](), 10) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Cohen's kappa, n 100", "Krippendorff's alpha, n 100", "ECE, true 0.028, n 1000"])
def test_dear_intervals_cover(coverage: ModuleType, name: str) -> None:
    assert 0.91 <= coverage.covers(coverage.INTERVALS[name](), 300) <= 0.985


def test_the_gate_of_the_benchmark(coverage: ModuleType) -> None:
    assert coverage.passes(0.5, 500) <= 0.05
    assert coverage.passes(0.6, 100) >= 0.9
