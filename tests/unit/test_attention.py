"""The packed path against the model's own padded forward, family by family: log-probs, gradients, scores, and the fall back."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from prefopt.model.attention import TreeLayout, packed_attention, tree_mask
from prefopt.model.forward import policy_logps, reward_scores
from prefopt.model.selfcheck import self_check
from prefopt.pack.tree import pack, pad
from prefopt.types import TreeSpan
from tests.tiny import FALL_BACK, FAMILIES, random_trees, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probs_and_gradients_equal_the_plain_ones(family: str) -> None:
    model, trees = tiny_model(family), random_trees()
    padded, packed = pad(trees), pack(trees)
    logits = model(input_ids=padded.ids_BC, attention_mask=padded.mask_BC).logits.flatten(0, 1)[padded.source_T]
    plain_T = logits.float().log_softmax(-1).gather(1, padded.target_T[:, None])[:, 0]
    slope_T = torch.randn(len(plain_T), generator=torch.Generator().manual_seed(0))
    plain_gradient = _gradient(model, plain_T, slope_T)
    with packed_attention(model):
        packed_T = policy_logps(model, packed).logps_T
        packed_gradient = _gradient(model, packed_T, slope_T)
    assert float((packed_T - plain_T).detach().abs().max()) <= 1e-4
    assert float(torch.nn.functional.cosine_similarity(packed_gradient, plain_gradient, dim=0)) >= 0.999999
    torch.testing.assert_close(packed_gradient.norm(), plain_gradient.norm(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_accepts(family: str) -> None:
    found = self_check(tiny_model(family), random_trees(1))
    assert found.layout == "packed", found


@pytest.mark.parametrize("family", FALL_BACK)
def test_self_check_falls_back_and_the_padded_path_works(family: str) -> None:
    model, trees = tiny_model(family), random_trees(1)
    found = self_check(model, trees)
    assert found.layout == "padded"
    assert found.reason
    assert torch.isfinite(policy_logps(model, pad(trees)).logps_T).all()


def test_self_check_refuses_a_layout_that_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets branches see each other changes the values, and is caught."""
    monkeypatch.setattr("prefopt.model.attention.tree_mask", lambda span, window, device: None)
    assert self_check(tiny_model(), random_trees(1)).layout == "padded"


def test_packed_attention_is_undone() -> None:
    model = tiny_model()
    own = model.config._attn_implementation
    with packed_attention(model):
        assert model.config._attn_implementation != own
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen2"])
def test_reward_scores_equal_those_of_transformers(family: str) -> None:
    model, trees = tiny_model(family, scorer=True), random_trees()
    model.config.pad_token_id = 0
    padded = pad(trees)
    theirs = model(input_ids=padded.ids_BC, attention_mask=padded.mask_BC).logits[:, 0]
    torch.testing.assert_close(reward_scores(model, padded), theirs, atol=1e-5, rtol=1e-5)
    with packed_attention(model):
        torch.testing.assert_close(reward_scores(model, pack(trees)), theirs, atol=1e-4, rtol=1e-4)


def test_tree_mask_by_hand() -> None:
    mask = tree_mask(TreeSpan(0, 2, (1, 2)), None, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    windowed = tree_mask(TreeSpan(0, 2, (1, 2)), 2, torch.device("cpu"))
    assert windowed.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert tree_mask(TreeSpan(0, 2, (3,)), None, torch.device("cpu")) is None


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_rule_is_the_same_as_the_masks(window: int | None) -> None:
    """The FlexAttention form of the rule, used on CUDA, run here without compilation."""
    batch = pack(random_trees())
    layout = TreeLayout(batch.spans, torch.device("cpu"))
    total = batch.spans[-1].end
    i, j = torch.meshgrid(torch.arange(total), torch.arange(total), indexing="ij")
    rule = layout.rule(window)(None, None, i, j)
    dense = torch.zeros(total, total, dtype=torch.bool)
    for span, mask in zip(batch.spans, layout.masks(window), strict=True):
        size = span.end - span.start
        dense[span.start : span.end, span.start : span.end] = torch.ones(size, size).tril().bool() if mask is None else mask
    assert torch.equal(rule, dense)
    q, k, v = (torch.randn(1, 2, total, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs unfused here
        flex = flex_attention(q, k, v, block_mask=layout.block_mask(window))
    torch.testing.assert_close(flex, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense), atol=1e-5, rtol=1e-4)


def _gradient(model: torch.nn.Module, logps_T: torch.Tensor, slope_T: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad((logps_T * slope_T).sum(), list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(model.parameters(), gradients, strict=True)])
