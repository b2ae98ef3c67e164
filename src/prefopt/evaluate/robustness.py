"""The robustness suite: does the model stay good when the same thing is asked another way?

Every variant changes the form of a request and not what is asked: another system prompt, another chat template, spaces, case, a missing
full stop, a frame of polite words. Quality is the judge's reward of single answers (gold, or a reward model).

    <quality>_asked   mean quality of the answers under one variant (the slice)
    template_spread   largest less smallest mean over the variants; noise alone makes it positive, so compare it with the baseline's
    worst_variant     smallest mean over the variants

Other chat templates are told by themselves and not in the spread: a model that has never seen one fails in it, however good it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefopt.errors import TemplateError
from prefopt.evaluate import judges, truth
from prefopt.evaluate.bench import Answers, Bench, Findings, Subject
from prefopt.evaluate.rows import Figure
from prefopt.stats import bootstrap, clustered_mean
from prefopt.text.chat import Renderer
from prefopt.text.template import BUILT_IN
from prefopt.types import Example, Message

ROWS = 100
"""Requests asked in every way; the first of the data."""
AS_IT_IS, TEMPLATE = "as it is", "template: "


@dataclass(frozen=True)
class Variant:
    """A way of asking: what it does to the user's words or to the system prompt, or the chat template it uses."""

    name: str
    user: Callable[[str], str] = lambda text: text
    system: str = ""
    template: str | None = None


VARIANTS = (
    Variant(AS_IT_IS),
    Variant("system: helpful", system="You are a helpful assistant."),
    Variant("system: careful", system="Answer with care."),
    Variant("lower case", str.lower),
    Variant("upper case", str.upper),
    Variant("spaces", lambda text: f"  {text.replace('. ', '.  ')} \n"),
    Variant("no final mark", lambda text: text.rstrip(".?! ")),
    Variant("polite frame", lambda text: f"I have a question for you. {text} Thank you."),
    Variant("quoted", lambda text: f'Please answer this: "{text}"'),
)


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    if not bench.can_answer:
        return "a policy, and rows with a prompt"
    return "" if judges.named(bench) in QUALITIES else "a judge of single answers (judge.path=REWARD_MODEL, or rows of the synthetic world)"


QUALITIES: dict[str, Callable[[Bench, Answers], np.ndarray]] = {
    "gold": lambda bench, own: truth.column(own, "gold"),
    "reward": judges.scores,
}
"""judge.by -> the quality of single answers."""


def run(bench: Bench) -> Findings:
    """Ask every way and compare."""
    rows, quality = bench.requests()[:ROWS], judges.named(bench)
    asked = {who.name: dict(_asked(bench, who, rows, QUALITIES[quality])) for who in bench.subjects}
    told = [name for name in asked[bench.model.name] if all(name in found for found in asked.values())]
    shared = [name for name in told if not name.startswith(TEMPLATE)]
    clusters = [i for i in range(len(rows)) for _ in range(bench.rollout.samples)]
    figures: list[Figure] = []
    for who in bench.subjects:
        means = [(name, clustered_mean(asked[who.name][name], clusters)) for name in told]
        figures += [bench.figure(f"{quality}_asked", mean, who=who, slice=name) for name, mean in means]
        values = np.stack([asked[who.name][name] for name in shared], 1)
        for metric, statistic in (("template_spread", spread), ("worst_variant", worst)):
            interval = bootstrap(values, statistic, rng=bench.rng(metric), clusters=clusters)
            figures.append(bench.figure(metric, interval, who=who))
    figures += _difference(bench, [np.stack([asked[who.name][name] for name in shared], 1) for who in bench.subjects], clusters)
    found = {(f.metric, f.model): f for f in figures if not f.difference_from}
    line = f"spread over {len(shared)} ways of asking {found['template_spread', bench.model.name].value:.2f}"
    return Findings(figures, {"ways_of_asking": len(shared), "quality": quality}, [], line)


def spread(values: np.ndarray) -> float:
    """Largest less smallest mean of the columns."""
    means = values.mean(axis=0)
    return float(means.max() - means.min())


def worst(values: np.ndarray) -> float:
    """Smallest mean of the columns."""
    return float(values.mean(axis=0).min())


def _difference(bench: Bench, values: Sequence[np.ndarray], clusters: Sequence[Any]) -> list[Figure]:
    """The model's spread less the baseline's, on the same requests."""
    if bench.baseline is None:
        return []
    ways = values[0].shape[1]
    both = np.concatenate(values, axis=1)
    interval = bootstrap(both, lambda x: spread(x[:, :ways]) - spread(x[:, ways:]), rng=bench.rng("spread"), clusters=clusters)
    return [bench.figure("template_spread", interval, against=bench.baseline, difference_from=bench.baseline.name)]


def _asked(
    bench: Bench, who: Subject, rows: Sequence[Example], quality: Callable[[Bench, Answers], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The quality of the answers under each variant that the model can be asked in."""
    for variant in (*VARIANTS, *(Variant(f"{TEMPLATE}{name}", template=name) for name in BUILT_IN)):
        policy = who.policy if variant.template is None else _templated(who.policy, variant.template, rows)
        if policy is None:
            continue
        changed = [_changed(row, variant) for row in rows]
        answers = bench.answers(who, changed, variant=variant.template or "", policy=policy)
        yield variant.name, quality(bench, replace(answers, rows=[row for row in rows for _ in range(bench.rollout.samples)]))


def _templated(policy: Any, template: str, rows: Sequence[Example]) -> Any:
    """The policy asked through another chat template; None where it has that one, lacks its tokens, or the template refuses the rows."""
    if not hasattr(policy, "tokenizer") or not all(isinstance(row.prompt, tuple) for row in rows):
        return None
    try:
        renderer = Renderer(policy.tokenizer, template)
        for row in rows:
            renderer.prompt_ids(row.prompt)
    except TemplateError:
        return None
    return None if renderer.template == policy.renderer.template else replace(policy, renderer=renderer)


def _changed(row: Example, variant: Variant) -> Example:
    if isinstance(row.prompt, str):
        return replace(row, prompt=" ".join(part for part in (variant.system, variant.user(row.prompt)) if part))
    turns = list(row.prompt)
    if variant.system:
        own = turns.pop(0).content if turns and turns[0].role == "system" else ""
        turns.insert(0, Message("system", " ".join(part for part in (variant.system, own) if part)))
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is not None:
        turns[last] = replace(turns[last], content=variant.user(turns[last].content))
    return replace(row, prompt=tuple(turns))
