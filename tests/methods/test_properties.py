"""What holds for every row of METHODS; a new row inherits all of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from prefopt import losses
from prefopt.losses import METHODS
from prefopt.losses.columns import COLUMNS, View
from prefopt.losses.reduce import count, reduce
from tests.methods.cases import DELTA, Row, Sequence_, gradient, leaf, rows, rows_for, total, view_of

LN2 = math.log(2)
JUNK = [7.0, math.inf, -math.inf, math.nan]
PAIRED = [name for name, method in METHODS.items() if method.unit == "pair"]
REFERENCED = [name for name, method in METHODS.items() if any(column.startswith("ref") for column in method.needs)]
COUPLED = {name for name, method in METHODS.items() if method.coupling == "batch"}
STOPPED = {"dft", "wpo", "cispo"}  # a part of the value is not differentiated: gradients are checked against their own formulas

OPPOSITE = {"dpo", "cdpo", "robust_dpo", "ipo", "hinge", "exo", "discopop", "odpo", "wpo", "rdpo", "aot", "reward"} | {
    "reward_ties",
    "reward_graded",
    "online_dpo",
    "online_ipo",
    "iterative_dpo",
}
"""Gradients on chosen and rejected are opposite: functions of the difference alone."""

AT_REFERENCE = {
    **dict.fromkeys(["online_dpo", "iterative_dpo"], LN2),
    "online_ipo": 25.0,
    "xpo": None,  # depends on the likelihood
    **dict.fromkeys(["dpo", "cdpo", "robust_dpo", "ld_dpo", "dpo_norm", "dpop", "chipo", "aot", "aot_unpaired"], LN2),
    "ipo": 25.0,
    "hinge": 1.0,
    "exo": -0.5 * math.log(4 * 1e-3 * (1 - 1e-3)),
    "discopop": (LN2 + 1) / 2,
    "nca": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo": 500_000.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "kto": None,  # depends on kl
    "bco": None,  # depends on delta
    "apo_zero_unpaired": 0.5,
    "pl_dpo": math.log(24),
    "odpo": None,  # depends on the margin
    "rdpo": None,  # depends on the lengths
    "rpo": None,  # depends on the likelihood
    "wpo": None,  # depends on the weights
}


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name not in STOPPED])
def test_gradient_is_the_derivative_of_the_value(name: str) -> None:
    method, view = METHODS[name], view_of(rows_for(METHODS[name], 3, seed=3))
    field = next(key for key, value in vars(view).items() if value is leaf(method, view))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return total(method, replace(view, **{field: x}))

    assert torch.autograd.gradcheck(loss, (leaf(method, view),), atol=1e-6)


def test_dft_and_wpo_do_not_differentiate_their_weights() -> None:
    view = view_of(rows_for(METHODS["dft"]))
    logps = view.logps_T.detach()
    torch.testing.assert_close(gradient(METHODS["dft"], view), -logps.exp() / len(logps))
    view = view_of(rows_for(METHODS["wpo"]))
    weight = (COLUMNS["chosen_weight"](view) * COLUMNS["rejected_weight"](view))[view.batch.prompt_S][view.batch.sequence_T]
    torch.testing.assert_close(gradient(METHODS["wpo"], view), gradient(METHODS["dpo"], view) * weight)


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_gives_the_same_gradient(name: str) -> None:
    """A value may be right while its gradient is lost to cancellation."""
    method, made = METHODS[name], rows_for(METHODS[name], seed=4)
    for options in ({}, {"divergence": "forward_kl"}, {"divergence": "alpha", "alpha": 0.3}) if name == "dpo" else ({},):
        exact = gradient(method, view_of(made), **options)
        found = gradient(method, view_of(made, dtype=torch.float32), **options)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-7)


def test_cispo_does_not_differentiate_its_weights() -> None:
    view = view_of(rows_for(METHODS["cispo"]))
    batch = view.batch
    weight = (view.logps_T.detach() - batch.old_logps_T).exp().clamp(0, 1.5)
    found = gradient(METHODS["cispo"], view, clip_high=0.5)
    torch.testing.assert_close(found, -weight * batch.advantages_T / len(weight))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "advantages" in method.needs])
def test_importance_weights_weigh_the_tokens(name: str) -> None:
    method, view = METHODS[name], view_of(rows_for(METHODS[name]))
    doubled = replace(view, batch=replace(view.batch, weights_T=torch.full_like(view.batch.advantages_T, 2.0)))
    torch.testing.assert_close(gradient(method, doubled), 2 * gradient(method, view))
    first = torch.where(view.batch.sequence_T == 0, 1.0, 0.0)
    alone = gradient(method, replace(view, batch=replace(view.batch, weights_T=first)))
    assert not alone[view.batch.sequence_T > 0].any()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "advantages" in method.needs])
def test_no_advantage_no_gradient(name: str) -> None:
    method, view = METHODS[name], view_of(rows_for(METHODS[name]))
    assert not gradient(method, replace(view, batch=replace(view.batch, advantages_T=torch.zeros_like(view.batch.advantages_T)))).any()
    assert not METHODS[name].metrics(replace(view, batch=replace(view.batch, advantages_T=None))).keys() & {"policy/approxkl"}
    with pytest.raises(ValueError, match="advantages"):
        method.terms(replace(view, batch=replace(view.batch, advantages_T=None)))


def test_dft_gives_up_on_impossible_tokens() -> None:
    logps = torch.tensor([-math.inf, -200.0, -1.0], requires_grad=True)
    losses.dft(logps).sum().backward()
    assert losses.dft(logps).tolist() == pytest.approx([0, 0, math.exp(-1)])
    assert logps.grad.tolist() == pytest.approx([0, 0, -math.exp(-1)])


@pytest.mark.parametrize("name", REFERENCED)
def test_the_reference_gets_no_gradient(name: str) -> None:
    view = view_of(rows_for(METHODS[name]))
    assert torch.autograd.grad(total(METHODS[name], view), view.ref_logps_T, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", PAIRED)
def test_opposite_gradients_exactly_where_documented(name: str) -> None:
    """Rows with answers of equal length, so that a length-normalised loss has no excuse; its lengths are then varied."""
    made = [row for row in rows(40, seed=5) if len(row.sequences[0].logps) != len(row.sequences[1].logps)][:6]
    method, view = METHODS[name], view_of(made)
    slope = gradient(replace(method, plus={}), view)
    per_sequence = slope if method.reads == "scores" else slope[view.batch.length_S.cumsum(0) - 1]
    opposite = torch.allclose(per_sequence[view.batch.chosen_N], -per_sequence[view.batch.rejected_N], atol=1e-12)
    assert opposite == (name in OPPOSITE)


@pytest.mark.parametrize("name", sorted(OPPOSITE))
def test_a_constant_added_to_both_sides_changes_nothing(name: str) -> None:
    method, view = METHODS[name], view_of(rows_for(METHODS[name]))
    columns = {argument: COLUMNS[column](view).detach() for argument, column in method.arguments.items()}
    shifted = {k: v + 3.5 if k in ("chosen", "rejected", "chosen_scores", "rejected_scores") else v for k, v in columns.items()}
    torch.testing.assert_close(method.loss(**shifted), method.loss(**columns))


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust_dpo", "reward"])
def test_swapping_a_pair_adds_its_logit(name: str) -> None:
    """loss(swapped) - loss = z for the logistic loss, (1-2e) z and z/(1-2e)... of its smoothed forms."""
    method = METHODS[name]
    zero, d = torch.zeros(7, dtype=torch.float64), torch.linspace(-9, 9, 7, dtype=torch.float64)
    pair, swapped = ((d, zero), (zero, d)) if name == "reward" else ((d, zero, zero, zero), (zero, d, zero, zero))
    slope = {"dpo": 0.1, "cdpo": 0.1 * 0.8, "robust_dpo": 0.1 / 0.8, "reward": 1.0}[name]
    torch.testing.assert_close(method.loss(*swapped) - method.loss(*pair), slope * d)


# --- isolation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_read_cannot_matter(name: str, junk: float) -> None:
    """Junk in every value of completions that are in no pair, list or demonstration, and in every field the method does not read."""
    method = METHODS[name]
    clean = rows_for(method)
    view, slope = view_of(clean), gradient(method, view_of(clean))
    worse = dict.fromkeys(["text", "demonstrations", "pairs", "judgements"], (2,))
    unread = {**worse, "rankings": (-1,), "labels": (), "steps": (), "prompts": () if method.unit == "sequence" else (2,)}[method.data]
    dirty = view_of([with_junk(row, rank, junk) for row in clean for rank in unread] or clean)
    fields = {"logps_T", "ref_logps_T", "scores_S", "step_logits_J", "entropy_T", "collision_T", "room", "kl", "delta"}
    for field in fields - fields_read(name):
        dirty = replace(dirty, **{field: torch.full_like(getattr(dirty, field), junk)})
    torch.testing.assert_close(total(method, dirty), total(method, view), rtol=0, atol=0)
    found, value = gradient(method, dirty), leaf(method, dirty).detach()
    read = value.isfinite() & (value != junk)
    torch.testing.assert_close(found[read], slope, rtol=0, atol=0)
    assert not found[~read].any()


def with_junk(row: Row, rank: int, junk: float) -> Row:
    """The row with a further completion, all junk."""
    extra = replace(row.sequences[0], logps=(junk,) * 3, ref=(junk,) * 3, collision=(junk,) * 3, score=junk, rank=rank, steps=())
    return replace(row, sequences=(*row.sequences, extra))


def fields_read(name: str) -> set[str]:
    method = METHODS[name]
    if method.reads == "scores":
        return {"step_logits_J"} if method.unit == "step" else {"scores_S"}
    return {
        "logps_T",
        *(["ref_logps_T"] if name in REFERENCED else []),
        *(["room"] if "room" in method.needs else []),
        *(["collision_T"] if method.needs_collision else []),
        *({"mismatched_kl": ["kl"], "reward_shift": ["delta"]}.get(method.coupling, [])),
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_field_the_method_reads_must_be_there(name: str) -> None:
    view = view_of(rows_for(METHODS[name]))
    for field in fields_read(name):
        with pytest.raises(ValueError, match=field):
            METHODS[name].terms(replace(view, **{field: None}))


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up(name: str) -> None:
    """Exactly, with the denominators of the whole step; AOT sorts over the step, and declares it."""
    method, made = METHODS[name], rows_for(METHODS[name], 6)
    whole = view_of(made)
    counts = {unit: float(count(whole.batch, unit)) for unit in method.units}
    parts = [view_of(made[at : at + 1]) for at in range(3)] + [view_of(made[3:])]
    sums = sum(total(method, part, counts) for part in parts)
    slopes = torch.cat([gradient(method, part, counts) for part in parts])
    same = torch.allclose(sums, total(method, whole, counts)) and torch.allclose(slopes, gradient(method, whole, counts))
    assert same == (name not in COUPLED)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    method, made = METHODS[name], rows_for(METHODS[name], 6)
    torch.testing.assert_close(total(method, view_of(made[::-1])), total(method, view_of(made)))


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_terms_gives_nothing(name: str) -> None:
    """A micro-batch may hold no pair or list at all: its loss and gradient are 0, not NaN."""
    method = METHODS[name]
    if method.unit in ("token", "sequence", "step"):
        return
    view = view_of([replace(row, paired=False) for row in rows(2, completions=1)])
    method = replace(method, plus={})
    assert count(view.batch, method.unit) == 0
    assert total(method, view).item() == 0
    assert not gradient(method, view).any()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_comes_out_as_single(name: str) -> None:
    method, made = METHODS[name], rows_for(METHODS[name])
    half = view_of(made, dtype=torch.bfloat16)
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in vars(half).items()}
    found, expected = method.terms(half)[0].values, method.terms(View(**single))[0].values
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# --- extremes ---------------------------------------------------------------------------------------------------------

EXTREMES = [(-1000.0, 0.0), (0.0, -1000.0), (-1000.0, -1000.0), (0.0, 0.0), (-1e4, -1.0)]


@pytest.mark.parametrize("name", METHODS)
def test_finite_at_extremes_in_fp32(name: str) -> None:
    """Log-ratios of thousands of nats, certain and hopeless tokens, and completions without a scored token."""
    method, made = METHODS[name], rows_for(METHODS[name], 2)
    for chosen, rejected, n in itertools.product(EXTREMES, EXTREMES, (1, 4, 0)):
        far = [
            replace(row, sequences=tuple(stretched(s, chosen if k == 0 else rejected, n, k == 0) for k, s in enumerate(row.sequences)))
            for row in made
        ]
        view = view_of(far, dtype=torch.float32)
        assert total(method, view).isfinite(), (chosen, rejected, n)
        assert gradient(method, view).isfinite().all(), (chosen, rejected, n)


def stretched(sequence: Sequence_, totals: tuple[float, float], n: int, label: bool) -> Sequence_:
    """The sequence with n tokens whose log-probs add up to `totals` under policy and reference."""
    policy, reference = (total / max(n, 1) for total in totals)
    score, steps = totals[0] - totals[1], tuple((totals[0] - totals[1], y) for _, y in sequence.steps)
    return replace(sequence, logps=(policy,) * n, ref=(reference,) * n, collision=(-1.0,) * n, score=score, label=label, steps=steps)


@pytest.mark.parametrize("options", [{"divergence": d} for d in ("forward_kl", "js")] + [{"divergence": "alpha", "alpha": 0.5}])
@pytest.mark.parametrize("d", [-1000.0, 1000.0])
def test_divergences_stay_finite_and_keep_pulling(options: dict, d: float) -> None:
    chosen = torch.tensor([d], requires_grad=True)
    zero = torch.zeros(1)
    loss = losses.dpo(chosen, zero, zero, zero, **options)
    (slope,) = torch.autograd.grad(loss, chosen)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    if d < 0 and options["divergence"] != "alpha":
        assert slope < 0  # a hopeless chosen answer is still pulled up


# --- at the reference, and limits -------------------------------------------------------------------------------------


def test_every_row_with_a_reference_says_its_first_value() -> None:
    assert set(REFERENCED) == set(AT_REFERENCE)


@pytest.mark.parametrize("name", [name for name, value in AT_REFERENCE.items() if value is not None])
def test_value_at_the_reference(name: str) -> None:
    view = view_of(rows_for(METHODS[name]))
    values = METHODS[name].terms(replace(view, ref_logps_T=view.logps_T.detach()))[0].values
    assert values.tolist() == pytest.approx([AT_REFERENCE[name]] * len(values))


def test_value_at_the_reference_where_the_data_decides() -> None:
    view = view_of(rows_for(METHODS["dpo"]))
    view = replace(view, ref_logps_T=view.logps_T.detach())
    softplus = torch.nn.functional.softplus
    batch = view.batch

    def first(name: str, view: View = view) -> torch.Tensor:
        return METHODS[name].terms(view)[0].values.detach()

    torch.testing.assert_close(first("odpo"), softplus(batch.margin_N.double()), rtol=1e-6, atol=0)
    longer = (batch.length_S[batch.chosen_N] - batch.length_S[batch.rejected_N]).double()
    torch.testing.assert_close(first("rdpo"), softplus(-0.01 * longer), rtol=1e-6, atol=0)
    likelihood = COLUMNS["chosen"](view).detach() / batch.length_S[batch.chosen_N]
    torch.testing.assert_close(first("rpo"), LN2 - likelihood)
    torch.testing.assert_close(first("wpo"), LN2 * COLUMNS["chosen_weight"](view) * COLUMNS["rejected_weight"](view))
    labels = view_of(rows_for(METHODS["kto"]))
    labels = replace(labels, ref_logps_T=labels.logps_T.detach(), kl=torch.tensor(-3.0), delta=torch.tensor(0.0))
    assert first("kto", labels).tolist() == pytest.approx([0.5] * 5)
    assert first("bco", labels).tolist() == pytest.approx([LN2] * 5)


def curve(loss: object, at: list[float], **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and slopes of a pairwise loss as a function of u, with v = 0."""
    d = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(d)
    values = loss(d, zero, zero, zero, **options)  # type: ignore[operator]
    return values.detach(), torch.autograd.grad(values.sum(), d)[0]


def test_documented_minima() -> None:
    for loss in (losses.cdpo, losses.exo):
        _, slope = curve(loss, [math.log(9.0)], beta=1.0, label_smoothing=0.1)
        assert slope.abs().max() < 1e-12
    assert curve(losses.exo, [math.log(9.0)], beta=1.0, label_smoothing=0.1)[0].item() == pytest.approx(0, abs=1e-12)
    assert curve(losses.nca, [LN2], beta=1.0)[1].abs().max() < 1e-12
    assert curve(losses.sppo, [2.0], beta=0.25)[1].item() == 0
    assert curve(losses.ipo, [2.0], beta=0.25)[0].item() == 0
    assert curve(losses.apo_down, [0.0])[1].item() == 0


def test_documented_slopes() -> None:
    assert curve(losses.dpo, [0.0], beta=0.2)[1].item() == pytest.approx(-0.1)
    assert curve(losses.chipo, [0.0], beta=0.2)[1].item() == pytest.approx(-0.2)
    assert curve(losses.chipo, [5.0], beta=1.0)[1].item() == 0
    assert curve(losses.hinge, [10.0, 9.99], beta=0.1)[1].tolist() == pytest.approx([0, -0.1])
    assert curve(losses.robust_dpo, [1e4])[1].item() == pytest.approx(-0.1 * 0.1 / 0.8)
    assert curve(losses.robust_dpo, [1e4])[0].item() < 0
    values, slope = curve(losses.discopop, [-0.1186, 0.0, 0.0720], beta=1.0)
    assert slope.tolist() == pytest.approx([0, 0.784, 0], abs=2e-3)
    assert values[0] < values[1] < values[2]


def test_methods_that_meet() -> None:
    made = rows(6, seed=9)
    view = view_of(made)

    def values(name: str, view: View = view, **options: object) -> torch.Tensor:
        return METHODS[name].terms(view, options)[0].values.detach()

    dpo = values("dpo")
    assert torch.equal(values("cdpo", label_smoothing=0.0), dpo)
    assert torch.equal(values("robust_dpo", label_smoothing=0.0), dpo)
    assert torch.equal(values("rdpo", alpha=0.0), dpo)
    assert torch.equal(values("rpo", alpha=0.0), dpo)
    assert torch.equal(values("odpo", alpha=0.0), dpo)
    torch.testing.assert_close(values("ld_dpo", alpha=1.0), dpo)
    torch.testing.assert_close(values("dpop", penalty=0.0), dpo)
    torch.testing.assert_close(values("pl_dpo"), dpo)
    torch.testing.assert_close(
        values("reward_ranking"), values("reward", replace(view, batch=replace(view.batch, margin_N=torch.zeros(6))))
    )
    for one in (view_of(made[at : at + 1]) for at in range(6)):
        torch.testing.assert_close(values("aot", one), values("dpo", one))
        torch.testing.assert_close(values("aot_unpaired", one), values("dpo", one))
    labels = view_of(rows(6, completions=1))
    at_zero = replace(labels, kl=torch.tensor(0.0))
    assert torch.equal(values("kto", at_zero), values("apo_zero_unpaired", labels))


def test_robust_dpo_is_dpo_on_average_over_flips() -> None:
    d = torch.linspace(-20, 20, 9, dtype=torch.float64)
    zero = torch.zeros_like(d)
    options = {"label_smoothing": 0.3}
    mean = 0.7 * losses.robust_dpo(d, zero, zero, zero, **options) + 0.3 * losses.robust_dpo(zero, d, zero, zero, **options)
    torch.testing.assert_close(mean, losses.dpo(d, zero, zero, zero))


def test_aot_unpaired_does_not_care_who_met_whom() -> None:
    chosen, rejected, zero = torch.randn(5), torch.randn(5), torch.zeros(5)
    paired = losses.aot_unpaired(chosen, rejected, zero, zero)
    assert torch.equal(losses.aot_unpaired(chosen, rejected.flip(0), zero, zero), paired)


def test_simpo_and_orpo_are_blind_to_repetition_and_ld_dpo_to_the_tail() -> None:
    made = rows(4, seed=2)
    doubled = [
        replace(row, sequences=tuple(replace(s, logps=s.logps * 2, ref=s.ref * 2, collision=s.collision * 2) for s in row.sequences))
        for row in made
    ]
    for name in ("simpo", "orpo", "dpo_norm"):
        torch.testing.assert_close(METHODS[name].terms(view_of(doubled))[0].values, METHODS[name].terms(view_of(made))[0].values)

    def tail(row: Row, value: float) -> Row:
        first, second = row.sequences
        n = min(len(first.logps), len(second.logps))
        return replace(row, sequences=tuple(replace(s, logps=s.logps[:n] + (value,) * (len(s.logps) - n)) for s in row.sequences))

    cut = [METHODS["ld_dpo"].terms(view_of([tail(row, x) for row in made]), {"alpha": 0.0})[0].values for x in (-1.0, -math.inf)]
    assert torch.equal(*cut)


def test_bco_depends_on_reward_minus_shift() -> None:
    reward, label = torch.randn(6, dtype=torch.float64), torch.arange(6) % 2 == 0
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(
        losses.bco(reward + 3, zero, label, delta=DELTA + 3, beta=1.0), losses.bco(reward, zero, label, delta=DELTA, beta=1.0)
    )


def test_flipping_all_labels_negates_the_unpaired_gradient() -> None:
    label = torch.arange(6) % 2 == 0
    slopes = []
    for side in (label, ~label):
        policy = torch.linspace(-5, 5, 6, requires_grad=True)
        (slope,) = torch.autograd.grad(losses.apo_zero_unpaired(policy, torch.zeros(6), side).sum(), policy)
        slopes.append(slope)
    torch.testing.assert_close(slopes[0], -slopes[1])


def test_kto_stays_within_its_weights_and_never_differentiates_its_reference_point() -> None:
    policy = torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4])
    kl = torch.tensor(2.0, requires_grad=True)
    loss = losses.kto(policy.requires_grad_(), torch.zeros(5), torch.ones(5, dtype=torch.bool), kl=kl, desirable_weight=1.3)
    assert ((loss >= 0) & (loss <= 1.3)).all()
    assert torch.autograd.grad(loss.sum(), kl, allow_unused=True) == (None,)


def test_uniform_predictions_cost_log_v_and_likelihood_reads_the_best_answer_only() -> None:
    made = rows(3)
    uniform = [replace(row, sequences=tuple(replace(s, logps=(-math.log(50),) * len(s.logps)) for s in row.sequences)) for row in made]
    view = view_of(uniform)
    assert total(METHODS["sft"], view).item() == pytest.approx(math.log(50))
    assert count(view.batch, "token") == sum(len(row.sequences[0].logps) for row in made)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].unit == "pair"])
def test_mixed_terms_are_the_weighted_sum(name: str) -> None:
    method, view = METHODS[name], view_of(rows_for(METHODS[name]))
    other = "reward" if method.reads == "scores" else "sft"
    mixed = method.mixed({other: 0.25})
    counts = {unit: float(count(view.batch, unit)) for unit in mixed.units}
    expected = total(replace(method, plus={}), view, counts) + 0.25 * total(METHODS[other], view, counts)
    torch.testing.assert_close(reduce(mixed.terms(view), counts), expected)
    torch.testing.assert_close(reduce(method.terms(view, mix={other: 0.25}), counts), expected)


def test_a_row_is_mixed_in_with_what_it_adds_itself() -> None:
    """ORPO is its own loss and the likelihood of the chosen answers; half of it is half of both."""
    method, view = METHODS["dpo"], view_of(rows_for(METHODS["dpo"]))
    counts = {unit: float(count(view.batch, unit)) for unit in method.mixed({"orpo": 0.5}).units}
    expected = total(method, view, counts) + 0.5 * total(METHODS["orpo"], view, counts)
    torch.testing.assert_close(reduce(method.terms(view, mix={"orpo": 0.5}), counts), expected)


def test_a_row_mixed_in_divides_no_price_of_kl() -> None:
    view = replace(view_of(rows_for(METHODS["grpo"])), room=torch.tensor(20.0))
    assert METHODS["grpo"].mixed({"dr_grpo": 0.5}).divided_by(view) == 1
    assert METHODS["dr_grpo"].divided_by(view) == 20
