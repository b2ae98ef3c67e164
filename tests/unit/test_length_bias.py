"""The planted length bias: of two policies that are equally good by construction, the long-winded one wins with an annotator who likes
length, and no longer once length is controlled for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from prefopt.evaluate import suites
from prefopt.settings import JudgeSettings
from prefopt.world import World
from tests.benches import Scripted, bench_of, figures_in, rows_of

REQUESTS, DRAFTS = 1500, 10
LONGER = 0.85
"""How often the long-winded policy gives the longer of two equally good answers."""


@cache
def equally_good(seed: int) -> tuple[list, list[str], list[str]]:
    """Requests, and for each two drafts of equal gold reward and different length, the longer mostly first."""
    rng = np.random.default_rng(seed)
    world, requests, long, short = World(0), [], [], []
    drawn = world.requests(REQUESTS, seed=seed, split="heldout")
    for request in {str(request.prompt): request for request in drawn}.values():
        drafts = {draft: world.gold(request.meta, draft) for draft in (world.draft(request, rng) for _ in range(DRAFTS))}
        pairs = [(a, b) for a in drafts for b in drafts if drafts[a] == drafts[b] and len(a) > len(b) + 8]
        if pairs:
            pair = pairs[int(rng.integers(len(pairs)))]
            pair = pair if rng.random() < LONGER else pair[::-1]
            requests.append(request)
            long.append(pair[0])
            short.append(pair[1])
    return requests, long, short


def judged(out: Path, by: str, annotator: str = "easy") -> dict:
    requests, long, short = equally_good(seed=3)
    judge = JudgeSettings(by=by, annotator=annotator)  # type: ignore[arg-type]
    suites.run("preference", bench_of(out, Scripted("long", long), Scripted("short", short), rows=rows_of(requests), judge=judge))
    return figures_in(out)


def test_the_truth_knows_no_winner(tmp_path: Path) -> None:
    found = judged(tmp_path, "gold")
    assert found["win_rate", "long", "all", ""]["value"] == 0.5
    assert found["length_chars", "long", "all", "short"]["low"] > 5


def test_length_fools_the_raw_win_rate_and_not_the_controlled_one(tmp_path: Path) -> None:
    found = judged(tmp_path, "annotator")
    raw, controlled = found["win_rate", "long", "all", ""], found["length_controlled_win_rate", "long", "all", ""]
    assert raw["low"] > 0.5, "the easily impressed annotator should be fooled"
    assert controlled["low"] < 0.5 < controlled["high"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["length_preference"] > 0.1
