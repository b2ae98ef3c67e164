"""Every layout gives the right prompt, completions, ranks, labels and steps; every wrong value is named with its row."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.data.formats import LAYOUTS, as_chat, closest, detect, guess_mapping
from prefopt.data.preflight import is_empty, kind_of
from prefopt.data.schema import Row, transcript
from prefopt.errors import DataError
from prefopt.types import Completion, Example, Message


def parse(hh: bool = False, **fields: Any) -> Example:
    return detect(fields).read(Row(fields, "d.jsonl:1", hh))


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str) -> Message:
    return Message("assistant", text)


U, A, B = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def contents(example: Example) -> list[Any]:
    return [completion.content for completion in example.completions]


def ranks(example: Example) -> list[Any]:
    return [completion.rank for completion in example.completions]


def test_text_is_a_completion_of_nothing() -> None:
    assert parse(text="abc") == Example(prompt="", completions=(Completion(content="abc"),), where="d.jsonl:1")


def test_messages_are_one_conversation_with_tools_and_extras() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "thinking": None}
    example = parse(messages=[U, call], tools=[{"name": "f"}])
    assert example.prompt == ()
    assert contents(example) == [(user("q"), Message("assistant", "", {"tool_calls": [{"name": "f"}]}))]
    assert example.tools == ({"name": "f"},)


def test_tools_may_be_a_json_string() -> None:
    assert parse(messages=[U, A], tools='[{"name": "f"}]').tools == ({"name": "f"},)
    with pytest.raises(DataError, match="'tools' is a string"):
        parse(messages=[U, A], tools="[{")


def test_strings_stay_strings() -> None:
    example = parse(prompt="q ", completion=" a", id=7)
    assert (example.prompt, contents(example), example.meta) == ("q ", [" a"], {"id": 7})


def test_a_string_beside_messages_becomes_a_message() -> None:
    assert parse(prompt=[U], completion="a").completions[0].content == (said("a"),)
    assert parse(prompt="q", completion=[A]).prompt == (user("q"),)


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_unpaired_label(label: Any) -> None:
    assert parse(prompt="q", completion="a", label=label).completions[0].label is bool(label)


def test_preference_with_scores_and_margin() -> None:
    example = parse(prompt="q", chosen="g", rejected="b", score_chosen=8, score_rejected=3.5, margin=2)
    assert [(c.content, c.rank, c.score) for c in example.completions] == [("g", 0, 8.0), ("b", 1, 3.5)]
    assert (example.margin, example.meta) == (2.0, {})


@pytest.mark.parametrize("prompt", [{}, {"prompt": "q"}, {"prompt": [U]}])
def test_whole_conversations_give_their_shared_turns_as_the_prompt(prompt: dict[str, Any]) -> None:
    """Implicit prompt; UltraFeedback's string prompt beside whole conversations; an explicit prompt repeated in both."""
    example = parse(chosen=[U, A], rejected=[U, B], **prompt)
    assert (example.prompt, contents(example)) == ((user("q"),), [(said("good"),), (said("bad"),)])


SPACED, SYSTEM = {"role": "user", "content": " q\n"}, {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("prompt", "head", "want"),
    [
        ("q", [SPACED], (user(" q\n"),)),
        ([U], [SPACED], (user(" q\n"),)),
        ("", [U], (user("q"),)),
        ("", [U, B, SPACED], (user("q"), said("bad"), user(" q\n"))),
        ("q", [SYSTEM, SPACED], (Message("system", "s"), user(" q\n"))),
        ([SPACED], [SYSTEM, U], (Message("system", "s"), user("q"))),
        ([SYSTEM, U], [SYSTEM, SPACED], (Message("system", "s"), user(" q\n"))),
    ],
)
def test_the_question_is_put_once_however_a_conversation_repeats_it(prompt: Any, head: list[Any], want: tuple[Message, ...]) -> None:
    pair = parse(prompt=prompt, chosen=[*head, A], rejected=[*head, B])
    assert (pair.prompt, contents(pair)) == (want, [(said("good"),), (said("bad"),)])
    if len(head) < 3:
        one = parse(prompt=prompt, completion=[*head, A])
        assert (one.prompt, contents(one)) == (want, [(said("good"),)])


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("q", [{"role": "user", "content": "other"}, A], [{"role": "user", "content": "other"}, B]),
        ([U], [SYSTEM, {"role": "user", "content": "other"}, A], [B]),
        ([SYSTEM, U], [U, A], [U, B]),
        ("q", [SYSTEM, U, A], [U, B]),
    ],
)
def test_a_second_question_after_the_prompt_is_refused(prompt: Any, chosen: list[Any], rejected: list[Any]) -> None:
    with pytest.raises(DataError, match=r"d.jsonl:1: the prompt ends with a question, and a completion begins with a message of the"):
        parse(prompt=prompt, chosen=chosen, rejected=rejected)


def test_a_prompt_that_ends_with_an_answer_may_be_followed_by_a_question() -> None:
    example = parse(prompt=[U, A], completion=[U, B])
    assert (example.prompt, contents(example)) == ((user("q"), said("good")), [(user("q"), said("bad"))])


def test_identical_conversations_keep_an_answer() -> None:
    example = parse(chosen=[U, A], rejected=[U, A])
    assert (example.prompt, contents(example)) == ((user("q"),), [(said("good"),)] * 2)


def test_conversations_may_part_early() -> None:
    example = parse(chosen=[U, A, U, A], rejected=[U, B])
    assert contents(example) == [(said("good"), user("q"), said("good")), (said("bad"),)]


def test_no_shared_prompt_is_an_error() -> None:
    with pytest.raises(DataError, match="share no first message"):
        parse(chosen=[U, A], rejected=[{"role": "user", "content": "other"}, B])
    with pytest.raises(DataError, match="there is no 'prompt' column"):
        parse(chosen="q a", rejected="q b")
    with pytest.raises(DataError, match="rename 'input' to 'prompt'"):
        parse(input="q", chosen="a", rejected="b")


@pytest.mark.parametrize(("label", "want", "first"), [("a", [0, 1], "x"), ("b", [0, 1], "y"), ("tie", [0, 0], "x")])
def test_judged_pairs_are_sorted_best_first(label: str, want: list[int], first: str) -> None:
    example = parse(prompt="q", response_a="x", response_b="y", label=label, votes={"b": 3}, meta={"group": 4, "k": 1}, source="s")
    assert (ranks(example), contents(example)[0], example.group, example.source) == (want, first, "4", "s")
    assert example.meta["votes"] == {"b": 3}
    assert example.meta["k"] == 1


@pytest.mark.parametrize(("votes", "first", "want"), [("aab", "x", [0, 1]), ("bb", "y", [0, 1]), ("ab", "x", [0, 0]), ("t", "x", [0, 0])])
def test_votes_alone_decide_by_plurality(votes: str, first: str, want: list[int]) -> None:
    listed = [{"annotator": i, "label": {"t": "tie"}.get(v, v)} for i, v in enumerate(votes)]
    example = parse(prompt="q", response_a="x", response_b="y", votes=listed)
    assert (contents(example)[0], ranks(example)) == (first, want)


@pytest.mark.parametrize("columns", [{"scores": [1, 3.5, 1]}, {"ranks": [2, 1, 2]}, {"scores": [9, 9, 9], "ranks": [5, 0, 5]}])
def test_rankings_are_dense_and_best_first(columns: dict[str, Any]) -> None:
    example = parse(prompt="q", completions=["x", "y", "z"], **columns)
    assert (contents(example), ranks(example)) == (["y", "x", "z"], [0, 1, 1])
    assert ("scores" in columns) == (example.completions[0].score is not None)


def test_scores_and_completions_must_match() -> None:
    with pytest.raises(DataError, match="2 completions but 3 in 'scores'"):
        parse(prompt="q", completions=["x", "y"], scores=[1, 2, 3])


@pytest.mark.parametrize("fields", [{"prompt": "q", "completions": ["a", "b\n", "c"]}, {"problem": "q", "steps": ["a", "b\n", "c"]}])
def test_steps_join_to_the_content(fields: dict[str, Any]) -> None:
    (completion,) = parse(**fields, labels=[1, None, False]).completions
    assert completion.steps == ("a\n", "b\n", "c")
    assert completion.content == "a\nb\nc"
    assert completion.step_labels == (1.0, None, 0.0)


@pytest.mark.parametrize(("labels", "says"), [([1], "3 steps but 1"), ([1, 2, 0], r"'labels\[1\]' is a number \(2\)"), ("101", "a list")])
def test_step_labels_are_checked(labels: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse(problem="q", steps=["a", "b", "c"], labels=labels)


def test_alpaca_is_a_conversation() -> None:
    example = parse(instruction="Add", input="1 2", output="3", system="Be brief", history=[["hi", "hello"]])
    assert example.prompt == (Message("system", "Be brief"), user("hi"), said("hello"), user("Add\n\n1 2"))
    assert contents(example) == [(said("3"),)]
    assert parse(instruction="Add", input=" ", output="3").prompt == (user("Add"),)


def test_instruction_preferences() -> None:
    """LLaMA-Factory's Alpaca ranking, and the system/question/chosen/rejected of Orca pairs."""
    example = parse(instruction="Add", input="1 2", chosen="3", rejected="4")
    assert (example.prompt, contents(example)) == ((user("Add\n\n1 2"),), [(said("3"),), (said("4"),)])
    example = parse(system="s", question="q", chosen="3", rejected="4")
    assert (example.prompt, contents(example)) == ((Message("system", "s"), user("q")), [(said("3"),), (said("4"),)])


ASKED = (Message("system", "s"), user("q"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [U], "chosen": "good", "rejected": "bad"},
        {"prompt": [SYSTEM, U], "chosen": [A], "rejected": [B]},
        {"chosen": [U, A], "rejected": [U, B]},
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": A, "rejected": B},
        {"prompt": "q", "completions": ["bad", "good"], "scores": [1, 2]},
    ],
)
def test_a_column_system_begins_the_conversation(row: dict[str, Any]) -> None:
    example = parse(system="s", **row)
    assert (example.prompt, contents(example), example.meta) == (ASKED, [(said("good"),), (said("bad"),)], {})
    assert parse(**row).prompt in ("q", ASKED, ASKED[1:])


def test_a_column_system_of_rows_with_one_answer_or_none() -> None:
    assert parse(system="s", question="q", answer="good").prompt == ASKED
    assert parse(system="s", prompt="q").prompt == ASKED
    assert parse(system="s", prompt="").prompt == (), "an empty prompt stays one"
    assert contents(parse(system="s", messages=[U, A])) == [(*ASKED, said("good"))]
    assert parse(system="s", text="q").meta == {"system": "s"}, "a plain text is no conversation"
    assert parse(system="", prompt="q").prompt == "q"
    with pytest.raises(DataError, match="the column 'system' and the conversation's own system message differ"):
        parse(system="other", messages=[SYSTEM, U, A])


def test_sharegpt() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert contents(parse(conversations=turns, system="s")) == [(Message("system", "s"), user("q"), said("a"))]
    pair = parse(conversations=turns[:1], chosen=turns[1], rejected={"from": "gpt", "value": "b"})
    assert (pair.prompt, contents(pair)) == ((user("q"),), [(said("a"),), (said("b"),)])
    with pytest.raises(DataError, match="did you mean 'human'"):
        parse(conversations=[{"from": "humam", "value": "q"}])


def test_ultrafeedback_and_question_answer() -> None:
    rows = [{"response": "x", "overall_score": 3}, {"response": "y", "overall_score": 9}]
    example = parse(instruction="q", completions=rows)
    assert (example.prompt, contents(example), ranks(example)) == ((user("q"),), [(said("y"),), (said("x"),)], [0, 1])
    assert parse(question="q", answer="a").prompt == (user("q"),)


def test_prompt_alone_keeps_the_rest_as_meta() -> None:
    example = parse(prompt="q", solution=4, meta={"kind": "sum"})
    assert (example.completions, example.meta) == ((), {"solution": 4, "kind": "sum"})


# --- HH dialogues

HH = "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:"


def test_transcript_turns() -> None:
    assert transcript(HH) == (user("q"), said("r"), user("s"))
    assert transcript("Human: a\nHuman: b\n\nAssistant: c\n\nAssistant: d") == (user("a\nHuman: b"), said("c\n\nd"))


@pytest.mark.parametrize("prompt", [None, HH])
def test_hh_pairs_with_and_without_prompt(prompt: str | None) -> None:
    fields = {"chosen": HH + " good", "rejected": HH + " bad"} | ({"prompt": prompt} if prompt else {})
    example = parse(hh=True, **fields)
    assert (example.prompt, contents(example)) == ((user("q"), said("r"), user("s")), [(said("good"),), (said("bad"),)])


@pytest.mark.parametrize("answer", ["Human: is my answer", "Human: q"])
def test_an_hh_answer_may_begin_with_human(answer: str) -> None:
    example = parse(hh=True, prompt="Human: q", response_a=answer, response_b="y", label="a")
    assert (example.prompt, contents(example)) == ((user("q"),), [(said(answer),), (said("y"),)])


@pytest.mark.parametrize("turns", ["\n\nHuman: q\n\nAssistant:", HH])
def test_an_hh_dialogue_without_an_answer_is_an_empty_one(turns: str) -> None:
    for fields in ({}, {"prompt": turns}):
        example = parse(hh=True, chosen=turns, rejected=turns + " bad", **fields)
        assert (example.prompt, contents(example)) == (transcript(turns), [(said(""),), (said("bad"),)])


def test_hh_dialogues_beside_a_plain_prompt() -> None:
    for head in ("\n\nHuman: q\n\nAssistant:", "Human: q \n\nAssistant:"):
        example = parse(hh=True, prompt="q", chosen=head + " good", rejected=head + " bad")
        assert (example.prompt, contents(example)) == ((user("q"),), [(said("good"),), (said("bad"),)])


def test_lists_and_single_answers_may_stand_beside_each_other() -> None:
    example = parse(prompt="q", chosen=["a", "b"], rejected="c")
    assert (contents(example), ranks(example)) == (["a", "b", "c"], [0, 0, 1])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completions": [], "scores": []},
        {"prompt": "q", "completions": [], "ranks": []},
        {"instruction": "q", "completions": []},
        {"prompt": "q", "completions": [], "labels": []},
        {"problem": "q", "steps": [], "labels": []},
    ],
)
def test_a_list_of_no_answers_is_an_empty_one(row: dict[str, Any]) -> None:
    example = parse(**row)
    assert kind_of(example) == ("steps" if "labels" in row else "demonstrations")
    assert all(is_empty(content) for content in contents(example))


def test_a_label_without_a_step_is_refused() -> None:
    with pytest.raises(DataError, match="the last step is empty and has a label"):
        parse(prompt="q", completions=["a", "b", ""], labels=[1, 1, 0])
    assert parse(prompt="q", completions=["a", "b", ""], labels=[1, 1, None]).completions[0].step_labels == (1.0, 1.0, None)


def test_without_an_hh_first_row_strings_stay() -> None:
    assert parse(prompt="Human: q", completion="a").prompt == "Human: q"


# --- as_chat


def test_as_chat_wraps_strings_only() -> None:
    example = as_chat(parse(prompt="q", chosen="g", rejected="b"))
    assert (example.prompt, contents(example)) == ((user("q"),), [(said("g"),), (said("b"),)])
    for same in (parse(text="q"), parse(messages=[U, A])):
        assert as_chat(same) is same


# --- detection and its errors


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "+".join(layout.needs))
def test_detect_finds_each_layout_among_other_columns(layout: Any) -> None:
    assert detect(["id", *reversed(layout.needs), "extra"]) is layout


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["input", "winner", "loser"], "rename 'input' to 'prompt', 'winner' to 'chosen', 'loser' to 'rejected'"),
        (["Prompt", "Response"], "rename 'Prompt' to 'prompt', 'Response' to 'completion'"),
        (["question", "choosen", "rejected"], "rename 'choosen' to 'chosen'"),
        (["dialogue"], "rename 'dialogue' to 'messages'"),
        (["zzz"], "rows need for example"),
        ([], "columns none"),
    ],
)
def test_misnamed_columns_show_found_needed_and_a_guess(columns: list[str], says: str) -> None:
    with pytest.raises(DataError) as caught:
        detect(columns, "d.jsonl:1")
    assert says in str(caught.value)
    assert str(caught.value).startswith("d.jsonl:1: no known layout")
    assert str(caught.value).count("\n") <= 2


def test_a_found_column_is_guessed_once() -> None:
    mapping = guess_mapping(("prompt", "completion"), ["answer"])
    assert mapping == {"completion": "answer"}
    assert closest(["prompt", "response"])[0].name == "prompt, completion"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "q", "completion": 3}, r"'completion' is a number \(3\), expected a string or a list of messages"),
        ({"prompt": "q", "completion": None}, "'completion' is null"),
        ({"prompt": ["q"], "completion": "a"}, r"'prompt\[0\]' is a string"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, r"messages\[0\].content' is a list of 1"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role' is null"),
        ({"messages": "hello"}, "expected a list of messages"),
        ({"text": "\ud800x"}, "lone surrogate"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "expected true, false or a number in"),
        ({"prompt": "q", "completion": "a", "label": 2}, "expected true, false or a number in"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' is a string"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "not a finite number"),
        ({"prompt": "q", "completions": ["a"], "scores": [10**400]}, "not a finite number"),
        ({"prompt": "q", "completions": ["a"], "scores": [True]}, "is a boolean"),
        ({"prompt": "q", "completions": "ab", "scores": [1, 2]}, "expected a list"),
        ({"prompt": "q", "completions": ["a"], "scores": None}, "'scores' is null, expected a list of numbers"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "label": "A"}, '"a", "b" or "tie"'),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "votes": []}, "at least one vote"),
        ({"instruction": "q", "completions": [{"response": "x"}]}, "overall_score"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "instruction and answer"),
        ({"prompt": "q", "group": 1.5}, "'group' is a number"),
    ],
)
def test_wrong_values_name_row_and_column(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        parse(**fields)
    assert str(caught.value).startswith("d.jsonl:1: ")
    assert str(caught.value).count("\n") <= 2


def test_a_later_row_without_the_column_is_named() -> None:
    layout = detect(["prompt", "chosen", "rejected"])
    with pytest.raises(DataError, match="column 'rejected' is missing; found prompt, chosen"):
        layout.read(Row({"prompt": "q", "chosen": "a"}, "d.jsonl:9"))
