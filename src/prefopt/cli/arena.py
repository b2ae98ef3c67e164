"""arena: ratings of many models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prefopt.errors import OptionError, did_you_mean


def arena(
    files: Annotated[list[Path], typer.Argument(help="Battles, or each model's scored answers (JSONL).", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="A folder for arena.json and arena.html.", show_default=False)] = None,
    ties: Annotated[str, typer.Option(help="half (half a win each), davidson or rao_kupper.")] = "half",
    ridge: Annotated[float, typer.Option(help="Shrinks ratings, so that a model that never lost has one.")] = 0.0,
    draws: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the intervals, and of all ranks together.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Rate models by their battles.

    A rank is claimed only where the data allow. A row is a battle (model_a, model_b, winner: a, b or tie, and prompt if known) or, of
    `prefopt score`, one model's scored answers (prompt, completions, scores); every two models are then compared on the prompts they share.

    Example: prefopt arena battles.jsonl --out runs/arena
    """
    from prefopt.evaluate import arena as arenas
    from prefopt.pipeline import record

    if ties not in arenas.MODELS:
        raise OptionError(f"no tie model is called '{ties}'", where="--ties", fix=did_you_mean(ties, arenas.MODELS))
    if not 0 < confidence < 1 or draws < 100 or ridge < 0:
        raise OptionError(
            "confidence lies between 0 and 1, draws are 100 or more, ridge is not negative", where="prefopt arena", fix="see --help"
        )
    found = arenas.rate(arenas.read(files), ties=ties, ridge=ridge, draws=draws, confidence=confidence, seed=seed)
    typer.echo("\n".join(arenas.lines(found)))
    if out is not None:
        with record.writing(out):
            out.mkdir(parents=True, exist_ok=True)
            inputs = {str(path): record.digest_path(path) for path in files}
            record.write_text(out / "arena.json", json.dumps({**arenas.to_json(found), "inputs": inputs}, indent=1) + "\n")
            record.write_text(out / "arena.html", arenas.page(found))
        typer.echo(f"page: {out / 'arena.html'}")
