"""The command line: parse, call, print. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt import __version__
from prefopt.cli import arena, data, evaluate, gate, look, runs, use, verify
from prefopt.errors import PrefoptError

USAGE, FAULT, INTERRUPTED = 2, 4, 130
_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, of click itself or of typer's own copy of it

app = typer.Typer(
    name="prefopt",
    help="Preference optimization of language models, from a model and preferences to an aligned model with its evidence.",
    epilog="Start with: prefopt quickstart. Options are key=value after the flags, the same keys as in a recipe.",
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
)
for _command in (
    runs.quickstart,
    runs.run,
    runs.train,
    use.generate,
    use.score,
    evaluate.evaluate,
    gate.gate,
    arena.arena,
    look.methods,
    look.doctor,
    look.report,
    verify.verify,
):
    app.command()(_command)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code: 0 done, 1 no, 2 the user's mistake, 3 inconclusive, 4 a fault of ours."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command; everything it says in trouble is at most three lines on standard error."""
    try:
        return int(app(arguments, prog_name="prefopt", standalone_mode=False) or 0)
    except PrefoptError as error:
        return _say(str(error), error.exit_code)
    except _CLICK_ERROR as error:
        return _say(_usage(error), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except Exception as error:
        return _left() if isinstance(error, BrokenPipeError) else _fault(error)


def _usage(error: Any) -> str:
    """What is wrong with the words of the command, and where to look."""
    command = error.ctx.command_path if error.ctx else "prefopt"
    hint = "options are key=value, as in beta=0.1; " if hasattr(error, "option_name") else ""
    return f"{error.format_message()}\n{hint}see {command} --help"


def _left() -> int:
    """The reader of a pipe went away: nothing more can be said to it, and that is no fault."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fault(error: Exception) -> int:
    """One line for a fault of ours, with the place of the traceback."""
    import tempfile
    import traceback

    path = getattr(error, "path", None)
    text = str(error) if path else f"a fault: {type(error).__name__}: {error}"
    if path is None:
        with tempfile.NamedTemporaryFile("w", prefix="prefopt-", suffix=".txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
        path = Path(file.name)
    return _say(f"{' '.join(text.split())[:300]} (ours to mend; the traceback is in {path})", FAULT)


def _say(message: str, code: int) -> int:
    lines = [line for line in message.splitlines() if line.strip()][:3] or ["failed"]
    typer.echo("\n".join([f"prefopt: {lines[0]}", *lines[1:]]), err=True)
    return code
