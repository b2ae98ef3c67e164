"""The world as data files: text to pretrain on, imperfect demonstrations, prompts to sample from, held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.errors import OptionError, did_you_mean
from prefopt.types import Message
from prefopt.world.drafts import RATES, Rates, draft
from prefopt.world.requests import KINDS, Request, Split, draw_request, draw_task
from prefopt.world.town import Town, town

SIZES = {"pretrain": 11200, "sft": 12800, "prompts": 1500, "heldout": 300}
"""Rows of each file when nothing else is asked for."""


STATEMENTS = 0.5
"""Share of the pretraining texts that are statements; the others are transcripts."""

TRUTHFUL = replace(RATES, wrong=0.0, partial=0.0, abstaining=0.0, refusing=0.0, refusing_borderline=0.0)
"""Rates of a transcript that is right in content and as imperfect as any draft in manner."""


def pretrain_text(place: Town, rng: np.random.Generator) -> str:
    """A short text about the town: four statements, or two questions of the training split and what was answered.

    Nothing in it is false, and nobody asks for harm: what to do then is left to later stages.
    """
    if rng.random() < STATEMENTS:
        return " ".join(_statement(place, rng) for _ in range(4))
    return "\n".join(_transcript(place, rng) for _ in range(2))


def distinct_requests(place: Town, rng: np.random.Generator, split: Split, n: int, slice_: str = "all") -> list[Request]:
    """`n` requests, of one slice or of all, no two with the same messages.

    Raises:
        OptionError: the split does not hold so many.
    """
    found: dict[str, Request] = {}
    for _ in range(50 * n + 1000):
        if len(found) == n:
            return list(found.values())
        request = draw_request(place, rng, split)
        if slice_ not in ("all", request.meta["slice"]):
            continue
        found.setdefault(json.dumps([m.to_dict() for m in request.prompt]), request)
    raise OptionError(f"the world has fewer than {n} different {split} requests", fix=f"ask for fewer, such as {len(found) // 2}")


def write(
    folder: Path | str, sizes: Mapping[str, int] | None = None, seed: int = 0, rates: Rates = RATES, slice_: str = "all", answers: int = 0
) -> dict[str, Path]:
    """Write pretrain.jsonl, sft.jsonl, prompts.jsonl and heldout.jsonl into `folder`; the same seed writes the same bytes.

    Args:
        folder: made where it is missing.
        sizes: rows of each file; `SIZES` where not given.
        seed: of the town and of every draw.
        rates: of the flaws of written answers.
        slice_: prompts.jsonl and heldout.jsonl hold requests of this slice alone.
        answers: written beside each of these requests as `completions`, for annotators to compare.

    Returns:
        The path of each file by its name.

    Raises:
        OptionError: an unknown file is named, or more different prompts are asked for than the world has.
    """
    for name in sizes or {}:
        if name not in SIZES:
            raise OptionError(f"the world writes no file '{name}'", where="sizes", fix=did_you_mean(name, SIZES))
    counts = {**SIZES, **(sizes or {})}
    place = town(seed)
    streams = dict(zip(SIZES, np.random.default_rng([seed, 1]).spawn(len(SIZES)), strict=True))

    def asked(name: str, split: Split) -> Iterator[dict[str, Any]]:
        for request in distinct_requests(place, streams[name], split, counts[name], slice_):
            written = [draft(request.meta, streams[name], rates) for _ in range(answers)]
            yield _prompt_row(request) | ({"completions": written} if answers else {})

    rows = {
        "pretrain": ({"text": pretrain_text(place, streams["pretrain"])} for _ in range(counts["pretrain"])),
        "sft": _demonstrations(place, streams["sft"], counts["sft"], rates),
        "prompts": asked("prompts", "train"),
        "heldout": asked("heldout", "heldout"),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write(folder / f"{name}.jsonl", rows[name]) for name in SIZES}


def _demonstrations(place: Town, rng: np.random.Generator, n: int, rates: Rates) -> Iterator[dict[str, Any]]:
    for _ in range(n):
        request = draw_request(place, rng, "train")
        answer = Message("assistant", draft(request.meta, rng, rates))
        yield {"prompt": [m.to_dict() for m in request.prompt], "completion": [answer.to_dict()]}


def _prompt_row(request: Request) -> dict[str, Any]:
    return {"prompt": [m.to_dict() for m in request.prompt], "meta": dict(request.meta)}


def _statement(place: Town, rng: np.random.Generator) -> str:
    while True:
        kind, slots, _ = draw_task(place, rng, "train")
        say = KINDS[kind].statement
        if say:
            return say(place, slots)


def _transcript(place: Town, rng: np.random.Generator) -> str:
    while (request := draw_request(place, rng, "train")).harmful:
        pass
    return "\n".join([*(m.content for m in request.prompt), draft(request.meta, rng, TRUTHFUL)])


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
