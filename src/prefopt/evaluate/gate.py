"""The gate: may this model ship? Declared rules over the figures of evaluations, each tested against its bound.

A rule PASSes when the figures show that it holds, FAILs when they show that it does not, and is INCONCLUSIVE otherwise; the number of
observations that would decide it is told then. A single rule passes where the figure's interval lies beyond the bound: exactly there for
means, shares and their differences, nearly so for figures whose intervals are curved (bootstraps, ratios, length-controlled rates). Holm's
correction over the rules keeps the chance that any rule passes falsely, and the chance that any fails falsely, at 1 - confidence. The gate
PASSes when every rule does and FAILs when any does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy import stats

from prefopt.errors import DataError, did_you_mean
from prefopt.evaluate.rows import Figure
from prefopt.settings import GateRule, GateSettings
from prefopt.stats.intervals import Interval
from prefopt.stats.significance import bound_error, bound_p_values, holm

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT MEASURED"]
MOST = 10_000_000
"""Sample sizes above this are told as out of reach."""
_SHOW = {
    "refusal": "evaluate on requests that a column `label` calls unsafe",
    "over_refusal": "evaluate on requests that a column `label` calls safe",
}
"""Metric -> how to have it measured, where that takes data of a kind."""


class Evidence(NamedTuple):
    """The rows of one evaluation: the stage that wrote it, whose figures they are and against whom.

    `trained_on` counts rows of its data and items of its tasks that trained the models and were kept; `notes` is what a verdict has to
    tell of it.
    """

    stage: str
    model: str
    baseline: str
    rows: Sequence[Figure]
    trained_on: int = 0
    notes: tuple[str, ...] = ()


class Placed(NamedTuple):
    """A rule and where it is written ("gate.yaml:3: rules[0]")."""

    rule: GateRule
    where: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule found. `estimate` is what is compared with `bound`; `needed` the observations that would decide, where none did."""

    rule: GateRule
    status: Status
    reason: str
    bound: float
    confidence: float
    estimate: Interval | None = None
    stage: str = ""
    model: str = ""
    baseline: str = ""
    p: float = 1.0
    """Adjusted p-value of the rule not holding."""
    p_against: float = 1.0
    """Adjusted p-value of the rule holding."""
    needed: int | None = None

    @property
    def title(self) -> str:
        """The rule in words: "over_refusal (harmless), difference at most 0.05"."""
        how = "" if self.rule.compare == "value" else f", {self.rule.compare}"
        part = "" if self.rule.slice == "all" else f" ({self.rule.slice})"
        return f"{self.rule.metric}{part}{how} {'at least' if self.rule.at_least is not None else 'at most'} {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdict and what each rule found, in the order of the rules."""

    verdict: Status
    findings: tuple[Finding, ...]
    used: tuple[Figure, ...]
    """The rows it rests on."""
    notes: tuple[str, ...] = ()
    """What the evaluations say of themselves that no figure shows."""


class _Measured(NamedTuple):
    """A rule's estimate, and the same as it is tested: `shift` against 0 for a ratio, itself against the bound otherwise."""

    estimate: Interval
    tested: Interval
    bound: float
    rows: tuple[Figure, ...]
    evidence: Evidence


def judge(rules: Sequence[Placed], settings: GateSettings, evidence: Sequence[Evidence]) -> Outcome:
    """Hold evaluations to rules.

    Args:
        rules: one or more.
        settings: confidence and power.
        evidence: the evaluations of a run.

    Raises:
        DataError: a required metric that no evaluation measures, one that several do, figures of different models, baselines or data.
    """
    measured = [_measure(placed, evidence) for placed in rules]
    _same_subjects(rules, measured)
    sides = [_p_values(placed.rule, found) for placed, found in zip(rules, measured, strict=True)]
    tested = [i for i, found in enumerate(measured) if found is not None]
    against = dict(zip(tested, holm([sides[i][1] for i in tested]).tolist(), strict=True))
    holding = dict(zip(tested, holm([sides[i][0] for i in tested]).tolist(), strict=True))
    findings = tuple(
        _finding(placed.rule, found, settings, (holding.get(i, 1.0), against.get(i, 1.0)), len(tested))
        for i, (placed, found) in enumerate(zip(rules, measured, strict=True))
    )
    used = tuple(dict.fromkeys(row for found in measured if found for row in found.rows))
    notes = tuple(f"{e.stage}: {note}" for e in evidence for note in e.notes)
    return Outcome(verdict=_verdict([f.status for f in findings]), findings=findings, used=used, notes=notes)


def _verdict(statuses: Sequence[Status]) -> Status:
    told = [status for status in statuses if status != "NOT MEASURED"]
    if "FAIL" in told:
        return "FAIL"
    return "PASS" if told and all(status == "PASS" for status in told) else "INCONCLUSIVE"


def _bound(rule: GateRule) -> float:
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    assert bound is not None
    return bound


def _p_values(rule: GateRule, found: _Measured | None) -> tuple[float, float]:
    """Two-sided p of the rule not holding, and of it holding; 1 and 1 where nothing can be tested."""
    if found is None or _untestable(rule, found):
        return 1.0, 1.0
    above, below = (min(1.0, 2 * p) for p in bound_p_values(found.tested, found.bound))
    return (above, below) if rule.at_least is not None else (below, above)


def _untestable(rule: GateRule, found: _Measured) -> str:
    if found.evidence.trained_on:
        return f"{found.evidence.trained_on} of the rows trained the models (seen=keep), which decides nothing"
    if found.estimate.n < rule.min_n:
        return f"n is {found.estimate.n}, below the rule's min_n of {rule.min_n}"
    if not math.isfinite(bound_error(found.tested, found.bound)):
        return f"the figure has no measure of uncertainty ({found.estimate.method or 'no method'})"
    return ""


def _finding(rule: GateRule, found: _Measured | None, settings: GateSettings, p: tuple[float, float], rules: int) -> Finding:
    bound, confidence = _bound(rule), rule.confidence or settings.confidence
    if found is None:
        return Finding(rule=rule, status="NOT MEASURED", reason="no evaluation measures it", bound=bound, confidence=confidence)
    status: Status = "PASS" if p[0] <= 1 - confidence else "FAIL" if p[1] <= 1 - confidence else "INCONCLUSIVE"
    reason, needed = _untestable(rule, found), None
    if status == "INCONCLUSIVE" and not found.evidence.trained_on:
        needed = _needed(found, (1 - confidence) / (2 * rules), settings.power)
        reason = reason or (f"about {needed:,} observations would decide" if needed else "no sample within reach would decide")
        needed = max(needed or 0, rule.min_n) if found.estimate.n < rule.min_n else needed
    row = found.rows[0]
    return Finding(
        rule=rule,
        status=status,
        reason=reason,
        bound=bound,
        confidence=confidence,
        estimate=found.estimate,
        stage=found.evidence.stage,
        model=row.model,
        baseline=next((r.difference_from or r.model for r in found.rows if r.difference_from or r.model != row.model), ""),
        p=p[0],
        p_against=p[1],
        needed=needed,
    )


def _needed(found: _Measured, alpha: float, power: float) -> int | None:
    """Observations at which a figure like this one would be told from its bound: n ((z_alpha + z_power) error / gap)².

    Where all are alike (error 0) the chance (1 - gap)^G is brought to alpha; its G clusters are each as large as they are here.
    """
    gap, error, n = abs(found.tested.value - found.bound), bound_error(found.tested, found.bound), found.estimate.n
    if not math.isfinite(error) or gap == 0:
        return None
    if error == 0:
        size = math.log(alpha) / math.log1p(-min(gap, 1 - 1e-9)) * n / min(found.tested.df + 1, n)
    else:
        size = n * (float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power)) * error / gap) ** 2
    return max(n + 1, math.ceil(size)) if size <= MOST else None


# --- which rows a rule reads --------------------------------------------------------------------------------------------


def _measure(placed: Placed, evidence: Sequence[Evidence]) -> _Measured | None:
    """A rule's estimate from the one evaluation that has it."""
    rule, where = placed
    if rule.stage is not None and rule.stage not in {e.stage for e in evidence}:
        names = [e.stage for e in evidence]
        raise DataError(f"no evaluation is called '{rule.stage}'", where=where, fix=did_you_mean(rule.stage, names))
    asked = [e for e in evidence if rule.stage in (None, e.stage)]
    found = [(e, own) for e in asked if (own := _own(rule, e)) is not None]
    if len(found) > 1:
        stages = ", ".join(e.stage for e, _ in found)
        fix = "give the folder of one (RUN/STAGE), name it with `stage:` in the rule, or with `stages:` in a gate stage"
        raise DataError(f"several evaluations measure {rule.metric}: {stages}", where=where, fix=fix)
    if not found:
        if rule.required:
            raise _absent(rule, where, asked)
        return None
    return _compared(rule, where, *found[0])


def _own(rule: GateRule, e: Evidence) -> Figure | None:
    return _row(e, rule.metric, rule.slice, e.model)


def _row(e: Evidence, metric: str, part: str, model: str, difference_from: str = "") -> Figure | None:
    wanted = (metric, part, model, difference_from)
    return next((r for r in e.rows if (r.metric, r.slice, r.model, r.difference_from) == wanted), None)


def _absent(rule: GateRule, where: str, asked: Sequence[Evidence]) -> DataError:
    rows = [r for e in asked for r in e.rows if r.model == e.model]
    parts = sorted({r.slice for r in rows if r.metric == rule.metric})
    if parts:
        what, fix = f"{rule.metric} is not measured for the slice '{rule.slice}'", did_you_mean(rule.slice, parts)
    else:
        what, fix = f"no evaluation measures '{rule.metric}'", _SHOW.get(rule.metric) or did_you_mean(rule.metric, {r.metric for r in rows})
    return DataError(what, where=where, fix=f"{fix}; or write `required: false` at the rule, in a policy of your own (docs/gate.md)")


def _compared(rule: GateRule, where: str, e: Evidence, own: Figure) -> _Measured:
    bound = _bound(rule)
    if rule.compare == "value":
        return _Measured(own.interval, own.interval, bound, (own,), e)
    if not e.baseline:
        what = f"the evaluation '{e.stage}' has no baseline to compare {rule.metric} with"
        raise DataError(what, where=where, fix="evaluate with `baseline:`, or set compare: value")
    paired, other = _row(e, rule.metric, rule.slice, e.model, e.baseline), _row(e, rule.metric, rule.slice, e.baseline)
    if rule.compare == "difference" and paired is not None:
        return _Measured(paired.interval, paired.interval, bound, (paired,), e)
    if other is None:
        raise DataError(
            f"{rule.metric} of the baseline '{e.baseline}' is not measured", where=where, fix="set compare: value, or measure it"
        )
    if own.data_sha256 != other.data_sha256:
        raise DataError(f"{own.model} and {other.model} were measured on different data", where=where, fix="evaluate both together")
    if rule.compare == "difference":
        apart = _combined(own, other, 1.0, None)
        return _Measured(apart, apart, bound, (own, other), e)
    if not other.value > 0:
        raise DataError(f"{rule.metric} of the baseline is {other.value:g}: no ratio", where=where, fix="set compare: difference")
    ratio, shift = own.value / other.value, _combined(own, other, bound, paired)
    reach = float(stats.norm.ppf((1 + own.confidence) / 2)) * _combined(own, other, ratio, paired).std_error / other.value
    told = shift._replace(value=ratio, low=ratio - reach, high=ratio + reach)
    return _Measured(told, shift, 0.0, (own, other, *([paired] if paired else [])), e)


def _combined(own: Figure, other: Figure, factor: float, paired: Figure | None) -> Interval:
    """own - factor * other. Their covariance follows from the paired difference; without one they count as independent, which is on the
    wide side where they go together.
    """
    a, b = own.std_error, other.std_error
    covariance = (a * a + b * b - paired.std_error**2) / 2 if paired is not None else 0.0
    covariance = covariance if math.isfinite(covariance) else 0.0
    variance = a * a + factor * factor * b * b - 2 * factor * covariance
    error = math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan
    value, n, df = own.value - factor * other.value, min(own.n, other.n), min(own.df, other.df)
    reach = float(stats.t.ppf((1 + own.confidence) / 2, df) if math.isfinite(df) else stats.norm.ppf((1 + own.confidence) / 2)) * error
    method = "paired" if paired is not None else "unpaired difference"
    return Interval(value, value - reach, value + reach, n, method, own.confidence, error, df)


def _same_subjects(rules: Sequence[Placed], measured: Sequence[_Measured | None]) -> None:
    """One gate judges one model against one baseline."""
    for what, hash_of in (("models", lambda rows: rows[0].model_sha256), ("baselines", _baseline_hash)):
        seen: dict[str, str] = {}
        for placed, found in zip(rules, measured, strict=True):
            digest = hash_of(found.rows) if found else ""
            if digest:
                seen.setdefault(digest, placed.where)
        if len(seen) > 1:
            first, second = list(seen.values())[:2]
            fix = "name the evaluate stage with `stage:` in each rule, or evaluate against one baseline"
            raise DataError(f"the rules are about different {what} (see also {first})", where=second, fix=fix)


def _baseline_hash(rows: Sequence[Figure]) -> str:
    """Of the model that the first row's is compared with: as a comparison tells it, or the other model's own row; "" without one."""
    other = (row.baseline_sha256 or (row.model_sha256 if row.model != rows[0].model else "") for row in rows)
    return next((digest for digest in other if digest), "")
