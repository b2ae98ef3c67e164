"""One self-contained HTML file for a run. Everything shown comes from its files; the templates escape all of it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.report import evidence, inputs, lineage, samples, scatter, training, words
from prefopt.report.folder import Run, Stage, mapping, read
from prefopt.report.gate import Changed, gate
from prefopt.report.verdict import verdict


def build(run: str | Path, *, changed: Changed) -> Path:
    """Write `report.html` into a run folder (of a recipe or of a single stage) and return its path.

    What the folder does not hold is left out, and the page says so.

    Args:
        run: the folder.
        changed: what a gate.json rests on and has changed since, weights aside (`prefopt.pipeline.gate.changed`).

    Raises:
        DataError: there is no run in the folder.
    """
    folder = Path(run)
    text = render(read(folder), changed)
    page, half = folder / "report.html", folder / ".report.html.part"
    half.write_bytes(text.encode("utf-8", "replace"))
    os.replace(half, page)
    return page


def render(run: Run, changed: Changed) -> str:
    """The page as text."""
    evaluations = [evidence.evidence(stage) for stage in run.stages if stage.evaluation]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            gate=gate(run, changed),
            verdict=verdict(run, evaluations),
            lineage=lineage.lineage(run),
            frontier=scatter.frontier(evaluations),
            stands_on=evidence.stands_on(evaluations),
            evaluations=[_evaluation(found) for found in reversed(evaluations)],
            trained=[_trained(stage) for stage in run.stages if stage.trains],
            records=[_record(stage) for stage in run.stages if stage.record],
            environment=next((_environment(stage) for stage in reversed(run.stages) if stage.record), []),
            period=_period(run),
        )
    )


@cache
def environment() -> Environment:
    """Templates that escape everything and refuse names that are not there."""
    found = Environment(
        loader=PackageLoader("prefopt.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"shown": words.shown, "number": words.number}
    return found


def _evaluation(found: evidence.Evidence) -> dict[str, Any]:
    return {
        "name": found.stage.name,
        "model": found.model,
        "baseline": found.baseline,
        "n": found.n,
        "suite": found.suite,
        "plots": evidence.plots(found),
        "table": evidence.table(found),
        "calibration": scatter.calibration(found),
        "extras": evidence.extras(found),
        "galleries": samples.galleries(found),
    }


def _trained(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "charts": training.charts(stage),
        "more_charts": training.charts(stage, minor=True),
        "preflight": inputs.preflight(stage),
        "rows": inputs.rows(stage),
        "stopped": stage.record.get("stopped", ""),
    }


def _record(stage: Stage) -> dict[str, Any]:
    entry = stage.record
    facts = {
        "started": entry.get("started"),
        "took": words.duration(entry.get("seconds")),
        "state": "done" if stage.done else "not finished",
        "code": _code(entry.get("code")),
        **{f"seed {name}": seed for name, seed in mapping(entry.get("seeds")).items()},
        **{
            name.replace("_", " "): value for name, value in entry.items() if isinstance(value, str) and ("sha256" in name or name == "key")
        },
        "tokenizer and template": entry.get("tokenizer_and_template") or entry.get("renderer"),
        **{f"from {name}": key for name, key in mapping(entry.get("parents")).items()},
        **{f"input {path}": sha for path, sha in mapping(entry.get("inputs")).items()},
        **{f"file {name}": sha for name, sha in mapping(entry.get("sha256")).items()},
    }
    given = {name: value for name, value in entry.items() if name == "command" and isinstance(value, str)}
    return {"name": stage.name, "kind": stage.kind, "facts": {k: v for k, v in {**given, **facts}.items() if v}, "recipe": stage.recipe}


def _environment(stage: Stage) -> list[tuple[str, str]]:
    """Versions and hardware, from the last stage that recorded them."""
    hardware = mapping(stage.record.get("hardware"))
    found = [(name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in hardware.items()]
    versions = [("prefopt", _code(stage.record.get("code"))), *mapping(stage.record.get("packages")).items(), *found]
    return [(name.replace("_", " "), str(value)) for name, value in versions if value not in (None, "")]


def _code(found: Any) -> str:
    code = mapping(found)
    commit = str(code.get("commit") or "")[:12]
    state = " with uncommitted changes" if code.get("dirty") else ""
    return f"{code.get('version', '')}{f', commit {commit}' if commit else ''}{state}"


def _period(run: Run) -> str:
    """The day the run ended and how long its stages took together."""
    ends = [str(stage.record["ended"]) for stage in run.stages if stage.record.get("ended")]
    seconds = [s for stage in run.stages if isinstance(s := stage.record.get("seconds"), int | float)]
    day = _day(max(ends)) if ends else ""
    return " · ".join(part for part in (day, words.duration(sum(seconds)) if seconds else "") if part)


def _day(stamp: str) -> str:
    try:
        when = datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y}"
