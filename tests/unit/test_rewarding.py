"""Completions of a file rated by the rewards of training: columns kept, what cannot be judged counted and set aside, never 0."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt import cli
from prefopt.errors import DataError, OptionError, RewardError
from prefopt.pipeline import rewarding
from prefopt.pipeline.rewarding import Rewarded
from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.rollout.rewards.combine import Sum
from prefopt.settings import RewardSettings
from prefopt.text.chat import Renderer
from prefopt.types import Completion, Example
from tests.worlds import tokenizer


class Counts:
    """A source: the number of words; nothing of answers with `?`, and `broken` raises on the call of that number."""

    def __init__(self, broken: int = 0) -> None:
        self.seen: list[Rolled] = []
        self.calls, self.broken = 0, broken

    def check(self, examples: Sequence[Example]) -> None:
        assert not any(example.completions for example in examples)

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        self.calls += 1
        if self.calls == self.broken:
            raise RewardError("nan for answer 1", fix="mend it")
        self.seen += rolled
        texts = [answer.sample.text for answer in rolled]
        return [Verdict(None, note="who knows") if "?" in text else Verdict(float(len(text.split()))) for text in texts]


def rater(source: Counts | None = None, **settings: Any) -> Rewarded:
    made = Rewarded(RewardSettings(verifier="gold", **settings))
    made.reward = Sum({"words": source or Counts()})
    return made


def rows(*texts: Sequence[str], **meta: Any) -> list[Example]:
    """A row for each list of completions, as `prefopt generate` writes them."""
    return [
        Example(prompt="w5", where=f"a.jsonl:{i + 1}", group=f"g{i}", meta={"completions": list(row), "id": i, **meta})
        for i, row in enumerate(texts)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_cannot_be_judged_is_set_aside_and_counted(tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    told = rater().write(out, rows(["w6 w7", "w8?"], ["w9?"], ["w6"]))
    assert told.startswith("2 rows, 2 answers scored, mean reward 1.5; left out, since they could not be judged: 2")
    first, second = lines(out)
    assert first == {
        "prompt": "w5",
        "completions": ["w6 w7"],
        "scores": [2.0],
        "parts": [{"words": 2.0}],
        "notes": [""],
        "group": "g0",
        "meta": {"id": 0},
    }
    assert second["meta"] == {"id": 2}
    aside = lines(tmp_path / "scores.unjudged.jsonl")
    assert [(row["completion"], row["where"], row["note"]) for row in aside] == [
        ("w8?", "a.jsonl:1", "who knows"),
        ("w9?", "a.jsonl:2", "who knows"),
    ]
    assert rater().write(out, rows(["w6"])) == "1 rows, 1 answers scored, mean reward 1"
    assert not (tmp_path / "scores.unjudged.jsonl").exists(), "of an earlier run"


def test_nothing_judged_at_all_is_an_error_and_so_are_many_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewardError, match="none of 2 answers could be judged: who knows"):
        rater().write(tmp_path / "a.jsonl", rows(["w6?", "w7?"]))
    assert not (tmp_path / "a.jsonl").exists()
    assert len(lines(tmp_path / "a.unjudged.jsonl")) == 2
    monkeypatch.setattr(rewarding, "TOGETHER", 2)
    source = Counts()
    with pytest.raises(RewardError, match=r"none of 2 answers .*\n?.*the 2 answers judged before are kept in .*\.a\.jsonl\.part"):
        rater(source).write(tmp_path / "a.jsonl", rows(["w6"], ["w7"], ["w8?"], ["w9?"], ["w9"]))
    assert source.calls == 2
    assert rater().write(tmp_path / "b.jsonl", rows(["w6"], ["w8"], ["w9?"])).startswith("2 rows"), "one at the end is no sign"


def test_a_reward_that_is_wrong_stops_and_keeps_what_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewarding, "TOGETHER", 2)
    with pytest.raises(RewardError, match=r"nan for answer 1\nmend it; the 2 answers judged before"):
        rater(Counts(broken=2)).write(tmp_path / "a.jsonl", rows(["w6"], ["w7 w8"], ["w8"]))
    assert [row["scores"] for row in lines(tmp_path / ".a.jsonl.part")] == [[1.0], [2.0]]


def test_what_is_judged_is_not_the_right_answer() -> None:
    """A row's own completion stands in for a missing right answer in training; here it is what is judged."""
    row = Example(prompt="2 + 2?", completions=(Completion(content="5"),), where="a.jsonl:1")
    with pytest.raises(DataError, match="no right answer"):
        list(Rewarded(RewardSettings(verifier="math")).scored([row]))
    known = Example(prompt="2 + 2?", completions=(Completion(content="5"), Completion(content="4")), meta={"answer": "4"})
    (scored,) = Rewarded(RewardSettings(verifier="math")).scored([known])
    assert scored["scores"] == [0.0, 1.0]
    assert scored["notes"] == ["expected 4, found 5", "4, as expected"]


def test_tokens_are_counted_where_a_model_says_whose() -> None:
    with pytest.raises(OptionError, match="nothing says whose"):
        Rewarded(RewardSettings(verifier="gold", length_penalty=0.1))
    words = Renderer(tokenizer())
    for finished, tokens in ((True, 3), (False, 2)):
        source, made = Counts(), Rewarded(RewardSettings(verifier="gold"), words)
        made.reward = Sum({"words": source})
        (row,) = made.scored(rows(["w6 w7"], finished=[finished]))
        assert len(source.seen[0].sample.ids) == tokens
        assert row["finished"] == [finished]


def test_a_missing_end_costs_only_where_rows_say_which() -> None:
    source = Counts()
    list(rater(source, missing_eos=1.0).scored(rows(["w6", "w7"], finished=[True, False])))
    assert [answer.sample.finished for answer in source.seen] == [True, False]
    with pytest.raises(DataError, match="does not say which answers ended"):
        list(rater(missing_eos=1.0).scored(rows(["w6"])))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to score with"),
        (["reward.answer=x"], "nothing rates the answers"),
        (["reward.verifier=mth"], "did you mean 'math'?"),
        (["reward.verifier=math", "beta=2"], "beta: not an option of score"),
        (["reward.verifier=math", "--reference", "x"], "reference: score does not read this section"),
        (["reward.verifier=math", "reward.weights.mth=2"], "did you mean 'math'?"),
    ],
)
def test_mistakes_of_the_command_line(arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1?", "completions": ["2"], "answer": "2"}\n')
    command = ["score", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl"), *arguments]
    assert cli.run(command) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_the_command_scores_with_a_verifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1?", "completions": ["2", "3"], "answer": "2", "id": "x"}\n')
    command = ["score", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl"), "reward.verifier=math"]
    assert cli.run([*command, "reward.weights.math=2"]) == 0
    assert "1 rows, 2 answers scored, mean reward 1" in capfd.readouterr().out
    (row,) = lines(tmp_path / "o.jsonl")
    assert (row["scores"], row["meta"]) == ([2.0, 0.0], {"answer": "2", "id": "x"})
    command[2] = str(tmp_path / "o.jsonl")
    assert cli.run([*command[:4], str(tmp_path / "again.jsonl"), "reward.verifier=math"]) == 0
    assert lines(tmp_path / "again.jsonl")[0]["meta"] == {"answer": "2", "id": "x"}, "what was found before is found anew"
