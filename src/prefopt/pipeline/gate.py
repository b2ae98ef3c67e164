"""The gate at work: policies read from YAML, evaluations found in a run, and verdicts that say what they rest on.

A verdict in `gate.json` holds the policy's own text, the hash of every evaluation it read and of the models those are about. When one
of them changes the verdict no longer holds, and `changed` names what did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import prefopt
from prefopt.errors import DataError, OptionError, did_you_mean
from prefopt.evaluate.gate import Evidence, Finding, Outcome, Placed, judge
from prefopt.evaluate.guard import ITEMS, KEPT, PROXY, UNKNOWN
from prefopt.evaluate.rows import read as read_rows
from prefopt.pipeline import record
from prefopt.pipeline.check import check
from prefopt.pipeline.source import Source, parse
from prefopt.settings import GateRule, GateSettings

DEFAULT = Path(__file__).with_name("gate.yaml")
"""The policy where none is given."""


@dataclass(frozen=True)
class Policy:
    """A gate's rules, as they were written and as they are read."""

    name: str
    text: str
    settings: GateSettings
    rules: tuple[Placed, ...]


def read_policy(path: Path | None = None) -> Policy:
    """A policy, or the default one.

    Raises:
        OptionError: it cannot be read, has no rules or an unknown key, or a rule has not exactly one bound; with its line.
    """
    place = path or DEFAULT
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        fix = "give a YAML file with `rules:`; `prefopt gate --show-default` prints one"
        raise OptionError(f"cannot be read: {reason}", where=str(place), fix=fix) from None
    return parse_policy(text, str(path) if path else "default policy")


def parse_policy(text: str, name: str) -> Policy:
    """A policy's text; errors as in `read_policy`."""
    source = parse(text, name)
    values = source.values if isinstance(source.values, dict) else {}
    listed = values.get("rules")
    if not isinstance(listed, list) or not listed:
        raise OptionError("a gate needs `rules:`, a list of one or more", where=source.at(("rules",)), fix="see docs/gate.md")
    known = [*(f.name for f in fields(GateSettings)), "rules"]
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        raise OptionError("unknown key", where=f"{source.at((unknown,))}: {unknown}", fix=did_you_mean(unknown, known))
    settings = check(GateSettings, {key: value for key, value in values.items() if key != "rules"}, source, (), "gate")
    return Policy(name, text, settings, tuple(_rule(source, i, rule) for i, rule in enumerate(listed)))


def _rule(source: Source, i: int, values: Any) -> Placed:
    key, label = ("rules", i), f"rules[{i}]"
    rule, where = check(GateRule, values, source, key, label), f"{source.at(key)}: {label}"
    bounds = [value for value in (rule.at_least, rule.at_most) if value is not None]
    if len(bounds) != 1 or not math.isfinite(bounds[0]):
        raise OptionError("a rule has one bound, at_least or at_most", where=where, fix="write one of them, a number")
    if rule.compare == "ratio" and bounds[0] <= 0:
        raise OptionError(f"a ratio is bounded by a number above 0, found {bounds[0]:g}", where=where, fix="1 is no change")
    return Placed(rule, where)


# --- evaluations ----------------------------------------------------------------------------------------------------------


def evaluations(run: Path, names: Sequence[str] | None = None) -> dict[Path, Evidence]:
    """The evaluations below a run's folder, of one stage's folder, or an evaluation.json itself.

    Args:
        run: the folder or file.
        names: only these stages.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    files = _files(run, names)
    if not files:
        what = "no such folder" if not run.exists() else "holds no evaluation (evaluation.json)"
        raise DataError(what, where=str(run), fix="give the folder of a run with an evaluate stage, or run `prefopt evaluate`")
    return {file: _evidence(file) for file in files}


def _files(run: Path, names: Sequence[str] | None) -> list[Path]:
    here = run if run.is_file() else run / "evaluation.json"
    files = [here] if here.is_file() else sorted(run.glob("*/evaluation.json"))
    return [file for file in files if names is None or file.parent.name in names]


def _evidence(file: Path) -> Evidence:
    rows, found = read_rows(file), record.read_json(file)
    model, baseline = found.get("model"), found.get("baseline")
    if not isinstance(model, str):
        raise DataError("does not say whose evaluation it is (model)", where=str(file), fix="evaluate again")
    baseline, kept = baseline if isinstance(baseline, str) else "", sum(int(found.get(name) or 0) for name in (KEPT, ITEMS))
    return Evidence(file.resolve().parent.name, model, baseline, rows, kept, tuple(_notes(file, found)))


def _notes(file: Path, found: Mapping[str, Any]) -> Iterator[str]:
    """What an evaluation leaves open: how its models were trained, and whether they are still the same."""
    if found.get(UNKNOWN):
        yield f"whether its rows trained the models is not known: {found[UNKNOWN]}"
    if found.get(PROXY):
        yield "its judge is the reward model that a model was trained to please, so its win rates are no evidence of quality"
    models = _models(file)
    if models is None:
        yield "no record of the models it opened, so whether they have changed is not known"
    for name, place, _ in models or ():
        if place is None:
            yield f"the model {name} is not where it was, so whether it has changed is not known"


def _models(file: Path) -> list[tuple[str, Path | None, str]] | None:
    """(name, place where it is there, hash at the time) of the models on this disk that an evaluation opened; None without a record.

    Paths are relative to the evaluation; those of older records to the folder it was started in.
    """
    entry = record.read_json(file.parent / "record.json")
    models = entry.get("models") if isinstance(entry, dict) else None
    if not isinstance(models, dict) or not models:
        return None
    local = [(path, digest) for path, digest in models.items() if isinstance(digest, str) and not digest.startswith(record.HUB)]
    places = [(path, digest, [place for place in (file.parent / path, Path(path)) if place.exists()]) for path, digest in local]
    return [(record.relative(file.parent / path, file.parent), found[0] if found else None, digest) for path, digest, found in places]


# --- verdicts -------------------------------------------------------------------------------------------------------------


def decide(
    run: Path, policy: Policy, *, names: Sequence[str] | None = None, before: Sequence[str] | None = None, write: Path | None = None
) -> Outcome:
    """Hold a run's evaluations to a policy.

    Args:
        run: as in `evaluations`.
        policy: the rules.
        names: only the evaluations of these stages; others that appear later are no matter.
        before: the stages that were run before, where no names are given.
        write: where to write the verdict (gate.json).

    Raises:
        DataError: as in `evaluations` and `judge`, or a model that has changed since it was evaluated.
    """
    found = evaluations(run, names or before)
    for file in found:
        for name, place, digest in _models(file) or ():
            if place is not None and record.digest_path(place) != digest:
                what = f"the model {name} has changed since it was evaluated"
                raise DataError(what, where=str(file), fix="evaluate it again: delete this stage's folder and run once more")
    outcome = judge(policy.rules, policy.settings, list(found.values()))
    if write is not None:
        with record.writing(write):
            record.write_json(write, to_json(outcome, policy, found, write.parent, run, names))
    return outcome


def to_json(
    outcome: Outcome, policy: Policy, found: Mapping[Path, Evidence], beside: Path, run: Path, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What gate.json holds; paths are relative to the folder it lies in, so that a run can be moved and tells nothing of the machine."""
    models = {record.relative(place, beside): digest for file in found for _, place, digest in _models(file) or () if place is not None}
    name = record.relative(Path(policy.name), beside) if Path(policy.name).is_file() else policy.name
    return {
        "verdict": outcome.verdict,
        "decided": record.now(),
        "prefopt": prefopt.__version__,
        "policy": {"name": name, "sha256": record.digest(policy.text), "text": policy.text},
        "confidence": policy.settings.confidence,
        "correction": "Holm",
        "rules": [_rule_json(finding) for finding in outcome.findings],
        "notes": list(outcome.notes),
        "run": record.relative(run, beside),
        "stages": list(names) if names else None,
        "inputs": {record.relative(file, beside): record.digest_path(file) for file in found},
        "models": models,
        "model_sha256": sorted({row.model_sha256 for row in outcome.used if row.model_sha256}),
        "data_sha256": sorted({row.data_sha256 for row in outcome.used if row.data_sha256}),
    }


def _rule_json(finding: Finding) -> dict[str, Any]:
    found = finding.estimate
    told = {name: getattr(finding, name) for name in ("status", "title", "reason", "stage", "model", "baseline", "bound", "confidence")}
    figure = {} if found is None else {name: getattr(found, name) for name in ("value", "low", "high", "n", "method", "confidence")}
    figure = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in figure.items()}
    tested = {"p": finding.p, "p_against": finding.p_against, "needed": finding.needed}
    return {**told, "estimate": figure, **tested, "rule": asdict(finding.rule)}


def changed(verdict: Path, policy: Policy | None = None, *, weights: bool = False) -> list[str]:
    """What an old verdict rests on and has changed since; empty where it still holds.

    Args:
        verdict: a gate.json.
        policy: the policy that is asked about; the verdict's own when not given.
        weights: hash the models too, those that are where they were; it takes as long as reading them.

    Raises:
        DataError: it is no verdict.
    """
    found = record.read_json(verdict)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("inputs", "models", "policy")):
        raise DataError("holds no verdict of a gate", where=str(verdict), fix="run `prefopt gate RUN` first")
    models = {name: digest for name, digest in found["models"].items() if weights and (verdict.parent / name).exists()}
    hashes = {**found["inputs"], **models}
    places = {name: verdict.parent / name for name in hashes}
    moved = [name for name, place in places.items() if not place.exists() or record.digest_path(place) != hashes[name]]
    asked = found["stages"] if isinstance(found.get("stages"), list) else None
    beside = {file.resolve() for file in _files(verdict.parent / str(found.get("run") or "."), asked)}
    new = sorted(record.relative(file, verdict.parent) for file in beside - {place.resolve() for place in places.values()})
    own = found["policy"].get("sha256")
    if own != record.digest(str(found["policy"].get("text"))) or (policy is not None and own != record.digest(policy.text)):
        moved.append(policy.name if policy else "its own policy text")
    return moved + new


def verdicts(run: Path) -> list[Path]:
    """The gate.json of a run's folder and those of its gate stages.

    Raises:
        DataError: there is none.
    """
    found = [place for place in (run / "gate.json", *sorted(run.glob("*/gate.json"))) if place.is_file()]
    if not found:
        raise DataError("holds no verdict of a gate (gate.json)", where=str(run), fix="run `prefopt gate RUN` first")
    return found


def lines(outcome: Outcome) -> list[str]:
    """The verdict as text: one line for the gate, one for each rule and one for each note."""
    held, asked = (sum(f.status in wanted for f in outcome.findings) for wanted in (("PASS",), ("PASS", "FAIL", "INCONCLUSIVE")))
    head = f"{outcome.verdict}: {held} of {asked} rules hold"
    width = max(len(f.title) for f in outcome.findings)
    rules = [f"  {f.status:<12}  {f.title:<{width}}  {_told(f)}".rstrip() for f in outcome.findings]
    return [head, *rules, *(f"  note: {note}" for note in outcome.notes)]


def _told(finding: Finding) -> str:
    found = finding.estimate
    if found is None:
        return finding.reason
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if math.isfinite(found.low) and math.isfinite(found.high) else ""
    p = finding.p_against if finding.status == "FAIL" else finding.p
    return f"{found.value:.3g}{ends}, n {found.n}, p {p:.2g}" + (f"; {finding.reason}" if finding.reason else "")
