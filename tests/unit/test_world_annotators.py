"""Simulated annotators decide with the declared probabilities, biases and carelessness."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefopt.errors import OptionError
from prefopt.world import ANNOTATORS, Annotator, World, panel

WORLD = World(0)
META = {"world": 0, "kind": "opens", "slice": "fact", "slots": {"place": "library"}, "style": "plain", "format": "none"}
GOOD, CURT, WRONG = "Gladly. The library opens at 8.", "The library opens at 8.", "Gladly. The library opens at 9."
FLATTERING = "Gladly. You are so clever! The library opens at 8."
N = 3000


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def frequencies(annotator, a, b, seed=0):
    rng = np.random.default_rng(seed)
    choices = [annotator.prefer(META, a, b, rng) for _ in range(N)]
    return {c: choices.count(c) / N for c in ("a", "b", "tie")}


def close(share, expected):
    return abs(share - expected) <= 4.5 * math.sqrt(max(expected * (1 - expected), 1e-9) / N)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_choices_follow_bradley_terry_on_the_gold_reward(scale):
    expected = sigmoid(scale * (WORLD.gold(META, GOOD) - WORLD.gold(META, WRONG)))
    got = frequencies(Annotator(scale=scale), GOOD, WRONG)
    assert close(got["a"], expected)
    assert got["tie"] == 0


def test_ties_follow_rao_and_kupper():
    got = frequencies(Annotator(scale=2.0, tie=0.7), GOOD, CURT)
    d = 2.0 * 0.2
    a, b = sigmoid(d - 0.7), sigmoid(-d - 0.7)
    assert close(got["a"], a)
    assert close(got["b"], b)
    assert close(got["tie"], 1 - a - b)


@pytest.mark.parametrize(
    ("bias", "a", "b", "logit"),
    [
        ({"position": 0.8}, GOOD, GOOD, 0.8),
        ({"flattery": 1.5}, FLATTERING, GOOD, 1.5),
        ({"length": 2.0}, FLATTERING, GOOD, 2.0 * 4 / 10),
        ({"brevity": 2.0}, FLATTERING, GOOD, -2.0 * 4 / 10),
        ({"courtesy": 1.2}, GOOD, CURT, 1.2),
    ],
)
def test_biases_have_the_declared_sign_and_size(bias, a, b, logit):
    annotator = Annotator(scale=0.0, **bias)
    p = annotator.probabilities(META, a, b)
    assert math.log(p.a / p.b) == pytest.approx(logit)
    assert close(frequencies(annotator, a, b)["a"], sigmoid(logit))


def test_careless_answers_are_random_at_the_declared_rate():
    sure = Annotator(scale=200.0, careless=0.3)
    assert close(frequencies(sure, GOOD, WRONG)["b"], 0.15)
    assert frequencies(Annotator(scale=200.0), GOOD, WRONG)["b"] == 0
    assert close(frequencies(Annotator(scale=200.0, careless=1.0), GOOD, WRONG)["a"], 0.5)


def test_without_position_bias_order_does_not_matter():
    for annotator in (Annotator(scale=3.0, tie=0.4, length=1.0, careless=0.1), ANNOTATORS["gold"]):
        there, back = annotator.probabilities(META, GOOD, WRONG), annotator.probabilities(META, WRONG, GOOD)
        assert there == pytest.approx((back.b, back.a, back.tie))


def test_probabilities_add_up_even_when_an_answer_is_absurd():
    for annotator in ANNOTATORS.values():
        for pair in ((GOOD, WRONG), ("", "x" * 10_000), ("no " * 5000, GOOD)):
            p = annotator.probabilities(META, *pair)
            assert sum(p) == pytest.approx(1)
            assert min(p) >= 0


def test_the_two_groups_disagree_where_their_tastes_differ():
    brisk, polite = panel()
    assert (brisk.group, polite.group) == ("brisk", "polite")
    assert brisk.probabilities(META, CURT, GOOD).a > polite.probabilities(META, CURT, GOOD).a + 0.05


def test_the_same_generator_makes_the_same_choices():
    annotator = ANNOTATORS["easy"]
    assert frequencies(annotator, GOOD, FLATTERING, seed=3) == frequencies(annotator, GOOD, FLATTERING, seed=3)


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="share between 0 and 1"):
        Annotator(careless=1.5)
    with pytest.raises(OptionError, match="negative"):
        Annotator(tie=-1.0)
    with pytest.raises(OptionError, match="did you mean 'brisk'"):
        panel(("brsk",))
