"""The fused head against the readable one: values, gradients, chunking, statistics."""

from __future__ import annotations

import pytest
import torch

from prefopt.model.logprobs import Head, token_kl, token_logps, token_logps_plain

T, D, V = 23, 8, 41


def setup(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, torch.randint(V, (T,), generator=generator), weight, bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 3.0), (0.25, 2.0)])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_values_and_gradients_are_those_of_the_plain_form(bias: bool, scale: float, softcap: float | None, chunk: int) -> None:
    hidden, target, weight, offset = setup()
    head = Head(weight, offset if bias else None, scale, softcap)
    leaves = [hidden, weight, *([offset] if bias else [])]
    upstream = torch.randn(T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fused, plain = token_logps(hidden, target, head, chunk=chunk).logps_T, token_logps_plain(hidden, target, head).logps_T
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(fused, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    hidden, target, weight, bias = setup()
    assert torch.autograd.gradcheck(lambda h, w, b: token_logps(h, target, Head(w, b, 0.7, 4.0), chunk=5).logps_T, (hidden, weight, bias))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_of_entropy_and_of_a_temperature(temperature: float, softcap: float | None) -> None:
    hidden, target, weight, bias = setup()
    up = torch.randn(2, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head = Head(weight, bias, 0.5, softcap, temperature)
    found = []
    for stats in (token_logps(hidden, target, head, stats=True, chunk=5), token_logps_plain(hidden, target, head)):
        alone = torch.autograd.grad(stats.entropy_T, [hidden, weight, bias], up[1], retain_graph=True)
        both = torch.autograd.grad((up[0] * stats.logps_T + up[1] * stats.entropy_T).sum(), [hidden, weight, bias])
        found.append((*alone, *both))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    sharper = token_logps_plain(hidden, target, Head(weight, bias, 0.5, softcap)).logps_T
    if temperature == 1.0:
        torch.testing.assert_close(token_logps(hidden, target, head).logps_T, sharper)
    else:
        assert not torch.allclose(token_logps(hidden, target, head).logps_T, sharper)


def test_entropy_and_collision() -> None:
    hidden, target, weight, _ = setup()
    got, want = token_logps(hidden, target, Head(weight), stats=True, chunk=5), token_logps_plain(hidden, target, Head(weight))
    torch.testing.assert_close(got.logps_T, want.logps_T)
    torch.testing.assert_close(got.entropy_T, want.entropy_T)
    torch.testing.assert_close(got.collision_T, want.collision_T)
    assert not got.collision_T.requires_grad
    uniform = token_logps(torch.zeros(2, D), torch.tensor([0, 1]), Head(torch.randn(V, D)), stats=True)
    torch.testing.assert_close(uniform.entropy_T, torch.full((2,), float(torch.tensor(V).log())))
    torch.testing.assert_close(uniform.collision_T, -torch.full((2,), float(torch.tensor(V).log())))


def test_bf16_inputs_give_float32_log_probs_and_bf16_gradients() -> None:
    hidden, target, weight, _ = setup(torch.bfloat16)
    logps = token_logps(hidden, target, Head(weight)).logps_T
    assert logps.dtype == torch.float32
    exact = token_logps_plain(hidden.float(), target, Head(weight.float())).logps_T
    torch.testing.assert_close(logps, exact, atol=0.1, rtol=0.02)
    logps.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, target, weight, _ = setup()
    token_logps(hidden, target, Head(weight.detach())).logps_T.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.full((2, D), 100.0, requires_grad=True)
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(0)) * 100
    logps = token_logps(hidden, torch.tensor([0, 1]), Head(weight), stats=True)
    logps.logps_T.sum().backward()
    assert torch.isfinite(logps.logps_T).all()
    assert torch.isfinite(logps.entropy_T).all()
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_kl_of_two_heads_is_what_log_ratios_of_draws_come_to(chunk: int) -> None:
    mine, theirs = Head(torch.randn(5, 4), temperature=0.5), Head(torch.randn(5, 4), torch.randn(5), softcap=2.0)
    a_TD, b_TD = torch.randn(7, 4), torch.randn(7, 4)
    found_T = token_kl(a_TD, mine, b_TD, theirs, chunk=chunk)
    p_TV = mine.logits(a_TD).softmax(-1)
    every = [torch.full((7,), token) for token in range(5)]
    ratios = [token_logps(a_TD, token, mine).logps_T - token_logps(b_TD, token, theirs).logps_T for token in every]
    assert found_T.tolist() == pytest.approx((p_TV * torch.stack(ratios, 1)).sum(1).tolist(), abs=1e-5)
    assert (found_T > 0).all()
    assert token_kl(a_TD, mine, a_TD, mine).abs().max() < 1e-6
    assert token_kl(a_TD[:0], mine, b_TD[:0], theirs).shape == (0,)
