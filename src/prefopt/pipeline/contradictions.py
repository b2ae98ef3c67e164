"""Settings of a stage that are each allowed and cannot be together, found where a recipe is read: its last stage may be hours away.

What only the model and the rows can tell (lengths, columns, which metrics are measured) is found when the stage starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.errors import OptionError, did_you_mean
from prefopt.pipeline.kinds import KINDS, EnsembleOptions
from prefopt.settings import RewardSettings, RolloutSettings, changed

if TYPE_CHECKING:
    from prefopt.pipeline.recipe import Stage
    from prefopt.training.setup import Setup

SETUP = ("train", "lora", "heads", "reference", "rollout", "online", "kl", "critic")
"""Sections that a training run is set up with."""


def check(stage: Stage, before: Sequence[Stage]) -> None:
    """Refuse a stage whose settings contradict each other or the stages before it.

    Raises:
        OptionError: the first contradiction; `where` is the key in the stage.
    """
    if stage.kind not in KINDS:
        _training(stage)
    elif stage.kind == "sample":
        _sampling(stage.sections["rollout"])
    elif stage.kind == "score":
        _scoring(stage)
    elif stage.kind == "ensemble":
        _alone(stage.options["k"] != EnsembleOptions().k, "k", "rule=lower_bound", stage.options["rule"] == "lower_bound")
    elif stage.kind == "evaluate":
        _evaluating(stage)
    elif stage.kind == "gate":
        _gating(stage, before)


def setup_of(stage: Stage) -> Setup:
    """What a training stage asks of its run."""
    from prefopt.training.setup import Setup

    given = {name: stage.sections[name] for name in SETUP if name in stage.sections}
    watched = "monitor" in stage.sections and stage.sections["monitor"].evaluator is not None
    return Setup(method=stage.kind, options=stage.options, mix=stage.mix, pairs=stage.sections["data"].pairs, watched=watched, **given)


def _training(stage: Stage) -> None:
    from prefopt.pack.prepare import check as check_data
    from prefopt.rollout.rewards.build import penalties, sources
    from prefopt.training.checks import check_evaluations

    setup, data = setup_of(stage), stage.sections["data"]
    setup.check()
    check_data(data, setup.row.data)
    check_evaluations(setup.train, heldout=data.eval_path is not None or data.eval_fraction > 0)
    if setup.row.online is not None:
        sources(stage.sections["reward"])
        penalties(stage.sections["reward"], setup.rollout.max_new_tokens)
        monitor = stage.sections["monitor"]
        for name in changed(monitor, "every", "patience", "confidence", "stop"):
            _alone(True, f"monitor.{name}", "monitor.evaluator", monitor.evaluator is not None)


def _sampling(rollout: RolloutSettings) -> None:
    from prefopt.rollout.sampler import check_engine

    check_engine(rollout)
    if rollout.folder is not None:
        raise OptionError("only training gives a server new weights", where="rollout.folder", fix="leave it out")


def _scoring(stage: Stage) -> None:
    from prefopt.rollout.rewards.build import penalties, sources

    reward = stage.sections["reward"]
    if reward != RewardSettings():
        sources(reward)
        penalties(reward, None)


def _evaluating(stage: Stage) -> None:
    from prefopt.evaluate.judges import check as check_judge

    options, rollout = stage.options, stage.sections["rollout"]
    _sampling(rollout)
    if rollout.engine == "server" and options["baseline"]:
        what = "one server answers for one model, and here the model and its baseline are asked"
        raise OptionError(what, where="rollout.engine", fix="evaluate with rollout.engine=local, or leave the baseline out")
    check_judge(stage.sections["judge"])
    _alone(options["shots"] is not None, "shots", "tasks", bool(options["tasks"]))


def _gating(stage: Stage, before: Sequence[Stage]) -> None:
    from prefopt.pipeline.gate import read_policy

    evaluations, policy = [one.name for one in before if one.kind == "evaluate"], stage.options["policy"]
    if not evaluations:
        raise OptionError("a gate reads evaluations, and no stage before it is one", fix="put it after a stage `kind: evaluate`")
    for name in stage.options["stages"]:
        if name not in evaluations:
            what = f"no evaluate stage before it is called '{name}'"
            raise OptionError(what, where="stages", fix=did_you_mean(name, evaluations))
    if policy is not None and "${" not in policy:
        read_policy(Path(policy))


def _alone(given: bool, where: str, reader: str, there: bool) -> None:
    """Refuse a setting that is given where what reads it is not there."""
    if given and not there:
        raise OptionError(f"read by {reader} alone", where=where, fix=f"set it, or leave {where} out")
