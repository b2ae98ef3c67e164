"""The suites: what can be measured, and the run that measures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import DataError, OptionError, did_you_mean
from prefopt.evaluate import (
    capability,
    formats,
    frontier,
    guardrail,
    harness,
    pairs,
    preference,
    rewardbench,
    robustness,
    safety,
    shift,
    truth,
)
from prefopt.evaluate.bench import Bench, Findings
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import write, write_jsonl


@dataclass(frozen=True)
class Suite:
    """A function of the bench, and what it lacks there ("" where it can run)."""

    run: Callable[[Bench], Findings]
    lacks: Callable[[Bench], str]


SUITES: dict[str, Suite] = {
    "truth": Suite(truth.run, truth.lacks),
    "preference": Suite(preference.run, preference.lacks),
    "shift": Suite(shift.run, shift.lacks),
    "safety": Suite(safety.run, safety.lacks),
    "robustness": Suite(robustness.run, robustness.lacks),
    "capability": Suite(capability.run, capability.lacks),
    "pairs": Suite(pairs.run, pairs.lacks),
    "guardrail": Suite(guardrail.run, guardrail.lacks),
    "rewardbench": Suite(rewardbench.run, rewardbench.lacks),
    "frontier": Suite(frontier.run, frontier.lacks),
    "lm_eval": Suite(harness.run, harness.lacks),
}
"""Name -> suite, in the order in which they run and are told."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "default": tuple(name for name in SUITES if name not in ("rewardbench", "guardrail", "frontier")),
    "world": ("truth", "preference", "shift", "safety"),
}
"""Names that stand for several suites: those of them are run that the models and the data allow."""


def run(names: str | Sequence[str], bench: Bench) -> str:
    """Run suites; writes evaluation.json and samples.jsonl into `bench.out` and returns one line to print.

    Raises:
        OptionError: an unknown suite, or one that lacks something.
        DataError: rows that a suite cannot use, or that the model was trained on.
    """
    asked = [names] if isinstance(names, str) else list(names)
    _known(asked, bench)
    notes = bench.guard()
    names = chosen(asked, bench)
    found = {name: SUITES[name].run(bench) for name in names}
    figures = _once(f for findings in found.values() for f in findings.figures)
    notes |= {name: value for findings in found.values() for name, value in findings.notes.items()}
    samples = _merged([findings.samples for findings in found.values()])
    told: dict[str, Any] = {
        "suite": ", ".join(asked),
        "model": bench.model.name,
        "baseline": bench.baseline.name if bench.baseline else None,
    }
    count, notes = max((f.n for f in figures if f.model == bench.model.name), default=0), {"suites": list(found), **notes}
    write(bench.out, **told, n=count, figures=figures, notes=notes)
    write_jsonl(bench.out / "samples.jsonl", samples)
    answered = [row for row in samples if bench.model.name in row["answers"]]
    names = (bench.model.name, str(told["baseline"] or ""), bench.model.path, str(notes.get("judge", "")))
    formats.write(bench.formats, formats.Told(*names, figures, answered), bench.out)
    return "; ".join(findings.told for findings in found.values() if findings.told)


def _known(asked: Sequence[str], bench: Bench) -> None:
    """Whether there are such suites, and one for the tasks."""
    for name in asked:
        if name not in SUITES and name not in GROUPS:
            raise OptionError(f"no suite is called '{name}'", where="suite", fix=did_you_mean(name, [*SUITES, *GROUPS]))
    if bench.tasks and not any("lm_eval" in GROUPS.get(name, (name,)) for name in asked):
        raise OptionError("only the suite lm_eval reads tasks", where="tasks", fix="add suite=lm_eval, or leave tasks out")


def chosen(asked: Sequence[str], bench: Bench) -> list[str]:
    """The suites that run on the rows that are left, in the order of the table; what a group leaves out is said."""
    grouped = [name for group in asked if group in GROUPS for name in GROUPS[group] if name != "lm_eval" or bench.tasks]
    empty = bench.dropped and not bench.rows
    wanted = [name for name in (*asked, *grouped) if name in SUITES]
    lacking = {name: "rows" if empty and name != "lm_eval" else _lacks(name, bench, by_name=name in asked) for name in wanted}
    for name in asked:
        if lacking.get(name):
            raise _cannot(bench, f"the suite '{name}' needs {lacking[name]}", "see docs/evaluation.md")
    left_out = [f"{name} (needs {lacking[name]})" for name in dict.fromkeys(grouped) if lacking[name]]
    if left_out:
        bench.say(f"  left out: {'; '.join([*left_out, *_dropped(bench)])}")
    running = [name for name in SUITES if name in lacking and not lacking[name]]
    if not running:
        raise _cannot(bench, "no suite fits these models and rows", f"left out: {'; '.join(left_out)}")
    return running


def _lacks(name: str, bench: Bench, *, by_name: bool) -> str:
    """What the suite lacks; with people's labels the models are names, which a group of suites does not try to open."""
    if bench.judge.by == "labels" and name != "preference" and not by_name:
        return "models, which are names here (judge.by=labels)"
    return SUITES[name].lacks(bench)


def _cannot(bench: Bench, what: str, fix: str) -> DataError:
    """Why nothing runs: for want of what, or because rows were seen in training."""
    for seen in _dropped(bench):
        what, fix = f"{what}; {seen}" if bench.rows else seen, "evaluate on other rows, or accept these with seen=keep"
    return DataError(what, where=_paths(bench), fix=fix)


def _dropped(bench: Bench) -> list[str]:
    """What was left out before, if anything was."""
    if not bench.dropped:
        return []
    if not bench.rows:
        return [f"all {bench.dropped} rows were seen in training"]
    return [f"{bench.dropped} of {bench.dropped + len(bench.rows)} rows were seen in training and are left out"]


def _paths(bench: Bench) -> str:
    return bench.data.path if isinstance(bench.data.path, str) else ", ".join(bench.data.path)


def _once(figures: Any) -> list[Figure]:
    """A figure that two suites give is told once."""
    found: dict[tuple[str, ...], Figure] = {}
    for f in figures:
        found.setdefault((f.metric, f.slice, f.model, f.difference_from), f)
    return list(found.values())


def _merged(suites: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What several suites say of the same answers, in one row; equal answers to one request are told apart by their order."""
    found: dict[Any, dict[str, Any]] = {}
    for rows in suites:
        times: Counter[Any] = Counter()
        for row in rows:
            answers = (row["where"], row["prompt"], *sorted(row["answers"].items()))
            key = (*answers, times[answers])
            times[answers] += 1
            found[key] = {**row, **found.get(key, {})}
    return list(found.values())
