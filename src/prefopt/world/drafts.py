"""Answers a helpdesk might give: the ideal one, and drafts with flaws at declared rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.world.answers import CLOSINGS, FLATTERY, HEDGES, OPENINGS, PADDING, Answer, render
from prefopt.world.conduct import REFUSAL
from prefopt.world.gold import content_of
from prefopt.world.kinds import Content, Core
from prefopt.world.requests import FORMATS
from prefopt.world.town import pick

SORRY = "I am sorry."
POLITE = tuple(phrase for phrase in OPENINGS if phrase != SORRY)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How often drafts have each flaw; all are drawn independently, the content's (first block) one after another in this order.

    Attributes:
        complying: does what a harmful request asks. refusing, refusing_borderline: refuses a harmless (fact ... advice, borderline) one.
        abstaining: does not know what could be known, where the kind has such an answer.
        wrong: says something false. partial: leaves something out, where the kind can.
        hedged, flattering, padded: has such a phrase.
        tactless: courtesy other than the style asks for (none in plain, some in brief, one phrase or none in courteous style).
        misworded: a fragment where a sentence is right, or a sentence where brevity is.
        misformatted: a format other than the one asked for.
    """

    complying: float = 0.4
    refusing: float = 0.06
    refusing_borderline: float = 0.4
    abstaining: float = 0.06
    wrong: float = 0.15
    partial: float = 0.2
    hedged: float = 0.35
    flattering: float = 0.35
    padded: float = 0.35
    tactless: float = 0.5
    misworded: float = 0.3
    misformatted: float = 0.3


RATES = Rates()
FLAWLESS = Rates(**dict.fromkeys(vars(RATES), 0.0))


def ideal(meta: Mapping[str, Any]) -> str:
    """An answer of gold reward 1, the same every time."""
    content = content_of(meta)
    refusal = content.right is REFUSAL
    opening = {"brief": "", "plain": SORRY if refusal else POLITE[0], "courteous": SORRY if refusal else POLITE[0]}[meta["style"]]
    closing = CLOSINGS[0] if meta["style"] == "courteous" else ""
    core = _worded(content.right, terse=meta["style"] == "brief")
    return render(Answer(core=core, opening=opening, closing=closing, format=meta["format"]))


def draft(meta: Mapping[str, Any], rng: np.random.Generator, rates: Rates = RATES) -> str:
    """An answer with flaws at the given rates, as imperfect people might have written it."""

    def flaw(rate: float) -> bool:
        return bool(rng.random() < rate)

    core = _draw_core(meta, content_of(meta), rng, rates)
    refusal = core in REFUSAL
    opening, closing = _draw_courtesy(meta["style"], rng, tactless=flaw(rates.tactless), refusal=refusal)
    others = tuple(name for name in FORMATS if name != meta["format"])
    answer = Answer(
        core=core,
        opening=opening,
        closing=closing,
        flattery=pick(rng, FLATTERY) if flaw(rates.flattering) else "",
        padding=pick(rng, PADDING) if flaw(rates.padded) else "",
        hedge=pick(rng, HEDGES) if flaw(rates.hedged) else "",
        format=pick(rng, others) if flaw(rates.misformatted) else meta["format"],
    )
    return render(answer)


def _draw_core(meta: Mapping[str, Any], content: Content, rng: np.random.Generator, rates: Rates) -> str:
    terse = (meta["style"] == "brief") != (rng.random() < rates.misworded)
    kind = meta["slice"]
    wrong = rates.complying if kind == "harmful" else rates.wrong
    refusing = {"harmful": 0.0, "borderline": rates.refusing_borderline}.get(kind, rates.refusing)
    if rng.random() < refusing:
        return _worded(REFUSAL, terse=terse)
    if content.abstain and rng.random() < rates.abstaining:
        return content.abstain
    if content.wrong and rng.random() < wrong:
        return _worded(pick(rng, content.wrong), terse=terse)
    if content.partial and rng.random() < rates.partial:
        return content.partial
    return _worded(content.right, terse=terse)


def _worded(core: Core, *, terse: bool) -> str:
    return core.terse if terse and core.terse else core.full


def _draw_courtesy(style: str, rng: np.random.Generator, *, tactless: bool, refusal: bool) -> tuple[str, str]:
    opening = SORRY if refusal else pick(rng, POLITE)
    closing = pick(rng, CLOSINGS)
    one = (opening, "") if rng.random() < 0.5 else ("", closing)
    if tactless:
        some = {"plain": ("", ""), "brief": one, "courteous": one if rng.random() < 0.5 else ("", "")}
        return some[style]
    return {"plain": one, "brief": ("", ""), "courteous": (opening, closing)}[style]
