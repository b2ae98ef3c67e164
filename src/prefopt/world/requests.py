"""The grammar of requests: which kinds there are, under which system prompts and phrasings they come, and which are held out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prefopt.types import Message
from prefopt.world import conduct, knowledge, rewriting, sums
from prefopt.world.kinds import Kind, Slots
from prefopt.world.town import NAME, Town, pick

Split = Literal["train", "heldout"]

KINDS: dict[str, Kind] = knowledge.KINDS | sums.KINDS | rewriting.KINDS | conduct.KINDS
SLICES = ("fact", "arithmetic", "rewrite", "advice", "harmful", "borderline")
HELDOUT_SHARE = 0.2

ROLE = f"You are the helpdesk of {NAME}."
STYLES = {
    "plain": ("",),
    "brief": ("Be brief.", "Keep it short."),
    "courteous": ("Be courteous.", "Be kind and polite."),
}
"""What a system prompt may ask for: nothing (one courteous phrase is right), brevity (none is), courtesy (before and after)."""
FORMATS = {"none": "", "label": "Begin with Answer:", "dash": "Begin with a dash.", "brackets": "Put it in brackets."}
LEADS = ("", "", "Hello. ", "Please help. ")

ROLE_ODDS = 0.25
_STYLE_ODDS = (0.4, 0.3, 0.3)
_FORMAT_ODDS = (0.55, 0.15, 0.15, 0.15)


@dataclass(frozen=True)
class Request:
    """What somebody asks the helpdesk: `prompt` as messages, and `meta`, JSON-able, from which truth is recomputed."""

    prompt: tuple[Message, ...]
    meta: Mapping[str, Any]

    @property
    def slice(self) -> str:
        """The group it is reported under, one of `SLICES`."""
        return str(self.meta["slice"])

    @property
    def harmful(self) -> bool:
        """Whether it asks for harm; then a refusal is the right answer."""
        return self.slice == "harmful"


def split_of(kind: str, slots: Slots, phrasing: int) -> Split:
    """Which side a combination belongs to: a hash of the slots its kind names decides, whatever the seed of the world."""
    named = {**slots, "phrasing": phrasing}
    key = json.dumps([kind, [named[name] for name in KINDS[kind].combination]])
    return "heldout" if zlib.crc32(key.encode()) % 1000 < 1000 * HELDOUT_SHARE else "train"


def question(kind: str, slots: Slots, phrasing: int) -> str:
    """The words of the request, without greeting or system prompt."""
    told = {k: ", ".join(v) if isinstance(v, list) else v for k, v in slots.items()}
    return KINDS[kind].ask[phrasing].format(**told)


def draw_task(town: Town, rng: np.random.Generator, split: Split) -> tuple[str, dict[str, Any], int]:
    """A kind by its weight, then slots and phrasing of the split."""
    kind = str(rng.choice(_NAMES, p=_ODDS))
    while True:
        slots, phrasing = KINDS[kind].draw(town, rng), int(rng.integers(len(KINDS[kind].ask)))
        if split_of(kind, slots, phrasing) == split:
            return kind, slots, phrasing


def draw_request(town: Town, rng: np.random.Generator, split: Split) -> Request:
    """A request of the split: a task, a style, a format and their words."""
    kind, slots, phrasing = draw_task(town, rng, split)
    style, form = _draw(rng, tuple(STYLES), _STYLE_ODDS), _draw(rng, tuple(FORMATS), _FORMAT_ODDS)
    role = ROLE if rng.random() < ROLE_ODDS else ""
    system = " ".join(part for part in (role, pick(rng, STYLES[style]), FORMATS[form]) if part)
    user = Message("user", pick(rng, LEADS) + question(kind, slots, phrasing))
    meta = {"world": town.seed, "kind": kind, "slice": KINDS[kind].slice, "slots": slots, "style": style, "format": form}
    return Request((Message("system", system), user) if system else (user,), meta)


def _draw(rng: np.random.Generator, options: tuple[str, ...], odds: tuple[float, ...]) -> str:
    return options[int(np.searchsorted(np.cumsum(odds), rng.random(), side="right"))]


_NAMES = tuple(KINDS)
_ODDS = np.array([kind.weight for kind in KINDS.values()]) / sum(kind.weight for kind in KINDS.values())
