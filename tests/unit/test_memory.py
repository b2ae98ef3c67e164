"""The estimate against what training really holds, and the words that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.errors import ModelError, TrainingError
from prefopt.model import room
from prefopt.model.attention import packed_attention
from prefopt.model.forward import hidden_states
from prefopt.model.last import quicken_last
from prefopt.model.linear import quicken
from prefopt.model.load import load_causal
from prefopt.model.mlp import quicken_mlps
from prefopt.model.norm import quicken_norms
from prefopt.model.room import is_oom
from prefopt.pack.tree import pack
from prefopt.settings import CriticSettings, ModelSettings, ReferenceSettings, TrainSettings
from prefopt.training.memory import Load, advice, explain_oom, load_of, require, ways_out
from prefopt.training.optim import Optimizer
from prefopt.training.rounds import stand_in
from prefopt.training.setup import Setup, fitting_load
from tests.tiny import VOCAB, random_tree, tiny_model
from tests.worlds import language_model, rollout, rows_for

BIG = Load(
    stored=4 * 10**9,
    parameters=10**9,
    trained=10**9,
    layers=16,
    width=2048,
    feed_forward=8192,
    positions=16384,
    longest=1000,
    reference=10**9,
)


@pytest.fixture
def model() -> LlamaForCausalLM:
    """As loading prepares them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=12, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    for prepare in (quicken, quicken_norms, quicken_mlps, quicken_last):
        prepare(model)
    return model


def test_parts_by_hand() -> None:
    parts = BIG.parts()
    assert {name: size / 1e9 for name, size in parts.items() if name != "activations"} == {
        "weights": 4,
        "masters": 0,
        "gradients": 4,
        "optimizer": 8,
        "reference": 4,
        "critic": 0,
    }
    assert parts["activations"] == 4 * 16384 * (15 * (9 * 2048 + 3 * 8192) + 2 * 2048)
    bf16 = replace(BIG, precision="bf16").parts()
    assert [bf16[name] / 1e9 for name in ("weights", "masters", "gradients", "optimizer", "reference")] == [2, 4, 6, 8, 2]
    assert bf16["activations"] * 2 == parts["activations"]
    assert replace(BIG, critic=10**9).parts()["critic"] == 16 * 10**9 + parts["activations"]
    assert replace(BIG, critic=10**9, precision="bf16").parts()["critic"] == 20 * 10**9 + bf16["activations"]
    assert any(way.option == "critic.shared=true" for way in ways_out(replace(BIG, critic=10**9), 10**9))


def test_a_slow_reference_is_counted_in_fp32_too() -> None:
    slow = replace(BIG, slow=True)
    assert [replace(slow, precision=p).parts()["reference"] / 1e9 for p in ("fp32", "bf16")] == [4, 6]
    trees = rows_for("dpo", 8)
    for rate, counted in ((1.0, False), (0.5, True)):
        setup = Setup(method="dpo", reference=ReferenceSettings(sync_every=2, sync_rate=rate))
        found = fitting_load(setup, language_model(), trees, "bf16")
        assert found.slow == counted
        assert not any(way.option == "reference.cache=true" for way in ways_out(found, 1))  # what follows the policy is in no cache


def test_a_critic_is_counted_before_the_run() -> None:
    model = language_model("ppo")
    trees = [stand_in(tree) for tree in rows_for("ppo", 8)]
    setup = Setup(method="ppo", rollout=rollout("ppo"))
    whole = fitting_load(setup, model, trees, "fp32")
    shared = fitting_load(replace(setup, critic=CriticSettings(shared=True)), model, trees, "fp32")
    assert whole.critic == sum(p.numel() for p in model.model.base_model.parameters())
    assert shared.critic == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_gradients_and_state_are_counted_exactly(model: LlamaForCausalLM, precision: str) -> None:
    ids = torch.randint(64, (2, 20))
    load = load_of(model, TrainSettings(), precision=precision, positions=40, longest=20)
    optimizer = Optimizer(model, TrainSettings(), 1e-3, precision)
    loss = model(ids, labels=ids).loss
    loss.backward()
    held = {"gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)}
    optimizer.accumulate()
    if precision == "bf16":
        held["gradients"] += sum(master.grad.nbytes for master in optimizer.weights.masters.values() if master.grad is not None)
    optimizer.step()
    state = optimizer.state()
    held["optimizer"] = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("exp_avg"))
    held["weights"] = sum(p.nbytes for p in model.parameters())
    held["masters"] = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("weight/")) if precision == "bf16" else 0
    parts = load.parts()
    assert {name: parts[name] for name in held} == held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_counted_within_a_quarter(model: LlamaForCausalLM, precision: str) -> None:
    load = load_of(model, TrainSettings(), precision=precision, positions=128, longest=64)
    Optimizer(model, TrainSettings(), 1e-3, precision)
    kept = bytes_kept(model, lambda: model.model(torch.randint(64, (2, 64))).last_hidden_state)
    assert 0.75 <= load.parts()["activations"] / kept <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_pass_keeps_less_activations_than_are_counted(model: LlamaForCausalLM, precision: str) -> None:
    """Where one position is read."""
    load = load_of(model, TrainSettings(), precision=precision, positions=128, longest=128)
    Optimizer(model, TrainSettings(), 1e-3, precision)
    batch = pack([random_tree(np.random.default_rng(0), 100, (28,))])
    with packed_attention(model):
        kept = bytes_kept(model, lambda: hidden_states(model, batch, batch.last_S))
    assert load.parts()["activations"] <= kept


def bytes_kept(model: LlamaForCausalLM, forward: Callable[[], torch.Tensor]) -> int:
    """What a pass keeps for the backward pass, besides weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert forward().requires_grad
    return sum(saved.values())


def test_a_frozen_model_costs_its_weights(model: LlamaForCausalLM) -> None:
    model.requires_grad_(False)
    parts = load_of(model, TrainSettings(), precision="fp32", positions=40, longest=20).parts()
    assert parts["gradients"] == parts["optimizer"] == parts["masters"] == 0
    assert parts["weights"] == sum(p.nbytes for p in model.parameters())


def test_a_micro_batch_holds_micro_tokens_or_one_long_tree(model: LlamaForCausalLM) -> None:
    sizes = [(10**6, 100), (500, 100), (10**6, 5000)]
    loads = [load_of(model, TrainSettings(micro_tokens=2048), precision="fp32", positions=p, longest=n) for p, n in sizes]
    assert [load.positions for load in loads] == [2048, 500, 5000]


def test_what_fits_is_let_through() -> None:
    require(BIG, BIG.total)
    require(BIG, BIG.total - 4 * 10**9, loaded=4 * 10**9)


def test_a_refusal_is_three_lines_with_sizes_and_ways_out() -> None:
    with pytest.raises(TrainingError) as caught:
        require(BIG, BIG.total - 10**9)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in (
        "62.5 GB",
        "61.5 GB are free",
        "activations 42.5 GB",
        "optimizer 8.0 GB",
        "reference.cache=true (-4.0 GB)",
        "lora.rank=16",
    ):
        assert part in message


def test_every_way_out_that_is_called_enough_is() -> None:
    for limit in range(5 * 10**9, BIG.total, 10**9):
        text = advice(BIG, limit)
        for way in ways_out(BIG, limit):
            assert way.load.total < BIG.total
            assert (way.option in text) or text.startswith("any of these")
            if text.startswith("any of these"):
                assert (way.option in text) == (way.load.total <= limit)


def test_ways_out_are_ranked_by_what_they_save() -> None:
    text = advice(BIG, 10**9)
    savings = [float(part.split(" GB")[0]) for part in text.split("(-")[1:]]
    assert len(savings) == 5
    assert savings == sorted(savings, reverse=True)


def test_options_already_taken_are_not_offered() -> None:
    small = replace(BIG, reference=0, checkpointing=True, positions=1000, precision="bf16", trained=10**6)
    assert [way.option for way in ways_out(small, 10**9)] == []
    assert "smaller model" in advice(small, 10**9)


def test_sampled_answers_that_are_compared_can_be_fewer_and_are_in_no_cache() -> None:
    load = replace(BIG, positions=8 * 100 + 24, longest=8 * 100 + 24, samples=8, answer=100, reference=BIG.parameters, cacheable=False)
    ways = {way.option: way.load for way in ways_out(load, 0)}
    assert "reference.cache=true" not in ways
    assert [Setup(method=method).can_cache for method in ("dpo", "online_dpo", "kto")] == [True, False, False]
    assert (ways["rollout.samples=2"].longest, ways["rollout.samples=2"].positions) == (224, 224)
    assert not any(way.option.startswith("rollout") for way in ways_out(BIG, 0))


def test_micro_tokens_never_go_below_the_longest_tree() -> None:
    (way,) = [way for way in ways_out(BIG, 0) if "micro_tokens" in way.option]
    assert way.option == "train.micro_tokens=1000"


def test_a_real_allocation_failure_is_recognised_and_explained() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_oom(caught.value)
    assert is_oom(MemoryError())
    assert is_oom(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_oom(RuntimeError("shapes do not match"))
    assert not is_oom(ValueError("not enough memory"))
    error = explain_oom(caught.value, step=7, batch=None, load=BIG)
    assert error.where == "step 7"
    assert "any of these is enough: train.micro_tokens=8192" in error.fix or "train.micro_tokens=8192" in error.fix
    assert len(str(error).splitlines()) <= 3


def test_the_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert room.free_memory() > 10**7
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room.free_memory() > 10**7
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 500000\n")
    assert room.free_memory() == 2_500_000


def test_what_torch_keeps_of_a_gpu_for_itself_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert room.free_memory(torch.device("cuda", 0)) == 600


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path)
    size = sum(p.numel() for p in tiny_model().parameters())
    monkeypatch.setattr(room, "free_memory", lambda: 4 * size - 1)
    with pytest.raises(ModelError, match=r"the weights take .* GB as float32 and .* are free\n.*model.dtype=bf16"):
        load_causal(ModelSettings(path=str(tmp_path)))
    load_causal(ModelSettings(path=str(tmp_path), dtype="bf16"))


def test_weights_that_lie_there_twice_are_counted_once(tmp_path: Path) -> None:
    """As Mistral's own form beside transformers'; and weights in several files, told by their index."""
    size = sum(p.numel() for p in tiny_model().parameters())
    for name, shard in (("one", "1GB"), ("several", "20KB")):
        tiny_model().save_pretrained(tmp_path / name, max_shard_size=shard)
        save_file({"w": torch.zeros(size)}, tmp_path / name / "consolidated.safetensors")
        assert (tmp_path / name / "model.safetensors").exists() == (name == "one")
        assert room._parameters(tmp_path / name) == size
