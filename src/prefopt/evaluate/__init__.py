"""What a model does on held-out data, each figure with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.evaluate import pairs, world
from prefopt.settings import RolloutSettings
from prefopt.types import Example

__all__ = ["run"]


def run(suite: str, model: Any, baseline: Any | None, rows: Sequence[Example], *, rollout: RolloutSettings, seed: int, out: Path) -> str:
    """Run a suite; writes evaluation.json (and samples.jsonl) into `out` and returns one line to print.

    Args:
        suite: "world" (answers judged by the gold reward) or "pairs" (accuracy on held-out preferences).
        model: a Policy or RewardModel.
        baseline: another Policy, or None.
        rows: the held-out data.
        rollout: how answers are sampled, for the world.
        seed: of the world's bootstrap.
        out: the stage's folder.
    """
    if suite == "pairs":
        return pairs.evaluate(model, baseline, rows, out=out)
    return world.evaluate(model, baseline, rows, rollout=rollout, seed=seed, out=out)
