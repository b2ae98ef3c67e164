"""Charts of what watches a run: does the reward still stand for what it should?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.report.charts import Panel, Series, panel
from prefopt.report.folder import Json, Stage

_PROXY = "What the policy is trained on, over the square root of the KL to the reference, in which over-optimisation shows as a parabola."
_EVALUATOR = "The held-out evaluator on the same answers. Where it falls while the reward rises, the reward is being hacked."


def reward_charts(stage: Stage) -> list[Panel]:
    """The charts a stage has data for."""
    made = []
    for key, title, style, caption in (("reward", "Reward", "after", _PROXY), ("evaluator", "Evaluator", "before", _EVALUATOR)):
        by = "sqrt_kl" if _points(stage.monitor, "sqrt_kl", key) else "round"
        points = sorted(_points(stage.monitor, by, key))
        if points:
            words = "√KL" if by == "sqrt_kl" else "round"
            made.append(panel(title, "mean of the round's answers", caption, [Series(key, style, points, True)], x_title=words))
    return made


def _points(rows: Sequence[Json], x: str, y: str) -> list[tuple[float, float]]:
    return [(float(row[x]), float(row[y])) for row in rows if _is_number(row.get(x)) and _is_number(row.get(y))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
