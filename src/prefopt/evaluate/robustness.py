"""The robustness suite: does the model stay good when the same thing is asked another way?

Every variant changes the form of a request and not what is asked: another system prompt, another chat template, spaces, case, a missing
full stop, a frame of polite words. Quality is the judge's reward of single answers (gold, or a reward model).

    <quality>_asked   mean quality of the answers under one variant (the slice)
    template_spread   (largest less smallest mean over the variants) / S, where S is the standard deviation of the quality of all models'
                      answers to the requests as they are: rewards have no scale of their own. Noise alone makes it positive, so
                      compare it with the baseline's
    worst_variant     smallest mean over the variants

Other chat templates are told by themselves and not in the spread: a model that has never seen one fails in it, however good it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from prefopt.errors import TemplateError
from prefopt.evaluate import judges, truth
from prefopt.evaluate.bench import Answers, Bench, Findings, Subject, identity
from prefopt.evaluate.rows import Figure
from prefopt.stats import Interval, bootstrap, clustered_mean
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
    requests, quality = bench.requests(), judges.named(bench)
    rows = requests[:ROWS]
    asked = {who.name: dict(_asked(bench, who, rows, QUALITIES[quality])) for who in bench.subjects}
    told = [name for name in asked[bench.model.name] if all(name in found for found in asked.values())]
    shared = [name for name in told if not name.startswith(TEMPLATE)]
    clusters = [identity(row) for row in rows for _ in range(bench.rollout.samples)]
    figures: list[Figure] = []
    for who in bench.subjects:
        means = [(name, clustered_mean(asked[who.name][name], clusters)) for name in told]
        figures += [bench.figure(f"{quality}_asked", mean, who=who, slice=name) for name, mean in means]
    values = np.stack([[asked[who.name][name] for name in shared] for who in bench.subjects]).transpose(2, 0, 1)
    figures += _over_variants(bench, values, clusters)
    own = {name: float(asked[bench.model.name][name].mean()) for name in shared}
    least = min(own, key=lambda name: own[name])
    spread = next(f.value for f in figures if f.metric == "template_spread")
    which = f" the first {ROWS} of {len(requests)} requests" if len(requests) > ROWS else ""
    line = f"spread over {len(shared)} ways of asking{which} {spread:.2f} standard deviations ({least}: {quality} {own[least]:.2f})"
    notes = {"ways_of_asking": len(shared), "worst_way_of_asking": least, "quality": quality}
    notes |= {"requests_asked_in_every_way": ROWS} if len(requests) > ROWS else {}
    return Findings(figures, notes, [], line)


def _over_variants(bench: Bench, values: np.ndarray, clusters: Sequence[Any]) -> Iterator[Figure]:
    """What the variants make of each model's quality; `values` as in `spreads`."""

    def found(metric: str, statistic: Callable[[np.ndarray], float]) -> Interval:
        return bootstrap(values, statistic, rng=bench.rng(metric), clusters=clusters)

    for i, who in enumerate(bench.subjects):
        yield bench.figure("template_spread", found("template_spread", partial(_nth_spread, i)), who=who)
        yield bench.figure("worst_variant", found("worst_variant", partial(_nth_worst, i)), who=who)
    if bench.baseline is not None:
        interval = found("spread", lambda x: float(spreads(x)[0] - spreads(x)[1]))
        yield bench.figure("template_spread", interval, against=bench.baseline, difference_from=bench.baseline.name)


def _nth_spread(model: int, values: np.ndarray) -> float:
    return float(spreads(values)[model])


def _nth_worst(model: int, values: np.ndarray) -> float:
    return worst(values[:, model])


def spreads(values: np.ndarray) -> np.ndarray:
    """Largest less smallest mean over the variants, in standard deviations of the answers to requests as they are.

    Args:
        values: [answers, models, variants], the first variant the requests as they are.

    Returns:
        [models]; in standard deviations of all answers where those to requests as they are do not differ, 0 where none do.

    >>> spreads(np.array([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]])).tolist()
    [1.0]
    """
    means, units = values.mean(axis=0), (float(values[..., 0].std()), float(values.std()))
    return np.ptp(means, axis=1) / next((unit for unit in units if unit > 0), 1.0)


def worst(values: np.ndarray) -> float:
    """Smallest mean of the columns."""
    return float(values.mean(axis=0).min())


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
            renderer.prompt_ids(row.prompt, row.tools)
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
