"""data: the life of a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from prefopt.errors import Refused

app = typer.Typer(help="Look at data before training on it.")


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    """Look at data before training on it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def check(
    paths: Annotated[list[str], typer.Argument(help="Files, folders or hub names.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Count tokens too, with this model's tokenizer.", show_default=False)] = None,
    template: Annotated[str | None, typer.Option(help="Its chat template: a built-in name or a file.", show_default=False)] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest prompt + completion in tokens.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of each file.", show_default=False)] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Read strings as turns of a conversation.")] = False,
) -> None:
    """Read every row and say what there is, and what cannot be used.

    Exit code 1 when something cannot.

    Example: prefopt data check prefs.jsonl --model ./my-model
    """
    from prefopt.data.check import check as check_data

    renderer = None
    if model is not None:
        from prefopt.model.load import load_tokenizer
        from prefopt.text.chat import Renderer

        renderer = Renderer(load_tokenizer(model), template)
    outcome = check_data(paths, renderer=renderer, max_length=max_length, limit=limit, chat=chat)
    typer.echo(outcome.table())
    if not outcome.sound:
        raise Refused("some rows cannot be trained on as they are", fix="the lines above say which and why")
