"""The gate's verdict on the page: what it says, rule by rule, and whether it still is about the evaluations shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.report.folder import Json, Run, items, mapping
from prefopt.report.words import number

TONES = {"PASS": "better", "FAIL": "worse"}


class Rule(NamedTuple):
    """One rule: what it asks, what was found, its status and why."""

    title: str
    status: str
    found: str
    reason: str
    tone: str


class Gate(NamedTuple):
    """A verdict; `stale` where what it rests on has changed since, `notes` what it says of its evaluations."""

    verdict: str
    tone: str
    rules: tuple[Rule, ...]
    stale: bool
    notes: tuple[str, ...]


def gate(run: Run) -> Gate | None:
    """The last gate.json of a run; None where there is none that can be read."""
    verdict = str(run.gate.get("verdict") or "")
    if not verdict:
        return None
    told = next((found for name in ("rules", "findings") if (found := [r for r in items(run.gate.get(name)) if isinstance(r, dict)])), [])
    notes = tuple(str(note) for note in items(run.gate.get("notes")))
    return Gate(verdict, TONES.get(verdict, "open"), tuple(_rule(found) for found in told), _stale(run), notes)


def _rule(found: Json) -> Rule:
    estimate, status = mapping(found.get("estimate")), str(found.get("status") or found.get("verdict") or "")
    told = [number(estimate.get(name)) for name in ("value", "low", "high")]
    text = f"{told[0]} ({told[1]} to {told[2]}), n = {number(estimate.get('n'), 9)}" if estimate else ""
    asked = found.get("rule")
    title = found.get("title") or (asked if isinstance(asked, str) else mapping(asked).get("metric")) or found.get("metric") or "a rule"
    return Rule(str(title), status, text, str(found.get("reason") or ""), TONES.get(status, "open"))


def _stale(run: Run) -> bool:
    """Whether a file the verdict rests on is gone or another one now."""
    return any(_changed(run.judged_in / name, sha) for name, sha in _flat(run.gate.get("inputs")).items())


def _flat(inputs: Any) -> Mapping[str, str]:
    return {name: sha for name, sha in mapping(inputs).items() if isinstance(sha, str) and len(sha) == 64}


def _changed(place: Path, sha: str) -> bool:
    return not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != sha
