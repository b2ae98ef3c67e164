"""Learning from one's own samples: rounds, resuming in the middle of one, KL and its budget, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.data.preflight import Preflight
from prefopt.errors import DataError, ModelError, OptionError, RewardError
from prefopt.losses.kl import KLBudget, kl_estimate
from prefopt.losses.methods import METHODS
from prefopt.losses.online import Online
from prefopt.losses.reduce import reduce
from prefopt.model import load
from prefopt.pack.prepare import Prepared
from prefopt.pack.tree import pack
from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.rollout.sampler import Sample
from prefopt.settings import CriticSettings, KLSettings, LoraSettings, OnlineSettings, ReferenceSettings, TrainSettings
from prefopt.stats import clustered_mean
from prefopt.training import fit as fitting
from prefopt.training import online as stream
from prefopt.training.critic import build_critic
from prefopt.training.fit import FitResult, fit
from prefopt.training.job import Job
from prefopt.training.monitor import Judged, Watched
from prefopt.training.online import explained, summary
from prefopt.training.rounds import Answer, Group, Made, Round, from_tensors, to_tensors, trees_of
from prefopt.training.setup import Setup
from prefopt.types import Example, TokenTree
from tests.worlds import EvenTokens, language_model, losses_of, metrics_of, rollout, rows_for, run

SEVERAL = OnlineSettings(prompts=8, epochs=2)
"""With four prompts a step: two passes of two steps, four steps a round."""


def trained(out: Path, method: str = "ppo", **changes: Any) -> FitResult:
    """Two rounds of four steps each."""
    train = {"steps": 8, "batch_size": 4, **changes.pop("train", {})}
    return run(out, method, train=train, **{"online": SEVERAL, **changes})


class Watcher:
    """Asks for a distance in every `every`-th round, keeps those it is told, calls round `best` the best and stops at round `stop`."""

    def __init__(self, *, every: int = 1, best: int = -1, stop: int = -1) -> None:
        self.every, self.best, self.stop = every, best, stop
        self.seen: list[float] = []

    def needs_kl(self, number: int) -> bool:
        return number % self.every == 0

    def __call__(self, number: int, answers: Sequence[Judged], metrics: Any) -> Watched:
        assert all(answer.verdict.value is not None for answer in answers)
        self.seen.append(metrics.get("objective/kl", math.nan))
        return Watched({"watched": 1.0}, best=number == self.best, stop="seen enough" if number == self.stop else "")


def weights(found: FitResult) -> dict[str, torch.Tensor]:
    return load_file(found.model / "model.safetensors")


# --- rounds -------------------------------------------------------------------------------------------------------------


def test_a_round_is_sampled_once_and_read_in_every_pass(tmp_path: Path) -> None:
    trained(tmp_path, rows=8)
    rows = metrics_of(tmp_path)
    assert ["reward" in row for row in rows] == [True, False, False, False] * 2
    assert [row["policy/approxkl"] == pytest.approx(0, abs=1e-9) for row in rows][::4] == [True, True]
    assert all(row["policy/approxkl"] > 1e-9 for row in rows[1:4])
    files = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert files == ["round-000001.jsonl", "round-000002.jsonl"]
    kept = [json.loads(line) for line in (tmp_path / "rollouts" / files[0]).read_text().splitlines()]
    assert len(kept) == 8
    assert kept[0]["prompt"] == "asked"
    assert np.mean([score for row in kept for score in row["scores"]]) == pytest.approx(rows[0]["reward"])


def test_the_record_of_a_round_keeps_the_tools_of_its_prompts(tmp_path: Path) -> None:
    """So that what is trained on it shows them to the model too."""
    asked: Any = Example(prompt="asked", tools=({"name": "weather"},))
    groups = [
        Group(replace(tree, example=example), (), 0.0) for tree in rows_for("grpo", 1) for example in (asked, replace(asked, tools=()))
    ]
    rounds: Any = SimpleNamespace(dropped=[], unjudged=[], out=tmp_path, say=print)
    stream.Rounds._record(rounds, 0, groups)
    kept = [json.loads(line) for line in (tmp_path / "rollouts" / "round-000001.jsonl").read_text().splitlines()]
    assert [row.get("tools") for row in kept] == [[{"name": "weather"}], None]


@pytest.mark.parametrize("method", ["ppo", "ppo budget", "reinforce", "grpo", "grpo budget", "star", "iterative_dpo"])
def test_a_run_that_was_stopped_in_the_middle_of_a_round_goes_on_to_the_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, budget = method.partition(" ")
    more: dict[str, Any] = {"kl": KLSettings(budget=1e-3)} if budget else {}
    whole = trained(tmp_path / "whole", name, **more)
    monkeypatch.setattr(stream.Rounds, "step", _until(6, stream.Rounds.step))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", name, train={"save_every": 1}, **more)
    monkeypatch.undo()
    monkeypatch.setattr(stream.Rounds, "_new", _only_after(1, stream.Rounds._new))
    again = trained(tmp_path / "cut", name, train={"save_every": 1}, **more)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert not budget or any(row.get("kl/pulled_back") for row in metrics_of(tmp_path / "cut"))
    for part, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[part]), part


def _until(last: int, step: Any) -> Any:
    def stopped(self: Any, number: int) -> Any:
        if number == last:
            raise KeyboardInterrupt
        return step(self, number)

    return stopped


def _only_after(last: int, new: Any) -> Any:
    def refused(self: Any, number: int) -> Any:
        assert number > last, "the round under way was sampled again"
        return new(self, number)

    return refused


def test_a_run_goes_on_with_smaller_batches_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out while it samples they are what to lower, and no sample changes."""
    whole = run(tmp_path / "whole", "grpo")
    monkeypatch.setattr(stream.Rounds, "step", _until(2, stream.Rounds.step))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", "grpo", train={"save_every": 1})
    monkeypatch.undo()
    again = run(tmp_path / "cut", "grpo", train={"save_every": 1}, rollout=rollout("grpo", batch_size=3))
    for mine, theirs in zip(metrics_of(tmp_path / "cut"), metrics_of(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    for part, weight in weights(whole).items():
        torch.testing.assert_close(weight, weights(again)[part], atol=1e-5, rtol=1e-4)


def test_the_reward_goes_up(tmp_path: Path) -> None:
    train = {"steps": 25, "batch_size": 8, "learning_rate": 5e-3, "schedule": "constant"}
    run(tmp_path, "rloo", train=train, rollout=rollout("rloo", samples=8), kl=KLSettings(coefficient=0.0))
    rewards = [row["reward"] for row in metrics_of(tmp_path)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_without_a_penalty_there_is_no_reference(tmp_path: Path) -> None:
    run(tmp_path, "grpo", kl=KLSettings(coefficient=0.0))
    assert not any("kl" in row for row in metrics_of(tmp_path))


def test_the_samplers_log_probs_are_the_trainers(tmp_path: Path) -> None:
    for temperature in (1.0, 0.7):
        run(tmp_path / str(temperature), "ppo", rollout=rollout("ppo", temperature=temperature))
        assert max(row["sampling/sampling_logp_difference/mean"] for row in metrics_of(tmp_path / str(temperature))) < 1e-5


def test_a_shared_critic_and_an_entropy_bonus(tmp_path: Path) -> None:
    trained(tmp_path, critic=CriticSettings(shared=True), online=replace(SEVERAL, entropy=0.01, importance_cap=2.0))
    rows = metrics_of(tmp_path)
    assert all("entropy" in row and math.isfinite(row["loss/value"]) for row in rows)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_critic_that_starts_from_a_reward_model(layout: str, tmp_path: Path) -> None:
    language_model("reward").save(tmp_path / "rm")
    trained(tmp_path / "run", critic=CriticSettings(path=str(tmp_path / "rm")), train={"layout": layout})
    first = metrics_of(tmp_path / "run")[0]
    assert first["loss/value"] > 0.1  # its scores know nothing of this reward


def test_a_critics_masters_start_from_unrounded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = language_model("reward")
    start.save(tmp_path)
    monkeypatch.setattr(load, "_dtype", lambda settings: torch.float32 if settings.dtype == "fp32" else torch.bfloat16)
    policy, where = language_model(), CriticSettings(path=str(tmp_path))
    words = policy.tokenizer.get_vocab()
    critic = build_critic(where, TrainSettings(), policy.model, vocabulary=words, learning_rate=1e-3, precision="bf16")
    assert torch.equal(critic.optimizer.weights.masters["head.weight"], start.model.score.weight)


def test_a_critic_must_read_the_same_tokens(tmp_path: Path) -> None:
    other = language_model("reward")
    other.tokenizer.add_tokens(["more"])
    other.save(tmp_path / "rm")
    with pytest.raises(ModelError, match="vocabulary"):
        trained(tmp_path / "run", critic=CriticSettings(path=str(tmp_path / "rm")))


@pytest.mark.parametrize("method", ["grpo", "ppo", "xpo", "star"])
@pytest.mark.parametrize("how", ["lora", "bf16"])
def test_adapters_and_half_precision(method: str, how: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"lora": LoraSettings(rank=2)} if how == "lora" else {"train": {"precision": "bf16"}}
    run(tmp_path, method, **changes)
    rows = metrics_of(tmp_path)
    assert all(math.isfinite(row["loss"]) for row in rows)
    gap = "sampling/sampling_logp_difference/mean"
    assert all(row[gap] < (1e-5 if how == "lora" else 0.02) for row in rows if gap in row)


def test_memory_is_reckoned_for_trees_that_are_parted() -> None:
    prompt = TokenTree(prompt=np.arange(3, 13, dtype=np.int32), branches=())
    train = TrainSettings(micro_tokens=100)
    sizes = [
        Setup(method=method, train=train, rollout=rollout(method, samples=samples, max_new_tokens=room)).size(prompt)
        for method, samples, room in (("grpo", 4, 20), ("grpo", 16, 20), ("grpo", 16, 200), ("iterative_dpo", 16, 20))
    ]
    assert sizes == [90, 100, 210, 330]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_critic_learns(precision: str, tmp_path: Path) -> None:
    train = {"steps": 40, "precision": precision, "batch_size": 8, "learning_rate": 1e-5, "schedule": "constant"}
    run(tmp_path, "ppo", train=train, critic=CriticSettings(learning_rate=3e-3, clip=None), online=OnlineSettings(prompts=16, epochs=4))
    known = [row["critic/vf_explained_var"] for row in metrics_of(tmp_path) if "critic/vf_explained_var" in row]
    losses = [row["loss/value"] for row in metrics_of(tmp_path)]
    assert known[-1] > known[0]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_prompts_without_contrast_are_replaced(tmp_path: Path) -> None:
    class Half(EvenTokens):
        """All answers to prompts of even length get 1."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            found = super().judge(rolled)
            self.count = getattr(self, "count", 0) + 1
            return [Verdict(1.0) if self.count % 2 else verdict for verdict in found]

    run(tmp_path / "plain", "dapo", reward=Half(), online=OnlineSettings(dynamic=False))
    run(tmp_path / "dynamic", "dapo", reward=Half())
    flat = [[row.get("frac_reward_zero_std", 0) for row in metrics_of(tmp_path / name)] for name in ("plain", "dynamic")]
    assert flat[0][0] == 1.0
    assert max(flat[1]) < 1.0


def test_nothing_to_learn_from_is_a_step_that_is_skipped(tmp_path: Path) -> None:
    class Same(EvenTokens):
        """Always 1."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return [Verdict(1.0) for _ in rolled]

    found = run(tmp_path, "online_dpo", reward=Same())
    assert found.steps == 4
    assert [row["skipped_steps"] for row in metrics_of(tmp_path)] == [1.0] * 4


# --- KL -----------------------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = {"steps": 30, "batch_size": 8, "learning_rate": 5e-3, "schedule": "constant"}
    run(tmp_path / "free", "rloo", train=train, kl=KLSettings(coefficient=1e-6), rollout=rollout("rloo", samples=8))
    free = [row["objective/kl"] for row in metrics_of(tmp_path / "free")]
    assert max(free) > 2
    found = run(tmp_path / "held", "rloo", train=train, kl=KLSettings(budget=1.0), rollout=rollout("rloo", samples=8))
    assert re.search("(within|at) its budget of 1", capsys.readouterr().err)
    held = metrics_of(tmp_path / "held")
    assert any(row["kl/pulled_back"] > 1 for row in held), "at this rate a round may lead beyond"
    assert all(row["objective/kl"] - row["kl/error"] <= 1 for row in held), "what is learned from is not"
    assert held[-1]["kl/coefficient"] != held[0]["kl/coefficient"]
    assert found.steps == len(held)


def test_the_kl_of_the_end_is_that_of_four_rounds(tmp_path: Path, monkeypatch: Any) -> None:
    measured: list[int] = []
    real = stream.Rounds._kl

    def noted(self: Any, groups: Sequence[Group]) -> tuple[float, float]:
        measured.append(len(groups))
        return real(self, groups)

    monkeypatch.setattr(stream.Rounds, "_kl", noted)
    run(tmp_path, "rloo", rows=32, train={"steps": 2, "batch_size": 4}, kl=KLSettings(budget=50.0), online=OnlineSettings(prompts=4))
    assert measured == [16]


def test_a_budget_that_cannot_be_kept_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(KLBudget, "MOST", 1.0)
    train = {"steps": 60, "batch_size": 8, "learning_rate": 2e-2, "schedule": "constant"}
    found = run(tmp_path, "rloo", train=train, kl=KLSettings(budget=0.05, coefficient=1e-6), rollout=rollout("rloo", samples=8))
    assert found.stopped == "stopped"
    assert found.steps < 60
    assert "above its budget of 0.05 nats an answer in 10 rounds without falling" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [{"budget": 2.0}, {"target": 2.0}])
def test_a_steered_penalty_can_hold_the_policy(asked: dict[str, float]) -> None:
    """The gradient of plain k3 is that of KL(ref || pi), which cannot; who asks for it gets it."""
    assert Setup(method="grpo").held.estimator == "k3"
    assert Setup(method="grpo", kl=KLSettings(**asked)).held.estimator == "k2"
    assert Setup(method="grpo", kl=KLSettings(**asked, estimator="k3")).held.estimator == "k3"
    assert Setup(method="grpo", kl=KLSettings(**asked, ratio=True)).held.estimator == "k3"
    assert Setup(method="ppo", kl=KLSettings(**asked)).held.estimator == "k1"


def test_an_adaptive_coefficient_moves(tmp_path: Path) -> None:
    run(tmp_path, "rloo", kl=KLSettings(target=5.0, horizon=100))
    coefficients = [row["kl/coefficient"] for row in metrics_of(tmp_path)]
    assert coefficients == pytest.approx([0.05 * (1 - 0.2 * 32 / 100) ** (n + 1) for n in range(4)])


def group(*answers: tuple[float, int], index: int = 0) -> Group:
    """A prompt of three tokens with answers of (score, length)."""
    prompt = TokenTree(prompt=np.arange(3, 6, dtype=np.int32), branches=(), index=index, example=Example(prompt="p"))
    made = [
        Answer(Sample(ids=np.full(n, 7, np.int32), logps=np.full(n, -1.0, np.float32), text="", finished=True), Verdict(score))
        for score, n in answers
    ]
    return Group(prompt, tuple(made))


def measured(*drifts: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"old_logps": np.array(d, np.float32) - 1, "ref_logps": np.full(len(d), -1, np.float32)} for d in drifts]


GROUPS = [group((1.0, 2), (3.0, 1)), group((0.0, 3), index=1)]
DRIFTS = measured([0.5, 0.25], [1.0], [0.0, -1.0, 2.0])


def made(place: str, reward_at: str = "token") -> Made:
    return Made(GROUPS, DRIFTS, 2.0, KLSettings(place=place), OnlineSettings(reward_at=reward_at))  # type: ignore[arg-type]


def test_where_the_penalty_goes() -> None:
    loo, pp = METHODS["rloo"].online, METHODS["reinforce_pp"].online
    assert loo is not None
    assert pp is not None
    assert made("reward").columns(loo)["rewards"].tolist() == pytest.approx([1 - 1.5, 3 - 2, 0 - 2])
    assert made("loss").columns(loo)["rewards"].tolist() == [1, 3, 0]
    assert made("reward").columns(pp)["rewards"].tolist() == pytest.approx([-1, 1 - 0.5, 3 - 2, 0, 2, -4])
    assert made("reward", "answer").columns(pp)["rewards"].tolist() == pytest.approx([0, -0.5, 1, 0, 0, -2])
    assert made("loss").columns(pp)["rewards"].tolist() == [0, 1, 3, 0, 0, 0]
    plain = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    spread = [1.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert made("loss").advantages(plain, whitened=False).tolist() == spread
    found = made("advantage").advantages(plain, whitened=False).tolist()
    assert found == pytest.approx([a - 2 * d for a, d in zip(spread, [0.75, 0.25, 1.0, 1.0, 1.0, 2.0], strict=True)])
    white = made("loss").advantages(plain, whitened=True)
    assert (white.mean().item(), white.var().item()) == pytest.approx((0, 1), abs=1e-6)
    assert made("loss").divergence_of_answers() is None
    exact = [{**part, "kl": np.array(kl)} for part, kl in zip(DRIFTS, ([0.1, 0.2], [0.5], [0.0, 1.0, 2.0]), strict=True)]
    known = Made(GROUPS, exact, 2.0, KLSettings(), OnlineSettings())
    found_S = known.divergence_of_answers()
    assert found_S is not None
    assert found_S.tolist() == pytest.approx([0.3, 0.5, 3.0])
    together = clustered_mean([0.3, 0.5, 3.0], [0, 0, 1])
    assert known.divergence() == pytest.approx((together.value, together.std_error))
    assert together.std_error != pytest.approx(clustered_mean([0.3, 0.5, 3.0], [0, 1, 2]).std_error, rel=0.05)


def test_trees_of_a_round_survive_being_stored() -> None:
    online = METHODS["rloo"].online
    assert isinstance(online, Online)
    round_ = made("reward")
    found = online(round_.columns(online), {})
    trees = trees_of(GROUPS, round_.signals(found, whitened=False), found, room=5)
    assert [len(tree.branches) for tree in trees] == [1, 1, 1]  # three tokens of prompt and two answers do not go into five positions
    again = from_tensors(to_tensors(trees), lambda index: GROUPS[index].prompt)
    for mine, theirs in zip(trees, again, strict=True):
        assert (mine.index, mine.prompt.tolist(), mine.example, theirs.example) == (theirs.index, theirs.prompt.tolist(), None, None)
        for a, b in zip(mine.branches, theirs.branches, strict=True):
            assert (a.ids.tolist(), a.rank, a.score, a.label) == (b.ids.tolist(), b.rank, b.score, b.label)
            assert {k: v.tolist() for k, v in a.signals.items()} == {k: v.tolist() for k, v in b.signals.items()}
    assert from_tensors(to_tensors([]), lambda index: GROUPS[index].prompt) == []


def test_steps_of_a_round_hold_the_same_answers_however_they_are_packed() -> None:
    groups = [group((1.0, 2), (3.0, 1), index=i) for i in range(5)]
    for at in range(4):
        steps = [
            Round(0, trees_of(groups, [{}] * 10, {"advantages": torch.zeros(10)}, room=room)).part(at, 2, seed=1) for room in (1, 1000)
        ]
        assert [len(trees) for trees in steps] == [2 * len(steps[1]), len(steps[1])]
        assert list(dict.fromkeys(tree.index for tree in steps[0])) == [tree.index for tree in steps[1]]


def test_ranks_and_choices_make_trees() -> None:
    ranked = trees_of(GROUPS, [{}, {}, {}], {"rank": torch.tensor([1, 0, 0])}, room=1)
    assert [[branch.rank for branch in tree.branches] for tree in ranked] == [[1, 0]]
    kept = trees_of(GROUPS, [{}, {}, {}], {"keep": torch.tensor([True, False, False])}, room=100)
    assert [[len(branch.ids) for branch in tree.branches] for tree in kept] == [[2]]
    found = {"rank": torch.tensor([0, 1, 0]), "rewards": torch.tensor([2.0, -1.0, 0.0])}
    (dear,) = trees_of(GROUPS, [{"old_logps": np.zeros(3, np.float32)}] * 3, found, room=1)
    assert pack([dear]).margin_N.tolist() == [3.0]  # of what they are ranked by, KL in the reward included


def test_a_round_is_told_by_the_policys_own_answers() -> None:
    answers = group((1.0, 2), (5.0, 4)).answers
    mixed = replace(GROUPS[0], answers=(answers[0], replace(answers[1], own=False)))
    told = summary([mixed])
    assert (told["reward"], told["completions/mean_length"]) == (1.0, 2.0)
    assert told["reward_std"] == pytest.approx(8**0.5)  # of all that is compared


def test_answers_that_did_not_end_are_told(tmp_path: Path) -> None:
    answers = group((1.0, 2), (5.0, 4), (0.0, 6)).answers
    cut = replace(answers[1], sample=replace(answers[1].sample, finished=False))
    told = summary([replace(GROUPS[0], answers=(answers[0], cut, answers[2]))])
    assert told["completions/clipped_ratio"] == pytest.approx(1 / 3)
    assert (told["completions/min_length"], told["completions/max_length"]) == (2, 6)


def test_how_much_a_critic_knew() -> None:
    returns = torch.tensor([0.0, 2.0])
    for values, share in (([0.0, 2.0], 1.0), ([0.0, 1.0], 0.75), ([5.0, 5.0], 0.0), ([2.0, 0.0], -3.0)):
        assert explained(torch.tensor(values), returns) == pytest.approx(share)
    assert explained(returns, torch.ones(2)) == 0


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("rloo", {"online": OnlineSettings(prompts=8, epochs=2, whiten=True)}),
        ("ppo", {"online": OnlineSettings(prompts=8, epochs=2, whiten=False)}),
        ("rloo", {"rollout": rollout("rloo", seed=1)}),
    ],
)
def test_a_setting_of_rounds_changes_what_is_learned(method: str, changes: dict[str, Any], tmp_path: Path) -> None:
    once, again, other = (trained(tmp_path / name, method, rows=8, **more) for name, more in (("a", {}), ("b", {}), ("c", changes)))
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(once).items())
    assert not all(torch.equal(weight, weights(other)[name]) for name, weight in weights(once).items())


def test_passes_over_a_round_have_orders_of_their_own() -> None:
    round_ = Round(0, trees_of([group((1.0, 2), index=i) for i in range(6)], [{}] * 6, {"advantages": torch.zeros(6)}, room=1000))
    orders = [[tree.index for at in range(2 * epoch, 2 * epoch + 2) for tree in round_.part(at, 2, seed=1)] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6))
    assert orders[0] != orders[1]


def test_how_many_steps_an_epoch_has() -> None:
    assert Setup(method="dpo", train=TrainSettings(batch_size=4)).steps_per_epoch(9) == 3
    setup = Setup(method="grpo", train=TrainSettings(batch_size=4), online=OnlineSettings(prompts=8, epochs=3))
    assert setup.steps_per_epoch(16) == 2 * 3 * 2  # rounds, passes over each, steps of a pass


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("grpo", {"rollout": rollout("grpo", samples=1)}, "compares the answers"),
        ("xpo", {"rollout": rollout("xpo", samples=1)}, "one answer of the policy with one of the reference"),
        ("xpo", {"rollout": rollout("xpo", samples=3)}, "one answer of the policy with one of the reference"),
        ("grpo", {"rollout": rollout("grpo", regex="[0-9]+")}, "under a constraint are no samples"),
        ("grpo", {"rollout": rollout("grpo", url="http://x/v1")}, "read by rollout.engine=server alone"),
        ("iterative_dpo", {"kl": KLSettings(budget=1.0)}, "the policy that began the round"),
        ("iterative_dpo", {"kl": KLSettings(place="loss")}, "the policy that began the round"),
        ("iterative_dpo", {"reference": ReferenceSettings(path="x")}, "would never be read"),
        ("grpo", {"kl": KLSettings(target=1.0), "reference": ReferenceSettings(sync_every=2)}, "a reference that moves"),
        ("ppo", {"kl": KLSettings(budget=1.0), "reference": ReferenceSettings(sync_every=2)}, "a reference that moves"),
        ("dapo", {"kl": KLSettings(place="loss", estimator="k3")}, "pays nothing for KL"),
        ("dapo", {"kl": KLSettings(estimator="k1")}, "pays nothing for KL"),
        ("online_dpo", {"kl": KLSettings(place="loss", ratio=True)}, "pays nothing for KL"),
        ("xpo", {"kl": KLSettings(place="loss", ratio=True, coefficient=0.1)}, "half of the answers of xpo are the reference's"),
        ("reinforce", {"online": OnlineSettings(dynamic=True), "rollout": rollout("grpo", samples=1)}, "with one answer each, all of them"),
        ("grpo", {"kl": KLSettings(horizon=5)}, "read by kl.target alone"),
        ("grpo", {"kl": KLSettings(ratio=True, estimator="k2")}, "k2 has the gradient"),
        ("grpo", {"online": OnlineSettings(draws=2)}, "read by online.dynamic alone"),
        ("grpo", {"online": OnlineSettings(reward_at="answer")}, "rewards whole answers"),
        ("grpo", {"rollout": rollout("grpo", temperature=0.0)}, "greedy answers"),
        ("online_dpo", {"rollout": rollout("online_dpo", temperature=0.0)}, "all the same"),
        ("best_of_n", {"rollout": rollout("best_of_n", temperature=0.0)}, "all the same"),
        ("online_dpo", {"rollout": rollout("online_dpo", top_p=0.9), "kl": KLSettings(budget=1.0)}, "do not measure its KL"),
        ("online_dpo", {"rollout": rollout("online_dpo", temperature=0.7), "kl": KLSettings(target=1.0)}, "do not measure its KL"),
        (
            "online_dpo",
            {"rollout": rollout("online_dpo", top_k=5), "kl": KLSettings(place="loss", ratio=True, coefficient=0.1)},
            "do not measure its KL",
        ),
        ("xpo", {"rollout": rollout("xpo", temperature=0.0)}, "all the same, as long as"),
        ("gspo", {"kl": KLSettings(place="reward", coefficient=0.1)}, "its price would cancel"),
        ("grpo", {"kl": KLSettings(place="reward")}, "its price would cancel"),
        ("reinforce_pp", {"online": OnlineSettings(whiten=False)}, "whitens its advantages by itself"),
        ("reinforce_pp_baseline", {"online": OnlineSettings(whiten=True)}, "whitens its advantages by itself"),
        ("grpo", {"rollout": rollout("grpo", top_p=0.9)}, "nucleus"),
        ("grpo", {"kl": KLSettings(estimator="k1")}, "no gradient on average"),
        ("ppo", {"kl": KLSettings(estimator="k3")}, "k1, which alone is right"),
        ("ppo", {"kl": KLSettings(ratio=True)}, "no KL term in the loss"),
        ("ppo", {"kl": KLSettings(target=1.0, budget=1.0)}, "both steer"),
        ("ppo", {"kl": KLSettings(budget=1.0, coefficient=0.0)}, "cannot be steered"),
        ("online_dpo", {"kl": KLSettings(place="advantage")}, "no advantages"),
        ("star", {"online": OnlineSettings(entropy=0.1)}, "no advantages"),
        ("grpo", {"critic": CriticSettings(shared=True)}, "no critic"),
        ("ppo", {"critic": CriticSettings(shared=True, path="x")}, "leave one out"),
        ("ppo", {"reference": ReferenceSettings(cache=True)}, "sampled later"),
        ("dr_grpo", {"reference": ReferenceSettings(path="x")}, "no reference"),
        ("grpo", {"options": {"scale": "prompt"}}, "group, batch, none"),
        ("ppo", {"options": {"lam": 2.0}}, "lam"),
    ],
)
def test_settings_that_cannot_mean_what_they_say(method: str, changes: dict[str, Any], says: str) -> None:
    given = {"rollout": rollout(method), "train": TrainSettings(), **changes}
    with pytest.raises(OptionError, match=says):
        Setup(method=method, **given).check()


@pytest.mark.parametrize("kl", [KLSettings(coefficient=0.0, place="loss"), KLSettings(place="loss", estimator="k2", budget=1.0)])
def test_kl_may_be_turned_off_where_it_would_stand_and_a_budget_turns_it_on(kl: KLSettings) -> None:
    Setup(method="dapo", kl=kl, rollout=rollout("dapo")).check()


@pytest.mark.parametrize("method", ["gspo", "cispo", "dapo"])
def test_a_price_of_kl_is_a_price_whatever_the_group(method: str) -> None:
    """Divided by the spread of a group whose answers earn alike, which is then the penalty's own, it would be the same at any price."""
    setup = Setup(method=method, kl=KLSettings(coefficient=0.1), rollout=rollout(method))
    setup.check()
    assert (setup.held.place, setup.held.estimator) == ("loss", "k3")
    undivided = {"kl": KLSettings(place="reward", coefficient=0.1), "options": {"scale": "none"}}
    Setup(method=method, rollout=rollout(method), **undivided).check()


def test_a_reward_is_needed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing rates"):
        run(tmp_path, "grpo", reward=None)


def test_what_was_generated_is_kept_when_the_reward_fails(tmp_path: Path) -> None:
    class Broken(EvenTokens):
        """Wrong itself."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            raise RewardError("nan for answer 1", fix="mend it")

    class Down(EvenTokens):
        """Out of reach."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return [Verdict(None, note="the server is down") for _ in rolled]

    for reward, says in ((Broken(), "nan for answer 1"), (Down(), "none of 32 answers could be judged: the server is down")):
        with pytest.raises(RewardError, match=says) as caught:
            run(tmp_path / says[:4], "grpo", reward=reward)
        path = tmp_path / says[:4] / "rollouts" / "unjudged.jsonl"
        assert str(path) in str(caught.value)
        assert len(path.read_text().splitlines()) == 32


def test_a_run_whose_reward_fails_goes_on_when_it_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was learned before is in a checkpoint, and the end is that of a run that never failed."""

    class Failing(EvenTokens):
        """Breaks at its third round."""

        calls = 0

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            self.calls += 1
            if self.calls == 3:
                raise RewardError("nan for answer 1")
            return super().judge(rolled)

    rounds = {"online": OnlineSettings(prompts=8)}
    whole = run(tmp_path / "whole", "star", **rounds)
    with pytest.raises(RewardError, match="nan for answer 1"):
        run(tmp_path / "cut", "star", reward=Failing(), **rounds)
    assert "kept as after step 2" in capsys.readouterr().err
    again = run(tmp_path / "cut", "star", **rounds)
    assert "going on from step 2 of 4" in capsys.readouterr().err
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[name]), name


@pytest.mark.parametrize("method", ["ppo budget", "reinforce", "rloo target"])
def test_a_round_whose_watch_fails_is_begun_again_as_it_was(method: str, tmp_path: Path) -> None:
    """Coefficient, baseline and weights that the round moved before its evaluator went down are put back, and not moved twice."""

    class Down(Watcher):
        """Its evaluator is down in the second round."""

        def __call__(self, number: int, answers: Sequence[Judged], metrics: Any) -> Watched:
            if number == 1:
                raise RewardError("the evaluator is down")
            return super().__call__(number, answers, metrics)

    name, _, held = method.partition(" ")
    kl = {"budget": KLSettings(budget=1e-3), "target": KLSettings(target=5.0, horizon=100)}.get(held, KLSettings())
    whole = trained(tmp_path / "whole", name, watch=[Watcher()], kl=kl)
    with pytest.raises(RewardError, match="the evaluator is down"):
        trained(tmp_path / "cut", name, watch=[Down()], kl=kl)
    again = trained(tmp_path / "cut", name, watch=[Watcher()], kl=kl)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert held != "budget" or metrics_of(tmp_path / "cut")[4]["kl/pulled_back"] > 0
    for part, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[part]), part


@pytest.mark.parametrize("where", ["held-out answers", "the last measurement"])
def test_a_run_that_fails_at_its_end_is_kept(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down when the run is measured for the last time costs no step of it."""
    more: dict[str, Any] = {"heldout": 4, "kl": KLSettings(budget=50.0)}
    whole = run(tmp_path / "whole", "grpo", **more)
    name = {"held-out answers": "evaluate", "the last measurement": "finish"}[where]

    def down(self: Any, *args: Any) -> Any:
        raise RewardError("the server is down")

    monkeypatch.setattr(stream.Rounds, name, down)
    with pytest.raises(RewardError, match="the server is down"):
        run(tmp_path / "cut", "grpo", **more)
    monkeypatch.undo()
    monkeypatch.setattr(stream.Rounds, "_new", _only_after(4, stream.Rounds._new))
    again = run(tmp_path / "cut", "grpo", **more)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    for part, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[part]), part


def test_a_run_that_was_over_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that its watch had stopped, and whose last measurement failed, is only finished when it goes on."""

    more: dict[str, Any] = {"watch": [Watcher(best=1, stop=2)], "kl": KLSettings(budget=50.0)}
    whole = run(tmp_path / "whole", "grpo", **more)

    def down(self: Any) -> Any:
        raise RewardError("the server is down")

    monkeypatch.setattr(stream.Rounds, "finish", down)
    with pytest.raises(RewardError, match="the server is down"):
        run(tmp_path / "cut", "grpo", **more)
    monkeypatch.undo()
    again = run(tmp_path / "cut", "grpo", **more)
    assert (again.steps, again.stopped) == (whole.steps, whole.stopped) == (2, "stopped")
    for part, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[part]), part


def test_patience_that_had_run_out_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation that ends a run fails; when it is done at last, no step follows."""
    more: dict[str, Any] = {"heldout": 4, "train": {"eval_every": 1, "keep_best": "eval/reward", "patience": 1, "learning_rate": 0.0}}
    whole = run(tmp_path / "whole", "grpo", **more)
    assert (whole.steps, whole.stopped) == (2, "early")
    evaluate = stream.Rounds.evaluate

    def down(self: Any, first: int | None = None) -> Any:
        if first is None and down.calls == 1:
            raise RewardError("the server is down")
        down.calls += first is None
        return evaluate(self, first)

    down.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(stream.Rounds, "evaluate", down)
    with pytest.raises(RewardError, match="the server is down"):
        run(tmp_path / "cut", "grpo", **more)
    monkeypatch.undo()
    again = run(tmp_path / "cut", "grpo", **more)
    assert (again.steps, again.stopped) == (2, "early")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def test_star_that_is_ended_keeps_what_it_has_learned(tmp_path: Path) -> None:
    found = run(tmp_path / "star", "star", watch=[Watcher(stop=1)], online=OnlineSettings(prompts=8), train={"steps": 4})
    first = language_model("star").model.state_dict()
    assert any(not torch.equal(weight, first[name]) for name, weight in weights(found).items() if name in first)


def test_a_monitor_asks_for_a_distance_in_its_rounds_alone(tmp_path: Path) -> None:
    run(tmp_path, "dapo", watch=[Watcher(every=2)])
    assert ["objective/kl" in row for row in metrics_of(tmp_path)] == [True, False, True, False]


def test_the_last_measurement_of_a_budget_asks_no_reward(tmp_path: Path) -> None:
    class Counting(EvenTokens):
        """Counts the answers it is shown."""

        seen = 0

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            self.seen += len(rolled)
            return super().judge(rolled)

    reward = Counting()
    run(tmp_path, "rloo", reward=reward, kl=KLSettings(budget=50.0))
    assert reward.seen == 4 * 8 * 4


def test_a_row_that_breaks_a_verifier_loses_no_answer(tmp_path: Path) -> None:
    class Picky(EvenTokens):
        """Finds a row wrong when it judges."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            raise DataError("the arguments do not fit", where="rows.jsonl:3")

    with pytest.raises(DataError, match=r"rows\.jsonl:3(.|\n)*the answers are kept in"):
        run(tmp_path, "grpo", reward=Picky())
    assert len((tmp_path / "rollouts" / "unjudged.jsonl").read_text().splitlines()) == 32


def test_star_samples_from_what_it_has_learned_and_learns_from_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 1 of arXiv 2203.14465: round n samples from the model of round n - 1 and trains the first one."""
    sampled, learned = [], []
    ask, step = stream.Rounds._answered, stream.Rounds.step

    def seen(self: Any, *args: Any, **named: Any) -> Any:
        sampled.append(self._weights())
        return ask(self, *args, **named)

    def stepped(self: Any, number: int) -> Any:
        found = step(self, number)
        learned.append(self._weights())
        return found

    monkeypatch.setattr(stream.Rounds, "_answered", seen)
    monkeypatch.setattr(stream.Rounds, "step", stepped)
    run(tmp_path, "star", train={"steps": 6}, online=OnlineSettings(prompts=16), rows=16)
    assert len(sampled) == 3
    name = next(iter(sampled[0]))
    first = sampled[0][name]
    assert all(torch.equal(learned[at][name], first) for at in (0, 2, 4)), "each round trains the first model"
    assert not any(torch.equal(found[name], first) for found in sampled[1:]), "later rounds sample from what the one before made"
    rates = [row["lr"] for row in metrics_of(tmp_path)]
    assert rates == rates[:2] * 3, "the schedule begins anew with the weights"


def test_star_takes_all_prompts_for_a_round() -> None:
    assert Setup(method="star", train=TrainSettings(batch_size=4)).round_size(16) == (16, 4)
    assert Setup(method="rejection_sampling", train=TrainSettings(batch_size=4)).round_size(16) == (4, 1)


def test_penalties_do_not_make_a_group_of_failures_worth_learning_from(tmp_path: Path) -> None:
    """Answers that are all wrong and differ in length alone are replaced, and stand in the record."""

    class Wrong(EvenTokens):
        """0 for all, less a penalty for length."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return [Verdict(-0.1 * len(answer.sample.ids), {"math": 0.0}, earned=0.0) for answer in rolled]

    run(tmp_path, "dapo", reward=Wrong(), train={"steps": 1})
    assert metrics_of(tmp_path)[0]["skipped_steps"] == 1.0
    assert len((tmp_path / "rollouts" / "round-000001.jsonl").read_text().splitlines()) == 16


def test_who_watches_gets_a_distance_where_the_loss_needs_none(tmp_path: Path) -> None:
    dapo, rounds = Watcher(), Watcher()
    run(tmp_path / "dapo", "dapo", watch=[dapo])
    assert dapo.seen[0] == pytest.approx(0.0, abs=1e-6)
    assert all(kl > 0 for kl in dapo.seen[1:])
    run(tmp_path / "rounds", "iterative_dpo", watch=[rounds])
    assert all(math.isnan(kl) for kl in rounds.seen), "a reference that is the policy itself tells no distance"


def test_only_the_policys_own_answers_tell_its_distance() -> None:
    other = replace(GROUPS[0].answers[1], own=False)
    mixed = [Group(GROUPS[0].prompt, (GROUPS[0].answers[0], other))]
    parts = [{"kl": np.array([0.5, 0.25])}, {"kl": np.array([100.0])}]
    found = Made(mixed, parts, 0.0, KLSettings(), OnlineSettings()).divergence()
    assert found is not None
    assert found[0] == 0.75


def test_a_penalty_in_a_loss_of_pairs_is_the_mean_over_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers make up to six pairs; a nat an answer costs the coefficient all the same."""
    step = fitting.train_step

    def seen(job: Job, trees: Sequence[TokenTree], *rest: Any) -> Any:
        batches = job.batches(trees)
        penalty = next(term for term in job.terms(job.look(batches[0])) if term.name == "kl")
        answers = sum(len(tree.branches) for tree in trees)
        assert (penalty.unit, penalty.weight, job.counts(batches)["sequence"]) == ("sequence", 0.1, answers)
        assert job.counts(batches)["pair"] > answers
        return step(job, trees, *rest)

    monkeypatch.setattr(fitting, "train_step", seen)
    kl = KLSettings(coefficient=0.1, place="loss", estimator="k2")
    run(tmp_path, "online_dpo", rollout=rollout("online_dpo", samples=4), kl=kl, train={"steps": 1})


@pytest.mark.parametrize("method", ["online_dpo", "best_of_n", "star"])
def test_the_ratio_of_a_penalty_is_to_the_policy_that_sampled(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected answers have one too, and steps after the first of a round find the policy away from it."""
    step, moved = fitting.train_step, []

    def seen(job: Job, trees: Sequence[TokenTree], *rest: Any) -> Any:
        (batch,) = job.batches(trees)
        view = job.look(batch)
        assert batch.old_logps_T is not None
        assert view.logps_T is not None
        assert view.ref_logps_T is not None
        gap_T = view.logps_T - batch.old_logps_T
        penalty = next(term for term in job.terms(view) if term.name == "kl")
        torch.testing.assert_close(penalty.values, gap_T.exp() * kl_estimate(view.logps_T, view.ref_logps_T, "k3"))
        moved.append(gap_T.detach().abs().max().item())
        return step(job, trees, *rest)

    monkeypatch.setattr(fitting, "train_step", seen)
    trained(tmp_path, method, kl=KLSettings(coefficient=0.1, place="loss", estimator="k3", ratio=True))
    assert moved[0] < 1e-5
    assert max(moved[1:4]) > 1e-4


def test_a_penalty_is_part_of_a_loss_that_mixes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AOT is told its slopes over the whole step; KL has its share of them and of the loss that is logged."""
    step, shares = fitting.train_step, []

    def seen(job: Job, trees: Sequence[TokenTree], *rest: Any) -> Any:
        (batch,) = job.batches(trees)
        counts, terms = job.counts([batch]), job.terms(job.look(batch))
        loss, kl = reduce(terms, counts), reduce([term for term in terms if term.name == "kl"], counts)
        parts = torch.autograd.grad(loss, list(job.model.parameters()))
        found = step(job, trees, *rest)
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert found["grad_norm"] == pytest.approx(torch.stack([part.norm() for part in parts]).norm().item(), rel=1e-3)
        shares.append((kl / loss).item())
        return found

    monkeypatch.setattr(fitting, "train_step", seen)
    kl, train = KLSettings(coefficient=100.0, place="loss", estimator="k2"), {"steps": 2, "schedule": "constant", "warmup": 0}
    run(tmp_path, "online_dpo", options={"loss": "aot"}, kl=kl, online=OnlineSettings(epochs=2), train=train)
    assert shares[1] > 0.01


def test_the_best_of_the_policys_own_answers_can_be_imitated_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = fitting.train_step

    def seen(job: Job, trees: Sequence[TokenTree], *rest: Any) -> Any:
        (batch,) = job.batches(trees)
        view = job.look(batch)
        assert view.logps_T is not None
        term = next(term for term in job.terms(view) if term.name == "sft")
        best = [len(branch.ids) for tree in trees for branch in tree.branches if branch.score == max(b.score or 0 for b in tree.branches)]
        assert (term.unit, term.weight, len(term.values), job.counts([batch])["token"]) == ("token", 0.2, sum(best), sum(best))
        torch.testing.assert_close(term.values, -view.logps_T[(batch.rank_S == 0)[batch.sequence_T]])
        return step(job, trees, *rest)

    monkeypatch.setattr(fitting, "train_step", seen)
    run(tmp_path / "dpo", "online_dpo", mix={"sft": 0.2}, train={"steps": 2}, rollout=rollout("online_dpo", samples=4))
    monkeypatch.undo()
    run(tmp_path / "best", "best_of_n", mix={"dft": 0.2}, train={"steps": 2})
    assert all(math.isfinite(loss) for name in ("dpo", "best") for loss in losses_of(tmp_path / name))


def test_answers_that_could_not_be_judged_are_left_out_and_counted(tmp_path: Path) -> None:
    class Shy(EvenTokens):
        """Says nothing of every third answer."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return [Verdict(None) if i % 3 == 0 else verdict for i, verdict in enumerate(super().judge(rolled))]

    run(tmp_path, "rloo", reward=Shy())
    row = metrics_of(tmp_path)[0]
    assert row["rollouts/unjudged"] == 11
    assert row["rollouts/learned_from"] == 32 - 11


class OneFlat(EvenTokens):
    """Answers to the first of eight prompts are worth the same; of those to fewer prompts, which replace others, `known` says whether."""

    def __init__(self, *, known: bool) -> None:
        self.known = known

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        if len(rolled) < 32:
            return super().judge(rolled) if self.known else [Verdict(None, note="who knows")] * len(rolled)
        return [Verdict(1.0)] * 4 + super().judge(rolled)[4:]


def test_answers_that_others_replace_were_judged(tmp_path: Path) -> None:
    run(tmp_path, "dapo", reward=OneFlat(known=True), train={"steps": 1})
    assert len((tmp_path / "rollouts" / "round-000001.jsonl").read_text().splitlines()) > 8
    assert metrics_of(tmp_path)[0]["rollouts/unjudged"] == 0


def test_prompts_drawn_for_others_may_be_beyond_the_reward(tmp_path: Path) -> None:
    """All of a round, not each of its draws, has to be beyond it to end the run."""
    run(tmp_path, "dapo", reward=OneFlat(known=False), train={"steps": 1})
    aside = (tmp_path / "unjudged" / "round-000001.jsonl").read_text().splitlines()
    row = metrics_of(tmp_path)[0]
    assert row["rollouts/unjudged"] == len(aside) >= 4
    assert row["rollouts/learned_from"] >= 4


def test_one_held_out_answer_beyond_the_reward_does_not_refuse_the_run(tmp_path: Path) -> None:
    class Shy(EvenTokens):
        """Judges no answer that comes alone."""

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return super().judge(rolled) if len(rolled) > 1 else [Verdict(None, note="who knows")]

    train = {"eval_every": 2, "keep_best": "eval/reward"}
    run(tmp_path / "run", "grpo", reward=Shy(), heldout=4, train=train)
    assert [row["eval/reward"] >= 0 for row in metrics_of(tmp_path / "run") if "eval/reward" in row] == [True, True]
    with pytest.raises(OptionError, match="did you mean 'eval/reward'"):
        run(tmp_path / "no", "grpo", reward=Shy(), heldout=4, train={**train, "keep_best": "eval/rewards"})
    with pytest.raises(RewardError, match="none of 1 answers"):
        run(tmp_path / "none", "grpo", reward=Shy(), heldout=1, train=train)


def test_answers_whose_greedy_one_is_beyond_the_reward_are_kept(tmp_path: Path) -> None:
    """ReMax cannot learn from them."""

    class Shy(EvenTokens):
        """Says nothing of the first greedy answer, which are asked about before the others."""

        calls = 0

        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            self.calls += 1
            found = super().judge(rolled)
            return [Verdict(None, note="who knows"), *found[1:]] if self.calls == 1 else found

    run(tmp_path, "remax", reward=Shy(), train={"steps": 1}, rollout=rollout("remax", samples=2))
    row = metrics_of(tmp_path)[0]
    assert (row["rollouts/unjudged"], row["rollouts/learned_from"]) == (1, 14)
    kept, aside = ((tmp_path / name / "round-000001.jsonl").read_text().splitlines() for name in ("rollouts", "unjudged"))
    assert (len(kept), len(aside)) == (8, 1)
    assert json.loads(aside[0])["where"] == json.loads(kept[-1])["where"]


def test_a_watcher_can_stop_the_run(tmp_path: Path) -> None:
    """It is told of every round, answers, KL and all; the weights it called best are the ones that are kept."""
    watcher = Watcher(best=1, stop=2)
    level = {"schedule": "constant", "warmup": 0}
    found = run(tmp_path / "stopped", "grpo", watch=[watcher], train=level)
    assert len(watcher.seen) == 3
    assert watcher.seen[0] == pytest.approx(0.0, abs=1e-6)
    assert (found.steps, found.stopped) == (2, "stopped")
    assert metrics_of(tmp_path / "stopped")[0]["watched"] == 1.0
    one = run(tmp_path / "one", "grpo", train={**level, "steps": 1})
    kept, expected = (load_file(r.model / "model.safetensors") for r in (found, one))
    assert all(torch.equal(kept[name], weight) for name, weight in expected.items())


# --- any loss of pairs --------------------------------------------------------------------------------------------------

LOSSES = [name for name, row in METHODS.items() if row.data == "pairs" and row.reads == "logps"]


@pytest.mark.parametrize("loss", LOSSES)
def test_online_learns_by_any_loss_of_pairs(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first two steps are those of the row itself on the pairs that were sampled, rewards' differences their margins, ties dropped."""
    level: dict[str, Any] = {"schedule": "constant", "warmup": 0, "batch_size": 4, "seed": 1}
    kept: list[TokenTree] = []
    step = stream.Rounds.step
    monkeypatch.setattr(stream.Rounds, "step", lambda self, at: kept.extend(found := step(self, at)) or found)
    online = OnlineSettings(epochs=2)
    found = run(tmp_path / "on", "online_dpo", rows=4, options={"loss": loss}, online=online, train={**level, "steps": 2})
    pairs = [replace(t, margin=gap_of(t), branches=tuple(replace(b, signals={}) for b in t.branches)) for t in kept[: len(kept) // 2]]
    assert 2 <= len(pairs) <= 4
    assert all(tree.margin for tree in pairs)
    data = Prepared(pairs, [], Preflight(None, None))
    same = fit(Setup(method=loss, train=TrainSettings(learning_rate=1e-3, steps=2, **level)), language_model(), data, out=tmp_path / "off")
    ours, theirs = (losses_of(tmp_path / name) for name in ("on", "off"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, weight in weights(same).items():
        torch.testing.assert_close(weights(found)[name], weight, rtol=1e-4, atol=1e-6)


def gap_of(tree: TokenTree) -> float:
    """The difference of the rewards of two answers."""
    better, worse = (branch.score for branch in sorted(tree.branches, key=lambda branch: branch.rank or 0))
    assert better is not None
    assert worse is not None
    return better - worse


def test_a_loss_of_pairs_brings_its_own_options() -> None:
    row = METHODS["online_dpo"].using({"loss": "simpo"})
    assert row.options == {**METHODS["simpo"].options, "loss": "simpo"}
    assert not row.needs_reference
    assert METHODS["online_dpo"].using({}) is METHODS["online_dpo"]
    assert METHODS["iterative_dpo"].using({"loss": "orpo"}).plus == {"sft": 1.0}
    row.check_options({"gamma": 1.0, "loss": "simpo"})
    for options, says in (
        ({"loss": "simpoo"}, "did you mean 'simpo'"),
        ({"loss": "kto"}, "no loss of pairs"),
        ({"loss": "simpo", "divergence": "js"}, "no option 'divergence'"),
        ({"loss": "cdpo", "label_smoothing": 2.0}, "label_smoothing"),
        ({"loss": 3}, "name one of dpo"),
    ):
        with pytest.raises(OptionError, match=says):
            METHODS["online_dpo"].check_options(options)
    with pytest.raises(OptionError, match="no option 'loss'"):
        METHODS["xpo"].check_options({"loss": "dpo"})


def test_a_bonus_on_entropy_keeps_the_policy_broad(tmp_path: Path) -> None:
    train = {"steps": 8, "batch_size": 8, "learning_rate": 1e-2, "schedule": "constant"}
    found = []
    for bonus in (0.0, 5.0):
        run(tmp_path / str(bonus), "rloo", train=train, online=OnlineSettings(entropy=bonus), rollout=rollout("rloo", samples=4))
        found.append([row["entropy"] for row in metrics_of(tmp_path / str(bonus)) if "entropy" in row][-1])
    assert found[1] > found[0] + 0.1
