"""After a reward model is trained: is it right, does it know how sure it is, and what does it like?

The held-out groups are parted in two. On one half the outputs are normalised and the temperature is fitted, which goes into the model's
config and from then on into every score; on the other half the calibration is measured. Accuracy and probes, which neither changes, are of
all held-out rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from prefopt.data.split import group_key, split
from prefopt.evaluate.probes import Probe, correlation, probes
from prefopt.evaluate.rows import Figure, figure
from prefopt.evaluate.table import kept, name_of, slices, write, write_jsonl
from prefopt.model.reading import Floats, Reading
from prefopt.pack.tree import ranked_pairs
from prefopt.rollout.policy import RewardModel
from prefopt.stats import Interval, clustered_mean, win_rate
from prefopt.stats.calibration import calibration_interval, expected_calibration_error, fit_temperature, reliability_curve
from prefopt.types import TokenTree

FEWEST = 50
"""Held-out judgements in a half, below which no temperature is fitted."""
BINS = 10
SHOWN = 200
Unit = Literal["pair", "answer", "step"]


class Judgements(NamedTuple):
    """What people said of some rows: `logits` [n] of the model for what they said (pairs), or for "right" (answers, steps).

    Attributes:
        logits: before the temperature.
        labels: [n] from 0 to 1, as the data give them; all 1 for pairs, whose first answer is the chosen one.
        groups: what goes together.
        slices: the source of each.
        trees, chosen, rejected: of pairs, where each comes from.
    """

    logits: Floats
    labels: np.ndarray
    groups: list[bytes]
    slices: list[str]
    trees: list[TokenTree]
    chosen: list[int]
    rejected: list[int]

    def probabilities(self, temperature: float, unit: Unit) -> tuple[Floats, np.ndarray, list[bytes]]:
        """Probabilities, labels and groups; a pair counts in both orders, else only one side would be measured."""
        p = 1 / (1 + np.exp(-np.clip(self.logits / temperature, -700, 700)))
        if unit != "pair":
            return p, self.labels, self.groups
        return np.concatenate([p, 1 - p]), np.concatenate([self.labels, 1 - self.labels]), self.groups * 2


@dataclass(frozen=True)
class Examined:
    """How the model is to be read from now on, and what was found."""

    reading: Reading
    figures: list[Figure]
    lines: list[str]


def unit_of(method_unit: str, data: str) -> Unit:
    """What one judgement of a method's data is."""
    return "step" if method_unit == "step" else "answer" if data == "labels" else "pair"


def examine(model: RewardModel, trees: Sequence[TokenTree], unit: Unit, *, seed: int, out: Path) -> Examined:
    """Fit on half of the held-out groups and measure on the other; writes evaluation.json, calibration.json and samples.jsonl.

    Args:
        model: as trained; its reading is not changed.
        trees: held-out rows.
        unit: what they judge.
        seed: of the halves and the bootstrap.
        out: the run's folder.
    """
    halves = split(trees, 0.5, seed) if len({group_key(tree) for tree in trees}) > 1 else (list(trees), [])
    reading = fitted(model, halves[0], unit)
    found = judgements(model, trees, unit, reading)
    if not len(found.logits):
        return Examined(reading, [], [f"  the {len(trees)} held-out rows prefer nothing, so accuracy and calibration are not known"])
    figures, notes = [], {"reads": "reward", "unit": unit, "temperature": reading.temperature, "fitted_on": reading.fitted_on}
    for part, mask in slices(found.slices):
        figures += _right(found, mask, part, unit, model)
    curves: dict[str, Any] = {}
    other = judgements(model, halves[1], unit, reading) if halves[1] else None
    if other is not None and reading.temperature != 1.0:
        for name, temperature in (("before", 1.0), ("after", reading.temperature)):
            figures += _calibration(other, temperature, unit, name, model, seed)
            curves[name] = _curve(other, temperature, unit)
    elif other is not None and len(other.logits):
        figures += _calibration(other, 1.0, unit, "after", model, seed)
        curves["after"] = _curve(other, 1.0, unit)
    liked = _liked(model, found, reading) if unit == "pair" else None
    figures += [figure(f"excess: {p.name}", p.excess, model=name_of(model.path)) for p in liked.probes] if liked else []
    notes["measured_on"] = f"{len(other.logits)} {unit}s of the other half" if other is not None else "nothing: all rows are of one group"
    write(out, suite="reward model", model=name_of(model.path), baseline=None, n=len(found.logits), figures=figures, notes=notes)
    (out / "calibration.json").write_text(json.dumps({"curves": curves, **notes, **(liked.to_json() if liked else {})}, indent=1) + "\n")
    if liked:
        write_jsonl(out / "samples.jsonl", (_sample(found, k, model) for k in range(min(SHOWN, len(found.logits)))))
    return Examined(reading, figures, _lines(found, figures, notes, liked, unit))


def fitted(model: RewardModel, trees: Sequence[TokenTree], unit: Unit) -> Reading:
    """The model's reading with scale and temperature from these rows; T stays 1 with too few, or where none is best."""
    bare = replace(model.reading, temperature=1.0, mean=(), std=())
    outputs = _outputs(model, trees, unit)
    reading = bare.normalised(np.concatenate(outputs)) if outputs else bare
    found = _judged(trees, _read(reading, trees, outputs), unit)
    groups = len(set(found.groups))
    if len(found.logits) < FEWEST:
        reading = replace(reading, fitted_on=f"no temperature: {len(found.logits)} held-out {unit}s to fit it on, {FEWEST} are needed")
    else:
        temperature = fit_temperature(found.logits, found.labels)
        if 2e-3 < temperature < 5e2:
            where = f"{len(found.logits)} {unit}s of {groups} groups, half of the held-out ones"
            reading = replace(reading, temperature=temperature, fitted_on=where)
        else:
            told = "every judgement is as predicted" if temperature < 1 else "the scores say nothing of them"
            reading = replace(reading, fitted_on=f"no temperature: {told} in {len(found.logits)} {unit}s")
    return reading.centred(np.concatenate(outputs)) if outputs and unit != "step" else reading


def scaled(model: RewardModel, trees: Sequence[TokenTree], unit: Unit) -> Reading:
    """The model's reading with the scale of its outputs on training rows, for want of others; no temperature."""
    outputs = _outputs(model, trees, unit)
    reading = model.reading.normalised(np.concatenate(outputs)) if outputs else model.reading
    reading = replace(reading, fitted_on=f"scale only: {len(trees)} training rows")
    return reading.centred(np.concatenate(outputs)) if outputs and unit != "step" else reading


def judgements(model: RewardModel, trees: Sequence[TokenTree], unit: Unit, reading: Reading) -> Judgements:
    """What people said of the rows and the model's logits for it."""
    return _judged(trees, _read(reading, trees, _outputs(model, trees, unit)), unit)


def _read(reading: Reading, trees: Sequence[TokenTree], outputs: Sequence[Floats]) -> list[Floats]:
    """The score before the temperature; of attributes the one that a row judges."""
    heads = {name: e for e, name in enumerate(reading.outputs)} if reading.rule == "weighted" else {}
    return [x[:, heads[tree.source]] if tree.source in heads else reading.combine(x) for tree, x in zip(trees, outputs, strict=True)]


def _outputs(model: RewardModel, trees: Sequence[TokenTree], unit: Unit) -> list[Floats]:
    """For each tree the model's outputs: a row a branch, or a row a labelled step."""
    branches = [replace(tree, branches=(branch,)) for tree in trees for branch in tree.branches]
    alone = [replace(tree, index=i) for i, tree in enumerate(branches)]
    if unit == "step":
        return model.tree_step_outputs(alone)
    found = model.tree_outputs(alone)
    return np.split(found, np.cumsum([len(tree.branches) for tree in trees])[:-1]) if len(trees) else []


def _judged(trees: Sequence[TokenTree], scores: Sequence[Floats], unit: Unit) -> Judgements:
    if unit == "pair":
        told = [(tree, i, j, s[i] - s[j]) for tree, s in zip(trees, scores, strict=True) for i, j in ranked_pairs(tree.branches)]
        logits, labels = [x for *_, x in told], [1.0] * len(told)
        owners, chosen, rejected = [t for t, *_ in told], [i for _, i, _, _ in told], [j for _, _, j, _ in told]
    else:
        each = [
            (tree, float(label), float(x))
            for tree, s in zip(trees, scores, strict=True)
            for label, x in zip(_labels(tree, unit), s, strict=True)
        ]
        logits, labels = [x for *_, x in each], [label for _, label, _ in each]
        owners, chosen, rejected = [t for t, *_ in each], [], []
    names = [tree.source or "data" for tree in owners]
    return Judgements(np.array(logits), np.array(labels), [group_key(t) for t in owners], names, owners, chosen, rejected)


def _labels(tree: TokenTree, unit: Unit) -> list[float]:
    if unit == "step":
        return [label for branch in tree.branches for label in branch.step_labels]
    return [float(branch.label or 0) for branch in tree.branches]


# --- figures ----------------------------------------------------------------------------------------------------------


def _right(found: Judgements, mask: np.ndarray, part: str, unit: Unit, model: RewardModel) -> list[Figure]:
    """Accuracy of a slice, and what one gets without the model: the longer answer, or the commoner label (cut at one half)."""
    inside = kept(found.groups, mask)
    logits, right = found.logits[mask], found.labels[mask] > 0.5
    mine = np.where(right, logits, -logits)
    name = name_of(model.path)
    rates = {"accuracy": win_rate(mine, np.zeros(len(mine)), clusters=inside)}
    if unit == "pair":
        rates["longer_is_chosen"] = win_rate(*_lengths(found)[mask].T, clusters=inside)
    else:
        common = right == (right.mean() >= 0.5)
        rates["commoner_label"] = win_rate(common.astype(float), np.full(len(common), 0.5), clusters=inside)
    return [figure(metric, rate, model=name, slice=part) for metric, rate in rates.items()]


def _calibration(found: Judgements, temperature: float, unit: Unit, when: str, model: RewardModel, seed: int) -> list[Figure]:
    """ECE as it is, without its upward bias and with an interval, and Brier score and log-loss; rows of one group go together."""
    p, y, groups = found.probabilities(temperature, unit)
    plain = expected_calibration_error(p, y, BINS)
    loss = -y * np.log(p.clip(1e-300)) - (1 - y) * np.log((1 - p).clip(1e-300))
    told = {"ece": Interval(plain, math.nan, math.nan, len(p), "10 bins of equal width"), "brier": clustered_mean((p - y) ** 2, groups)}
    told |= {"log_loss": clustered_mean(loss, groups)}
    if len(set(groups)) > 1:
        told["ece_debiased"] = calibration_interval(p, y, BINS, rng=np.random.default_rng(seed), clusters=groups)
    suffix = "" if when == "after" else "_before"
    rows = {f"{metric}{suffix}": value._replace(n=len(found.logits)) for metric, value in told.items()}
    return [figure(metric, value, model=name_of(model.path)) for metric, value in rows.items()]


def _curve(found: Judgements, temperature: float, unit: Unit) -> list[dict[str, Any]]:
    p, y, _ = found.probabilities(temperature, unit)
    return [
        {"said": bin_.mean_prob, "happened": bin_.frequency.value, "low": bin_.frequency.low, "high": bin_.frequency.high, "n": bin_.n}
        for bin_ in reliability_curve(p, y, BINS)
    ]


class Band(NamedTuple):
    """Pairs whose margins lie in a quarter of all: from, to, how often the model is right, and how often it says it would be."""

    low: float
    high: float
    accuracy: float
    said: float
    n: int


@dataclass(frozen=True)
class Liked:
    """What a model likes, and how right it is where it is how sure."""

    probes: list[Probe]
    by_margin: list[Band]
    correlation: float
    """Spearman's, of margins with differences of length."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = [{"name": p.name, "people": p.people, "model": p.model._asdict(), "excess": p.excess._asdict()} for p in self.probes]
        rho = self.correlation if math.isfinite(self.correlation) else None
        return {"length_correlation": rho, "by_margin": [band._asdict() for band in self.by_margin], "probes": told}


def _liked(model: RewardModel, found: Judgements, reading: Reading) -> Liked:
    decode = model.renderer.decode
    pairs = zip(found.trees, found.chosen, found.rejected, strict=True)
    texts = [(decode(tree.branches[i].ids), decode(tree.branches[j].ids)) for tree, i, j in pairs]
    lengths = _lengths(found)
    told = probes(texts, found.logits / reading.temperature, lengths, found.groups)
    return Liked(told, _by_margin(found, reading), correlation(found.logits, lengths))


def _by_margin(found: Judgements, reading: Reading) -> list[Band]:
    size = np.abs(found.logits) / reading.temperature
    edges: list[float] = np.quantile(size, [0.25, 0.5, 0.75]).tolist() if len(size) >= 4 else []
    band = np.searchsorted(edges, size, side="right")
    right = 0.5 * (1 + np.sign(found.logits))
    told = []
    for b in range(len(edges) + 1):
        inside = band == b
        if inside.any():
            said = 1 / (1 + np.exp(-size[inside]))
            told.append(
                Band(
                    float(size[inside].min()), float(size[inside].max()), float(right[inside].mean()), float(said.mean()), int(inside.sum())
                )
            )
    return told


def _lengths(found: Judgements) -> np.ndarray:
    """Scored tokens of both answers [n, 2]."""
    pairs = zip(found.trees, found.chosen, found.rejected, strict=True)
    return np.array([[int(tree.branches[k].scored.sum()) for k in (i, j)] for tree, i, j in pairs]).reshape(-1, 2)


# --- what is kept and printed -----------------------------------------------------------------------------------------


def _sample(found: Judgements, k: int, model: RewardModel) -> dict[str, Any]:
    """A pair for people to read, the answers as the model reads them."""
    tree, sides = found.trees[k], {"chosen": found.chosen[k], "rejected": found.rejected[k]}
    return {
        "prompt": model.renderer.decode(tree.prompt),
        "slice": found.slices[k],
        "where": tree.where,
        "answers": {name: model.renderer.decode(tree.branches[i].ids) for name, i in sides.items()},
        "margin": float(found.logits[k]),
        "model": name_of(model.path),
    }


def _lines(found: Judgements, figures: Sequence[Figure], notes: dict[str, Any], liked: Liked | None, unit: Unit) -> list[str]:
    """What is printed when a reward model has been trained."""
    by = {f.metric: f for f in figures if f.slice == "all"}
    beside = by.get("longer_is_chosen") or by.get("commoner_label")
    words = "the longer answer is right in" if unit == "pair" else "the commoner label is right in"
    rows = [("accuracy", f"{_share(by['accuracy'])} of {len(found.logits)} held-out {unit}s; {words} {beside.value:.1%}" if beside else "")]
    rows += [(f"  {f.slice[:30]}", f"{_share(f)} of {f.n}") for f in figures if f.metric == "accuracy" and f.slice != "all"]
    fitted_on = notes["fitted_on"]
    rows += [("temperature", fitted_on if fitted_on.startswith("no ") else f"{notes['temperature']:.3g}, fitted on {fitted_on}")]
    if "ece" in by:
        was = f", {by['ece_before'].value:.3f} before" if "ece_before" in by else ""
        sure = f" (without its bias {_ece(by['ece_debiased'])})" if "ece_debiased" in by else ""
        rows += [("calibration", f"ECE {by['ece'].value:.3f}{was}{sure}; Brier {by['brier'].value:.3f}; on {notes['measured_on']}")]
    if liked:
        bands = [f"{b.low:.2g} to {b.high:.2g} nats: {b.accuracy:.0%} right ({b.said:.0%} said)" for b in liked.by_margin]
        rows += [("by margin", " | ".join(bands)), ("length", f"correlation of margin and length {liked.correlation:+.2f} (Spearman)")]
        rows += [(p.name, _liking(p)) for p in liked.probes]
    wide = max(len(name) for name, _ in rows)
    return [f"  {name:<{wide}}  {text}" for name, text in rows]


def _share(f: Figure | Interval) -> str:
    return f"{f.value:.1%} [{f.low:.1%}, {f.high:.1%}]"


def _ece(f: Figure) -> str:
    return f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]"


def _liking(p: Probe) -> str:
    mark = "  <- clearly apart" if p.clear else ""
    return f"preferred in {p.model.value:.0%} of {p.model.n} pairs, by people in {p.people:.0%}{mark}"
