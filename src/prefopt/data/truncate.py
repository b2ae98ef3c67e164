"""Cutting long rows: one rule for every branch, and an account of what was lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from prefopt.data.split import prompt_key
from prefopt.types import Branch, TokenTree

How = Literal["drop", "prompt_left", "completion_right"]


def longest(tree: TokenTree) -> int:
    """Tokens of the tree's longest sequence, prompt included."""
    return len(tree.prompt) + max((len(branch.ids) for branch in tree.branches), default=0)


def truncate(tree: TokenTree, max_length: int, how: How, *, bos_id: int | None = None) -> TokenTree | None:
    """The tree with no sequence longer than `max_length` tokens, or None where that cannot be done and the row has to go.

    `prompt_left` cuts the prompt's start, once for all branches, so that the longest branch fits; a beginning-of-sequence token
    (`bos_id`) stays first, and at least one prompt token stays. `completion_right` cuts every branch at the same place; a branch
    that is cut loses its stop token and the steps that ended beyond the cut. `drop` cuts nothing.
    """
    if longest(tree) <= max_length:
        return tree
    if how == "prompt_left":
        return _cut_prompt(tree, max_length, bos_id)
    if how == "completion_right":
        return _cut_branches(tree, max_length - len(tree.prompt))
    return None


def chunks(tree: TokenTree, max_length: int) -> list[TokenTree]:
    """A plain text (a first token, then one branch) as consecutive sequences of at most `max_length` >= 2 tokens.

    Each begins with the last token of the one before it, unscored there, so every token but the text's first is predicted once, as in
    the whole text. The chunks are of one group: a split into training and held-out rows keeps a text together.
    """
    (branch,) = tree.branches
    step, group = max_length - 1, tree.group or prompt_key(tree).hex()
    ids = np.concatenate([tree.prompt, branch.ids])
    return [
        replace(
            tree,
            prompt=ids[at : at + 1],
            branches=(replace(branch, ids=ids[at + 1 : at + 1 + step], scored=branch.scored[at : at + step]),),
            group=group,
        )
        for at in range(0, len(branch.ids), step)
    ]


def _cut_prompt(tree: TokenTree, max_length: int, bos_id: int | None) -> TokenTree | None:
    room = max_length - (longest(tree) - len(tree.prompt))
    head = 1 if len(tree.prompt) and int(tree.prompt[0]) == bos_id else 0
    if room < 1 + head:
        return None
    tail = tree.prompt[len(tree.prompt) - (room - head) :]
    prompt = tail.copy()
    if head:
        prompt = tree.prompt[:room].copy()
        prompt[1:] = tail
    return replace(tree, prompt=prompt)


def _cut_branches(tree: TokenTree, room: int) -> TokenTree | None:
    branches = tuple(cut_branch(branch, room) for branch in tree.branches)
    if room < 1 or not all(branch.scored.any() for branch in branches):
        return None
    if any(was.step_ends and not now.step_ends for was, now in zip(tree.branches, branches, strict=True)):
        return None
    return replace(tree, branches=branches)


def cut_branch(branch: Branch, room: int) -> Branch:
    """The first `room` tokens of a branch, with the steps that end among them."""
    if len(branch.ids) <= room:
        return branch
    kept = sum(end < room for end in branch.step_ends)
    return replace(
        branch,
        ids=branch.ids[:room],
        scored=branch.scored[:room],
        step_ends=branch.step_ends[:kept],
        step_labels=branch.step_labels[:kept],
    )
