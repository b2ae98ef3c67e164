"""What a model does on held-out data, each figure with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefopt.data.read import read
from prefopt.errors import OptionError
from prefopt.evaluate import pairs, world
from prefopt.pack.prepare import prepare
from prefopt.settings import DataSettings, RolloutSettings
from prefopt.types import TokenTree

__all__ = ["run"]


def run(
    suite: str,
    model: Any,
    baseline: Any | None,
    data: DataSettings,
    *,
    rollout: RolloutSettings,
    seed: int,
    out: Path,
    say: Callable[[str], object] = print,
) -> str:
    """Run a suite; writes evaluation.json and samples.jsonl into `out` and returns one line to print.

    Args:
        suite: "world" (answers judged by the gold reward) or "pairs" (accuracy on held-out preferences).
        model: a Policy or RewardModel.
        baseline: another Policy, or None.
        data: the rows; for pairs as a training stage reads them, for the world only `path` and `limit`.
        rollout: how answers are sampled, for the world.
        seed: of the world's bootstrap, and of the split of pairs.
        out: the stage's folder.
        say: is given the preflight's table.

    Raises:
        OptionError: an option of the data section that the suite does not read.
    """
    if suite == "pairs":
        return pairs.evaluate(model, baseline, held_out(model, data, seed, say), out=out)
    unread = [f.name for f in fields(data) if f.name not in ("path", "limit") and getattr(data, f.name) != f.default]
    if unread:
        raise OptionError("the world suite reads only data.path and data.limit", where=f"data.{unread[0]}", fix="leave it out")
    return world.evaluate(model, baseline, list(read(data.path, limit=data.limit)), rollout=rollout, seed=seed, out=out)


def held_out(model: Any, data: DataSettings, seed: int, say: Callable[[str], object]) -> list[TokenTree]:
    """The preferences that a training stage with this data section and seed holds out; all of them where it holds out none."""
    prepared = prepare(data, model.renderer, data="pairs", max_length=model.max_length, seed=seed, say=say)
    return prepared.heldout if data.eval_path is not None or data.eval_fraction else prepared.train
