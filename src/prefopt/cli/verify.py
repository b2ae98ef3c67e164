"""verify: every method against what theory says of its optimum."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from prefopt.errors import Refused


def verify(method: Annotated[str | None, typer.Argument(help="One method; all when not given.", show_default=False)] = None) -> None:
    """Hold every method to what theory says of it.

    Each is trained where its optimum is known, and the distance is measured: a tabular policy and a tiny transformer learn worlds small
    enough to list every completion, from data whose proportions are exact.

    Exit code 1 when a claim fails. All methods take about two minutes on two cores.

    Example: prefopt verify dpo
    """
    from prefopt.verify.run import cores, heading, line
    from prefopt.verify.run import verify as verdicts

    started, failed, done = time.perf_counter(), 0, 0
    found = verdicts(method, processes=cores() if method is None else 1)
    for verdict in found:
        if not done:
            typer.echo(heading())
        typer.echo(line(verdict))
        done, failed = done + 1, failed + (not verdict.holds)
    typer.echo(f"{done - failed} of {done} hold, in {time.perf_counter() - started:.0f} s")
    if failed:
        raise Refused("some claims fail", fix="the lines marked FAILS say which; the loss, its columns or the loop are wrong")
