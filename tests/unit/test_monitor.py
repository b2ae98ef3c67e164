"""Reward hacking: seen when the evaluator falls while the reward rises, not seen where nothing happens, and kept for people to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.rollout.sampler import Sample
from prefopt.settings import MonitorSettings
from prefopt.training.monitor import AUDIT, CHECKS, Judged, Monitor, Watched, evaluator_settings, flags
from prefopt.types import Example, Message


class Evaluator:
    """Gives the number that stands in an answer's text."""

    def check(self, examples: Sequence[Example]) -> None:
        """Nothing to check."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        return [Verdict(None if answer.sample.text == "?" else float(answer.sample.text.split()[-1])) for answer in rolled]


def answer(
    reward: float, gold: float | str, prompt: int = 0, *, ids: tuple[int, ...] = (1, 2), finished: bool = True, text: str = ""
) -> Judged:
    example = Example(prompt=(Message("user", f"question {prompt}"),), where=f"p.jsonl:{prompt + 1}")
    said = f"{text} {gold}".strip()
    sample = Sample(ids=np.array(ids, dtype=np.int32), logps=np.zeros(len(ids), dtype=np.float32), text=said, finished=finished)
    return Judged(Rolled(example, sample), Verdict(reward, {"model": reward}), prompt)


def rounds(rng: np.random.Generator, reward: float, gold: float, n: int = 64) -> list[Judged]:
    return [answer(rng.normal(reward), rng.normal(gold), i // 4) for i in range(n)]


def watch(out: Path, means: Sequence[tuple[float, float]], *, seed: int = 0, **settings: object) -> tuple[list[Watched], list[str]]:
    said: list[str] = []
    monitor = Monitor(MonitorSettings(every=1, **settings), Evaluator(), out, 0, said.append)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    return [monitor(i, rounds(rng, *pair), {"objective/kl": 4.0 * i}) for i, pair in enumerate(means)], said


RISING = [(0.0, 0.0), (1.0, 1.0), (2.0, 1.6), (3.0, 0.4), (4.0, -0.5), (5.0, -1.5)]


def test_a_fall_is_warned_of_and_then_stops_at_the_best(tmp_path: Path) -> None:
    found, said = watch(tmp_path, RISING)
    assert [w.best for w in found] == [True, True, True, False, False, False]
    assert [bool(w.stop) for w in found][:5] == [False, False, False, False, True]
    assert "may be being hacked" in said[0]
    assert "(round 3)" in found[4].stop
    lines = [json.loads(line) for line in (tmp_path / CHECKS).read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["ok"] * 3 + ["fallen"] * 3
    assert [line["sqrt_kl"] for line in lines[:3]] == pytest.approx([0.0, 2.0, 8**0.5])
    assert lines[2]["evaluator_low"] < lines[2]["evaluator"] < lines[2]["evaluator_high"]


def test_told_only_to_warn_it_goes_on(tmp_path: Path) -> None:
    found, said = watch(tmp_path, RISING, stop=False)
    assert not any(w.stop for w in found)
    assert len(said) == 1  # said when it begins, not at every check


@pytest.mark.parametrize("means", [[(0.0, 2.0), (0.5, 2.0)] * 4, [(3.0 - i, 3.0 - i) for i in range(8)]], ids=["level", "both fall"])
def test_no_alarm_without_hacking(tmp_path: Path, means: list[tuple[float, float]]) -> None:
    found, said = watch(tmp_path, means)
    assert not any(w.stop for w in found)
    assert not said


def test_false_alarms_are_rare(tmp_path: Path) -> None:
    """Thirty checks of a run in which the reward drifts up and the evaluator stands still: one run in twenty may be stopped, no more."""
    stopped = sum(any(w.stop for w in watch(tmp_path / str(s), [(0.1 * i, 1.0) for i in range(30)], seed=s)[0]) for s in range(60))
    assert stopped <= 3


def test_answers_of_one_prompt_count_as_one(tmp_path: Path) -> None:
    """The same fall, in four prompts with sixteen like answers each, is within the interval; in sixty-four prompts it is not."""
    rng, level = np.random.default_rng(0), (-1.2, -0.4, 0.4, 1.2)

    def run(clustered: Callable[[int], int], out: Path) -> str:
        monitor = Monitor(MonitorSettings(every=1, patience=1), Evaluator(), out, 0, lambda line: None)
        last = Watched()
        for number, mean in enumerate((1.0, 0.4)):
            answers = [answer(number + rng.normal(0, 0.1), mean + level[i % 4] + rng.normal(0, 0.05), clustered(i)) for i in range(64)]
            last = monitor(number, answers, {})
        return last.stop

    assert run(lambda i: i % 4, tmp_path / "a") == ""
    assert "(round 1)" in run(lambda i: i, tmp_path / "b")


def test_a_run_that_goes_on_writes_no_line_twice(tmp_path: Path) -> None:
    monitor = Monitor(MonitorSettings(every=2, audit_every=2, audit=3), Evaluator(), tmp_path, 0, lambda line: None)
    for number in (0, 1, 2, 4, 2, 4):
        monitor(number, rounds(np.random.default_rng(number), 0, 0, 8), {})
    assert [json.loads(line)["round"] for line in (tmp_path / CHECKS).read_text().splitlines()] == [0, 2, 4]
    assert [json.loads(line)["round"] for line in (tmp_path / AUDIT).read_text().splitlines()] == [0] * 3 + [2] * 3 + [4] * 3
    again = Monitor(MonitorSettings(every=2), Evaluator(), tmp_path, 0, lambda line: None)
    again.resume(3)
    assert [check.round for check in again.checks] == [0, 2]


def test_the_audit_shows_what_is_rewarded_most_and_what_is_odd(tmp_path: Path) -> None:
    answers = [answer(float(i), i, i, ids=(1, 2, 3) * (8 if i == 5 else 1), finished=i != 4) for i in range(6)]
    Monitor(MonitorSettings(audit=4), None, tmp_path, 0, lambda line: None)(0, answers, {})
    lines = [json.loads(line) for line in (tmp_path / AUDIT).read_text().splitlines()]
    assert [line["reward"] for line in lines[:2]] == [5.0, 4.0]
    assert [line["picked"] for line in lines] == ["highest reward"] * 2 + ["random"] * 2
    assert [line["flags"] for line in lines[:2]] == [["repetitive"], ["unfinished"]]
    assert lines[0]["parts"] == {"model": 5.0}
    assert lines[0]["where"] == "p.jsonl:6"
    assert flags(answer(0, 1, text="I cannot help with that. What a brilliant question!")) == ["refusal", "flattery"]


def test_what_the_evaluator_cannot_judge_is_left_out(tmp_path: Path) -> None:
    monitor = Monitor(MonitorSettings(), Evaluator(), tmp_path, 0, lambda line: None)
    found = monitor(0, [answer(1.0, "?", 0), answer(1.0, 3.0, 1), answer(1.0, 5.0, 2)], {})
    assert found.metrics["monitor/evaluator"] == 4.0
    assert json.loads((tmp_path / CHECKS).read_text())["n"] == 2


def test_an_evaluator_that_judges_nothing_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    monitor = Monitor(MonitorSettings(), Evaluator(), tmp_path, 0, said.append)
    found = monitor(0, [answer(1.0, "?", 0), answer(1.0, "?", 1)], {})
    assert found.metrics == {"monitor/unjudged": 2.0}
    assert said == ["warning: round 1: the evaluator judged 0 of 2 answers (); nothing watches the reward"]
    assert not (tmp_path / CHECKS).exists()


def test_what_an_evaluator_may_be(tmp_path: Path) -> None:
    assert evaluator_settings("gold").verifier == "gold"
    assert evaluator_settings("https://x/y").url == "https://x/y"
    assert evaluator_settings("judge.py:score").function == "judge.py:score"
    assert evaluator_settings(str(tmp_path)).model == str(tmp_path)


def test_a_run_that_hacks_its_reward_is_stopped_and_its_best_weights_are_kept(tmp_path: Path) -> None:
    """GRPO is paid for even tokens; what is wanted are odd ones. It ends, saying so, at the weights of the best check."""
    from tests.worlds import EvenTokens, run

    class Odd(Evaluator):
        def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
            return [Verdict(float((a.sample.ids % 2).mean())) for a in rolled]

    said: list[str] = []
    monitor = Monitor(MonitorSettings(every=2), Odd(), tmp_path, 0, said.append)
    train = {"steps": 40, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
    found = run(tmp_path, "grpo", reward=EvenTokens(), watch=[monitor], train=train)
    assert found.stopped == "stopped"
    assert found.steps < 40
    lines = [json.loads(line) for line in (tmp_path / CHECKS).read_text().splitlines()]
    assert [line["verdict"] for line in lines[-2:]] == ["fallen", "fallen"]
    assert lines[-1]["reward"] > lines[0]["reward"]
    assert lines[-1]["evaluator"] < max(line["evaluator"] for line in lines)
    assert "may be being hacked" in said[0]
