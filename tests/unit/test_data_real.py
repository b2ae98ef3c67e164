"""The real data sets beside the checkout: every file is read as what it is, and its known oddities are found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from prefopt.data.check import check
from prefopt.data.preflight import kind_of
from prefopt.data.read import read, tables
from prefopt.data.split import split
from prefopt.errors import DataError
from prefopt.types import Message

FILES = [
    ("sft/rasbt_instructions.jsonl", "Alpaca", 1100, "demonstrations"),
    ("sft/oasst_en100_best.jsonl", "Alpaca", 249, "demonstrations"),
    ("math/gsm8k_test.jsonl", "question, answer", 1319, "demonstrations"),
    ("pref/hh_harmless_test.jsonl.gz", "judged pair", 2307, "pairs"),
    ("pref/gsm8k_solution_pairs.jsonl.gz", "judged pair", 2429, "pairs"),
    ("pref/hhh_alignment.jsonl", "judged pair", 221, "pairs"),
    ("agree/llmfao_votes.jsonl.gz", "judged pair, votes only", 2139, "pairs"),
    ("prm/prmbench.jsonl.gz", "process labels", 6874, "steps"),
    ("safety/xstest_prompts.jsonl", "prompt only", 450, "prompts"),
]


@pytest.mark.parametrize(("name", "layout", "rows", "kind"), FILES, ids=[name for name, *_ in FILES])
def test_each_file_is_read_as_what_it_is(shared_data: Path, name: str, layout: str, rows: int, kind: str) -> None:
    (table,) = tables(str(shared_data / name))
    assert table.layout.name == layout
    assert Counter(kind_of(table.parse(row)) for row in table.rows) == {kind: rows}


def test_hh_dialogues_become_alternating_messages_that_ask_for_an_answer(shared_data: Path) -> None:
    for example in read(str(shared_data / "pref/hh_harmless_test.jsonl.gz")):
        assert isinstance(example.prompt, tuple)
        roles = [message.role for message in example.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(isinstance(c.content[0], Message) and c.content[0].role == "assistant" for c in example.completions)


def test_check_finds_the_empty_answers_of_hh(shared_data: Path) -> None:
    found = check(str(shared_data / "pref/hh_harmless_test.jsonl.gz"))
    assert {reason: tally.count for reason, tally in found.preflight.dropped.items()} == {"empty completion": 4}


def test_answers_that_are_not_text_are_named(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"pandalm_majority.jsonl:158: 'response_a' is a boolean \(true\)"):
        list(read(str(shared_data / "pref/pandalm_majority.jsonl")))
    assert check(str(shared_data / "pref/pandalm_majority.jsonl")).failed == 6


def test_votes_give_the_published_majority(shared_data: Path) -> None:
    votes = read(str(shared_data / "agree/llmfao_votes.jsonl.gz"))
    majority = read(str(shared_data / "pref/llmfao_majority.jsonl.gz"))
    ranks = [[[(c.content, c.rank) for c in example.completions] for example in rows] for rows in (votes, majority)]
    assert ranks[0] == ranks[1]


def test_real_groups_stay_together(shared_data: Path) -> None:
    rows = list(read(str(shared_data / "pref/qa_feedback_dev.jsonl.gz")))
    train, heldout = split(rows, 0.1, 0)
    assert 0.08 < len(heldout) / len(rows) < 0.12
    assert not {e.group for e in train} & {e.group for e in heldout}
    assert None not in {e.group for e in rows}
