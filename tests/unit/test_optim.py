"""The optimizer: values by hand, bf16 masters, Muon's split, schedules, bit-exact resumption."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from prefopt.errors import OptionError, TrainingError
from prefopt.settings import TrainSettings
from prefopt.training.optim import Optimizer, hidden_matrices, schedule

SETTINGS = TrainSettings(learning_rate=1e-2, weight_decay=0.1)


class Tiny(nn.Module):
    """An embedding, a hidden layer with norm and bias, and a head, named as in language models."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 8)
        self.lm_head = nn.Linear(8, 7, bias=False)
        self.register_buffer("frequencies", torch.tensor([0.123456789]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.up(self.norm(self.embed(ids))))).float()


def ids(seed: int) -> torch.Tensor:
    return torch.randint(7, (16,), generator=torch.Generator().manual_seed(seed))


def train(model: Tiny, optimizer: Optimizer, seeds: range, micro: int = 1) -> list[float]:
    norms = []
    for seed in seeds:
        for part in ids(seed).chunk(micro):
            (nn.functional.cross_entropy(model(part), (part + 1) % 7, reduction="sum") / 16).backward()
            optimizer.accumulate()
        norms.append(optimizer.step())
    return norms


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- AdamW --------------------------------------------------------------------------------------------------------------


def test_first_adamw_step_by_hand() -> None:
    """After one step Adam's update is lr * sign(g) (up to eps), after decay of matrices by lr * decay."""
    model = Tiny()
    before = weights(model)
    optimizer = Optimizer(model, replace(SETTINGS, grad_clip=0), 1e-2)
    nn.functional.cross_entropy(model(ids(0)), ids(1)).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = optimizer.step(0.5)
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient.values())), rel=1e-6)
    lr = 0.5e-2
    for name, after in weights(model).items():
        decayed = before[name] * (1 - lr * 0.1) if before[name].ndim == 2 else before[name]
        expected = decayed - lr * gradient[name] / (gradient[name].abs() + 1e-8)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)


def test_clipping_limits_the_norm_and_reports_it_unclipped() -> None:
    loose, tight = Tiny(), Tiny()
    norms = [train(m, Optimizer(m, replace(SETTINGS, grad_clip=clip), 0.1), range(1))[0] for m, clip in ((loose, 0.0), (tight, 1e-9))]
    assert norms[0] == norms[1] > 0.1
    assert not torch.equal(loose.up.weight, tight.up.weight)  # a gradient of 1e-9 is lost in Adam's eps of 1e-8
    decayed = Tiny().up.weight * (1 - 0.1 * SETTINGS.weight_decay)
    assert float((tight.up.weight - decayed).detach().abs().max()) < 0.1 * 0.1 < float((loose.up.weight - decayed).detach().abs().max())


def test_gradients_are_cleared_after_a_step() -> None:
    model = Tiny()
    train(model, Optimizer(model, SETTINGS, 1e-2), range(1))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parameters_stay_and_take_no_memory(precision: str) -> None:
    model = Tiny()
    model.embed.requires_grad_(False)
    optimizer = Optimizer(model, SETTINGS, 1e-2, precision)
    frozen = model.embed.weight.clone()
    train(model, optimizer, range(2))
    assert torch.equal(model.embed.weight, frozen)
    assert not any("embed" in key for key in optimizer.state())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_is_reported_and_changes_nothing(precision: str, bad: float) -> None:
    model = Tiny()
    optimizer = Optimizer(model, SETTINGS, 1e-2, precision)
    train(model, optimizer, range(1))
    before = {key: value.clone() for key, value in optimizer.state().items()}
    (model(ids(0)).sum() * bad).backward()
    optimizer.accumulate()
    assert not math.isfinite(optimizer.step())
    assert all(torch.equal(value, before[key]) for key, value in optimizer.state().items())
    assert math.isfinite(train(model, optimizer, range(1))[0])


# --- bf16 with fp32 masters ---------------------------------------------------------------------------------------------


def test_bf16_casts_parameters_and_leaves_buffers() -> None:
    model = Tiny()
    masters = Optimizer(model, SETTINGS, 1e-2, "bf16").weights.masters
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.frequencies.dtype == torch.float32
    assert {m.dtype for m in masters.values()} == {torch.float32}
    assert torch.equal(masters["up.weight"], Tiny().up.weight)  # the masters keep what bf16 rounds away


def test_updates_below_bf16_resolution_add_up() -> None:
    """A thousandth of a weight's last bit each: bf16 alone would never move."""
    model = Tiny()
    with torch.no_grad():
        model.up.weight.fill_(1.0)
    optimizer = Optimizer(model, replace(SETTINGS, weight_decay=0.0, grad_clip=0.0), 1e-4, "bf16")
    for _ in range(100):
        model.up.weight.sum().backward()
        optimizer.accumulate()
        optimizer.step()
    assert float(optimizer.weights.masters["up.weight"][0, 0].detach()) == pytest.approx(0.99, abs=1e-4)
    assert float(model.up.weight[0, 0].detach()) == pytest.approx(0.99, abs=2**-8)
    assert torch.equal(model.up.weight, optimizer.weights.masters["up.weight"].bfloat16())


def test_bf16_gradients_are_summed_in_fp32() -> None:
    """256 + 1 is 256 in bf16."""
    model = Tiny()
    optimizer = Optimizer(model, replace(SETTINGS, grad_clip=0), 1e-2, "bf16")
    for scale in (256.0, 1.0, 1.0):
        (model.up.bias.sum() * scale).backward()
        optimizer.accumulate()
    assert torch.equal(optimizer.weights.masters["up.bias"].grad, torch.full((8,), 258.0))
    assert model.up.bias.grad is None


def test_half_precision_weights_learn_in_fp32_when_asked() -> None:
    model = Tiny().bfloat16()
    Optimizer(model, SETTINGS, 1e-2, "fp32")
    assert model.up.weight.dtype == torch.float32


def test_tied_weights_stay_tied_and_count_once() -> None:
    model = Tiny()
    model.up = nn.Linear(6, 6)
    model.lm_head = nn.Linear(6, 7, bias=False)
    model.lm_head.weight = model.embed.weight
    optimizer = Optimizer(model, SETTINGS, 1e-2, "bf16")
    train(model, optimizer, range(2))
    assert model.lm_head.weight is model.embed.weight
    assert [key for key in optimizer.state() if "weight/" in key and ("embed" in key or "head" in key)] == ["weight/embed.weight"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_add_up(precision: str) -> None:
    one, four = Tiny(), Tiny()
    norms = [train(m, Optimizer(m, SETTINGS, 1e-3, precision), range(3), micro) for m, micro in ((one, 1), (four, 4))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6 if precision == "fp32" else 2e-2)


# --- Muon -----------------------------------------------------------------------------------------------------------------


def test_muon_takes_hidden_matrices_only() -> None:
    assert hidden_matrices(Tiny()) == {"up.weight"}
    optimizer = Optimizer(Tiny(), replace(SETTINGS, optimizer="muon"), 1e-2)
    kinds = {type(o).__name__: sum(len(g["params"]) for g in o.param_groups) for o in optimizer.optimizers}
    assert kinds == {"AdamW": 5, "Muon": 1}


def test_muon_on_a_real_architecture() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False
    )
    names = hidden_matrices(transformers.LlamaForCausalLM(config))
    assert {name.split(".")[-2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    rewards = hidden_matrices(transformers.LlamaForSequenceClassification(config))
    assert {n.removeprefix("model.") for n in rewards} == {n.removeprefix("model.") for n in names}


def test_muon_update_is_orthogonal_and_of_adamws_size() -> None:
    model = Tiny()
    before = model.up.weight.detach().clone()
    optimizer = Optimizer(model, replace(SETTINGS, optimizer="muon", weight_decay=0.0), 1e-2)
    train(model, optimizer, range(1))
    update = (before - model.up.weight.detach()) / (1e-2 * 0.2 * math.sqrt(8))
    singular = torch.linalg.svdvals(update)[:5]  # the norm's outputs add to zero: the gradient has rank 5
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3  # Newton-Schulz stops near one, not at it
    rms = float((before - model.up.weight.detach()).square().mean().sqrt())
    assert rms == pytest.approx(0.2 * 1e-2, rel=0.3)


# --- resumption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_resumption_is_exact_to_the_bit(precision: str, kind: str) -> None:
    settings = replace(SETTINGS, optimizer=kind)
    whole = Tiny()
    optimizer = Optimizer(whole, settings, 1e-2, precision)
    train(whole, optimizer, range(3))
    saved = {key: value.clone() for key, value in optimizer.state().items()}
    expected_norms = train(whole, optimizer, range(3, 6))

    again = Tiny(seed=1)
    resumed = Optimizer(again, settings, 1e-2, precision)
    resumed.load(saved)
    assert train(again, resumed, range(3, 6)) == expected_norms
    assert resumed.state().keys() == optimizer.state().keys()
    for key, value in optimizer.state().items():
        assert torch.equal(resumed.state()[key], value), key
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_loaded_state_is_not_trained_in_place() -> None:
    model = Tiny()
    optimizer = Optimizer(model, SETTINGS, 1e-2)
    train(model, optimizer, range(1))
    saved = {key: value.clone() for key, value in optimizer.state().items()}
    copies = {key: value.clone() for key, value in saved.items()}
    optimizer.load(saved)
    train(model, optimizer, range(2))
    assert all(torch.equal(saved[key], copies[key]) for key in copies)


def test_a_state_from_before_the_first_step_loads() -> None:
    first, second = Tiny(), Tiny(seed=1)
    Optimizer(second, SETTINGS, 1e-2).load(Optimizer(first, SETTINGS, 1e-2).state())
    assert torch.equal(first.up.weight, second.up.weight)


def test_a_foreign_state_is_refused_whole() -> None:
    model = Tiny()
    optimizer = Optimizer(model, SETTINGS, 1e-2)
    train(model, optimizer, range(1))
    state = optimizer.state()
    before = weights(model)
    with pytest.raises(TrainingError, match=r"norm\.bias"):
        optimizer.load({key: value for key, value in state.items() if "norm.bias" not in key})
    with pytest.raises(TrainingError, match="another optimizer"):
        Optimizer(Tiny(), replace(SETTINGS, optimizer="muon"), 1e-2).load(state)
    with pytest.raises(TrainingError, match=r"\[8, 5\] in the checkpoint, \[8, 6\] here"):
        optimizer.load({key: value[:, :5] if key.endswith("up.weight") and "step" not in key else value for key, value in state.items()})
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


# --- schedule -------------------------------------------------------------------------------------------------------------


def factors(kind: str, warmup: float, total: int) -> list[float]:
    factor = schedule(TrainSettings(schedule=kind, warmup=warmup), total)
    return [factor(step) for step in range(total)]


def test_schedules_by_hand() -> None:
    assert factors("constant", 2, 5) == [0.5, 1, 1, 1, 1]
    assert factors("linear", 0, 4) == [1, 0.75, 0.5, 0.25]
    assert factors("linear", 0.5, 4) == [0.5, 1, 1, 0.5]
    assert factors("cosine", 0, 2) == pytest.approx([1, 0.55])
    assert factors("cosine", 0, 1000)[-1] == pytest.approx(0.1, abs=1e-5)


def test_a_share_of_warmup_is_rounded_not_raised() -> None:
    """0.07 * 100 is 7.000000000000001."""
    assert factors("constant", 0.07, 100)[6] == 1


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.05, 3, 20])
def test_every_step_has_a_positive_factor(kind: str, warmup: float) -> None:
    values = factors(kind, warmup, 20)
    assert all(0 < value <= 1 for value in values)
    assert max(values) == 1


@pytest.mark.parametrize("warmup", [21, -1])
def test_a_warmup_that_does_not_fit_is_refused(warmup: float) -> None:
    with pytest.raises(OptionError, match=r"train\.warmup"):
        factors("linear", warmup, 20)
