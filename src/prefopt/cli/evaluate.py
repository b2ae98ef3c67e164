"""evaluate: what a model does on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.runs import Settings


def evaluate(
    model: Annotated[str, typer.Option(help="A Hugging Face folder or hub name.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    data: Annotated[
        list[str] | None, typer.Option(help="Files, folders or hub names; may be given several times.", show_default=False)
    ] = None,
    settings: Settings = None,
    baseline: Annotated[str | None, typer.Option(help="The model to compare with.", show_default=False)] = None,
    suite: Annotated[list[str] | None, typer.Option(help="What to measure; may be given several times.", show_default="default")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Clear a folder that holds another evaluation.")] = False,
) -> None:
    """Measure a model and its baseline on held-out data.

    Suites: preference (win rate, also at equal length), shift (KL, entropy, variety, length), safety (refusals), robustness (other prompts
    and templates), pairs and rewardbench (accuracy on preferences), capability (perplexity, sums, instructions, code), truth (the synthetic
    world), lm_eval (tasks=[arc_easy], any task of lm-eval; no data needed). Without --suite: all that the models and the data allow, but
    for guardrail, rewardbench and frontier. Writes OUT/evaluation.json and OUT/samples.jsonl; `prefopt report OUT` shows them.

    Example: prefopt evaluate --model runs/x/dpo/model --baseline runs/x/sft/model --data heldout.jsonl --out runs/x/eval judge.path=./rm
    """
    from prefopt.pipeline.recipe import single
    from prefopt.pipeline.run import Context, Finished, run_stage
    from prefopt.pipeline.source import parse_override

    files = data or []
    given: dict[str, Any] = {"kind": "evaluate", "model": {"path": model}, "data": {"path": files[0] if len(files) == 1 else files}}
    given |= {"baseline": baseline} if baseline else {}
    given |= {"suite": suite[0] if len(suite) == 1 else suite} if suite else {}
    stage = single(given, [parse_override(argument) for argument in settings or []])
    run_stage(stage, out, Finished(), Context(out, (), typer.echo), replace=overwrite)
    typer.echo(f"figures: {out / 'evaluation.json'}")
