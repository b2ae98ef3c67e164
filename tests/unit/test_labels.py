"""Simulated annotators label pairs: how far their votes agree is what it should be."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from prefopt.pipeline.kinds import LabelOptions
from prefopt.pipeline.rows import labelled
from prefopt.types import Example
from prefopt.world import World, panel, preferred

WORLD = World(0)
ASKED = WORLD.requests(1, seed=1)[0]
GOOD = WORLD.ideal(ASKED)
CHOICES = [GOOD, f"{GOOD} You are so clever!"]


def pairs(n: int, answers: list[str] = CHOICES, **options: Any) -> list[dict[str, Any]]:
    example = Example(prompt=ASKED.prompt, meta={**ASKED.meta, "completions": answers})
    return list(labelled([example] * n, LabelOptions(**{"annotators": ["brisk", "polite"], "strength": True, **options}), Counter()))


def test_the_strength_is_the_log_odds_of_the_votes() -> None:
    for row in pairs(40, votes=5, ties="keep"):
        said = Counter(vote["label"] for vote in row["votes"])
        a, b = said["a"], said["b"]
        assert row["label"] == ("a" if a > b else "b" if b > a else "tie")
        assert row["margin"] == pytest.approx(math.log((max(a, b) + 0.5) / (min(a, b) + 0.5)))


def test_votes_that_see_no_difference_do_not_hide_the_others() -> None:
    rows = pairs(200, [GOOD, GOOD.replace("Gladly.", "Of course.")], votes=3)
    said = [Counter(vote["label"] for vote in row["votes"]) for row in rows]
    assert any(votes["tie"] > votes["a"] + votes["b"] for votes in said)
    assert all(row["label"] != "tie" and row["margin"] > 0 for row in rows)


def test_many_votes_say_what_is_exactly_known() -> None:
    (row,) = pairs(1, votes=40000)
    a, b = row["response_a"], row["response_b"]
    shown = [annotator.probabilities(ASKED.meta, a, b) for annotator in panel(("brisk", "polite"))]
    p = sum(x.a for x in shown) / sum(x.a + x.b for x in shown)
    said = 1 / (1 + math.exp(-row["margin"] if row["label"] == "a" else row["margin"]))
    assert abs(said - p) < 4.5 * math.sqrt(p * (1 - p) / 20000)
    assert abs(p - preferred(panel(("brisk", "polite")), ASKED.meta, a, b)) < 0.03  # who is shown first moves it by this much


def test_votes_are_drawn_alike_whatever_is_written_of_them() -> None:
    plain = pairs(20, votes=3, ties="keep", strength=False)
    assert [row["votes"] for row in plain] == [row["votes"] for row in pairs(20, votes=3, ties="keep")]
    assert not any("margin" in row for row in plain)
