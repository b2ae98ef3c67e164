"""The reference: never in training mode, as slow to follow as asked, and cached for exactly these weights, this model and these rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.model.reference import AdapterReference, FrozenReference, Reference, cache_key
from prefopt.pack.tree import pad
from prefopt.settings import LoraSettings
from prefopt.training.lora import add_adapter
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


def parts(value: float) -> torch.nn.ModuleDict:
    """Something with an adapter's weights, all of one value, in bf16."""
    made = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3, bias=False, dtype=torch.bfloat16) for name in ("lora_A", "lora_B")})
    for weight in made.parameters():
        torch.nn.init.constant_(weight, value)
    return made


def follow(reference: Reference, policy: torch.nn.Module, times: int) -> None:
    for _ in range(times):
        reference.sync(policy, 0.01)


def kept(reference: Reference) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in reference.state().items()}


def test_a_slow_reference_moves_in_half_precision() -> None:
    """By a hundredth of an eighth at a time, where bf16 knows steps of 1/128."""
    model, policy = parts(1.0), parts(1.125)
    reference, later = FrozenReference(model), FrozenReference(parts(1.0))
    follow(reference, policy, 50)
    later.load(kept(reference))
    for one in (reference, later):
        follow(one, policy, 50)
    for name, weight in model.named_parameters():
        exact = reference.state()[name]
        torch.testing.assert_close(exact, torch.full((3, 3), 1 + 0.125 * (1 - 0.99**100)), atol=1e-5, rtol=0)
        assert torch.equal(exact, later.state()[name])
        assert torch.equal(weight, exact.bfloat16()), "the model computes with the weights as they are rounded"
    reference.sync(policy, 1.0)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), policy.parameters(), strict=True))


def test_a_slow_adapter_moves_in_half_precision() -> None:
    policy = parts(1.0)
    reference = AdapterReference(policy)
    follow(reference, policy, 1)
    torch.nn.init.constant_(policy["lora_A"].weight, 1.125)
    follow(reference, policy, 299)
    found = kept(reference)
    torch.testing.assert_close(found["lora_A.weight"], torch.full((3, 3), 1 + 0.125 * (1 - 0.99**299)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["lora_B.weight"], torch.full((3, 3), 1 - 0.99**300), atol=1e-5, rtol=0)
    with reference.sampling() as model:
        assert torch.equal(model["lora_B"].weight, found["lora_B.weight"].bfloat16())
    assert torch.equal(policy["lora_B"].weight, torch.ones(3, 3, dtype=torch.bfloat16))


def test_an_adapter_of_an_embedding_is_followed_from_where_it_began() -> None:
    """Of its two weights A is the one that begins at zero."""
    policy = add_adapter(tiny_model(), LoraSettings(rank=2, targets=["embed_tokens"]), scorer=False, seed=0)
    batch = pad(pair_trees(0, 2))
    reference = AdapterReference(policy)
    before = reference.logps(batch)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_embedding_A" in name:
                weight.normal_(0.0, 0.5)
    reference.sync(policy, 0.0)
    torch.testing.assert_close(reference.logps(batch), before)
    reference.sync(policy, 1.0)
    assert float((reference.logps(batch) - before).abs().max()) > 0.01


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
