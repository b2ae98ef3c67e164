"""What `prefopt methods [NAME]` prints: the table of methods, or all there is to know of one."""

from __future__ import annotations

import inspect
import json

from prefopt.errors import OptionError, did_you_mean
from prefopt.losses.columns import probe
from prefopt.losses.methods import METHODS, Method
from prefopt.losses.metrics import METRICS_OF_ROUNDS, UNITS_OF_METRICS
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
    "reward_shift": "the loop first computes the reward shift over the step",
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
        f"Learning rate: {method.learning_rate:g} (full fine-tune of a model of about 7B parameters; small models take more)",
        "Options:",
        *(options or ["  none"]),
        *([f"  {key}={plain(default)}" for key, default in method.online.settings.items()] if method.online else []),
        *plus,
        *_published(name),
        "Metrics:",
        *(f"  {key}: {text}" for key, text in logged(method)),
    ]


def _published(name: str) -> list[str]:
    """The paper's own values, or why there are none."""
    if name in WITHOUT:
        return [WITHOUT[name]]
    return ["In the paper:", *(f"  {key}: {words}" for key, words in PUBLISHED[name].items())]


def logged(method: Method) -> list[tuple[str, str]]:
    """Every metric a method logs, and what it is."""
    found = [(key, UNITS_OF_METRICS[key]) for key in method.metrics(probe(method.needs_reference, steps=method.unit == "step"))]
    if method.online is None:
        return found
    sides = ("rewards/", "logps/")  # of pairs, which only some of them make
    return [row for row in found if method.unit == "pair" or not row[0].startswith(sides)] + list(METRICS_OF_ROUNDS.items())


def plain(value: object) -> str:
    """A default as a user would write it."""
    return value if isinstance(value, str) else json.dumps(value)


def prose(method: Method) -> str:
    """The loss's docstring without its doctest, and that of what makes its advantages or ranks."""
    told = [method.loss, *([method.online.make] if method.online else [])]
    return "\n\n".join((inspect.getdoc(function) or "").partition("\n>>>")[0].rstrip() for function in told)
