"""generate and score: ask a model, rows in and rows out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.runs import Settings
from prefopt.errors import OptionError

Model = Annotated[str, typer.Option(help="A Hugging Face folder or hub name.", show_default=False)]
Data = Annotated[list[str], typer.Option(help="Files, folders or hub names in any layout.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The JSON Lines file to write.", show_default=False)]


def generate(model: Model, data: Data, out: Out, settings: Settings = None) -> None:
    """Sample completions of the prompts of some rows.

    Each row written has prompt, completions, finished (ended by itself or by the token limit) and the row's own meta.

    Example: prefopt generate --model runs/x/model --data prompts.jsonl --out answers.jsonl rollout.samples=4 rollout.temperature=0.7
    """
    from prefopt.pipeline.stages import write_samples

    typer.echo(f"{out}: {write_samples(_stage('sample', model, data, settings), out)[1]}")


def score(
    data: Data,
    out: Out,
    model: Annotated[str | None, typer.Option(help="A policy or a reward model.", show_default=False)] = None,
    settings: Settings = None,
    reference: Annotated[str | None, typer.Option(help="A policy to measure a policy against.", show_default=False)] = None,
) -> None:
    """Score the completions of some rows.

    A reward model gives its rewards; a policy beta * log pi of the completion in nats, and with --reference the implicit reward
    beta * (log pi - log pi_ref). Each row written has prompt, completions and scores, which methods for pairs and rankings train on.

    With reward.* the completions are rated as in training, by verifiers, functions, endpoints, reward models and their sums; --model is
    then needed only where tokens are counted. What could not be judged is counted and written to OUT.unjudged.jsonl, never scored 0.

    Example: prefopt score --model runs/x/model --reference ./base --data prefs.jsonl --out scores.jsonl beta=0.1
    """
    from prefopt.pipeline.stages import write_scores

    if model is None and not any(argument.startswith(("reward.", "model.")) for argument in settings or []):
        fix = "give --model, or a reward such as reward.verifier=math"
        raise OptionError("nothing to score with", where="command line", fix=fix)
    own = {"reference": reference} if reference else {}
    typer.echo(f"{out}: {write_scores(_stage('score', model, data, settings, **own), out)[1]}")


def _stage(kind: str, model: str | None, data: list[str], settings: list[str] | None, **own: Any) -> Any:
    """The checked stage these commands stand for."""
    from prefopt.pipeline.recipe import single
    from prefopt.pipeline.source import parse_override

    paths: str | list[str] = data[0] if len(data) == 1 else data
    named = {"model": {"path": model}} if model is not None else {}
    given = {"kind": kind, **named, "data": {"path": paths}, **own}
    return single(given, [parse_override(argument) for argument in settings or []])
