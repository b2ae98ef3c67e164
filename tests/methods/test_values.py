"""Every row of METHODS against its formula written out in plain Python, from token log-probs to unreduced values."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from math import exp, expm1, log

import pytest
import torch

from prefopt import losses
from prefopt.losses import METHODS
from tests.methods.cases import DELTA, KL, Row, Sequence_, rows_for, view_of


def sig(x: float) -> float:
    return 1 / (1 + exp(-x))


def ls(x: float) -> float:
    return log(sig(x))


def ratio(s: Sequence_) -> float:
    return sum(s.logps) - sum(s.ref)


class Pair:
    """The numbers of a pair under the names of the papers."""

    def __init__(self, row: Row) -> None:
        self.w, self.l = row.sequences
        self.Lw, self.Ll = sum(self.w.logps), sum(self.l.logps)
        self.nw, self.nl = len(self.w.logps), len(self.l.logps)
        self.u, self.v = ratio(self.w), ratio(self.l)
        self.D = self.u - self.v
        self.margin, self.tied = row.margin, row.tied
        self.rw, self.rl = self.w.score, self.l.score


def smooth(z: float, e: float) -> float:
    return -(1 - e) * ls(z) - e * ls(-z)


def weight(s: Sequence_) -> float:
    return exp(sum(a - b for a, b in zip(s.logps, s.collision, strict=True)) / len(s.logps))


def shared(s: Sequence_, m: int, alpha: float) -> float:
    gaps = [a - b for a, b in zip(s.logps, s.ref, strict=True)]
    return sum(gaps[:m]) + alpha * sum(gaps[m:])


def log_odds(total: float, n: int) -> float:
    p = exp(total / n)
    return log(p / (1 - p))


def rao_kupper(d: float, theta: float) -> dict[str, float]:
    """Win and tie in the form of the paper: strengths and theta."""
    mine, other = exp(d), 1.0
    win, loss = mine / (mine + theta * other), other / (other + theta * mine)
    return {"win": win, "loss": loss, "tie": (theta**2 - 1) * mine * other / ((mine + theta * other) * (theta * mine + other))}


def davidson(d: float, nu: float) -> dict[str, float]:
    mine, other = exp(d), 1.0
    total = mine + other + nu * math.sqrt(mine * other)
    return {"win": mine / total, "loss": other / total, "tie": nu * math.sqrt(mine * other) / total}


def phi(x: float) -> float:
    return exp(x) + x


PAIRS = {
    "dpo": lambda p: -ls(0.1 * p.D),
    "cdpo": lambda p: -0.9 * ls(0.1 * p.D) - 0.1 * ls(-0.1 * p.D),
    "robust_dpo": lambda p: (-0.9 * ls(0.1 * p.D) + 0.1 * ls(-0.1 * p.D)) / 0.8,
    "ipo": lambda p: (p.D - 5) ** 2,
    "hinge": lambda p: max(0.0, 1 - 0.1 * p.D),
    "exo": lambda p: sig(0.1 * p.D) * (ls(0.1 * p.D) - log(0.999)) + sig(-0.1 * p.D) * (ls(-0.1 * p.D) - log(0.001)),
    "discopop": lambda p: (1 - sig(0.1 * p.D / 0.05)) * log(1 + exp(-0.1 * p.D)) + sig(0.1 * p.D / 0.05) * exp(-0.1 * p.D),
    "odpo": lambda p: -ls(0.1 * p.D - p.margin),
    "wpo": lambda p: -weight(p.w) * weight(p.l) * ls(0.1 * p.D),
    "rdpo": lambda p: -ls(0.1 * p.D + 0.01 * (p.nw - p.nl)),
    "ld_dpo": lambda p: -ls(0.1 * (shared(p.w, min(p.nw, p.nl), 0.5) - shared(p.l, min(p.nw, p.nl), 0.5))),
    "dpo_norm": lambda p: -ls(5 * (p.u / p.nw - p.v / p.nl)),
    "rpo": lambda p: -ls(0.1 * p.D) - p.Lw / p.nw,
    "nca": lambda p: -ls(0.1 * p.u) - 0.5 * ls(-0.1 * p.u) - 0.5 * ls(-0.1 * p.v),
    "bco_pair": lambda p: -ls(0.1 * p.u) - ls(-0.1 * p.v),
    "sppo": lambda p: (p.u - 500) ** 2 + (p.v + 500) ** 2,
    "apo_zero": lambda p: 1 - sig(0.1 * p.u) + sig(0.1 * p.v),
    "apo_down": lambda p: sig(0.1 * p.u) + 1 - sig(0.1 * p.D),
    "dpop": lambda p: -ls(0.1 * (p.D - 50 * max(0.0, -p.u))),
    "chipo": lambda p: -ls(max(-2.0, min(2.0, 0.1 * phi(p.u) - 0.1 * phi(p.v)))),
    "simpo": lambda p: -ls(2 * (p.Lw / p.nw - p.Ll / p.nl) - 0.5),
    "slic": lambda p: max(0.0, 1 - p.Lw + p.Ll) - 0.1 * p.Lw,
    "cpo": lambda p: -ls(0.1 * (p.Lw - p.Ll)) - p.Lw,
    "orpo": lambda p: -0.1 * ls(log_odds(p.Lw, p.nw) - log_odds(p.Ll, p.nl)),
    "reward": lambda p: -ls(p.rw - p.rl - p.margin),
    "reward_ties": lambda p: -log(rao_kupper(p.rw - p.rl, 1.5)["tie" if p.tied else "win"]),  # theta: (1 + 0.2) / (1 - 0.2)
    "reward_graded": lambda p: -ls(p.rw - p.rl - p.margin),
}
EXTRA_PAIRS = {
    "online_dpo": PAIRS["dpo"],
    "iterative_dpo": PAIRS["dpo"],
    "online_ipo": PAIRS["ipo"],
    "xpo": lambda p: -ls(0.1 * p.D) + 1e-5 * (p.Ll if p.w.label else p.Lw),  # the one the policy did not sample
}
PAIRS |= EXTRA_PAIRS
SEQUENCES = {
    "orm": lambda s: -ls(s.score) if s.label else -ls(-s.score),
    "kto": lambda s: 1 - sig(0.1 * (ratio(s) - KL)) if s.label else 1 - sig(0.1 * (KL - ratio(s))),
    "bco": lambda s: -ls(0.1 * ratio(s) - DELTA) if s.label else -ls(DELTA - 0.1 * ratio(s)),
    "apo_zero_unpaired": lambda s: 1 - sig(0.1 * ratio(s)) if s.label else sig(0.1 * ratio(s)),
}
TOKENS = {"dft": lambda x: -exp(x) * x}
TOKENS |= dict.fromkeys(["pretrain", "sft", "best_of_n", "rejection_sampling", "star"], lambda x: -x)


def clipped(ratio: float, a: float, high: float = 0.2, low: float = 0.2) -> float:
    return -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)


def ratios(s: Sequence_) -> list[float]:
    return [exp(new - old) for new, old in zip(s.logps, s.ref, strict=True)]


def surrogates(s: Sequence_, **bounds: float) -> list[float]:
    return [clipped(ratio, s.score, **bounds) for ratio in ratios(s)]


OWN_TOKENS = {
    "reinforce_pp": surrogates,
    "reinforce_pp_baseline": surrogates,
    "ppo": surrogates,
    "dapo": lambda s: surrogates(s, high=0.28),
    "cispo": lambda s: [-min(ratio, 5) * s.score * x for ratio, x in zip(ratios(s), s.logps, strict=True)],
}
SEQUENCES |= {
    **dict.fromkeys(["reinforce", "remax", "rloo"], lambda s: -s.score * sum(s.logps)),
    "grpo": lambda s: sum(surrogates(s)) / len(s.logps),
    "dr_grpo": lambda s: sum(surrogates(s)) / 8,
    "gspo": lambda s: clipped(math.prod(ratios(s)) ** (1 / len(s.logps)), s.score, high=4e-4, low=3e-4),
}
"""Of the policy's own samples: the old log-probs stand where others have the reference's, the advantage where they have a score."""


def ranking(scores: list[float]) -> float:
    """-log of the chance to draw the items in this order, one after another, without replacement."""
    chance = 1.0
    for at in range(len(scores)):
        chance *= exp(scores[at]) / sum(exp(s) for s in scores[at:])
    return -log(chance)


def by_rank(row: Row) -> list[Sequence_]:
    return sorted(row.sequences, key=lambda s: s.rank)


LISTS = {
    "pl_dpo": lambda row: ranking([0.1 * ratio(s) for s in by_rank(row)]),
    "reward_ranking": lambda row: ranking([s.score for s in by_rank(row)]),
}


def aot(gaps: list[float], ref_gaps: list[float]) -> list[float]:
    return [-ls(0.1 * (a - b)) for a, b in zip(sorted(gaps), sorted(ref_gaps), strict=True)]


def paired(name: str, pairs: list[Pair]) -> list[float]:
    """AOT's values from a whole batch."""
    if name == "aot_unpaired":
        return aot([p.u for p in pairs], [p.v for p in pairs])
    return aot([p.Lw - p.Ll for p in pairs], [(p.Lw - p.u) - (p.Ll - p.v) for p in pairs])


def by_hand(name: str, made: list[Row]) -> list[float]:
    flat = [s for row in made for s in row.sequences]
    if name in PAIRS:
        return [PAIRS[name](Pair(row)) for row in made]
    if name in SEQUENCES:
        return [SEQUENCES[name](s) for s in flat]
    if name in {**OWN_TOKENS, **TOKENS}:
        return [x for s in flat for x in (OWN_TOKENS[name](s) if name in OWN_TOKENS else map(TOKENS[name], s.logps))]
    if name in LISTS:
        return [LISTS[name](row) for row in made]
    if name == "prm":
        return [-y * ls(z) - (1 - y) * ls(-z) for s in flat for z, y in s.steps]
    return paired(name, [Pair(row) for row in made])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_gives_the_values_of_its_formula(name: str, seed: int) -> None:
    method = METHODS[name]
    made = rows_for(method, seed=seed)
    own, *added = method.terms(view_of(made))
    torch.testing.assert_close(own.values.detach(), torch.tensor(by_hand(name, made), dtype=torch.float64), rtol=1e-6, atol=1e-7)
    assert [term.name for term in added] == list(method.plus)


def test_orpo_adds_the_token_mean_of_the_chosen_answers() -> None:
    made = rows_for(METHODS["orpo"])
    (term,) = METHODS["orpo"].terms(view_of(made))[1:]
    assert (term.unit, term.weight, term.name) == ("token", 1.0, "sft")
    assert term.values.tolist() == pytest.approx([-x for row in made for x in row.sequences[0].logps])


# --- options that change a form, on numbers small enough for pencil and paper -----------------------------------------


def value(loss: object, *numbers: float, **options: object) -> float:
    return loss(*(torch.tensor([x], dtype=torch.float64) for x in numbers), **options).item()  # type: ignore[operator]


U, V = 0.7, -0.4  # log-ratios of chosen and rejected
QUAD = (-2.0, -3.0, -2.0 - U, -3.0 - V)


@pytest.mark.parametrize(
    ("options", "f_prime"),
    [
        ({"divergence": "reverse_kl"}, lambda x: x),
        ({"divergence": "forward_kl"}, lambda x: 1 - exp(-x)),
        ({"divergence": "js"}, lambda x: log(2 * exp(x) / (1 + exp(x)))),
        ({"divergence": "alpha", "alpha": 0.5}, lambda x: (exp(-0.5 * x) - 1) / -0.5),
        ({"divergence": "alpha", "alpha": 0.0}, lambda x: 1 - exp(-x)),
        ({"divergence": "alpha", "alpha": 1.0}, lambda x: x),
        ({"divergence": "alpha", "alpha": 2.5}, lambda x: expm1(1.5 * x) / 1.5),
    ],
)
def test_dpo_with_every_divergence(options: dict, f_prime: object) -> None:
    expected = -ls(0.3 * (f_prime(U) - f_prime(V)))  # type: ignore[operator]
    assert value(losses.dpo, *QUAD, beta=0.3, **options) == pytest.approx(expected, rel=1e-9)


def test_alpha_divergence_tends_to_reverse_kl() -> None:
    near = value(losses.dpo, *QUAD, divergence="alpha", alpha=1 + 1e-9)
    assert near == pytest.approx(value(losses.dpo, *QUAD), abs=1e-8)


def test_ipo_averaged() -> None:
    n = torch.tensor([4.0]), torch.tensor([2.0])
    found = value(losses.ipo, *QUAD, beta=0.25, chosen_len=n[0], rejected_len=n[1], length_normalized=True)
    assert found == pytest.approx((U / 4 - V / 2 - 2) ** 2)


def test_cpo_per_token() -> None:
    found = value(losses.cpo, -2, -3, beta=0.5, nll_weight=0.3, chosen_len=torch.tensor([4.0]), length_normalized=True)
    assert found == pytest.approx(-ls(0.5) + 0.3 * 0.5)


def test_bradley_terry_margin_centering_smoothing() -> None:
    d = 1.5 - 0.5 - 0.25
    found = value(losses.bradley_terry, 1.5, 0.5, margin=torch.tensor([0.25]), centering=0.01, label_smoothing=0.2)
    assert found == pytest.approx(-0.8 * ls(d) - 0.2 * ls(-d) + 0.01 * 4.0)


@pytest.mark.parametrize("d", [-3.0, 0.0, 0.7])
@pytest.mark.parametrize(("law", "expected"), [("rao_kupper", rao_kupper), ("davidson", davidson)])
def test_ties_under_both_laws(law: str, expected: object, d: float) -> None:
    """tie_share 0.2 is theta = 1.2/0.8 and nu = 0.4/0.8: what was said of two equal answers in one case of five."""
    probs = expected(d, {"rao_kupper": 1.5, "davidson": 0.5}[law])  # type: ignore[operator]
    assert sum(probs.values()) == pytest.approx(1.0)
    for said, scores, tied in (("win", (d, 0.0), False), ("loss", (0.0, d), False), ("tie", (d, 0.0), True)):
        found = losses.bradley_terry_ties(*(torch.tensor([x], dtype=torch.float64) for x in scores), torch.tensor([tied]), tie_law=law)
        assert found.item() == pytest.approx(-log(probs[said]))
    assert expected(0.0, {"rao_kupper": 1.5, "davidson": 0.5}[law])["tie"] == pytest.approx(0.2)  # type: ignore[operator]


def test_graded_strength() -> None:
    m = torch.tensor([1.5], dtype=torch.float64)
    two = [torch.tensor([x], dtype=torch.float64) for x in (0.9, 0.2)]
    assert losses.graded(*two, m).item() == pytest.approx(-ls(0.7 - 1.5))
    assert losses.graded(*two, m, form="scaled").item() == pytest.approx(-1.5 * ls(0.7))
    assert losses.graded(*two, m, form="soft").item() == pytest.approx(-sig(1.5) * ls(0.7) - sig(-1.5) * ls(-0.7))
    gap = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    losses.graded(gap, torch.zeros(1, dtype=torch.float64), m, form="soft").backward()
    assert gap.grad is not None
    assert abs(gap.grad.item()) < 1e-12  # the minimum is d = m


def test_published_constants() -> None:
    assert value(losses.bradley_terry, 0.7, 0.0) == pytest.approx(0.403186, abs=1e-6)
    assert value(losses.bradley_terry, 1.5, 0.0) == pytest.approx(0.201413, abs=1e-6)
    assert value(losses.bradley_terry, 0.0, 1.5) == pytest.approx(1.701413, abs=1e-6)
    assert value(losses.dpo, *QUAD) == pytest.approx(math.log1p(exp(-0.11)))


def test_other_options_reach_the_formula() -> None:
    assert value(losses.odpo, *QUAD, offset=2.0, alpha=0.5) == pytest.approx(-ls(0.11 - 1.0))
    assert value(losses.rdpo, *QUAD, 7, 3, beta=1.0, alpha=0.1) == pytest.approx(-ls(1.1 + 0.4))
    assert value(losses.wpo, *QUAD, 2.0, 3.0, beta=1.0, max_weight=1.0) == pytest.approx(-ls(1.1))
    assert value(losses.dpop, -2, -3, -1, -3, beta=1.0, penalty=2.0) == pytest.approx(-ls(-1 - 2))
    assert value(losses.slic, -2, -5, delta=4.0, sft_weight=0.5) == pytest.approx(1.0 + 1.0)
    assert value(losses.simpo, -2, -6, 2, 3, beta=1.0, gamma=0.25) == pytest.approx(-ls(1 - 0.25))
    label = torch.tensor([True])
    assert losses.kto(torch.tensor([1.0]), torch.tensor([0.0]), label, kl=0.5, beta=1.0, desirable_weight=1.2).item() == pytest.approx(
        1.2 * sig(-0.5)
    )
    assert losses.kto(torch.tensor([1.0]), torch.tensor([0.0]), ~label, kl=-9, beta=1.0, undesirable_weight=0.7).item() == pytest.approx(
        0.7 * sig(1.0)
    )


def test_plackett_luce_is_a_distribution_over_orders() -> None:
    scores = [0.3, -1.2, 2.0, 0.1]
    orders = torch.tensor(list(itertools.permutations(scores)), dtype=torch.float64)
    assert (-losses.plackett_luce(orders)).exp().sum().item() == pytest.approx(1.0)


def test_plackett_luce_of_two_is_bradley_terry_and_absent_items_do_not_exist() -> None:
    scores = torch.tensor([[0.4, -0.9], [1.0, 1.5]], dtype=torch.float64)
    pairs = losses.bradley_terry(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(losses.plackett_luce(scores), pairs)
    absent = torch.cat([scores, torch.full((2, 2), -torch.inf)], dim=1).requires_grad_()
    torch.testing.assert_close(losses.plackett_luce(absent), pairs)
    (slope,) = torch.autograd.grad(losses.plackett_luce(absent).sum(), absent)
    assert slope[:, 2:].eq(0).all()
    assert losses.plackett_luce(torch.tensor([[3.0, -torch.inf], [-torch.inf, -torch.inf]])).tolist() == [0.0, 0.0]
    reference = torch.zeros_like(absent)
    torch.testing.assert_close(losses.pl_dpo(absent.detach(), reference, beta=0.5), losses.pl_dpo(scores, reference[:, :2], beta=0.5))


def test_unpaired_losses_read_beta_and_leave_the_shift_alone() -> None:
    policy, reference = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    label, delta = torch.tensor([True, False]), torch.tensor(0.3, requires_grad=True)
    expected = [sig(-0.5 * 0.5), sig(0.5 * -2.5)]
    assert losses.apo_zero_unpaired(policy, reference, label, beta=0.5).tolist() == pytest.approx(expected)
    policy.requires_grad_()
    loss = losses.bco(policy, reference, label, beta=0.5, delta=delta).sum()
    assert torch.autograd.grad(loss, (policy, delta), allow_unused=True)[1] is None


@pytest.mark.parametrize("name", ["pl_dpo", "reward_ranking"])
def test_a_short_list_among_longer_ones_is_read_as_it_is_alone(name: str) -> None:
    row = METHODS[name]
    long, short = rows_for(row, 1, seed=3)[0], rows_for(row, 1, seed=4)[0]
    short = replace(short, sequences=tuple(s for s in short.sequences if s.rank < 2))
    together = row.terms(view_of([long, short]))[0].values
    alone = torch.cat([row.terms(view_of([one]))[0].values for one in (long, short)])
    torch.testing.assert_close(together, alone)
