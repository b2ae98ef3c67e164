"""Policy gradients, values, advantages and KL: values by hand, theory, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from prefopt import losses
from prefopt.losses import advantages as adv
from prefopt.losses.kl import KINDS, AdaptiveKL, FixedKL, kl_estimate
from prefopt.losses.numeric import DomainError
from prefopt.losses.policy import kl_penalty

D = torch.float64


def t(*values: float, dtype: torch.dtype = D) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def slope(loss: object, x: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(x, *rest, **options).sum(), x)  # type: ignore[operator]
    return found


# --- the surrogates -----------------------------------------------------------------------------------------------------


def test_reinforce_is_minus_advantage_times_log_prob() -> None:
    assert losses.reinforce(t(-0.5, -2.0), t(2.0, -3.0)).tolist() == [1.0, -6.0]
    assert slope(losses.reinforce, t(-0.5, -2.0), t(2.0, -3.0)).tolist() == [-2.0, 3.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_ppo_clips_where_it_should(ratio: float, advantage: float, value: float, gradient: float) -> None:
    logps, old = t(math.log(ratio)), t(0.0)
    assert losses.ppo_clip(logps, old, t(advantage)).item() == pytest.approx(value)
    assert slope(losses.ppo_clip, logps, old, t(advantage)).item() == pytest.approx(gradient)


def test_clip_higher_and_dual_clip() -> None:
    assert losses.ppo_clip(t(math.log(1.5)), t(0.0), t(1.0), clip_high=0.28).item() == pytest.approx(-1.28)
    assert losses.ppo_clip(t(math.log(0.5)), t(0.0), t(-1.0), clip_low=0.4).item() == pytest.approx(0.6)
    assert losses.ppo_clip(t(math.log(9.0)), t(0.0), t(-2.0), dual_clip=3.0).item() == pytest.approx(6.0)
    assert slope(losses.ppo_clip, t(math.log(9.0)), t(0.0), t(-2.0), dual_clip=3.0).item() == 0
    assert losses.ppo_clip(t(math.log(9.0)), t(0.0), t(2.0), dual_clip=3.0).item() == pytest.approx(-2.4)
    assert losses.ppo_clip(t(math.log(2.0)), t(0.0), t(-2.0), dual_clip=3.0).item() == pytest.approx(4.0)


def test_the_gradient_at_the_old_policy_is_reinforces() -> None:
    logps, a, sequence = t(-1.0, -0.3, -2.0), t(1.0, -2.0, 0.5), torch.tensor([0, 0, 1])
    expected = slope(losses.reinforce, logps, a)
    torch.testing.assert_close(slope(losses.ppo_clip, logps, logps, a), expected)
    torch.testing.assert_close(slope(losses.cispo, logps, logps, a), expected)
    torch.testing.assert_close(slope(losses.dr_grpo, logps, logps, a, torch.tensor(4.0)), expected / 4)
    one = t(1.0, 1.0, 1.0)
    torch.testing.assert_close(slope(losses.gspo, logps, logps, one, sequence), slope(losses.reinforce, logps, one))


def test_gspo_by_hand() -> None:
    """Two answers of two and one tokens, ids interleaved: s = exp(mean of 0.2 and -0.1) and exp(0.5)."""
    logps, old = t(-0.8, -1.0, -1.1), t(-1.0, -1.5, -1.0)
    sequence, a = torch.tensor([0, 1, 0]), t(2.0, 2.0, 2.0)
    s = math.exp(0.05)
    found = losses.gspo(logps, old, a, sequence, clip_low=0.1, clip_high=0.1)
    assert found.tolist() == pytest.approx([-2 * s, -2 * 1.1, -2 * s])
    assert slope(losses.gspo, logps, old, a, sequence, clip_low=0.1, clip_high=0.1).tolist() == pytest.approx([-2 * s, 0.0, -2 * s])


def test_cispo_bounds() -> None:
    logps, old, a = t(math.log(9.0), math.log(0.1)), t(0.0, 0.0), t(1.0, 1.0)
    assert slope(losses.cispo, logps, old, a, clip_high=0.28).tolist() == pytest.approx([-1.28, -0.1])
    assert slope(losses.cispo, logps, old, a, clip_high=0.28, clip_low=0.2).tolist() == pytest.approx([-1.28, -0.8])
    assert slope(losses.cispo, logps, old, a, clip_high=0.28, max_ratio=5.0).tolist() == pytest.approx([-5.0, -0.1])
    assert losses.cispo(logps, old, a, clip_high=0.28).tolist() == pytest.approx([-1.28 * math.log(9), -0.1 * math.log(0.1)])


def test_xpo_adds_the_references_answer() -> None:
    args = (t(-2.0), t(-3.0), t(-2.5), t(-2.8))
    assert losses.xpo(*args, t(-3.0), beta=0.5, alpha=0.1).item() == pytest.approx(losses.dpo(*args, beta=0.5).item() - 0.3)
    assert losses.xpo(*args, t(-9.0), beta=0.5, alpha=0.0).item() == losses.dpo(*args, beta=0.5).item()


LOGPS, OLD, A = t(-1.0, -0.3, -2.0, -0.9), t(-1.1, -0.9, -1.9, -0.9), t(1.0, -2.0, 0.5, 1.5)
SEQUENCE = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.reinforce(x, A),
        lambda x: losses.ppo_clip(x, OLD, A),
        lambda x: losses.ppo_clip(x, OLD, A, dual_clip=1.5),
        lambda x: losses.gspo(x, OLD, A, SEQUENCE, clip_low=0.2, clip_high=0.3),
        lambda x: losses.dr_grpo(x, OLD, A, torch.tensor(7.0)),
        lambda x: losses.xpo(x[:2], x[2:], OLD[:2], OLD[2:], x[1:3], alpha=0.1),
        lambda x: kl_penalty(x, OLD),
        lambda x: kl_penalty(x, OLD, A - 1.5, kind="k1"),
        lambda x: losses.value_clip(x, OLD, A),
    ],
)
def test_gradients_are_those_of_the_value(loss: object) -> None:
    assert gradcheck(loss, (LOGPS.clone().requires_grad_(),))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", [losses.ppo_clip, losses.cispo, losses.gspo])
def test_one_answers_junk_stays_in_it(loss: object, bad: float) -> None:
    rest = (SEQUENCE,) if loss is losses.gspo else ()
    clean = loss(LOGPS, OLD, A, *rest)  # type: ignore[operator]
    dirty = loss(torch.cat([LOGPS[:2], t(bad, bad)]), OLD, A, *rest)  # type: ignore[operator]
    assert torch.equal(dirty[:2], clean[:2])


@pytest.mark.parametrize("far", [-1000.0, 1000.0])
@pytest.mark.parametrize("loss", [losses.ppo_clip, losses.cispo, losses.gspo, losses.reinforce])
def test_finite_at_extremes(loss: object, far: float) -> None:
    logps, zero = t(far, far, dtype=torch.float32), t(0.0, 0.0, dtype=torch.float32)
    a = t(1.0, -1.0, dtype=torch.float32)
    rest = () if loss is losses.reinforce else (zero,)
    tail = (torch.tensor([0, 1]),) if loss is losses.gspo else ()
    order = (*rest, a, *tail)
    assert loss(logps, *order).isfinite().all()  # type: ignore[operator]
    assert slope(loss, logps, *order).isfinite().all()


def test_only_the_policy_is_differentiated() -> None:
    logps, old, a = (x.clone().requires_grad_() for x in (LOGPS, OLD, A))
    for loss in (losses.ppo_clip, losses.cispo):
        assert torch.autograd.grad(loss(logps, old, a).sum(), (old, a), allow_unused=True) == (None, None)
    assert torch.autograd.grad(losses.reinforce(logps, a).sum(), (logps, a), allow_unused=True)[1] is None
    for clip in (0.2, None):
        assert torch.autograd.grad(losses.value_clip(logps, old, a, clip=clip).sum(), (logps, old, a), allow_unused=True)[1:] == (
            None,
            None,
        )


def test_half_precision_comes_out_single() -> None:
    logps, old, a = (x.bfloat16() for x in (LOGPS, OLD, A))
    for loss in (losses.ppo_clip, losses.cispo):
        assert loss(logps, old, a).dtype == torch.float32
    assert losses.group_advantages(a, SEQUENCE).dtype == torch.float32


def test_shapes_and_domains_are_checked() -> None:
    for call in (
        lambda: losses.ppo_clip(t(0.0), t(0.0, 0.0), t(0.0)),
        lambda: losses.ppo_clip(t(0.0), t(0.0), t(0.0, 0.0)),
        lambda: losses.reinforce(t(0.0), torch.zeros(1, 1)),
        lambda: losses.gae(t(0.0), t(0.0, 1.0), torch.tensor([1]), gamma=1, lam=1),
        lambda: losses.gae(t(0.0, 1.0), t(0.0, 1.0), torch.tensor([1]), gamma=1, lam=1),
        lambda: losses.leave_one_out(t(0.0), torch.tensor([0, 1])),
    ):
        with pytest.raises(ValueError, match=r"shapes differ|lengths add up"):
            call()
    for call in (
        lambda: losses.ppo_clip(t(0.0), t(0.0), t(0.0), clip_low=1.5),
        lambda: losses.ppo_clip(t(0.0), t(0.0), t(0.0), dual_clip=1.0),
        lambda: losses.cispo(t(0.0), t(0.0), t(0.0), clip_high=0.0),
        lambda: losses.value_clip(t(0.0), t(0.0), t(0.0), clip=0.0),
        lambda: losses.gae(t(0.0), t(0.0), torch.tensor([1]), gamma=1.1, lam=1),
        lambda: losses.group_advantages(t(0.0), torch.tensor([0]), scale="prompt"),
        lambda: kl_estimate(t(0.0), t(0.0), "k4"),
        lambda: kl_penalty(t(0.0), t(0.0), kind="k1"),
    ):
        with pytest.raises(DomainError):
            call()


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.0, 0.9, 2.0, 0.5, -1.0),
        (1.0, 0.0, 2.0, 1.62, 0.0),
        (3.0, 0.0, 2.0, 1.62, 0.0),
        (4.0, 0.0, 2.0, 2.0, 2.0),
        (2.0, 2.0, 2.0, 0.0, 0.0),
    ],
)
def test_the_value_loss_by_hand(value: float, old: float, target: float, loss: float, gradient: float) -> None:
    assert losses.value_clip(t(value), t(old), t(target)).item() == pytest.approx(loss)
    assert slope(losses.value_clip, t(value), t(old), t(target)).item() == pytest.approx(gradient)
    assert losses.value_clip(t(value), t(old), t(target), clip=None).item() == pytest.approx(0.5 * (value - target) ** 2)


# --- advantages ---------------------------------------------------------------------------------------------------------

REWARDS, VALUES, LENGTHS = t(0.1, -0.2, 1.0, 0.5, 0.0, -1.0), t(0.3, 0.2, 0.1, -0.4, 0.6, 0.2), torch.tensor([3, 0, 2, 1])


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    found, carried = [], 0.0
    for at in reversed(range(len(rewards))):
        following = values[at + 1] if at + 1 < len(values) else 0.0
        carried = rewards[at] + gamma * following - values[at] + gamma * lam * carried
        found.insert(0, carried)
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_gae_by_hand(gamma: float, lam: float) -> None:
    found, returns = losses.gae(REWARDS, VALUES, LENGTHS, gamma=gamma, lam=lam)
    expected: list[float] = []
    for part in (slice(0, 3), slice(3, 5), slice(5, 6)):
        expected += plain_gae(REWARDS[part].tolist(), VALUES[part].tolist(), gamma, lam)
    assert found.tolist() == pytest.approx(expected)
    torch.testing.assert_close(returns, found + VALUES)


def test_gae_limits() -> None:
    to_go = t(0.9, 0.8, 1.0, 0.5, 0.0, -1.0)
    one = losses.gae(REWARDS, VALUES, LENGTHS, gamma=1.0, lam=1.0)
    torch.testing.assert_close(one.advantages, to_go - VALUES)
    torch.testing.assert_close(one.returns, to_go)
    following = t(0.2, 0.1, 0.0, 0.6, 0.0, 0.0)
    torch.testing.assert_close(losses.gae(REWARDS, VALUES, LENGTHS, gamma=1.0, lam=0.0).advantages, REWARDS + following - VALUES)
    last = t(0.0, 0.0, 2.0, 0.0, 3.0, 4.0)
    torch.testing.assert_close(losses.gae(last, 0 * VALUES, LENGTHS, gamma=1.0, lam=1.0).advantages, t(2.0, 2.0, 2.0, 3.0, 3.0, 4.0))


def test_gae_of_nothing() -> None:
    none = torch.zeros(0)
    assert losses.gae(none, none, torch.zeros(0, dtype=torch.int64), gamma=1.0, lam=1.0).advantages.shape == (0,)
    assert losses.gae(none, none, torch.tensor([0, 0]), gamma=1.0, lam=1.0).advantages.shape == (0,)


GROUPED = {"leave_one_out": losses.leave_one_out, "group": losses.group_advantages, "whitened": adv.group_whitened}
GROUPED |= {
    "none": lambda r, g: losses.group_advantages(r, g, scale="none"),
    "batch": lambda r, g: losses.group_advantages(r, g, scale="batch"),
}


@pytest.mark.parametrize("name", GROUPED)
def test_groups_sum_to_zero_whatever_their_order(name: str) -> None:
    rewards, group = t(1.0, 0.5, -1.0, 4.0, 2.0, 2.5), torch.tensor([7, 3, 7, 3, 7, 3])
    found = GROUPED[name](rewards, group)
    assert found[group == 7].sum().item() == pytest.approx(0, abs=1e-9)
    assert found[group == 3].sum().item() == pytest.approx(0, abs=1e-9)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(GROUPED[name](rewards[order], group[order]), found[order])
    shifted = rewards + torch.where(group == 7, 5.0, 5.0)
    torch.testing.assert_close(GROUPED[name](shifted, group), found)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("reward", [-1.9, 0.1, 1e6, 1 / 3, 16777217.0])
def test_equal_rewards_are_exactly_zero_in_fp32(name: str, reward: float) -> None:
    for size in (1, 2, 7, 8, 64):
        rewards = torch.full((size + 2,), reward, dtype=torch.float32)
        rewards[-2:] = torch.tensor([0.0, 1.0])
        group = torch.tensor([0] * size + [1, 1])
        assert not GROUPED[name](rewards, group)[:size].any()


def test_group_advantages_by_hand() -> None:
    pair = torch.tensor([0, 0])
    assert losses.group_advantages(t(3.0, 7.0), pair).tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], rel=1e-6)
    assert losses.group_advantages(t(3.0, 7.0), pair, scale="none").tolist() == [-2.0, 2.0]
    rewards, group = t(0.0, 2.0, 10.0, 16.0), torch.tensor([0, 0, 1, 1])
    assert losses.group_advantages(rewards, group, scale="batch").tolist() == pytest.approx(
        [x / (rewards.std().item() + 1e-6) for x in (-1, 1, -3, 3)]
    )
    torch.testing.assert_close(losses.group_advantages(1e3 * rewards, group), losses.group_advantages(rewards, group), rtol=1e-5, atol=0)


def test_leave_one_out_by_hand() -> None:
    found = losses.leave_one_out(t(1.0, 2.0, 6.0, 9.0), torch.tensor([0, 0, 0, 5]))
    assert found.tolist() == pytest.approx([1 - 4.0, 2 - 3.5, 6 - 1.5, 0.0])


def test_a_nan_stays_in_its_group() -> None:
    found = losses.group_advantages(t(math.nan, 1.0, 2.0, 4.0), torch.tensor([0, 0, 1, 1]))
    assert found[:2].isnan().all()
    assert found[2:].isfinite().all()


def test_whitening() -> None:
    x = t(1.0, 2.0, 6.0)
    found = losses.whiten(x)
    assert (found.mean().item(), found.var().item()) == pytest.approx((0.0, 1.0), abs=1e-6)
    torch.testing.assert_close(losses.whiten(x, shift=False), found + 3)
    assert losses.whiten(torch.full((9,), 0.1)).tolist() == [0.0] * 9
    assert losses.whiten(t(4.0)).tolist() == [0.0]
    assert losses.whiten(torch.zeros(0)).shape == (0,)


def test_reinforce_pp_whitens_what_is_still_to_come() -> None:
    found = adv.reward_to_go(t(0.1, -0.2, 1.0, 0.5), torch.tensor([3, 1]), gamma=0.5)
    torch.testing.assert_close(found, losses.whiten(t(0.25, 0.3, 1.0, 0.5)))


def test_remax_and_the_running_baseline() -> None:
    assert adv.against_greedy(t(1.0, 2.0), t(0.5, 3.0)).tolist() == [0.5, -1.0]
    first = adv.running_baseline(t(1.0, 3.0, 5.0), None)
    assert first.advantages.tolist() == [-3.0, 0.0, 3.0]
    second = adv.running_baseline(t(1.0, 5.0), first.baseline, decay=0.5)
    assert second.advantages.tolist() == [-2.0, 2.0]
    assert second.baseline.item() == 3.0
    third = adv.running_baseline(t(1.0, 9.0), torch.tensor(2.0), decay=0.75)
    assert third.advantages.tolist() == [-1.0, 7.0]
    assert third.baseline.item() == 2.75


def test_choices() -> None:
    rewards, group = t(1.0, 3.0, 3.0, 0.0, 0.0), torch.tensor([0, 0, 0, 1, 1])
    assert adv.ranks(rewards, group).tolist() == [2, 0, 0, 0, 0]
    assert adv.best_of_group(rewards, group).tolist() == [False, True, False, True, False]
    assert adv.accepted(rewards, threshold=1.0).tolist() == [True, True, True, False, False]


# --- KL -----------------------------------------------------------------------------------------------------------------

P, Q = t(0.5, 0.3, 0.2), t(0.2, 0.3, 0.5)


def test_estimates_by_enumeration() -> None:
    d = P.log() - Q.log()
    exact = (P * d).sum().item()
    found = {kind: (P * kl_estimate(P.log(), Q.log(), kind)).sum().item() for kind in KINDS}
    assert found["k1"] == pytest.approx(exact)
    assert found["k3"] == pytest.approx(exact)
    assert found["k2"] == pytest.approx((P * d.square()).sum().item() / 2)
    assert (kl_estimate(P.log(), Q.log(), "k3") >= 0).all()
    assert not kl_estimate(P.log(), P.log(), "k3").any()


@pytest.mark.parametrize(
    ("kind", "ratio", "expected"),
    [("k2", False, "reverse"), ("k3", False, "forward"), ("k1", True, "reverse"), ("k3", True, "reverse")],
)
def test_whose_gradient_a_kl_loss_has(kind: str, ratio: bool, expected: str) -> None:
    """By enumeration over the policy's own samples; plain k1 has none."""
    logits = P.log().requires_grad_()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits)[0]

    logps = logits.log_softmax(-1)
    found = gradient((P * kl_penalty(logps, Q.log(), logps.detach() if ratio else None, kind=kind)).sum())
    logps = logits.log_softmax(-1)
    exact = {"reverse": (logps.exp() * (logps - Q.log())).sum(), "forward": (Q * (Q.log() - logps)).sum()}[expected]
    torch.testing.assert_close(found, gradient(exact))
    assert gradient((P * kl_estimate(logits.log_softmax(-1), Q.log(), "k1")).sum()).abs().max() < 1e-12


def test_k3_is_finite_and_precise() -> None:
    assert kl_estimate(torch.tensor(-1000.0), torch.tensor(0.0), "k3").isfinite()
    assert kl_estimate(torch.tensor([1e-3, 1e-2]), torch.zeros(2), "k3").tolist() == pytest.approx([5e-7, 4.98e-5], rel=2e-2)


def test_the_adaptive_controller() -> None:
    assert AdaptiveKL(0.2, target=6.0, horizon=10000).update(6.0, 64) == 0.2
    assert AdaptiveKL(0.2, target=6.0, horizon=1000).update(6.6, 100) == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    assert AdaptiveKL(0.2, target=6.0, horizon=1000).update(1e9, 100) == pytest.approx(0.2 * 1.02)
    assert AdaptiveKL(0.2, target=6.0, horizon=1000).update(0.0, 100) == pytest.approx(0.2 * 0.98)
    assert AdaptiveKL(0.2, target=6.0, horizon=1).update(0.0, 10**6) > 0
    assert AdaptiveKL(0.2, target=6.0, horizon=1).update(math.nan, 1) == 0.2
    again = AdaptiveKL(0.1, 6.0, 100)
    again.load({"coefficient": 0.7})
    assert again.state() == {"coefficient": 0.7}
    with pytest.raises(DomainError):
        AdaptiveKL(0.1, target=0.0, horizon=10)
    assert FixedKL(0.3).update(99.0, 1) == 0.3
