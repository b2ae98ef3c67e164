"""From rows to trees with the real renderer: what is kept, what is dropped and why, and what is refused with which way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.check import check
from prefopt.data.preflight import ALONE, CUT_BEFORE, DUPLICATE, EMPTY, FITS, IDENTICAL, SEEN_PROMPT
from prefopt.errors import DataError, OptionError
from prefopt.losses.methods import METHODS
from prefopt.pack.prepare import Prepared, prepare
from prefopt.settings import DataSettings
from prefopt.text.chat import Renderer

BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    """A token a byte, <s> put first and </s> last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {
        token: i for i, token in enumerate(["<s>", "</s>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])  # type: ignore[assignment]
    made.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return Renderer(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"), "chatml")


def spoken(prepared: Prepared) -> dict[str, int]:
    """What the preflight told of the rows that are kept, and how many were dropped for what."""
    told = {name: tally.count for name, tally in prepared.preflight.facts.items()}
    return told | {name: tally.count for name, tally in prepared.preflight.dropped.items()}


class Maker:
    """Writes rows and prepares them."""

    def __init__(self, folder: Path, renderer: Renderer) -> None:
        self.folder, self.renderer = folder, renderer

    def write(self, rows: list[dict[str, Any]], name: str = "d.jsonl") -> str:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def __call__(self, rows: list[dict[str, Any]], data: str, max_length: int | None = None, seed: int = 0, **settings: Any) -> Prepared:
        say = settings.pop("say", None)
        return prepare(DataSettings(path=self.write(rows), **settings), self.renderer, data=data, max_length=max_length, seed=seed, say=say)


@pytest.fixture
def make(tmp_path: Path, renderer: Renderer) -> Maker:
    return Maker(tmp_path, renderer)


def pair(prompt: str = "q", chosen: str = "good", rejected: str = "bad", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


PAIRS = [pair(f"question {i}", "a" * (5 + i % 3), "b" * 6) for i in range(200)]


def test_pairs_become_trees_in_order(make: Maker) -> None:
    ready = make(PAIRS, "pairs")
    assert [tree.index for tree in ready.train] == list(range(200))
    assert [branch.rank for branch in ready.train[0].branches] == [0, 1]
    assert ready.train[3].where.endswith("d.jsonl:4")
    tree = ready.train[0]
    assert tree.prompt[0] == BOS
    assert all(branch.ids[-1] == EOS and branch.scored.all() for branch in tree.branches)
    facts = ready.preflight.to_dict()
    assert facts["tokens"]["packed"] == sum(t.packed_tokens for t in ready.train)
    assert facts["tokens"]["padded"] == sum(t.padded_tokens for t in ready.train)
    assert facts["tokens"]["scored"] == sum(int(b.scored.sum()) for t in ready.train for b in t.branches)
    longer = sum(5 + i % 3 > 6 for i in range(200)) / 200
    assert facts["chosen_longer"]["characters"] == facts["chosen_longer"]["tokens"] == {"share": longer, "pairs": 200}
    assert facts["prompts"] == 200
    assert json.loads(json.dumps(facts)) == facts


def test_every_dropped_row_has_a_reason_and_a_place(make: Maker) -> None:
    rows = [*PAIRS, pair(chosen=" "), pair(chosen="same", rejected="same"), PAIRS[0]]
    ready = make(rows, "pairs")
    assert {k: (t.count, t.first[-4:]) for k, t in ready.preflight.dropped.items()} == {
        "empty completion": (1, ":201"),
        "identical completions": (1, ":202"),
    }
    assert ready.preflight.facts["repeats an earlier row"].first.endswith(":203")
    table = ready.preflight.table()
    assert "empty completion, first at" in table
    assert "rows read" in table
    assert f"{len(ready.train)} train" in table


def test_too_many_dropped_rows_are_refused_and_the_option_accepts_them(make: Maker) -> None:
    rows = [*PAIRS[:50], pair(chosen=""), pair(rejected="x", chosen="x")]
    with pytest.raises(DataError) as caught:
        make(rows, "pairs")
    says = str(caught.value)
    assert "3.8% of 52 rows" in says
    assert says.startswith(f"{make.folder / 'd.jsonl'}:51: ")
    assert says.count("\n") <= 2
    told: list[str] = []
    with pytest.raises(DataError):
        make(rows, "pairs", say=told.append)
    assert "identical completions, first at" in told[0]
    option, _, bound = says.rpartition("data.")[2].partition("=")
    assert len(make(rows, "pairs", **{option: float(bound)}).train) == 50


# --- what a method can read


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_some_kind(method: str) -> None:
    assert METHODS[method].data in FITS


RANKING = {"prompt": "q", "completions": ["x", "y", "z"], "scores": [1, 3, 3]}
THUMB = {"prompt": "q", "completion": "a", "label": True}
STEPS = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
DEMO = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("row", "data", "want"),
    [
        (pair(), "pairs", [(0, None), (1, None)]),
        (pair(), "labels", [(0, True), (1, False)]),
        (pair(), "demonstrations", [(0, None)]),
        (RANKING, "demonstrations", [(0, None), (0, None)]),
        ({**RANKING, "scores": [1, 3, 2]}, "rankings", [(0, None), (1, None), (2, None)]),
        (RANKING, "pairs", [(0, None), (0, None), (1, None)]),
        (THUMB, "labels", [(None, True)]),
        (DEMO, "demonstrations", [(None, None)]),
        ({"text": "abc"}, "demonstrations", [(None, None)]),
        (STEPS, "steps", [(None, None)]),
    ],
)
def test_rows_as_the_method_reads_them(make: Maker, row: dict[str, Any], data: str, want: list[Any]) -> None:
    (tree,) = make([row], data).train
    assert [(branch.rank, branch.label) for branch in tree.branches] == want


def test_a_tie_inside_a_ranking_is_left_out_and_counted(make: Maker) -> None:
    whole = {**RANKING, "prompt": "another", "scores": [1, 3, 2]}
    found = make([RANKING, whole], "rankings")
    assert len(found.train) == 1
    assert "tie" in found.preflight.table()


@pytest.mark.parametrize("data", ["pairs", "rankings", "labels"])
def test_ties_are_counted_and_left_out_without_a_bound(make: Maker, data: str) -> None:
    tie = {"prompt": "q", "response_a": "x", "response_b": "y", "label": "tie"}
    ready = make([tie, {**tie, "label": "a"}], data)
    assert (len(ready.train), ready.preflight.dropped["tie, no preference"].count) == (1, 1)
    with pytest.raises(DataError, match=r"no row is left to train on .* 1 tie"):
        make([tie], data)


def test_ties_reach_methods_that_learn_from_them(make: Maker) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y"}
    ready = make([{**row, "label": label} for label in ("tie", "a", "b")], "judgements")
    assert not ready.preflight.dropped
    assert [[branch.rank for branch in tree.branches] for tree in ready.train] == [[0, 0], [0, 1], [0, 1]]
    assert METHODS["reward_ties"].data == "judgements"


@pytest.mark.parametrize(
    ("row", "data", "says"),
    [
        (THUMB, "pairs", "methods that fit: kto"),
        (DEMO, "labels", "methods that fit: pretrain, sft"),
        (pair(), "steps", "methods that fit: sft"),
        (STEPS, "pairs", "methods that fit: prm"),
        ({"prompt": "q", "winner": "a", "loser": "b"}, "pairs", "rename 'winner' to 'chosen', 'loser' to 'rejected'"),
        ({"prompt": "q"}, "demonstrations", "sample completions first"),
        ({"prompt": "q", "chosen": "a"}, "pairs", "the columns prompt, chosen are a prompt alone"),
        ({"prompt": "q", "chosen": "a"}, "pairs", "preference needs prompt, chosen, rejected\nperhaps add rejected"),
        ({"prompt": "q", "chosn": "a", "rejected": "b"}, "pairs", "perhaps rename 'chosn' to 'chosen'"),
    ],
)
def test_a_misfit_names_the_methods_that_fit(make: Maker, row: dict[str, Any], data: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        make([row], data)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{make.folder / 'd.jsonl'}:1: ")


@pytest.mark.parametrize(
    "row", [DEMO, {"text": "qa"}, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
)
def test_pretraining_scores_every_token_but_the_first(make: Maker, row: dict[str, Any]) -> None:
    (tree,) = make([row], "text").train
    (branch,) = tree.branches
    assert len(tree.prompt) == 1
    assert branch.scored.all()
    text = make.renderer.tokenizer.decode([*tree.prompt, *branch.ids])
    assert text == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>" if "messages" in row else "<s>qa</s>")


def test_chat_puts_strings_through_the_template(make: Maker) -> None:
    (tree,) = make([pair()], "pairs", chat=True).train
    assert make.renderer.tokenizer.decode(tree.prompt) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    (text,) = make([{"text": "abc"}], "text", chat=True).train
    assert len(text.prompt) == 1


def test_steps_keep_their_labels_and_unlabelled_rows_go(make: Maker) -> None:
    row = {"problem": "q", "steps": ["one", "two", "three"], "labels": [1, None, 0]}
    ready = make([row, {**row, "labels": [None] * 3}], "steps", max_dropped=0.5)
    (branch,) = ready.train[0].branches
    assert branch.step_labels == (1.0, 0.0)
    assert [make.renderer.decode(branch.ids[: end + 1]) for end in branch.step_ends] == ["one\n", "one\ntwo\nthree"]
    assert ready.preflight.dropped["no labelled step"].first.endswith(":2")


# --- length


LONG = [*PAIRS[:99], pair("p" * 60, "good", "bad")]


def test_a_long_row_is_refused_with_its_place_and_length(make: Maker) -> None:
    with pytest.raises(DataError) as caught:
        make(LONG, "pairs", max_length=40)
    says = str(caught.value)
    assert "d.jsonl:100: 1 of 100 rows (1.0%) are longer than 40 tokens; the longest has 66" in says
    assert "data.truncation=drop" in says
    assert says.count("\n") <= 2


@pytest.mark.parametrize(("how", "kept"), [("drop", 99), ("prompt_left", 100), ("completion_right", 99)])
def test_truncation_when_asked(make: Maker, how: str, kept: int) -> None:
    ready = make(LONG, "pairs", max_length=40, truncation=how)
    assert len(ready.train) == kept
    if how == "prompt_left":
        assert ready.preflight.facts["prompt cut on the left"].count == 1
        tree = ready.train[99]
        assert (len(tree.prompt), tree.prompt[0]) == (35, BOS)
        assert all(branch.ids[-1] == EOS for branch in tree.branches)
    else:
        assert ready.preflight.dropped["longer than max_length"].first.endswith(":100")


def test_lost_stop_tokens_are_refused_even_if_the_cut_is_accepted(make: Maker) -> None:
    rows = [*PAIRS[:99], pair("q", "a" * 60, "b")]
    with pytest.raises(DataError) as caught:
        make(rows, "pairs", max_length=40, truncation="completion_right")
    assert "1 of 200 completions end without a stop token" in str(caught.value)
    assert "data.max_lost_eos=0.005" in str(caught.value)
    ready = make(rows, "pairs", max_length=40, truncation="completion_right", max_lost_eos=0.005)
    assert [len(b.ids) for b in ready.train[99].branches] == [38, 2]
    assert ready.preflight.facts["completion cut on the right"].count == 1


def test_more_cut_rows_than_the_bound_are_refused(make: Maker) -> None:
    rows = [*LONG, pair("p" * 61)]
    with pytest.raises(DataError, match=r"2 of 101 rows .*\n.*data.max_truncated=0.02\b"):
        make(rows, "pairs", max_length=40, truncation="prompt_left")
    assert len(make(rows, "pairs", max_length=40, truncation="prompt_left", max_truncated=0.02).train) == 101


def test_pairs_made_identical_by_the_cut_are_dropped(make: Maker) -> None:
    rows = [*PAIRS[:99], pair("q", "a" * 60 + "x", "a" * 60 + "y")]
    ready = make(rows, "pairs", max_length=40, truncation="completion_right", max_truncated=0.1)
    assert ready.preflight.dropped["identical after truncation"].first.endswith(":100")
    assert len(ready.train) == 99


def test_pairs_that_the_template_makes_identical_are_bounded(make: Maker) -> None:
    """Nothing was cut of them, so no option accepted the loss."""
    trims = Renderer(make.renderer.tokenizer, str(make.renderer.template).replace("message['content']", "message['content'] | trim"))
    path = make.write([pair(chosen="same", rejected="same\n"), *PAIRS[:3]])
    prepared = prepare(DataSettings(path=path, chat=True, max_dropped=0.25), trims, data="pairs", max_length=None, seed=0)
    assert (len(prepared.train), spoken(prepared)) == (3, {IDENTICAL: 1})
    with pytest.raises(DataError, match="1 identical completions, first at"):
        prepare(DataSettings(path=path, chat=True), trims, data="pairs", max_length=None, seed=0)


def test_a_long_text_becomes_chunks_that_lose_nothing(make: Maker) -> None:
    rows = [{"text": "short"}, {"text": "".join(chr(97 + i % 26) for i in range(95))}, {"text": "another"}]
    whole = make(rows, "text")
    ready = make(rows, "text", max_length=10, truncation="chunk")
    assert [len(t.prompt) + len(t.branches[0].ids) for t in ready.train] == [7, *[10] * 10, 7, 9]
    assert [t.index for t in ready.train] == list(range(13))
    facts, before = ready.preflight.to_dict(), whole.preflight.to_dict()
    assert facts["tokens"]["scored"] == before["tokens"]["scored"]
    assert facts["facts"]["chunks of texts longer than max_length, no token lost"] == {"count": 11, "first": f"{make.folder}/d.jsonl:2"}
    assert (facts["kept"], facts["longer_than_limit"]["count"]) == ({"train": 13, "heldout": 0}, 1)
    assert "completions without their stop token" not in facts["facts"]
    assert make.renderer.decode(np.concatenate([t.branches[0].ids for t in ready.train[1:12]])) == rows[1]["text"]


def test_the_chunks_of_a_text_are_held_out_together(make: Maker) -> None:
    rows = [{"text": f"{i:02} " + "x" * 40} for i in range(20)]
    ready = make(rows, "text", max_length=12, truncation="chunk", eval_fraction=0.25)
    sides = [{tree.where for tree in side} for side in (ready.train, ready.heldout)]
    assert (len(sides[0]), len(sides[1]), sides[0] & sides[1]) == (15, 5, set())


def test_only_plain_text_is_split_and_pretraining_is_told_so(make: Maker) -> None:
    with pytest.raises(OptionError, match=r"chunk splits plain text, and this method learns from pairs(.|\n)*use it with pretrain"):
        make(PAIRS, "pairs", truncation="chunk")
    with pytest.raises(DataError, match=r"1 of 1 rows \(100.0%\) are longer than 10 tokens(.|\n)*data.truncation=chunk"):
        make([{"text": "x" * 20}], "text", max_length=10)


def test_limits_that_cannot_be(make: Maker) -> None:
    with pytest.raises(OptionError, match=r"data.max_length: 50 is beyond the model's longest sequence, 40"):
        prepare(DataSettings(path=make.write(PAIRS), max_length=50), make.renderer, data="pairs", max_length=40, seed=0)
    with pytest.raises(OptionError, match="leaves no room"):
        prepare(DataSettings(path=make.write(PAIRS), max_length=1), make.renderer, data="pairs", max_length=40, seed=0)
    with pytest.raises(OptionError, match=r"data.eval_fraction: 1 is not"):
        make(PAIRS, "pairs", eval_fraction=1.0)
    with pytest.raises(OptionError, match=r"data.eval_path is set too"):
        make(PAIRS, "pairs", eval_fraction=0.5, eval_path="x.jsonl")


def test_the_smaller_of_both_limits_holds(make: Maker) -> None:
    settings = DataSettings(path=make.write(LONG), max_length=40, truncation="drop")
    assert prepare(settings, make.renderer, data="pairs", max_length=1000, seed=0).preflight.max_length == 40


@pytest.mark.parametrize(("asked", "left"), [(None, 40), (100, 40), (70, 10)])
def test_an_answer_still_to_be_sampled_counts_as_part_of_the_longest_sequence(make: Maker, asked: int | None, left: int) -> None:
    settings = DataSettings(path=make.write([{"prompt": "hi"}]), max_length=asked)
    assert prepare(settings, make.renderer, data="prompts", max_length=100, room=60, seed=0).preflight.max_length == left


@pytest.mark.parametrize(("asked", "whose"), [(None, "the model takes 100 tokens"), (50, "data.max_length is 50 tokens")])
def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(make: Maker, asked: int | None, whose: str) -> None:
    settings = DataSettings(path=make.write([{"prompt": "hi"}]), max_length=asked)
    with pytest.raises(OptionError, match=rf"rollout.max_new_tokens: 100 new tokens leave no room for a prompt: {whose}"):
        prepare(settings, make.renderer, data="prompts", max_length=100, room=100, seed=0)


# --- held-out rows


def test_held_out_groups_are_never_trained_on(make: Maker) -> None:
    rows = [pair(f"q{i}", meta={"group": f"g{i % 20}"}) for i in range(100)]
    ready = make(rows, "pairs", eval_fraction=0.25)
    groups = [{tree.group for tree in side} for side in (ready.train, ready.heldout)]
    assert (len(groups[0]), len(groups[1]), groups[0] & groups[1]) == (15, 5, set())
    assert ready.preflight.kept == {"train": 75, "heldout": 25}
    indices = [tree.index for tree in (*ready.train, *ready.heldout)]
    assert sorted(indices) == list(range(100))
    again = make(rows, "pairs", eval_fraction=0.25)
    assert [t.index for t in again.heldout] == [t.index for t in ready.heldout]
    assert [t.index for t in make(rows, "pairs", eval_fraction=0.25, seed=1).heldout] != [t.index for t in ready.heldout]


def test_held_out_file_and_prompts_seen_in_training(make: Maker) -> None:
    heldout = make.write([pair("question 3"), pair("new")], "heldout.jsonl")
    ready = make(PAIRS, "pairs", eval_path=heldout)
    assert (len(ready.train), [tree.index for tree in ready.heldout]) == (200, [200, 201])
    assert ready.preflight.facts["held-out prompt is also trained on"].first.endswith("heldout.jsonl:1")


def test_a_held_out_prompt_that_is_cut_is_found_in_training(make: Maker) -> None:
    """What is left of a prompt on the left depends on its answers."""
    heldout = make.write([pair("x" * 40 + " the same", "a" * 10)], "heldout.jsonl")
    cut = {"truncation": "prompt_left", "max_truncated": 1.0}
    ready = make([pair("x" * 40 + " the same", "a" * 20)], "pairs", max_length=40, eval_path=heldout, **cut)
    assert len(ready.train[0].prompt) != len(ready.heldout[0].prompt)
    assert ready.preflight.facts[SEEN_PROMPT].count == 1


def test_one_group_cannot_be_held_out(make: Maker) -> None:
    with pytest.raises(DataError, match="all rows are of one group or prompt"):
        make([pair(group="g"), pair("other", group="g")], "pairs", eval_fraction=0.5)


# --- facts of the tokenizer


def test_special_token_facts(make: Maker) -> None:
    ready = make([pair("<s><s>q"), *PAIRS[:9]], "pairs")
    assert ready.preflight.facts["doubled beginning-of-sequence token"].count == 1
    assert any("pad is a stop token" in note for note in ready.preflight.notes)


# --- prefopt data check


def test_check_collects_bad_rows_and_goes_on(make: Maker) -> None:
    path = make.write([pair(), pair(chosen=3), pair(chosen="x", rejected="x"), pair("p" * 50), pair("<|im_end|>")])
    other = make.write([{"zzz": 1}], "other.jsonl")
    found = check([path, other], chat=True)
    assert not found.sound
    assert (found.failed, found.preflight.rows, found.files[0].rows) == (2, 4, 5)
    table = found.table()
    assert "preference, 5 rows" in table
    assert "columns        prompt, chosen, rejected" in table
    assert "d.jsonl:2: 'chosen' is a number (3)" in table
    assert "no known layout has the columns 'zzz'" in table
    assert "fits methods that learn from demonstrations, pairs, judgements, rankings, labels" in table
    assert "tokens" not in found.to_dict()["tokens"]
    with_tokens = check(path, renderer=make.renderer, max_length=40, chat=True)
    assert any("control token" in str(problem) for problem in with_tokens.problems)
    assert (with_tokens.preflight.sequences, with_tokens.preflight.too_long.count) == (4, 1)
    assert json.loads(json.dumps(with_tokens.to_dict()))["sound"] is False


def test_check_of_sound_data(make: Maker) -> None:
    found = check(make.write(PAIRS), renderer=make.renderer, limit=50)
    assert found.sound
    assert (found.preflight.rows, found.preflight.sequences) == (50, 100)
    assert "best is longer" in found.table()


def test_check_shows_ten_problems_and_counts_all(make: Maker) -> None:
    found = check(make.write([pair(), *[pair(chosen=None)] * 30]))
    assert (found.failed, len(found.problems)) == (30, 10)
    assert "30 that cannot be used; the first 10:" in found.table()


def test_whole_raters_can_be_held_out(renderer: Renderer, tmp_path: Path) -> None:
    """A group that names the rater parts the rows by people, and says which prompts both sides have."""
    raters = [f"rater {i % 5}" for i in range(100)]
    rows = [{"prompt": f"q{i // 5}", "chosen": "yes!", "rejected": "no", "group": who, "source": who} for i, who in enumerate(raters)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare(DataSettings(path=str(path), eval_fraction=0.4), renderer, data="pairs", max_length=64, seed=0)
    train, heldout = ({tree.source for tree in trees} for trees in (found.train, found.heldout))
    assert (len(train), len(heldout), train & heldout) == (3, 2, set())
    assert found.preflight.facts[SEEN_PROMPT].count == len(found.heldout) == 40


def test_answers_that_were_cut_off_have_no_stop_token(make: Maker) -> None:
    """Neither in a ranking nor in a judged pair; they are told, and have none to lose."""
    ranking = {"prompt": "p", "completions": ["one", "two", "three"], "scores": [0.5, 1.0, 0.0], "finished": [True, False, True]}
    pair = {"prompt": "q", "response_a": "four", "response_b": "five", "label": "b", "finished": [False, True]}
    for rows, ended in (([ranking], [False, True, True]), ([pair], [True, False])):
        prepared = make(rows, "pairs")
        (tree,) = prepared.train
        assert [int(branch.ids[-1]) == EOS for branch in tree.branches] == ended
        assert spoken(prepared) == {CUT_BEFORE: 1}
    path = make.write([ranking])
    twice = prepare(DataSettings(path=[path, path]), make.renderer, data="pairs", max_length=None, seed=0)
    assert (len(twice.train), spoken(twice)) == (2, {CUT_BEFORE: 2, DUPLICATE: 1})
    plain = make([{**ranking, "finished": [True, True]}], "pairs")
    assert spoken(plain) == {}


def test_a_ranking_that_one_answer_is_left_of_is_dropped_and_counted(make: Maker) -> None:
    left = {"prompt": "p", "completions": ["one"], "scores": [0.5]}
    whole = {"prompt": "q", "completions": ["one", "two"], "scores": [0.5, 0.0]}
    for data in ("pairs", "rankings", "labels"):
        prepared = make([left, whole], data)
        assert len(prepared.train) == 1
        assert spoken(prepared) == {ALONE: 1}
    assert len(make([left, whole], "demonstrations").train) == 2
    with pytest.raises(DataError, match="demonstrations"):
        make([{"prompt": "p", "completion": "x"}], "pairs")


def test_a_row_without_answers_is_counted_as_empty(make: Maker) -> None:
    none = {"prompt": "p", "completions": [], "scores": []}
    assert spoken(make([none, {"prompt": "q", "completions": ["one", "two"], "scores": [1, 0]}], "rankings", max_dropped=0.5)) == {EMPTY: 1}
    steps = {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}
    assert spoken(make([{**steps, "completions": [], "labels": []}, steps], "steps", max_dropped=0.5)) == {EMPTY: 1}


def test_rows_of_a_prompt_that_is_cut_differently_stay_on_one_side(make: Maker) -> None:
    """What is cut of it depends on the longest answer."""
    rows = [{"prompt": f"{n} " + "word " * 12, "chosen": "yes " * (1 + long), "rejected": "no"} for n in range(12) for long in (0, 3, 6)]
    prepared = make(rows, "pairs", max_length=90, truncation="prompt_left", max_truncated=1.0, eval_fraction=0.5)
    lines = [[(int(tree.where.rpartition(":")[2]) - 1) // 3 for tree in side] for side in (prepared.train, prepared.heldout)]
    assert set(lines[0]).isdisjoint(lines[1])
    assert len({len(tree.prompt) for tree in (*prepared.train, *prepared.heldout)}) > 1
