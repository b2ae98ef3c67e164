"""The gate's verdict on the page: what it says, rule by rule, and whether it still is about the evaluations shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import DataError
from prefopt.report.folder import Json, Run, items, mapping
from prefopt.report.words import number

Changed = Callable[[Path], Sequence[str]]
"""What a gate.json rests on and has changed since, weights aside; a DataError where it does not tell."""
_WORDS = {"PASS": "Every rule of the gate holds.", "FAIL": "A rule of the gate is broken."}
TONES = {"PASS": "better", "FAIL": "worse"}


class Rule(NamedTuple):
    """One rule: what it asks, what was found, its status and why."""

    title: str
    status: str
    found: str
    reason: str
    tone: str


class Gate(NamedTuple):
    """A verdict and what it comes to; `stale` where what it rests on (weights aside) has changed since, `notes` what it tells of that."""

    verdict: str
    told: str
    tone: str
    rules: tuple[Rule, ...]
    stale: bool
    notes: tuple[str, ...]


def gate(run: Run, changed: Changed) -> Gate | None:
    """The gate.json of a run that was decided last; None where there is none that can be read."""
    verdict = str(run.gate.get("verdict") or "")
    if not verdict:
        return None
    told = next((found for name in ("rules", "findings") if (found := [r for r in items(run.gate.get(name)) if isinstance(r, dict)])), [])
    notes = tuple(str(note) for note in items(run.gate.get("notes")))
    rules = tuple(_rule(found) for found in told)
    return Gate(verdict, _told(verdict, rules), TONES.get(verdict, "open"), rules, _stale(run, changed), notes)


def _told(verdict: str, rules: Sequence[Rule]) -> str:
    """What a verdict comes to, in words."""
    missing = sum(rule.status == "NOT MEASURED" for rule in rules)
    if verdict == "PASS" and missing:
        return f"Every rule of the gate that was measured holds; not measured: {missing} of {len(rules)}."
    return _WORDS.get(verdict, "The figures do not decide every rule of the gate.")


def _rule(found: Json) -> Rule:
    estimate, status = mapping(found.get("estimate")), str(found.get("status") or found.get("verdict") or "")
    told = [number(estimate.get(name)) for name in ("value", "low", "high")]
    text = f"{told[0]} ({told[1]} to {told[2]}), n = {number(estimate.get('n'), 9)}" if estimate else ""
    asked = found.get("rule")
    title = found.get("title") or (asked if isinstance(asked, str) else mapping(asked).get("metric")) or found.get("metric") or "a rule"
    return Rule(str(title), status, text, str(found.get("reason") or ""), TONES.get(status, "open"))


def _stale(run: Run, changed: Changed) -> bool:
    """Whether a verdict no longer holds, or does not say what it rests on."""
    try:
        return bool(changed(run.judged_in / "gate.json"))
    except DataError:
        return True
