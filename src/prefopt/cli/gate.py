"""gate: may this model ship?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from prefopt.errors import OptionError, Refused, Undecided


def gate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder, an evaluation's, or an evaluation.json.", show_default=False)] = None,
    policy: Annotated[Path | None, typer.Option(help="The rules, a YAML file.", show_default="built in")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the verdict.", show_default="RUN/gate.json")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only ask whether the verdicts that are there still hold.")] = False,
    show_default: Annotated[bool, typer.Option("--show-default", help="Print the built-in rules, to copy and change.")] = False,
) -> None:
    """Decide whether a model may ship.

    Declared rules over its evaluations each pass, fail or are inconclusive with stated confidence; RUN/gate.json keeps the verdict with the
    rules' text and the hashes of everything it rests on.

    Exit code 0: pass. 1: fail, or with --check a verdict that no longer holds. 3: inconclusive. The worst of several verdicts counts.

    Example: prefopt gate runs/quickstart/evaluate --policy gate.yaml
    """
    from prefopt.pipeline import gate as gates

    if show_default:
        typer.echo(gates.DEFAULT.read_text(encoding="utf-8"), nl=False)
        return
    if run is None:
        raise OptionError("which run?", where="RUN", fix="give the folder of a run with an evaluate stage, as in prefopt gate runs/x")
    folder, rules = run if run.is_dir() else run.parent, gates.read_policy(policy)
    if check:
        _check([out] if out else gates.verdicts(folder), rules if policy else None)
        return
    place = out or folder / "gate.json"
    if place.is_file() and (moved := gates.changed(place, rules)):
        typer.echo(f"the earlier verdict no longer holds: changed since are {', '.join(moved)}")
    outcome = gates.decide(run, rules, write=place)
    typer.echo("\n".join([*gates.lines(outcome), f"verdict: {place}"]))
    leave({str(place): outcome.verdict})


def _check(places: list[Path], policy: object) -> None:
    """Whether every verdict still holds; ends as the worst one says."""
    from prefopt.pipeline import gate as gates
    from prefopt.pipeline.record import read_json

    verdicts = {}
    for place in places:
        if moved := gates.changed(place, policy, weights=True):  # type: ignore[arg-type]
            raise Refused(f"the verdict no longer holds: changed since are {', '.join(moved)}", where=str(place), fix="run the gate again")
        found = read_json(place)
        gone = [name for name in found["models"] if not (place.parent / name).exists()]
        unknown = f", as far as can be told without {', '.join(gone)}" if gone else ""
        which = f"{place}: " if len(places) > 1 else ""
        typer.echo(f"{which}{found['verdict']}, decided {found['decided']}, still holds{unknown}")
        verdicts[str(place)] = str(found["verdict"])
    leave(verdicts)


def leave(verdicts: Mapping[str, str]) -> None:
    """End with the exit code of the worst of the verdicts, given by their places.

    Raises:
        Refused: one failed.
        Undecided: none failed, and one is inconclusive.
    """
    failed = [place for place, verdict in verdicts.items() if verdict == "FAIL"]
    undecided = [place for place, verdict in verdicts.items() if verdict not in ("PASS", "FAIL")]
    if failed:
        raise Refused("the gate fails", where=", ".join(failed), fix="the rules marked FAIL say why")
    if undecided:
        raise Undecided("the gate is inconclusive", where=", ".join(undecided), fix="the rules marked INCONCLUSIVE say what would decide")
