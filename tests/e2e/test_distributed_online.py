"""Methods that sample, on two gloo processes: for the same answers the same metrics and weights as one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.errors import RewardError
from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.rollout.sampler import Sample
from prefopt.settings import CriticSettings, KLSettings, OnlineSettings
from prefopt.training import distributed
from prefopt.training.monitor import Judged, Watched
from prefopt.training.online import Rounds
from prefopt.training.sampling import Source
from tests.ranks import together
from tests.tiny import VOCAB
from tests.worlds import EvenTokens, metrics_of, rollout, run

METHODS = ("ppo", "reinforce", "remax", "dapo", "grpo", "online_dpo", "xpo", "best_of_n", "iterative_dpo", "star")
TRAIN = {"steps": 4, "batch_size": 4, "save_every": 2, "seed": 3}


def fixed(self: Source, prompts: Any, settings: Any, model: Any) -> list[list[Sample]]:
    """Answers that are a function of the prompt and of how often the policy has changed, whoever asks."""
    return [[_answer(tree.index, self.job.version, model is self.job.model, k) for k in range(settings.samples)] for tree in prompts]


def _answer(*stamp: int) -> Sample:
    random = np.random.default_rng([int(part) for part in stamp])
    ids = random.integers(3, VOCAB, size=int(random.integers(2, 7))).astype(np.int32)
    return Sample(ids=ids, logps=np.full(len(ids), -4.5, dtype=np.float32), text="", finished=bool(ids[-1] % 2))


class Watcher:
    """Sees every answer of a round, on one rank."""

    def needs_kl(self, number: int) -> bool:
        """In every round."""
        return True

    def __call__(self, number: int, answers: Sequence[Judged], metrics: Any) -> Watched:
        assert distributed.rank() == 0
        return Watched({"seen": float(len(answers))}, best=False, stop="")


def train(folder: Path, method: str) -> None:
    """Several steps a round where a method makes ratios, KL in its own place, every second step saved."""
    online = OnlineSettings(prompts=8) if method in ("ppo", "dapo", "iterative_dpo", "star") else OnlineSettings()
    more: dict[str, Any] = {"critic": CriticSettings(learning_rate=1e-3)} if method == "ppo" else {}
    more |= {"kl": KLSettings(budget=3e-3)} if method == "grpo" else {}
    options = {"threshold": 0.6} if method == "star" else {}
    run(folder / method, method, rows=13, heldout=5, train=TRAIN, online=online, watch=[Watcher()], options=options, **more)


def long(folder: Path) -> None:
    """Three rounds of two steps of PPO under a budget that pulls it back, each step saved."""
    online, kl = OnlineSettings(prompts=8), KLSettings(budget=3e-3)
    run(folder, "ppo", rows=13, train={**TRAIN, "steps": 6, "save_every": 1}, online=online, kl=kl)


@contextlib.contextmanager
def interrupted(*, after: int) -> Iterator[None]:
    """Both ranks end before the step `after`, in the middle of a round where that is odd."""
    step = Rounds.step

    def stopped(self: Rounds, number: int) -> Any:
        if number == after:
            raise KeyboardInterrupt
        return step(self, number)

    Rounds.step = stopped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Rounds.step = step  # type: ignore[method-assign]


class OneRankFails(EvenTokens):
    """Is wrong on the second rank only."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        if distributed.rank():
            raise RewardError("nan for answer 1", fix="mend it")
        return super().judge(rolled)


class OneRankKnowsNothing(EvenTokens):
    """Cannot judge what the second rank sampled."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        return [Verdict(None, note="who knows") for _ in rolled] if distributed.rank() else super().judge(rolled)


def main(folder: Path) -> None:
    """What each of the two ranks does."""
    run(folder / "sampled", "grpo", rows=8, train={"steps": 2})
    run(folder / "half", "grpo", rows=8, train={"steps": 2}, reward=OneRankKnowsNothing())
    try:
        run(folder / "wrong", "grpo", rows=8, reward=OneRankFails())
    except RewardError as error:
        (folder / f"said-{distributed.rank()}").write_text(f"{error.what}|{error.fix}")
    long(folder / "whole")
    with interrupted(after=3), contextlib.suppress(KeyboardInterrupt):
        long(folder / "cut")
    (folder / f"steps-{distributed.rank()}").write_text(str(len(metrics_of(folder / "cut"))))
    distributed.wait()
    long(folder / "cut")
    Source.sample = fixed  # type: ignore[method-assign]
    for method in METHODS:
        train(folder, method)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "go.py").write_text(
        "import sys, pathlib\nfrom tests.e2e.test_distributed_online import main\nmain(pathlib.Path(sys.argv[1]))\n"
    )
    together(folder / "go.py", str(folder))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_learn_from_the_same_answers_as_one(method: str, ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "sample", fixed)
    train(tmp_path, method)
    ours, theirs = (metrics_of(folder / method) for folder in (tmp_path, ranks))
    assert sum("reward" in row for row in ours) >= 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=2e-4, abs=2e-5)
    one, both = (load_file(folder / method / "model" / "model.safetensors") for folder in (tmp_path, ranks))
    for name, weight in one.items():
        torch.testing.assert_close(weight, both[name], atol=2e-4, rtol=2e-4)
    kept = [sorted(path.name for path in (folder / method / "rollouts").iterdir()) for folder in (tmp_path, ranks)]
    assert kept[0] == kept[1]
    for name in kept[0]:
        assert (tmp_path / method / "rollouts" / name).read_text() == (ranks / method / "rollouts" / name).read_text()


def test_ranks_that_were_stopped_in_the_middle_of_a_round_end_as_ranks_that_were_not(ranks: Path) -> None:
    assert [(ranks / f"steps-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    rows = metrics_of(ranks / "cut")
    assert rows == metrics_of(ranks / "whole")
    assert any(row.get("kl/pulled_back") for row in rows)
    whole, cut = (load_file(ranks / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name]), name


def test_each_rank_samples_its_share(ranks: Path) -> None:
    rows = metrics_of(ranks / "sampled")
    assert [row["rollouts/learned_from"] for row in rows] == [32.0, 32.0]
    (first, *_) = [path.read_text().splitlines() for path in sorted((ranks / "sampled" / "rollouts").iterdir())]
    assert len(first) == 8
    assert len(set(first)) == 8, "two ranks drew the same"
    rows = metrics_of(ranks / "half")
    assert rows[0]["rollouts/unjudged"] == rollout("grpo").samples * 4, "one rank's answers, left out and counted"


def test_a_reward_that_fails_on_one_rank_ends_both(ranks: Path) -> None:
    said = [(ranks / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("nan for answer 1|mend it (the answers are kept in ")
    assert len((ranks / "wrong" / "rollouts" / "unjudged-1.jsonl").read_text().splitlines()) == 16
