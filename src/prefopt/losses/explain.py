"""What `prefopt methods [NAME]` prints: the table of methods, or all there is to know of one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace

from prefopt.errors import OptionError, did_you_mean
from prefopt.losses.columns import View, probe
from prefopt.losses.methods import METHODS, Method
from prefopt.losses.metrics import METRICS_OF_ROUNDS, METRICS_OF_STEPS, UNITS_OF_METRICS
from prefopt.losses.online import Online
from prefopt.losses.published import PUBLISHED, WITHOUT

DATA = {
    "text": "plain text (rows with `text`)",
    "demonstrations": "prompts and answers (`prompt` + `completion`, or `messages`)",
    "pairs": "preference pairs (`prompt` + `chosen` + `rejected`; rankings give pairs too)",
    "judgements": "preference pairs and ties (`prompt` + `response_a` + `response_b` + `label` a, b or tie; rankings give them too)",
    "labels": "thumbs up and down (`prompt` + `completion` + `label`)",
    "rankings": "rankings (`prompt` + `completions` + `scores` or `ranks`)",
    "prompts": "prompts, whose answers it samples itself, and a `reward` section that rates them",
    "steps": "answers with labelled steps (`prompt` + `completions` + `labels`)",
}

COUPLINGS = {
    "mismatched_kl": "the loop first estimates the KL on mismatched prompts and completions of the step",
    "reward_shift": "the loop keeps the reward shift, a running mean over the steps before this one (0 in the first)",
    "batch": "all pairs of a step are sorted together, so the batch size is part of the objective",
}


def explain(name: str | None = None) -> str:
    """The table of all methods, or one method's formula, paper, data, options, learning rate and metrics.

    Args:
        name: a row of METHODS.

    Raises:
        OptionError: no such method; suggests the closest.
    """
    if name is None:
        return _table()
    if name not in METHODS:
        raise OptionError(f"'{name}' is no method", fix=did_you_mean(name, METHODS))
    return "\n".join(_lines(name, METHODS[name]))


def _table() -> str:
    """One aligned line a method."""
    rows = [("method", "data", "reference", "mean over", "paper", "")]
    rows += [(n, m.data, "yes" if m.needs_reference else "-", m.unit, m.paper, m.summary) for n, m in METHODS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows)


def _lines(name: str, method: Method) -> list[str]:
    """The page of one method."""
    options = [f"  {key}={plain(default)}" for key, default in method.options.items()]
    plus = [f"  plus {weight:g} x {row} (mix.{row}={weight:g})" for row, weight in method.plus.items()]
    return [
        name,
        "",
        *([method.more_than_its_loss] if method.more_than_its_loss else []),
        prose(method),
        "",
        f"Paper: {method.paper}",
        f"Data: {DATA[method.data]}; reference policy: {'yes' if method.needs_reference else 'no'}",
        f"Mean over: {method.unit}s of the whole optimizer step",
        *([f"Coupled: {COUPLINGS[method.coupling]}"] if method.coupling else []),
        f"Learning rate: {method.learning_rate:g} ({sized(method)})",
        "Options:",
        *(options or ["  none"]),
        *([f"  {key}={plain(default)}" for key, default in method.online.settings.items()] if method.online else []),
        *plus,
        *_published(name),
        "Metrics:",
        *(f"  {key}: {text}" for key, text in logged(method)),
        f"  and those of every run: {', '.join(METRICS_OF_STEPS)}",
    ]


def _published(name: str) -> list[str]:
    """The paper's own values, or why there are none."""
    if name in WITHOUT:
        return [WITHOUT[name]]
    return ["In the paper:", *(f"  {key}: {words}" for key, words in PUBLISHED[name].items())]


def logged(method: Method) -> list[tuple[str, str]]:
    """Every metric a method logs besides those of every run, and what it is."""
    found = [(key, UNITS_OF_METRICS[key]) for key in method.metrics(_trained_on(method))]
    if method.online is None:
        return found
    found += [("loss/value", UNITS_OF_METRICS["loss/value"])] if method.online.has_critic else []
    without = set(_never(method.online))
    return found + [row for row in METRICS_OF_ROUNDS.items() if row[0] not in without]


def _trained_on(method: Method) -> View:
    """The probe with the batch that the method's rows, or its own answers, make: pairs only where answers are compared, and advantages
    only where it makes some.
    """
    view = probe(method.needs_reference, steps=method.unit == "step")
    made, batch = method.online.gives[0] if method.online else method.data, view.batch
    if made in ("text", "demonstrations", "advantages", "keep"):
        pairs = {name: getattr(batch, name)[:0] for name in ("chosen_N", "rejected_N", "margin_N", "tied_N")}
        batch = replace(batch, **pairs)
    advantages = made == "advantages"
    batch = replace(batch, advantages_T=batch.advantages_T if advantages else None, sampled_T=view.logps_T if advantages else None)
    return replace(view, batch=batch)


def _never(online: Online) -> Iterator[str]:
    """Metrics of rounds that the method has nothing to measure for."""
    if not online.has_critic:
        yield "critic/vf_explained_var"
    if "baseline" not in online.gives:
        yield "reward_baseline"
    if online.anew == "reference":  # the policy of the round's beginning, at no distance from it
        yield from ("objective/kl", *(key for key in METRICS_OF_ROUNDS if key.startswith("kl/")))


def sized(method: Method) -> str:
    """What the method's learning rate is for."""
    if method.data == "text":
        return "model of some hundred million parameters, from random weights; larger ones take less"
    return "full fine-tune of a model of about 7B parameters; small models take more, LoRA ten times as much"


def plain(value: object) -> str:
    """A default as a user would write it."""
    return value if isinstance(value, str) else json.dumps(value)


def prose(method: Method) -> str:
    """The loss's docstring without its doctest, and that of what makes its advantages or ranks."""
    told = [method.loss, *([method.online.make] if method.online else [])]
    return "\n\n".join((inspect.getdoc(function) or "").partition("\n>>>")[0].rstrip() for function in told)
