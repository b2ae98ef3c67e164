"""The reference: never in training mode, and cached values are for exactly these weights, this model and these rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.model.reference import AdapterReference, FrozenReference, cache_key
from prefopt.types import TokenTree
from tests.tiny import pair_trees, tiny_model


def test_a_reference_is_frozen_and_evaluates() -> None:
    model = tiny_model().train()
    FrozenReference(model)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_followed_adapter_is_taken_back_to_where_the_weights_are() -> None:
    weights = torch.nn.Linear(2, 2, device="meta")
    reference = AdapterReference(weights)
    reference.load({"weight": torch.ones(2, 2)})
    assert reference.state()["weight"].device == weights.weight.device


def prompt_changed(tree: TokenTree) -> TokenTree:
    return replace(tree, prompt=np.where(np.arange(len(tree.prompt)) == 0, tree.prompt + 1, tree.prompt))


def mask_changed(tree: TokenTree) -> TokenTree:
    first = replace(tree.branches[0], scored=~tree.branches[0].scored)
    return replace(tree, branches=(first, *tree.branches[1:]))


def answer_changed(tree: TokenTree) -> TokenTree:
    first = replace(tree.branches[0], ids=tree.branches[0].ids + 1)
    return replace(tree, branches=(first, *tree.branches[1:]))


@pytest.mark.parametrize("change", [prompt_changed, mask_changed, answer_changed])
def test_other_rows_have_another_key(change: Callable[[TokenTree], TokenTree]) -> None:
    model, trees = tiny_model(), pair_trees(0, 3)
    key = cache_key(model, trees)
    assert cache_key(model, pair_trees(0, 3)) == key
    assert cache_key(model, [*trees[:2], change(trees[2])]) != key


def test_other_weights_or_another_config_have_another_key() -> None:
    model, trees = tiny_model(), pair_trees(0, 3)
    key = cache_key(model, trees)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    moved = cache_key(model, trees)
    assert moved != key
    model.config.rms_norm_eps *= 2
    assert cache_key(model, trees) != moved
