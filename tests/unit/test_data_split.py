"""Truncation treats both sides alike and keeps its account; splits never part a group and do not depend on order."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.split import overlap, prompt_key, split
from prefopt.data.truncate import How, chunks, longest, truncate
from prefopt.types import Branch, Completion, Example, Message, TokenTree


def tree(prompt: int, branches: list[int], **options: object) -> TokenTree:
    """Prompt ids 100, 101, ...; branch ids 1, 2, ... all scored."""
    made = tuple(Branch(ids=np.arange(1, n + 1, dtype=np.int32), scored=np.ones(n, dtype=bool), rank=i) for i, n in enumerate(branches))
    return TokenTree(prompt=np.arange(100, 100 + prompt, dtype=np.int32), branches=made, where="d:1", **options)  # type: ignore[arg-type]


def ids(cut: TokenTree | None) -> tuple[list[int], list[list[int]]]:
    assert cut is not None
    return cut.prompt.tolist(), [branch.ids.tolist() for branch in cut.branches]


def test_a_short_tree_is_untouched() -> None:
    short = tree(4, [2, 3])
    for how in ("drop", "prompt_left", "completion_right"):
        assert truncate(short, 7, how) is short
    assert truncate(short, 6, "drop") is None


def test_prompt_left_keeps_every_answer_whole() -> None:
    assert ids(truncate(tree(4, [2, 3]), 5, "prompt_left")) == ([102, 103], [[1, 2], [1, 2, 3]])
    assert ids(truncate(tree(4, [2, 3]), 5, "prompt_left", bos_id=100)) == ([100, 103], [[1, 2], [1, 2, 3]])
    assert truncate(tree(4, [2, 5]), 5, "prompt_left") is None
    assert truncate(tree(4, [2, 4]), 5, "prompt_left", bos_id=100) is None


def test_completion_right_cuts_all_sides_at_one_place() -> None:
    assert ids(truncate(tree(2, [5, 3, 1]), 4, "completion_right")) == ([100, 101], [[1, 2], [1, 2], [1]])
    assert truncate(tree(4, [1, 3]), 4, "completion_right") is None


def test_cut_steps_go_with_their_labels() -> None:
    whole = tree(1, [6])
    branch = replace(whole.branches[0], step_ends=(1, 3, 5), step_labels=(1.0, 0.0, 1.0))
    cut = truncate(replace(whole, branches=(branch,)), 5, "completion_right")
    assert cut is not None
    assert (cut.branches[0].step_ends, cut.branches[0].step_labels) == ((1, 3), (1.0, 0.0))
    assert truncate(replace(whole, branches=(branch,)), 2, "completion_right") is None


def test_a_branch_left_without_a_scored_token_goes() -> None:
    whole = tree(1, [4, 2])
    late = replace(whole.branches[0], scored=np.array([False, False, False, True]))
    assert truncate(replace(whole, branches=(late, whole.branches[1])), 4, "completion_right") is None


@given(
    st.integers(0, 12),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(2, 20),
    st.sampled_from(["prompt_left", "completion_right"]),
)
def test_truncation_properties(prompt: int, branches: list[int], limit: int, how: How) -> None:
    whole = tree(prompt, branches)
    cut = truncate(whole, limit, how, bos_id=100)
    if cut is None:
        assert longest(whole) > limit
        return
    assert longest(cut) == min(longest(whole), limit)
    for was, now in zip(whole.branches, cut.branches, strict=True):
        assert now.ids.tolist() == was.ids.tolist()[: len(now.ids)]
        assert len(now.ids) == len(now.scored)
        assert len(now.ids) in (len(was.ids), max(len(b.ids) for b in cut.branches))
    assert len(cut.prompt) == len(whole.prompt) or cut.prompt[0] == 100


@given(st.integers(1, 40), st.integers(2, 12))
def test_chunks_predict_every_token_once(length: int, limit: int) -> None:
    whole = tree(1, [length])
    parts = chunks(whole, limit)
    assert [int(i) for part in parts for i in part.branches[0].ids] == whole.branches[0].ids.tolist()
    assert sum(int(part.branches[0].scored.sum()) for part in parts) == int(whole.branches[0].scored.sum())
    text = [*whole.prompt.tolist(), *whole.branches[0].ids.tolist()]
    at = 0
    for part in parts:
        assert longest(part) == limit or part is parts[-1]
        assert part.prompt.tolist() == [text[at]]
        at += len(part.branches[0].ids)
    assert len({part.group for part in parts}) == 1


# --- split


def example(prompt: str, group: str | None = None, where: str = "") -> Example:
    return Example(prompt=prompt, completions=(Completion(content="a"),), group=group, where=where)


def test_groups_and_prompts_are_never_parted() -> None:
    rows = [example(f"q{i % 40}", f"g{i % 20}" if i % 2 else None, str(i)) for i in range(200)]
    train, heldout = split(rows, 0.25, seed=3)
    for key in ("group", "prompt"):
        sides = [{getattr(r, key) for r in side if r.group is not None or key == "prompt"} for side in (train, heldout)]
        if key == "group":
            assert not sides[0] & sides[1]
    free = [{r.prompt for r in side if r.group is None} for side in (train, heldout)]
    assert not free[0] & free[1]
    assert sorted(r.where for r in (*train, *heldout)) == sorted(r.where for r in rows)


@pytest.mark.parametrize(("groups", "fraction", "want"), [(100, 0.1, 10), (100, 0.0, 0), (5, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0)])
def test_the_fraction_is_of_the_groups(groups: int, fraction: float, want: int) -> None:
    rows = [example("q", f"g{i % groups}") for i in range(3 * groups)]
    assert len({r.group for r in split(rows, fraction, 0)[1]}) == want


def test_split_is_a_function_of_rows_and_seed() -> None:
    rows = [example(f"q{i}", where=str(i)) for i in range(100)]
    shuffled = random.Random(1).sample(rows, 100)
    held = lambda items, seed: {r.where for r in split(items, 0.2, seed)[1]}  # noqa: E731
    assert held(rows, 0) == held(shuffled, 0) != held(rows, 1)
    assert [r.where for r in split(rows, 0.2, 0)[0]] == sorted((r.where for r in split(shuffled, 0.2, 0)[0]), key=int)
    more = held([*rows, *(example(f"new{i}") for i in range(5))], 0)
    assert len(more & held(rows, 0)) >= 18


def test_trees_split_by_prompt_and_texts_by_content() -> None:
    pairs = [tree(3 + i % 5, [2, 1 + i]) for i in range(20)]
    train, heldout = split(pairs, 0.4, 0)
    assert len({len(t.prompt) for t in heldout}) == 2
    assert not {len(t.prompt) for t in train} & {len(t.prompt) for t in heldout}
    texts = [tree(1, [1 + i]) for i in range(20)]
    assert len(split(texts, 0.2, 0)[1]) == 4


def test_conversations_without_a_prompt_are_their_own() -> None:
    talk = [Example(prompt=(), completions=(Completion(content=(Message("user", f"q{i}"),)),)) for i in range(2)]
    assert prompt_key(talk[0]) != prompt_key(talk[1])


def test_overlap_names_heldout_rows_whose_prompt_is_trained_on() -> None:
    train = [example("q1", "g1"), example("q2", "g2")]
    heldout = [example("q3", "g3", "d:3"), example("q1", "g4", "d:4")]
    assert overlap(train, heldout) == ["d:4"]
