"""methods, doctor and report: things to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.errors import Refused


def methods(name: Annotated[str | None, typer.Argument(help="One method; all when not given.", show_default=False)] = None) -> None:
    """Show the methods, or all there is to know of one.

    Example: prefopt methods dpo
    """
    from prefopt.losses.explain import explain

    typer.echo(explain(name))


def doctor() -> None:
    """Say what this machine can do, and what is missing.

    Exit code 1 when training cannot work.

    Example: prefopt doctor
    """
    from prefopt.cli.doctor import findings

    worst = "ok"
    for finding in findings():
        typer.echo(str(finding))
        worst = finding.state if finding.state == "no" else worst
    if worst == "no":
        raise Refused("something that training needs does not work here", fix="the lines marked 'no' say what")


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    picture: Annotated[Path | None, typer.Option(help="Draw one small SVG picture into this file instead.", show_default=False)] = None,
    frontier: Annotated[
        Path | None, typer.Option(help="Draw reward against distance (SVG) into this file instead.", show_default=False)
    ] = None,
) -> None:
    """Write the report of a run, one HTML file.

    Example: prefopt report runs/quickstart
    """
    from prefopt.pipeline.gate import changed
    from prefopt.report import build, draw, draw_frontier

    drawn = [make(run, path) for make, path in ((draw, picture), (draw_frontier, frontier)) if path]
    typer.echo("\n".join(str(path) for path in drawn or [build(run, changed=changed)]))
