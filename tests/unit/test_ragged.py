"""Segment sums, picks and rankings against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.losses.numeric import exp_tangent, log1mexp, token_mean, wide
from prefopt.losses.ragged import rankings, segment_mean, segment_sum, tokens_of


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 1000))
def test_segments_equal_loops(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    pieces = [torch.randn(n, dtype=torch.float64) for n in lengths]
    flat = torch.cat([*pieces, torch.zeros(0, dtype=torch.float64)])
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    expected = torch.tensor([piece.sum() for piece in pieces], dtype=torch.float64)
    torch.testing.assert_close(segment_sum(flat, ids, len(lengths)), expected)
    torch.testing.assert_close(segment_mean(flat, ids, len(lengths)), expected / torch.tensor(lengths).clamp(min=1))


def test_sums_are_differentiable_and_isolated() -> None:
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 0, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, ids, 3) ** 2, values)
    dirty = torch.tensor([1.0, 2.0, float("nan"), float("inf"), 3.0], requires_grad=True)
    total = segment_sum(dirty, ids, 3)
    assert total[:2].tolist() == [3.0, 0.0]
    total[0].backward()
    assert dirty.grad.tolist() == [1, 1, 0, 0, 0]


def test_sums_are_single_precision_at_least() -> None:
    half = torch.full((4096,), -0.01, dtype=torch.bfloat16)
    total = segment_sum(half, torch.zeros(4096, dtype=torch.int64), 1)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(4096 * half[0].item(), rel=1e-5)
    assert wide(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        segment_sum(torch.zeros(3), torch.zeros(2, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="shapes differ"):
        token_mean(torch.zeros(3), torch.zeros(3, 1))


def test_an_empty_sequence_has_mean_zero() -> None:
    assert token_mean(torch.tensor([-4.0, 0.0]), torch.tensor([2.0, 0.0])).tolist() == [-2.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_picked_tokens_equal_slices(lengths: list[int], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    starts = [sum(lengths[:s]) for s in range(len(lengths))]
    expected = [(starts[s] + at, pick, at) for pick, s in enumerate(picked) for at in range(lengths[s])]
    found = tokens_of(torch.tensor(picked, dtype=torch.int64), torch.tensor(lengths))
    assert list(zip(*(x.tolist() for x in found), strict=True)) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 3), max_size=4), max_size=5))
def test_rankings_equal_sorting(ranks: list[list[int]]) -> None:
    flat = [(p, r) for p, row in enumerate(ranks) for r in row]
    expected = []
    for prompt in range(len(ranks)):
        ids = [i for i, (p, r) in enumerate(flat) if p == prompt and r >= 0]
        if len(ids) > 1:
            expected.append(sorted(ids, key=lambda i: flat[i][1]))
    table = rankings(torch.tensor([r for _, r in flat], dtype=torch.int64), torch.tensor([p for p, _ in flat], dtype=torch.int64))
    assert [[i for i in row if i >= 0] for row in table.tolist()] == expected


def test_log1mexp_is_accurate_at_both_ends() -> None:
    x = torch.tensor([-1e-3, -0.1, -0.69, -0.7, -5.0, -30.0])
    exact = torch.log1p(-x.double().exp())
    torch.testing.assert_close(log1mexp(x).double(), exact, rtol=1e-5, atol=0)
    edge = torch.tensor([0.0, -1e-30, -200.0], requires_grad=True)
    log1mexp(edge).sum().backward()
    assert edge.grad.isfinite().all()


def test_exp_tangent_goes_on_straight() -> None:
    x = torch.tensor([-200.0, 1.0, 30.0, 31.0, 1000.0], dtype=torch.float64, requires_grad=True)
    y = exp_tangent(x)
    y.sum().backward()
    torch.testing.assert_close(y[:3], x[:3].exp())
    assert y[3].item() == pytest.approx(2 * torch.tensor(30.0, dtype=torch.float64).exp().item())
    assert (x.grad[2:] > 0).all()
    assert x.grad.isfinite().all()
