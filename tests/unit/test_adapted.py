"""Adapted linear layers against peft's own: values and gradients, what falls back to peft, what is merged and saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from prefopt.model import adapted as module
from prefopt.model.adapted import adapted, quicken_adapters
from prefopt.settings import LoraSettings
from prefopt.training.lora import add_adapter, merged
from tests.tiny import tiny_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every layer that computed by `adapted`."""
    made: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        made.append(1)
        return adapted(*given)

    monkeypatch.setattr(module, "adapted", counted)
    return made


def pair_of(**options: Any) -> tuple[Any, Any]:
    """A tiny model with adapters on every layer that say something, as peft has it, and the same one quickened."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "init_lora_weights": False, **options})
    plain = get_peft_model(tiny_model(), config).double()
    quick = copy.deepcopy(plain)
    quicken_adapters(quick)
    return plain, quick


def slopes(model: Any) -> list[torch.Tensor]:
    """The loss of a batch, and the gradient of every weight that learns."""
    ids = torch.arange(3, 27).view(2, 12)
    loss = model(input_ids=ids, labels=ids).loss
    return [loss, *torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])]


def test_values_and_gradients_are_those_of_peft(calls: list[int]) -> None:
    plain, quick = pair_of()
    for mine, theirs in zip(slopes(quick), slopes(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert len(calls) == 2 * 7


def test_by_hand() -> None:
    """x = (1, 2), W = (3, 4), A = (1, -1), B = 2, s = 3: y = 11 + 3 * (1 - 2) * 2 = 5."""
    x, w, a, b = (torch.tensor(value, dtype=torch.float64) for value in ([[1.0, 2.0]], [[3.0, 4.0]], [[1.0, -1.0]], [[2.0]]))
    leaves = [x.requires_grad_(), a.requires_grad_(), b.requires_grad_()]
    out = adapted(x, w, None, a, b, 3.0)
    assert out.item() == 5
    found = torch.autograd.grad(out.sum(), leaves)
    assert [slope.flatten().tolist() for slope in found] == [[9, -2], [6, 12], [-3]]


def test_in_bf16_it_is_as_near_as_peft() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, bias, a, b = (torch.randn(shape, generator=generator) for shape in ((1, 40, 32), (48, 32), (48,), (4, 32), (48, 4)))
    exact = x @ w.t() + bias + 2 * (x @ a.t()) @ b.t()
    x16, w16, bias16, a16, b16 = (tensor.bfloat16() for tensor in (x, w, bias, a, b))
    theirs = torch.nn.functional.linear(x16, w16, bias16) + (x16 @ a16.t()) @ b16.t() * 2
    errors = [float((found.float() - exact).norm()) for found in (adapted(x16, w16, bias16, a16, b16, 2.0), theirs)]
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.filterwarnings("ignore:.lora_bias=True")
@pytest.mark.parametrize("case", ["disabled", "merged", "dora", "dropout", "whole", "two", "bias"])
def test_what_is_not_just_added_is_left_to_peft(case: str, calls: list[int]) -> None:
    options: dict[str, Any] = {"dora": {"use_dora": True}, "dropout": {"lora_dropout": 0.5}, "bias": {"lora_bias": True}}.get(case, {})
    plain, quick = pair_of(**options)
    for model in (plain, quick):
        if case == "merged":
            model.merge_adapter()
        if case == "whole":
            model.requires_grad_(True)
        if case == "two":
            model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=True))
            model.base_model.set_adapter(["default", "other"])
    ids = torch.arange(3, 15)[None]
    found = []
    for model in (plain, quick):
        model.train(case == "dropout")
        torch.manual_seed(1)
        if case == "disabled":
            with model.disable_adapter():
                found.append(model(input_ids=ids).logits)
        else:
            found.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*found)
    assert not calls


def test_dropout_that_rests_adds_nothing(calls: list[int]) -> None:
    plain, quick = pair_of(lora_dropout=0.5)
    plain.eval()
    quick.eval()
    for mine, theirs in zip(slopes(quick), slopes(plain), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert calls


def test_only_input_weights_and_the_low_rank_product_are_kept() -> None:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    x, w, a, b = (
        torch.randn(10, 8, requires_grad=True),
        torch.randn(6, 8),
        torch.randn(2, 8).requires_grad_(),
        torch.randn(6, 2).requires_grad_(),
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted(x, w, None, a, b, 1.0)
    assert sorted(kept) == sorted([10 * 8, 6 * 8, 2 * 8, 6 * 2, 10 * 2])


def test_training_uses_it_and_leaves_peft_s_files(tmp_path: Path, calls: list[int]) -> None:
    model = add_adapter(tiny_model(), LoraSettings(rank=2), scorer=False, seed=0)
    assert slopes(model)
    assert calls
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    ids = torch.arange(3, 15)[None]
    said = model(input_ids=ids).logits
    whole = merged(model, tmp_path)
    torch.testing.assert_close(whole(input_ids=ids).logits, said, rtol=1e-4, atol=1e-4)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    torch.testing.assert_close(again(input_ids=ids).logits, said, rtol=1e-4, atol=1e-4)
