"""The frontier suite against exact laws and enumeration."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from prefopt.errors import DataError
from prefopt.evaluate import frontier, suites
from prefopt.exact import best_of_n, kl
from prefopt.settings import RolloutSettings
from prefopt.world import World
from tests.benches import Spoken, bench_of, figures_in, rows_of

WORLD = World(0)
REQUESTS = WORLD.requests(12, seed=3, split="heldout")


def test_examples_run() -> None:
    assert doctest.testmod(frontier).failed == 0


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_best_of_n_is_the_mean_over_all_choices(n: int) -> None:
    rewards_XN = np.array([[0.0, 1.0, 1.0, -2.0, 0.5, 3.0], [1.0] * 6])
    by_hand = [np.mean([max(choice) for choice in itertools.combinations(row, n)]) for row in rewards_XN.tolist()]
    assert frontier.expected_best(rewards_XN, n) == pytest.approx(np.array(by_hand))


def test_the_optimum_of_two_answers_is_the_logistic() -> None:
    points = frontier.optimum(np.array([[0.0, 1.0] * 8]))
    assert (points[0].kl, points[0].reward, points[0].effective) == pytest.approx((0.0, 0.5, 16.0))
    for point in points[1:]:
        p = 1 / (1 + math.exp(-1 / point.beta))
        assert point.reward == pytest.approx(p)
        assert point.kl == pytest.approx(math.log(2) - float(entr(p) + entr(1 - p)), abs=1e-9)


def test_nothing_lies_above_the_optimum_and_it_ends_where_too_few_answers_carry_it() -> None:
    rewards_XN = np.random.default_rng(0).normal(size=(40, 32))
    points = frontier.optimum(rewards_XN)
    assert points[-1].effective >= frontier.FEWEST > 0.8 * points[-1].effective
    assert [p.reward for p in points] == sorted(p.reward for p in points)
    law_XN = np.full(rewards_XN.shape, 1 / 32)
    for n in (2, 3, 4):
        p_XN = best_of_n(law_XN, rewards_XN, n)
        there = float(np.interp(kl(p_XN, law_XN).mean(), [p.kl for p in points], [p.reward for p in points]))
        assert (p_XN * rewards_XN).sum(1).mean() <= there + 1e-3


def known(prompt: Any) -> Any:
    """The request that asks so."""
    return next(request for request in REQUESTS if request.prompt[-1].content == prompt[-1].content)


def drafts() -> Any:
    """What a policy says that drafts its answers."""
    rng = np.random.default_rng(0)
    return lambda prompt: WORLD.draft(known(prompt), rng)


def test_the_suite_tells_both_curves_of_the_baseline(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, Spoken("dpo", lambda prompt: WORLD.ideal(known(prompt))), Said("sft", drafts()), rows=rows_of(REQUESTS))
    told = suites.run("frontier", bench)
    found = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)["frontier"]
    assert found["optimum"][0]["beta"] is None
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 4, 8, 16]
    assert found["best_of_n"][1]["kl"] == pytest.approx(math.log(2) - 0.5)
    assert found["optimum"][0]["kl"] == 0
    assert found["optimum"][0]["reward"] == pytest.approx(found["best_of_n"][0]["reward"])
    assert found["optimum"][-1]["effective"] >= frontier.FEWEST
    figures = figures_in(tmp_path)
    assert figures["gold_best_of_8", "sft", "all", ""]["value"] > figures["gold_best_of_2", "sft", "all", ""]["value"]
    assert "effective" not in told
    assert "answers a request" in told


def test_rows_of_one_prompt_are_one_request(tmp_path: Path) -> None:
    """Twelve prompts in forty-eight rows had intervals half as wide as in twelve."""
    ends = []
    for times in (1, 4):
        rows = [replace(row, where=f"x:{i}") for i, row in enumerate(rows_of(REQUESTS) * times)]
        suites.run("frontier", bench_of(tmp_path, Spoken("dpo", str), Said("sft", drafts()), rows=rows))
        found = json.loads((tmp_path / "evaluation.json").read_text())["frontier"]
        ends.append([point[end] for curve in ("best_of_n", "optimum") for point in found[curve] for end in ("low", "high")])
    assert ends[0] == pytest.approx(ends[1])


class Said(Spoken):
    """A policy that says something new each time."""

    def sample(self, prompts: Any, settings: RolloutSettings) -> Any:
        one = RolloutSettings(samples=1)
        return [[super(Said, self).sample([prompt], one)[0][0] for _ in range(settings.samples)] for prompt in prompts]


@pytest.mark.parametrize("rollout", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"regex": ".*"}])
def test_only_the_policy_as_it_is_has_a_frontier(tmp_path: Path, rollout: Any) -> None:
    rows = rows_of(REQUESTS[:2])
    bench = bench_of(tmp_path, Spoken("a", str), Spoken("b", str), rows=rows, rollout=RolloutSettings(**rollout))
    with pytest.raises(DataError, match=r"'frontier' needs rollout\.temperature=1"):
        suites.run("frontier", bench)
    with pytest.raises(DataError, match="'frontier' needs a baseline"):
        suites.run("frontier", bench_of(tmp_path, Spoken("a", str), rows=rows))
