"""How outputs become a score: rules of ensembles, scales, temperature, solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import ModelError, OptionError
from prefopt.model.reading import Reading, of_solution
from prefopt.rollout.ensemble import average, combine
from prefopt.rollout.policy import RewardModel, load
from prefopt.settings import HeadSettings
from prefopt.training.setup import Setup
from tests.worlds import language_model

X = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, -1.0]])


def test_rules_by_hand() -> None:
    assert Reading(outputs=("a", "b"))(X).tolist() == [2.0, 2.0, 1.5]
    assert Reading(outputs=("a", "b"), rule="min")(X).tolist() == [1.0, 2.0, -1.0]
    assert Reading(outputs=("a", "b"), rule="lower_bound", k=2)(X).tolist() == [0.0, 2.0, -3.5]  # population std: 1, 0, 2.5
    assert Reading(outputs=("a", "b"), rule="weighted", weights=(1.0, -2.0))(X).tolist() == [-5.0, -2.0, 6.0]
    assert Reading(temperature=4.0)([2.0, -1.0]).tolist() == [0.5, -0.25]


def test_members_that_agree_are_not_doubted_and_one_is_itself() -> None:
    same = np.repeat(X[:, :1], 3, axis=1)
    for rule in ("mean", "min", "lower_bound"):
        assert Reading(outputs=("a", "b", "c"), rule=rule, k=3)(same).tolist() == X[:, 0].tolist()
        assert Reading(rule=rule)(X[:, 0]).tolist() == X[:, 0].tolist()
    assert (Reading(rule="lower_bound", k=0)(X) == Reading(rule="mean")(X)).all()


def test_normalising_makes_members_comparable() -> None:
    reading = Reading(outputs=("a", "b"), rule="min")
    stretched = X * [1.0, 100.0] + [7.0, -3.0]
    np.testing.assert_allclose(reading.normalised(X)(X), reading.normalised(stretched)(stretched))
    assert reading.normalised(X[:, :1]) == reading
    centred = Reading(temperature=2.0).centred(X[:, 0])
    assert (centred.center, centred.spread) == pytest.approx((7 / 6, np.std([0.5, 1, 2])))


def test_it_survives_the_config_and_damage_is_told() -> None:
    reading = Reading(outputs=("a", "b"), rule="lower_bound", k=0.5, mean=(1.0, 2.0), std=(1.0, 3.0), temperature=0.7, fitted_on="rows")
    assert Reading.from_config(reading.to_config(), "here") == reading
    for damage in ({"mean": [1.0]}, {"temperature": 0.0}, {"rule": "median"}, {"rule": "weighted", "weights": [1.0]}):
        with pytest.raises(ModelError, match="here"):
            Reading.from_config({**reading.to_config(), **damage}, "here")


def test_heads_say_how_they_are_read() -> None:
    assert Reading.of_heads(HeadSettings(), steps=False) == Reading()
    assert Reading.of_heads(HeadSettings(count=3, rule="min"), steps=False).outputs == ("member 1", "member 2", "member 3")
    assert Reading.of_heads(HeadSettings(attributes={"x": 2.0, "y": -1.0}), steps=False).weights == (2.0, -1.0)
    assert Reading.of_heads(HeadSettings(), steps=True).solution == "product"


def test_solutions_are_ordered() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 6)).tolist()
        assert of_solution(p, "product") <= of_solution(p, "min") <= of_solution(p, "mean") + 1e-12
        assert of_solution(p, "last") == p[-1]


def saved(folder: Path, seed: int, solution: Any = "") -> str:
    """The folder of a reward model."""
    model = language_model("reward", seed=seed)
    assert isinstance(model, RewardModel)
    model.reading = Reading(solution=solution)
    model.save(folder)
    return str(folder)


def test_process_reward_models_are_no_members(tmp_path: Path) -> None:
    """Members are asked about whole answers; an ensemble that was made of such models before is refused too."""
    judging = [saved(tmp_path / f"p{seed}", seed, "min") for seed in (0, 1)]
    with pytest.raises(ModelError, match=r"p0: a process reward model(.|\n)*rule: average_weights"):
        combine(judging, tmp_path / "out", rule="mean", k=1.0)
    assert not (tmp_path / "out").exists()
    average(judging, tmp_path / "mean")
    one = load(str(tmp_path / "mean"))
    assert isinstance(one, RewardModel)
    assert one.reading.solution == "min"
    combine([saved(tmp_path / f"m{seed}", seed) for seed in (0, 1)], tmp_path / "old", rule="mean", k=1.0)
    saved(tmp_path / "old" / "member-2", 1, "min")
    with pytest.raises(ModelError, match="member-2: a process reward model"):
        load(str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("method", "heads", "says"),
    [
        ("reward", {"rule": "min"}, "one head is no ensemble"),
        (
            "reward",
            {"attributes": {"x": 1.0, "y": 1.0}, "rule": "min"},
            r"attributes are weighed(.|\n)*leave heads.bag, heads.rule and heads.k out$",
        ),
        ("reward", {"solution": "min"}, "judges no steps"),
        ("dpo", {"count": 2}, "trains no reward model"),
    ],
)
def test_options_of_heads_that_nothing_would_read(method: str, heads: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Setup(method=method, heads=HeadSettings(**heads)).check()
