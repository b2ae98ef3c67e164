"""Charts of reward models and of the monitor: drawn where a stage has the files, absent where it has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.report import evidence, scatter
from prefopt.report.folder import Stage
from prefopt.report.reward import reward_charts


def test_a_stage_without_these_files_has_none_of_these_charts() -> None:
    assert reward_charts(Stage(name="dpo", kind="dpo", folder=Path())) == []


def test_a_calibrated_model_lies_on_the_diagonal_with_its_intervals() -> None:
    rows = [{"said": p, "happened": p, "low": p - 0.05, "high": p + 0.05, "n": 9} for p in (0.25, 0.75)]
    flat = [{**row, "happened": 0.5} for row in rows]
    stage = Stage(name="reward", kind="reward", folder=Path(), calibration={"curves": {"after": rows, "before": flat}, "unit": "pair"})
    drawn = scatter.calibration(evidence.evidence(stage))
    assert drawn is not None
    first, second = drawn.marks
    assert (first.y - second.y) / (drawn.bottom - drawn.top) == pytest.approx((second.x - first.x) / (drawn.right - drawn.left), abs=0.01)
    assert (first.bottom - first.top) / (drawn.bottom - drawn.top) == pytest.approx(0.1, abs=0.01)
    assert drawn.guide
    assert [curve.name for curve in drawn.curves] == ["as trained"]
    assert scatter.calibration(evidence.evidence(Stage(name="dpo", kind="dpo", folder=Path()))) is None


def test_reward_and_evaluator_over_distance() -> None:
    rows = tuple({"round": i, "sqrt_kl": float(i), "reward": float(i), "evaluator": -float(i)} for i in range(3))
    found = reward_charts(Stage(name="grpo", kind="grpo", folder=Path(), monitor=rows))
    assert [(chart.title, chart.x_title) for chart in found] == [("Reward", "√KL"), ("Evaluator", "√KL")]
    heights = [[y for _, y in chart.lines[0].dots] for chart in found]
    assert heights[0] == sorted(heights[0], reverse=True)
    assert heights[1] == sorted(heights[1])
