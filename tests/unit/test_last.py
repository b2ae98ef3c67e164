"""The last layer at the positions that are read: the states, scores and gradients of the whole layer, family by family."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.model import attention, blocks
from prefopt.model.attention import TreeLayout, packed_attention, tree_attention
from prefopt.model.blocks import needed
from prefopt.model.forward import hidden_states, layers_of, reward_outputs
from prefopt.model.last import KINDS, quicken_last
from prefopt.pack.tree import pack, pad
from prefopt.training.setup import compile_layers
from prefopt.types import Batch, TreeSpan
from tests.tiny import assert_alike, random_trees, tiny_model

SHORT = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[TreeLayout]:
    """The layouts made meanwhile."""
    made: list[TreeLayout] = []
    init = TreeLayout.__init__

    def kept(self: TreeLayout, *given: Any) -> None:
        init(self, *given)
        made.append(self)

    monkeypatch.setattr(TreeLayout, "__init__", kept)
    return made


def short(plain: Any) -> Any:
    model = copy.deepcopy(plain)
    quicken_last(model)
    return model


def places_of(batch: Batch, which: str) -> torch.Tensor:
    """Positions that may be read: of log-probs, of scores, of some of both in any order and twice, and one alone."""
    both = torch.cat([batch.last_S, batch.source_T])
    some = both[torch.randperm(len(both), generator=torch.Generator().manual_seed(1))[:20]]
    return {"log-probs": batch.source_T, "scores": batch.last_S, "some": torch.cat([some, some[:3]]), "one": batch.source_T[:1]}[which]


def states(model: Any, batch: Batch, places_X: torch.Tensor) -> list[torch.Tensor]:
    """The states there and the gradient of a sum of theirs, weight by weight."""
    with packed_attention(model):
        found = hidden_states(model, batch, places_X)
        slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
        slopes = torch.autograd.grad((found * slope).sum(), [w for w in model.parameters() if w.requires_grad], allow_unused=True)
    return [found, *(torch.zeros(1) if s is None else s for s in slopes)]


@pytest.mark.parametrize("which", ["log-probs", "scores", "some", "one"])
@pytest.mark.parametrize("family", [*SHORT, "windows"])
def test_states_and_gradients_are_those_of_the_whole_layer(family: str, which: str, layouts: list[TreeLayout]) -> None:
    plain = tiny_model("qwen2" if family == "windows" else family)
    if family == "windows":
        plain.model.layers[1].self_attn.sliding_window = 7
    batch = pack(random_trees())
    places = places_of(batch, which)
    wanted, found = (states(model.double(), batch, places) for model in (plain, short(plain)))
    for mine, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-10)
    assert [layout.shortened for layout in layouts] == [False, True]


def test_no_more_than_what_is_read_is_computed(layouts: list[TreeLayout]) -> None:
    model, batch, met = short(tiny_model()), pack(random_trees()), []
    layer = layers_of(model)[-1]
    for module in (layer.mlp, layer.self_attn.q_proj, layer.self_attn.k_proj):
        module.register_forward_hook(lambda module, given, out: met.append(out.shape[1]))
    with packed_attention(model):
        hidden_states(model, batch, batch.last_S)
    # random trees score the last token of every branch
    assert met == [batch.sequences, batch.tokens, batch.sequences]
    (layout,) = layouts
    assert layout.needed is not None
    assert sorted(layout.needed.rows.tolist()) == sorted(batch.last_S.tolist())


@pytest.mark.parametrize("limits", [{}, {"ROWS": 3}, {"STEPS": {torch.float64: 8}}, {"ROWS": 3, "HELD": 1, "SCORES": 60}])
@pytest.mark.parametrize("window", [None, 3])
def test_needed_blocks_are_the_rule(window: int | None, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of the needed queries against the dense mask of the rule: values, gradients of queries, keys and values."""
    for name, value in limits.items():
        monkeypatch.setattr(blocks, name, value)
    spans = (TreeSpan(0, 5, (3, 4, 2)), TreeSpan(14, 0, (4, 3)), TreeSpan(21, 6, (9,)), TreeSpan(36, 1, (1, 1)))
    layout = TreeLayout(spans, torch.device("cpu"), torch.tensor([35, 4, 7, 10, 12, 16, 24, 26, 36, 4]))
    assert layout.needed is not None
    rows, generator = layout.needed.rows, torch.Generator().manual_seed(0)
    assert set(layout.places.tolist() if layout.places is not None else []) <= set(rows.tolist())
    q, k, v = (torch.randn(1, heads, n, 4, generator=generator, dtype=torch.float64).requires_grad_() for heads, n in
               ((4, len(rows)), (2, 39), (2, 39)))  # fmt: skip
    everywhere = torch.arange(39)
    mask = layout.rule(window)(None, None, rows[:, None], everywhere[None])
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.7).masked_fill(~mask, -torch.inf)
    plain = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    found, _ = tree_attention(torch.nn.Module(), q, k, v, None, tree=layout, scaling=0.7, sliding_window=window)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    slopes, wanted = (torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True) for out in (found, plain))
    torch.testing.assert_close(slopes, wanted, rtol=1e-11, atol=1e-12)


def test_needed_by_hand() -> None:
    """A prompt of 3 with branches of 2 and 4; positions 2, 5 and 7 are read. The prompt goes with the first branch."""
    layout = TreeLayout([TreeSpan(0, 3, (2, 4))], torch.device("cpu"))
    found = needed(layout.blocks, np.array([7, 2, 5]))
    assert [block.rows for block in found.blocks] == [slice(2, 3), slice(5, 8)]
    assert [block.keys for block in found.blocks] == [(slice(0, 3),), (slice(0, 3), slice(5, 8))]
    assert found.rows.tolist() == [2, 5, 6, 7]


def test_all_of_a_layer_is_computed_where_nearly_all_is_read(layouts: list[TreeLayout], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = short(tiny_model()), pack(random_trees())
    everything = torch.arange(batch.tokens)
    with packed_attention(model):
        assert hidden_states(model, batch, everything).shape[0] == batch.tokens
        assert hidden_states(model, batch, everything[:0]).shape == (0, 32)
        hidden_states(model, batch, batch.source_T)
        monkeypatch.setattr(attention, "WORTH", 0.1)
        hidden_states(model, batch, batch.source_T)
    assert [layout.shortened for layout in layouts] == [False, False, True, False]


def test_padded_batches_and_plain_calls_are_as_they_were() -> None:
    plain = tiny_model()
    model, batch = short(plain), pad(random_trees())
    assert_alike(plain, model)
    assert torch.equal(hidden_states(model, batch, batch.last_S), hidden_states(plain, batch, batch.last_S))


def test_only_the_last_layer_of_known_models_is_another() -> None:
    for family in SHORT:
        plain = tiny_model(family)
        kinds = [type(layer) for layer in layers_of(short(plain))]
        assert kinds[0] is type(layers_of(plain)[0])
        assert kinds[1].__mro__[1] is kinds[0]
        assert kinds[0].__name__ in KINDS
    for family in ("gemma2", "gpt2", "mixtral", "olmo2"):
        plain = tiny_model(family)
        assert [type(layer) for layer in layers_of(short(plain))] == [type(layer) for layer in layers_of(plain)]


def test_layers_computed_again_give_the_same_gradients() -> None:
    plain, batch = tiny_model(), pack(random_trees())
    model = short(plain).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for mine, whole in zip(*(states(one, batch, batch.source_T) for one in (model, plain)), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-4)


def test_adapters_on_the_last_layer_learn(layouts: list[TreeLayout]) -> None:
    from peft import LoraConfig, get_peft_model

    batch, found = pack(random_trees()), []
    for quick in (False, True):
        torch.manual_seed(0)
        model = tiny_model()
        if quick:
            quicken_last(model)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).double()
        with packed_attention(adapted.get_base_model()):
            out = hidden_states(adapted, batch, batch.source_T)
        found.append([out, *torch.autograd.grad(out.square().sum(), [w for w in adapted.parameters() if w.requires_grad])])
    for whole, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)
    assert [layout.shortened for layout in layouts] == [False, True]


def test_it_goes_with_compiled_layers(layouts: list[TreeLayout]) -> None:
    plain, batch = tiny_model(), pack(random_trees())
    model = short(plain)
    compile_layers(model)
    with torch.no_grad(), packed_attention(model), packed_attention(plain):
        torch.testing.assert_close(hidden_states(model, batch, batch.last_S), hidden_states(plain, batch, batch.last_S))
    assert [layout.shortened for layout in layouts] == [True, False]


def test_scores_and_log_probs_are_read_from_one_pass() -> None:
    model = tiny_model(scorer=True)
    model.config.tie_word_embeddings = True
    batch = pack(random_trees())
    with torch.no_grad(), packed_attention(model):
        whole = reward_outputs(model, batch, steps=False, logps=True)
        quicken_last(model)
        mine = reward_outputs(model, batch, steps=False, logps=True)
        alone = reward_outputs(model, batch, steps=False, logps=False)
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone["scores_S"], mine["scores_S"], rtol=1e-5, atol=1e-5)


def test_a_rank_with_nothing_to_learn_reads_nothing() -> None:
    """Under train.shard such a rank still goes through every layer, so that gathering weights meets all ranks."""
    model, batch = short(tiny_model()), pack(random_trees())
    idle = replace(batch, source_T=batch.source_T[:0], target_T=batch.target_T[:0])
    with packed_attention(model):
        out = hidden_states(model, idle, idle.source_T)
        out.sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "lm_head" not in name)
    assert len(out) == 0
