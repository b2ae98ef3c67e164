"""The data guard: rows that were trained on are found by prompt and by thirteen words, templates are not, and the trail is followed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from prefopt.errors import DataError
from prefopt.evaluate import guard, suites
from prefopt.evaluate.bench import Bench
from prefopt.evaluate.guard import Seen, Training
from prefopt.pipeline import record
from prefopt.pipeline.lineage import training
from prefopt.settings import JudgeSettings
from prefopt.types import Completion, Example, Message
from tests.benches import Scripted, bench_of

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"]


def row(text: str, where: str = "eval.jsonl:1", **more: object) -> Example:
    return Example(prompt=text, where=where, **more)  # type: ignore[arg-type]


def chat(*turns: str, where: str = "train.jsonl:1") -> Example:
    roles = ("user", "assistant")
    said = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return Example(prompt=(), completions=(Completion(content=said),), where=where)


def seen(rows: Sequence[Example], training: Sequence[Example]) -> list[Seen]:
    found, unread = guard.seen(rows, training)
    assert not unread
    return found


def test_a_prompt_is_known_again_whatever_its_case_and_system_message() -> None:
    asked = Example(prompt=(Message("system", "Be brief."), Message("user", "Who is  THERE?")), where="eval.jsonl:1")
    trained = Example(prompt=(Message("user", "who is there?"),), where="train.jsonl:7")
    assert seen([asked], [trained]) == [("eval.jsonl:1", "train.jsonl:7", "same prompt")]
    assert seen([asked], [row("who was there?", "train.jsonl:7")]) == []


def test_a_prompt_that_is_a_string_is_what_a_user_says() -> None:
    asked = Example(prompt=(Message("user", "Who is there?"),), where="eval.jsonl:1")
    assert seen([asked], [row("who is there?", "train.jsonl:7")]) == [("eval.jsonl:1", "train.jsonl:7", "same prompt")]
    assert seen([row("who is there?")], [chat("Who is there?", "Me.")]) == [("eval.jsonl:1", "train.jsonl:1", "same prompt")]


def test_a_conversation_holds_the_prompt_of_each_of_its_answers() -> None:
    asked = Example(prompt=(Message("user", "a?"), Message("assistant", "b"), Message("user", "c?")), where="eval.jsonl:1")
    assert [hit.where for hit in seen([asked], [chat("a?", "b", "c?", "d")])] == ["eval.jsonl:1"]
    assert seen([asked], [chat("a?", "x", "c?", "d")]) == []


@pytest.mark.parametrize(("shared", "found"), [(13, True), (12, False)])
def test_thirteen_words_in_a_row_are_a_copy(shared: int, found: bool) -> None:
    asked = row("Say " + " ".join(WORDS[:shared]) + ".")
    trained = Example(prompt="", completions=(Completion(content=", ".join(WORDS[:shared]).upper() + " and so on"),), where="train.jsonl:3")
    assert bool(seen([asked], [trained])) == found


def test_a_form_of_words_is_no_copy() -> None:
    asked = row("Say " + " ".join(WORDS))
    trained = [row(f"Repeat {' '.join(WORDS)} {i}", f"train.jsonl:{i}") for i in range(guard.COMMON + 1)]
    assert seen([asked], trained) == []
    assert len(seen([asked], trained[:-1])) == 1


def test_a_row_that_two_stages_read_is_one_row() -> None:
    """Six rows that pretraining and SFT both read are no form of words that twelve rows share."""
    trained = [row(f"Repeat {' '.join(WORDS)} {i}", f"train.jsonl:{i}") for i in range(6)]
    assert seen([row("Say " + " ".join(WORDS))], trained * 2) == [("eval.jsonl:1", "train.jsonl:0", "same 13 words")]


def test_rows_that_were_seen_are_an_error_that_names_them(tmp_path: Path) -> None:
    rows = [row(f"question {i}", f"eval.jsonl:{i}") for i in range(8)]
    trained = Training(lambda: [row(f"question {i}", f"train.jsonl:{i}") for i in range(2, 8)], ("train.jsonl",))
    bench = bench_of(tmp_path, Scripted("a", ["x"] * 8), rows=rows, training=trained)
    with pytest.raises(DataError, match=r"6 of 8 rows .*: eval.jsonl:2 \(same prompt as train.jsonl:2\), .* and 2 more in .*seen.jsonl"):
        suites.run("shift", bench)
    assert len((tmp_path / "seen.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(("choice", "left"), [("drop", 2), ("keep", 8)])
def test_rows_that_were_seen_can_be_left_out_or_kept_openly(choice: str, left: int, tmp_path: Path) -> None:
    rows = [row(f"question {i}", f"eval.jsonl:{i}") for i in range(8)]
    trained = Training(lambda: rows[2:], ("train.jsonl",))
    suites.run("shift", bench_of(tmp_path, Scripted("a", ["x"] * 8), rows=rows, training=trained, seen=choice))
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["n"] == left
    assert sum(value for name, value in found.items() if name.startswith("rows_seen_in_training")) == 6


def test_a_default_leaves_out_a_suite_whose_rows_were_all_dropped(tmp_path: Path) -> None:
    rows = [row(f"question {i}", f"eval.jsonl:{i}") for i in range(3)]
    pair = row("question 9", "pairs.jsonl:1", completions=(Completion(content="a", rank=0), Completion(content="b", rank=1)))
    trained = Training(lambda: [pair], ("train.jsonl",))
    said: list[str] = []

    def bench() -> Bench:
        trees = [SimpleNamespace(where=pair.where)]
        return bench_of(tmp_path, Scripted("a", ["x"] * 4), rows=[*rows, pair], trees=trees, training=trained, seen="drop")

    whole = bench()
    whole.say = said.append
    suites.run("default", whole)
    assert json.loads((tmp_path / "evaluation.json").read_text())["suites"] == ["shift"]
    assert "pairs (needs rows with a preference" in said[0]
    assert "1 of 4 rows were seen in training and are left out" in said[0]
    with pytest.raises(DataError, match=r"'pairs' needs rows with a preference .*; 1 of 4 rows were seen in training"):
        suites.run("pairs", bench())


@pytest.mark.parametrize("suite", ["default", "shift", "preference", "pairs"])
def test_rows_that_were_all_dropped_are_the_reason(suite: str, tmp_path: Path) -> None:
    rows = [row(f"question {i}", f"eval.jsonl:{i}") for i in range(8)]
    trained, judge = Training(lambda: rows, ("train.jsonl",)), JudgeSettings(by="labels")
    bench = bench_of(tmp_path, Scripted("a", ["x"] * 8), Scripted("b", ["y"] * 8), rows=rows, training=trained, seen="drop", judge=judge)
    with pytest.raises(DataError, match="all 8 rows were seen in training"):
        suites.run(suite, bench)


# --- the trail --------------------------------------------------------------------------------------------------------


def stage(
    folder: Path, kind: str, data: Path | list[str] | None, start: Path | None, *, reward: Path | None = None, **data_settings: object
) -> Path:
    folder.mkdir(parents=True)
    paths = data if isinstance(data, list) else str(data)
    settings = {"kind": kind, "name": folder.name, "data": {"path": paths, **data_settings}, "model": {"path": str(start)}}
    settings |= {"reward": {"model": str(reward)}} if reward else {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stages": [settings]}))
    (folder / "record.json").write_text(json.dumps({"kind": kind, "name": folder.name}))
    return folder / "model"


def file(path: Path, *prompts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": "x"}) + "\n" for prompt in prompts))
    return path


def rows_of(found: Training) -> list[Example]:
    return [row for row in found.rows() if isinstance(row, Example)]


def test_the_trail_goes_through_every_stage_behind_a_model(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    sft = stage(tmp_path / "sft", "sft", file(tmp_path / "sft.jsonl", "a", "b"), base)
    dpo = stage(tmp_path / "dpo", "dpo", file(tmp_path / "dpo.jsonl", "c", "d", "e"), sft, eval_fraction=0.3)
    (tmp_path / "dpo" / "heldout.txt").write_text(f"{tmp_path / 'dpo.jsonl'}:2\n")
    found = training([str(dpo), str(sft)])
    assert [example.prompt for example in rows_of(found)] == ["c", "e", "a", "b"]
    assert not found.unknown
    assert len(found.files) == 2


def test_what_the_trail_does_not_tell_is_said(tmp_path: Path) -> None:
    dpo = stage(tmp_path / "dpo", "dpo", file(tmp_path / "dpo.jsonl", "c"), tmp_path / "hub-model", eval_fraction=0.3)
    sft = stage(tmp_path / "sft", "sft", tmp_path / "gone.jsonl", dpo)
    found = training([str(sft)])
    assert list(found.rows()) == []
    assert [text.split(": ")[-1] for text in found.unknown] == [
        "which rows it held out was not recorded",
        "no record of what trained it",
        f"its data are gone ({tmp_path / 'gone.jsonl'})",
    ]


def test_a_judge_that_trained_the_model_is_told(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    grpo = stage(tmp_path / "grpo", "grpo", file(tmp_path / "a.jsonl", "a"), base, reward=tmp_path / "reward" / "model")
    dpo = stage(tmp_path / "dpo", "dpo", file(tmp_path / "b.jsonl", "b"), grpo)
    found, said = training([str(dpo)]), list[str]()
    assert found.rewards == (str(tmp_path / "reward" / "model"),)
    for judge, told in ((tmp_path / "x" / ".." / "reward" / "model", True), (tmp_path / "other" / "model", False), (None, False)):
        settings = JudgeSettings(path=None if judge is None else str(judge))
        bench = bench_of(tmp_path, Scripted("a", []), rows=[row("c", "e:1")], training=found, judge=settings)
        bench.say = said.append
        assert ("judge_is_the_trained_reward" in bench.guard()) == told
    assert len(said) == 1


def test_patterns_are_read_and_what_is_left_of_several_files_too(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    file(tmp_path / "shard-1.jsonl", "a")
    file(tmp_path / "shard-2.jsonl", "b")
    sft = stage(tmp_path / "sft", "sft", tmp_path / "shard-*.jsonl", base)
    assert [example.prompt for example in rows_of(training([str(sft)]))] == ["a", "b"]
    several = [str(tmp_path / "gone.jsonl"), str(file(tmp_path / "there.jsonl", "c"))]
    dpo = stage(tmp_path / "dpo", "dpo", several, base)
    found = training([str(dpo)])
    assert [example.prompt for example in rows_of(found)] == ["c"]
    assert found.unknown == (f"dpo: its data are gone ({tmp_path / 'gone.jsonl'})",)


def test_data_that_can_no_longer_be_read_are_told(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    data = file(tmp_path / "sft.jsonl", "question 0", "question 1")
    sft = stage(tmp_path / "sft", "sft", data, base)
    data.write_text(data.read_text() + "{\n")
    rows = [row(f"question {i}", f"e:{i}") for i in (1, 2)]
    trained = training([str(sft)])
    bench = bench_of(tmp_path, Scripted("a", ["x"] * 2), rows=rows, training=trained, seen="drop")
    notes = bench.guard()
    assert str(notes["training_unknown"]).startswith("sft: its data can no longer be read (malformed JSON")
    assert trained.unknown == ()
    assert notes["rows_seen_in_training_dropped"] == 1


def test_two_runs_on_one_file_are_told_apart_by_what_they_held_out(tmp_path: Path) -> None:
    """Rows that one of them held out the other may have read."""
    data = file(tmp_path / "dpo.jsonl", "a", "b", "c", "d")
    models = []
    for name, held in (("first", (1, 2)), ("second", (3, 4))):
        base = stage(tmp_path / name / "create", "create", None, None)
        models.append(stage(tmp_path / name / "dpo", "dpo", data, base, eval_fraction=0.5))
        (tmp_path / name / "dpo" / "heldout.txt").write_text("".join(f"{data}:{line}\n" for line in held))
    assert {example.prompt for example in rows_of(training([str(model) for model in models]))} == {"a", "b", "c", "d"}


def remember(model: Path, *paths: Path, made: str = "") -> None:
    """Write into a stage's record what it read, as it is now, and the hash of what it made."""
    place = model.parent / "record.json"
    entry = json.loads(place.read_text()) | {"inputs": {str(path): record.digest_path(path) for path in paths}}
    place.write_text(json.dumps(entry | ({"model_sha256": made} if made else {})))


def test_data_that_have_changed_since_training_are_told_and_exempt_nothing(tmp_path: Path) -> None:
    """A row put in before the held-out one moves its place to another row, which was trained on."""
    base = stage(tmp_path / "create", "create", None, None)
    data, other = file(tmp_path / "dpo.jsonl", "a", "b", "c"), file(tmp_path / "other.jsonl", "d", "e")
    dpo = stage(tmp_path / "dpo", "dpo", [str(other), str(data)], base, eval_fraction=0.3)
    (tmp_path / "dpo" / "heldout.txt").write_text(f"{data}:3\n")
    remember(dpo, data, other)
    found = training([str(dpo)])
    assert ({example.prompt for example in rows_of(found)}, found.unknown) == ({"a", "b", "d", "e"}, ())
    file(data, "new", "a", "b", "c")
    found = training([str(dpo)])
    assert {example.prompt for example in rows_of(found)} == {"a", "b", "c", "d", "e", "new"}
    assert found.unknown == (f"dpo: its data have changed since training ({data})",)
    data.unlink()
    assert training([str(dpo)]).unknown == (f"dpo: its data are gone ({data})",)


def test_a_model_that_was_trained_anew_since_is_told(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    sft = stage(tmp_path / "sft", "sft", file(tmp_path / "sft.jsonl", "a"), base)
    sft.mkdir()
    (sft / "weights").write_text("first")
    dpo = stage(tmp_path / "dpo", "dpo", file(tmp_path / "dpo.jsonl", "b"), sft)
    remember(sft, tmp_path / "sft.jsonl", made=record.digest_path(sft))
    remember(dpo, tmp_path / "dpo.jsonl", sft)
    assert training([str(dpo)]).unknown == ()
    (sft / "weights").write_text("second")
    remember(sft, tmp_path / "sft.jsonl", made=record.digest_path(sft))
    found = training([str(dpo)])
    assert found.unknown == (f"dpo: the model it started from has changed since ({sft})",)
    assert [example.prompt for example in rows_of(found)] == ["b", "a"]


def test_two_folders_trained_from_each_other_end_the_trail(tmp_path: Path) -> None:
    one = stage(tmp_path / "one", "dpo", file(tmp_path / "one.jsonl", "a"), tmp_path / "two" / "model")
    stage(tmp_path / "two", "dpo", file(tmp_path / "two.jsonl", "b"), tmp_path / "two" / ".." / "one" / "model")
    found = training([str(one)])
    assert found.unknown == ("one: trained from itself, earlier data are not known",)
    assert [example.prompt for example in rows_of(found)] == ["a", "b"]


def test_the_trail_goes_through_the_members_of_an_ensemble(tmp_path: Path) -> None:
    base = stage(tmp_path / "create", "create", None, None)
    one, two = (stage(tmp_path / n, "reward", file(tmp_path / f"{n}.jsonl", n), base) for n in ("one", "two"))
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stages": [{"kind": "ensemble", "members": [str(one), str(two)]}]}))
    (folder / "record.json").write_text(json.dumps({"kind": "ensemble", "name": "ensemble"}))
    assert [example.prompt for example in rows_of(training([str(folder / "model")]))] == ["one", "two"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stages": [{"kind": "odd"}]}))
    assert training([str(folder / "model")]).unknown == ("ensemble: its record does not say what trained it",)
