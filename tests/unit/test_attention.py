"""The packed path against the model's own padded forward, family by family: log-probs, gradients, scores, and the fall back."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from prefopt.errors import ModelError, TrainingError
from prefopt.model import attention, blocks, selfcheck
from prefopt.model.attention import TreeLayout, packed_attention, tree_attention
from prefopt.model.blocks import Block, causal_bias
from prefopt.model.forward import border_of, head_of, limit_of, policy_logps, reward_scores, scored_states
from prefopt.model.selfcheck import check_head, go_back, self_check
from prefopt.pack.tree import pack, pad
from prefopt.settings import TrainSettings
from prefopt.training.setup import check_start, choose_layout
from prefopt.types import TreeSpan
from tests.tiny import FALL_BACK, FAMILIES, LLAMA, SLIDING, random_tree, random_trees, tiny_model
from tests.worlds import language_model


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


def causal(layout: TreeLayout) -> tuple[Block]:
    """The blocks of a mask that lets branches see each other."""
    whole = slice(0, layout.spans[-1].end)
    return (Block(whole, (whole,), True),)


def test_self_check_refuses_a_layout_that_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes the values, and is caught."""
    monkeypatch.setattr(TreeLayout, "blocks", property(causal, lambda self, value: None), raising=False)
    assert self_check(tiny_model(), random_trees(1)).layout == "padded"


def windowed(window: int) -> Any:
    """A model whose attention is told of its window by the mask alone."""
    config = AutoConfig.for_model("phimoe", **{**LLAMA, "sliding_window": window, "num_local_experts": 4, "num_experts_per_tok": 2})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5.0 if weight.ndim == 2 else 1.0)
    return model


def test_self_check_reads_the_longest_tree_too() -> None:
    """A window shows in none of the others."""
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 4, (6, 5), index=i) for i in range(5)]
    assert self_check(windowed(16), trees).layout == "packed"
    assert self_check(windowed(16), [*trees, random_tree(rng, 12, (9, 8, 9), index=5)]).layout == "padded"


@pytest.mark.skipif("gemma4" not in CONFIG_MAPPING, reason="this transformers has no Gemma 4")
def test_what_a_config_says_of_the_text_alone_is_read_there() -> None:
    text = {**LLAMA, **SLIDING, "global_head_dim": 8, "final_logit_softcapping": 3.0, "hidden_size_per_layer_input": 8}
    config = AutoConfig.for_model("gemma4", text_config=text, vision_config=None, audio_config=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert head_of(model).softcap == 3.0
    assert limit_of(model) == 128
    check_head(model, random_trees(1))


def test_log_probs_do_not_depend_on_the_rows_beside_them() -> None:
    """LongRoPE reads a whole pass by the table of its longest sequence."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = AutoConfig.for_model("phi3", **LLAMA, original_max_position_embeddings=32, rope_parameters=rope)
    policy = language_model()
    torch.manual_seed(0)
    policy.model = AutoModelForCausalLM.from_config(config).eval()
    assert border_of(policy.model) == 32
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, *shape, index=i) for i, shape in enumerate([(4, (6,)), (20, (30,)), (5, (3,)), (30, (9,))])]
    alone = [policy.tree_logprobs([tree])[0] for tree in trees]
    np.testing.assert_allclose(policy.tree_logprobs(trees), alone, atol=1e-4)


def large_logits() -> Any:
    """A model in bf16 whose largest logit is 60, where bf16 counts in quarters."""
    model, batch = tiny_model(), pad(random_trees(1)[:4])
    states, head = scored_states(model, batch)
    with torch.no_grad():
        model.lm_head.weight.mul_(60 / head.logits(states).abs().max())
    return model.to(torch.bfloat16)


def test_going_back_finds_what_values_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, out: torch.Tensor) -> torch.Tensor:
            return out.clone()

        @staticmethod
        def backward(ctx: Any, *_: torch.Tensor) -> None:
            raise RuntimeError("out of shared memory")

    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *given: OneWay.apply(attend(*given)))
    assert self_check(tiny_model(), random_trees(1)).layout == "packed"
    with pytest.raises(RuntimeError, match="out of shared memory"):
        go_back(tiny_model(), random_trees(1)[0])


def test_going_back_leaves_nothing_behind() -> None:
    model = tiny_model()
    model.get_input_embeddings().requires_grad_(False)
    go_back(model, random_trees(1)[0])
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 1"), MemoryError("all")])
@pytest.mark.parametrize("where", ["packed", "padded"])
def test_memory_that_runs_out_says_nothing_of_the_layout(where: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(*{"packed": (attention, "attend"), "padded": (selfcheck, "_compare_head")}[where], full)
    with pytest.raises(TrainingError, match=r"self-check: out of memory while 4 rows(.|\n)*train\.layout=padded"):
        self_check(tiny_model(), random_trees(1))


def test_rounding_of_large_logits_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = self_check(large_logits(), random_trees(1))
    assert found.layout == "packed"
    assert found.difference > 0.25
    monkeypatch.setattr(TreeLayout, "blocks", property(causal, lambda self, value: None), raising=False)
    assert self_check(large_logits(), random_trees(1)).layout == "padded"


@pytest.mark.parametrize(("apart", "fine"), [(0.5, True), (2.0, False), (-0.5, False)])
def test_policy_and_reference_may_start_a_rounding_apart(apart: float, fine: bool) -> None:
    """On one token by so much, or on all of them where it is negative."""
    model = large_logits()

    def look(batch: Any) -> Any:
        with torch.no_grad():
            logps_T = policy_logps(model, batch).logps_T
        where_T = torch.arange(len(logps_T)) == 3 if apart > 0 else torch.ones_like(logps_T)
        return SimpleNamespace(logps_T=logps_T, ref_logps_T=logps_T + apart * where_T)

    job: Any = SimpleNamespace(model=model, temperature=1.0, lay_out=pad, look=look, passes=lambda trees: [trees])
    if fine:
        check_start(job, random_trees(1)[:4])
        return
    with pytest.raises(TrainingError, match="policy and reference differ"):
        check_start(job, random_trees(1)[:4])


def test_a_head_that_scales_is_refused_however_large_its_logits_are() -> None:
    model = large_logits()
    model.lm_head.register_forward_hook(lambda head, given, logits: 1.1 * logits)
    with pytest.raises(ModelError, match="fused head"):
        self_check(model, random_trees(1))
    policy = language_model()
    policy.model = model
    with pytest.raises(ModelError, match="fused head"):
        choose_layout(TrainSettings(layout="padded"), policy, random_trees(1), print)


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


def _dense(layout: TreeLayout, window: int | None) -> torch.Tensor:
    """The rule at every pair of positions, [M, M] bool."""
    total = torch.arange(layout.spans[-1].end)
    i, j = torch.meshgrid(total, total, indexing="ij")
    return layout.rule(window)(None, None, i, j)


def test_the_rule_by_hand() -> None:
    layout = TreeLayout([TreeSpan(0, 2, (1, 2))], torch.device("cpu"))
    everything = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert _dense(layout, None).int().tolist() == everything
    windowed = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert _dense(layout, 2).int().tolist() == windowed


SPANS = (TreeSpan(0, 5, (3, 4, 2)), TreeSpan(14, 0, (4, 3)), TreeSpan(21, 6, (9,)), TreeSpan(36, 1, (1, 1)))
"""Several branches, no prompt, one long branch, and the smallest tree."""


LIMITS = {
    "whole": {},
    "rows of three": {"ROWS": 3},
    "computed again": {"ROWS": 4, "KEPT": 8},
    "filled up": {"STEPS": {torch.float64: 4}},
    "three filled up to eight": {"ROWS": 3, "STEPS": {torch.float64: 8}},
    "in parts": {"ROWS": 3, "HELD": 1, "SCORES": 60},
}
"""What the constants of the blocks may be without changing a value."""


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("limits", LIMITS)
def test_blocks_are_the_rule(window: int | None, softcap: float | None, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of the blocks, two heads of queries to each of keys, against attention under the dense mask of the rule."""
    for name, value in LIMITS[limits].items():
        monkeypatch.setattr(blocks, name, value)
    layout, generator = TreeLayout(SPANS, torch.device("cpu")), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, SPANS[-1].end, 4, generator=generator, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2))
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.7
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    plain = (scores.masked_fill(~_dense(layout, window), -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    found, _ = tree_attention(torch.nn.Module(), q, k, v, None, tree=layout, scaling=0.7, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    slope = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    slopes, wanted = (torch.autograd.grad((out * slope).sum(), (q, k, v), retain_graph=True) for out in (found, plain))
    torch.testing.assert_close(slopes, wanted, rtol=1e-11, atol=1e-12)


def test_blocks_in_bf16_are_near_those_in_float64() -> None:
    """Filled up to 64, as no other dtype is; the error is that of rounding, some 2^-8."""
    layout, generator = TreeLayout(SPANS, torch.device("cpu")), torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, heads, SPANS[-1].end, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]

    def found(dtype: torch.dtype) -> list[torch.Tensor]:
        given = [tensor.to(dtype).requires_grad_() for tensor in drawn]
        out, _ = tree_attention(torch.nn.Module(), *given, None, tree=layout)
        return [out, *torch.autograd.grad(out.sum(), given)]

    for mine, exact in zip(found(torch.bfloat16), found(torch.float64), strict=True):
        assert float((mine - exact).detach().norm() / exact.detach().norm()) < 0.01


def test_a_bias_is_a_view_of_the_distances() -> None:
    inf = -torch.inf
    assert causal_bias(2, 3, 1, None, torch.float32).tolist() == [[0, 0, inf], [0, 0, 0]]
    assert causal_bias(2, 4, 2, 2, torch.float32).tolist() == [[inf, 0, 0, inf], [inf, inf, 0, 0]]
    assert causal_bias(2, 5, 1, None, torch.float32).tolist() == [[0, 0, inf, inf, inf], [0, 0, 0, inf, inf]]
    assert causal_bias(300, 1000, 700, None, torch.float32).isinf().sum() == 300 * 299 / 2


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_mask_is_the_rule(window: int | None) -> None:
    """FlexAttention, used on CUDA, run here without compilation."""
    layout = TreeLayout(pack(random_trees()).spans or (), torch.device("cpu"))
    q, k, v = (torch.randn(1, 2, layout.spans[-1].end, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs unfused here
        flex = flex_attention(q, k, v, block_mask=layout.block_mask(window))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=_dense(layout, window))
    torch.testing.assert_close(flex, plain, atol=1e-5, rtol=1e-4)


def test_a_kernel_too_many_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as on CUDA, but for the code it would make: torch falls back to the dense form in silence beyond eight."""
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    compiled, before = torch.compile, config.recompile_limit
    monkeypatch.setattr(torch, "compile", lambda made, **how: compiled(made, backend="eager", **how))
    kernel = attention._compiled_flex([])
    monkeypatch.setattr(attention, "_compiled_flex", lambda: kernel)
    layout, given = TreeLayout(SPANS, torch.device("cpu")), torch.randn(1, 2, SPANS[-1].end, 16)

    def flex(window: int | None) -> torch.Tensor:
        with torch.no_grad():
            return attention._flex(given, given, given, layout, 0.25, window, None)

    flex(None)
    monkeypatch.setattr(attention, "KERNELS", 1)
    with pytest.raises(FailOnRecompileLimitHit):
        flex(3)
    monkeypatch.undo()
    assert config.recompile_limit == before


def _gradient(model: torch.nn.Module, logps_T: torch.Tensor, slope_T: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad((logps_T * slope_T).sum(), list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(model.parameters(), gradients, strict=True)])


def test_a_model_that_ignores_the_tree_is_not_believed() -> None:
    model = tiny_model()
    model.config._attn_implementation = "eager"
    with pytest.raises(RuntimeError, match="ignores the tree"):
        policy_logps(model, pack(random_trees()))
