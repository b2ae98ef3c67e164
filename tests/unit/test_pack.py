"""Packed and padded batches describe the same work; plans read every row once and never depend on micro-batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.pack.plan import Plan, longest, micro_batches, mismatched, share
from prefopt.pack.tree import pack, pad, ranked_pairs
from prefopt.types import Branch, TokenTree
from tests.tiny import pair_trees, random_tree, random_trees

RAGGED = ("target_T", "sequence_T", "prompt_S", "length_S", "chosen_N", "rejected_N", "margin_N", "tied_N", "rank_S", "label_S", "index_P")


def test_both_layouts_have_the_same_ragged_columns() -> None:
    trees = random_trees()
    packed, padded = pack(trees), pad(trees)
    for name in RAGGED:
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name
    assert packed.tokens == sum(tree.packed_tokens for tree in trees)


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_each_scored_token_is_predicted_by_the_token_before_it_in_its_own_sequence(lay_out) -> None:
    trees = random_trees()
    batch = lay_out(trees)
    flat = batch.ids_BC.flatten().tolist()
    t = 0
    for tree in trees:
        for branch in tree.branches:
            whole = [*tree.prompt.tolist(), *branch.ids.tolist()]
            for j in np.flatnonzero(branch.scored):
                at = len(tree.prompt) + int(j)
                assert int(batch.target_T[t]) == whole[at]
                assert flat[int(batch.source_T[t])] == whole[at - 1]
                t += 1
    assert t == len(batch.target_T)
    ends = [int(branch.ids[-1]) for tree in trees for branch in tree.branches]
    assert [flat[int(i)] for i in batch.last_S] == ends


def test_positions_restart_after_the_prompt_in_every_branch() -> None:
    tree = TokenTree(prompt=_ids(5, 6, 7), branches=(_branch(8, 9), _branch(10)))
    assert pack([tree, tree]).positions_BC.tolist() == [[0, 1, 2, 3, 4, 3] * 2]


def test_padding_is_masked_and_an_answer_without_a_rank_has_none() -> None:
    batch = pad([TokenTree(prompt=_ids(5, 6), branches=(_branch(7, 8, rank=None), _branch(9)))], pad_id=1)
    assert batch.ids_BC.tolist() == [[5, 6, 7, 8], [5, 6, 9, 1]]
    assert batch.mask_BC is not None
    assert batch.mask_BC.tolist() == [[True] * 4, [True, True, True, False]]
    assert batch.rank_S.tolist() == [-1, 0]


def test_a_first_token_that_nothing_precedes_is_not_scored() -> None:
    batch = pack([TokenTree(prompt=_ids(), branches=(_branch(8, 9, 10),))])
    assert batch.target_T.tolist() == [9, 10]
    assert batch.source_T.tolist() == [0, 1]


def test_pairs_come_from_unequal_ranks_and_ties_give_none() -> None:
    ranked = [_branch(3, rank=1), _branch(4, rank=0), _branch(5, rank=1), _branch(6, rank=2), _branch(7, rank=None)]
    assert ranked_pairs(ranked) == [(1, 0), (1, 2), (1, 3), (0, 3), (2, 3)]
    assert ranked_pairs(ranked, "judged") == [(1, 0), (1, 2), (1, 3), (0, 2), (0, 3), (2, 3)]
    batch = pack([TokenTree(prompt=_ids(1), branches=tuple(ranked))], pairs="judged")
    assert batch.tied_N.tolist() == [False, False, False, True, False, False]
    assert ranked_pairs(ranked, "best_worst") == [(1, 3)]
    assert ranked_pairs([_branch(3, rank=0), _branch(4, rank=0)]) == []
    assert ranked_pairs([_branch(3, rank=0), _branch(4, rank=0)], "best_worst") == []


def test_sequence_numbers_of_pairs_count_over_the_whole_batch() -> None:
    tree = TokenTree(prompt=_ids(1), branches=(_branch(3, rank=1), _branch(4, rank=0)), margin=0.5)
    batch = pack([tree, replace(tree, margin=None)])
    assert batch.chosen_N.tolist() == [1, 3]
    assert batch.rejected_N.tolist() == [0, 2]
    assert batch.margin_N.tolist() == [0.5, 0.0]


def test_step_ends_point_at_the_steps_last_tokens() -> None:
    branch = Branch(ids=_ids(8, 9, 10), scored=np.ones(3, bool), step_ends=(0, 2), step_labels=(1.0, 0.0))
    batch = pack([TokenTree(prompt=_ids(5), branches=(_branch(6), branch))])
    assert batch.ids_BC[0, batch.step_index_J].tolist() == [8, 10]
    assert batch.step_label_J.tolist() == [1.0, 0.0]


def test_an_epoch_reads_every_row_once_and_differs_from_the_next() -> None:
    plan = Plan(rows=10, batch_size=4, seed=3)
    epoch = [plan.step(i) for i in range(3)]
    assert [len(rows) for rows in epoch] == [4, 4, 2]
    assert Counter(i for rows in epoch for i in rows) == Counter(range(10))
    assert plan.step(0) == Plan(rows=10, batch_size=4, seed=3).step(0)
    assert [plan.step(i) for i in range(3, 6)] != epoch
    assert Plan(rows=10, batch_size=4, seed=4).step(0) != plan.step(0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("limit", [1, 40, 60, 10_000])
def test_micro_batches_hold_every_tree_once_within_the_limit(padded: bool, limit: int) -> None:
    trees = pair_trees(0, 30)
    parts = micro_batches(trees, limit, padded=padded)
    assert sorted(tree.index for part in parts for tree in part) == list(range(30))
    for part in parts:
        batch = (pad if padded else pack)(part)
        assert batch.tokens <= limit or len(part) == 1
    assert len(parts) == 1 or limit < 10_000


@pytest.mark.parametrize("padded", [False, True])
def test_a_pass_holds_trees_of_one_side_of_a_border(padded: bool) -> None:
    trees = pair_trees(0, 30)
    for border in (5, 15, 18, 100):
        parts = micro_batches(trees, 10_000, padded=padded, border=border)
        assert sorted(tree.index for part in parts for tree in part) == list(range(30))
        assert all(len({longest(tree) > border for tree in part}) == 1 for part in parts)
        assert len(parts) == len({longest(tree) > border for tree in trees})


def test_ranks_share_a_step_without_overlap() -> None:
    trees = pair_trees(0, 7)
    parts = [share(trees, rank, 3) for rank in range(3)]
    assert sorted(tree.index for part in parts for tree in part) == list(range(7))


def test_mismatched_takes_the_next_rows_completions() -> None:
    trees = pair_trees(0, 3)
    found = mismatched(trees)
    assert [[b.ids.tolist() for b in f.branches] for f in found] == [[b.ids.tolist() for b in trees[i].branches] for i in (1, 2, 0)]
    assert [f.prompt.tolist() for f in found] == [t.prompt.tolist() for t in trees]


def test_mismatched_rows_are_cut_to_the_models_length() -> None:
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 12, (3, 2)), random_tree(rng, 2, (13, 9))]
    found = mismatched(trees, 15)
    assert [[len(b.ids) for b in f.branches] for f in found] == [[3, 3], [3, 2]]
    assert [b.ids.tolist() for b in found[0].branches] == [b.ids[:3].tolist() for b in trees[1].branches]
    assert [len(b.scored) for f in found for b in f.branches] == [3, 3, 3, 2]


def _ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _branch(*ids: int, rank: int | None = 0) -> Branch:
    return Branch(ids=_ids(*ids), scored=np.ones(len(ids), bool), rank=rank)
