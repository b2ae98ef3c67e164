"""`prefopt verify`: every method has a claim, sound losses meet theirs, and planted faults do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prefopt import cli, exact
from prefopt.errors import OptionError
from prefopt.losses.columns import View
from prefopt.losses.methods import METHODS, Method
from prefopt.losses.reduce import count, reduce
from prefopt.pack.tree import pack
from prefopt.training.job import Penalty
from prefopt.verify import CLAIMS, Verdict, claims, sampled, table, verify
from prefopt.verify.learn import Table

Loss = Callable[..., torch.Tensor]
worst = partial(verify, learners=("table",))


def test_every_method_has_a_claim_and_every_claim_a_method() -> None:
    assert {claim.method for claim in CLAIMS} == METHODS.keys()
    for claim in CLAIMS:
        METHODS[claim.method].check_options(claim.options, claim.mix)
    assert [claim.method for claim in CLAIMS if "transformer" not in claim.learners] == ["discopop", "rloo", "remax", "dr_grpo"]


# --- populations --------------------------------------------------------------------------------------------------------


def test_proportions_are_the_probabilities() -> None:
    wins, rewards = claims.bradley_terry().wins, claims.MANY.rewards
    total = wins + wins.transpose(0, 2, 1)
    share = np.divide(wins, total, out=np.zeros(wins.shape), where=total > 0)
    np.testing.assert_allclose(share, np.where(total > 0, exact.bradley_terry(rewards), 0), atol=1e-12)
    clean = exact.bradley_terry(rewards)
    flipped = claims.flipped().wins
    share = np.divide(flipped, flipped + flipped.transpose(0, 2, 1), out=np.zeros(wins.shape), where=total > 0)
    np.testing.assert_allclose(share, np.where(total > 0, 0.75 * clean + 0.25 * (1 - clean), 0), atol=1e-12)
    cyclic = claims.cyclic().wins
    assert set((cyclic + cyclic.transpose(0, 2, 1)).ravel().tolist()) == {0, 4}


def test_rankings_are_drawn_by_plackett_luce() -> None:
    found: dict[tuple[int, frozenset[int]], dict[tuple[int, ...], int]] = {}
    listed = claims.TWO.completions
    for tree in claims.rankings().trees:
        order = tuple(listed.index(tuple(branch.ids.tolist())) for branch in sorted(tree.branches, key=lambda b: b.rank or 0))
        prompt = claims.TWO.prompts.index(tuple(tree.prompt.tolist()))
        of_triple = found.setdefault((prompt, frozenset(order)), {})
        of_triple[order] = of_triple.get(order, 0) + 1
    assert len(found) == 2 * 15
    for (prompt, _), orders in found.items():
        for order, n in orders.items():
            assert n / sum(orders.values()) == pytest.approx(exact.plackett_luce(claims.TWO.rewards[prompt], order))


@pytest.mark.parametrize("draw", [claims.bradley_terry, claims.certain, claims.against_the_shortest, claims.opposed])
def test_comparisons_connect_all_completions(draw: Callable[[], Any]) -> None:
    """Otherwise the loss would leave the masses of the parts free, and no claim could be made."""
    for wins in draw().wins:
        assert exact.components((wins + wins.T).astype(float)).max() == 0


@pytest.mark.parametrize("draw", [claims.with_margins, claims.rankings, claims.steps])
def test_the_shared_row_reads_what_the_packed_draws_read(draw: Callable[[], Any]) -> None:
    population = draw()
    shared, plain = population.lay_out(population.trees), pack(population.trees)
    assert shared.tokens < 100 < plain.tokens
    for name in ("source_T", "last_S", "step_index_J"):
        assert torch.equal(shared.ids_BC[0][getattr(shared, name)], plain.ids_BC[0][getattr(plain, name)])
        assert torch.equal(shared.positions_BC[0][getattr(shared, name)], plain.positions_BC[0][getattr(plain, name)])
    for name in ("target_T", "sequence_T", "chosen_N", "rejected_N", "margin_N", "rank_S", "step_label_J", "length_S"):
        assert torch.equal(getattr(shared, name), getattr(plain, name))


# --- verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "ld_dpo", "bco", "reward", "discopop"])
def test_sound_methods_meet_their_claims(method: str) -> None:
    assert [v for v in worst(method) if not v.holds] == []


def test_the_transformer_meets_its_claim() -> None:
    (found,) = verify("simpo", learners=("transformer",))
    assert found.holds
    assert found.bound == 0.02


def beta_twice(loss: Loss) -> Loss:
    @wraps(loss)
    def faulty(*args: Any, beta: float, **rest: Any) -> torch.Tensor:
        return loss(*args, beta=beta * beta, **rest)

    return faulty


def sign(loss: Loss) -> Loss:
    @wraps(loss)
    def faulty(*args: Any, **rest: Any) -> torch.Tensor:
        return -loss(*args, **rest)

    return faulty


def swapped(loss: Loss) -> Loss:
    @wraps(loss)
    def faulty(chosen: Any, rejected: Any, ref_chosen: Any, ref_rejected: Any, **rest: Any) -> torch.Tensor:
        return loss(rejected, chosen, ref_rejected, ref_chosen, **rest)

    return faulty


def no_reference(loss: Loss) -> Loss:
    @wraps(loss)
    def faulty(chosen: Any, rejected: Any, ref_chosen: Any, ref_rejected: Any, **rest: Any) -> torch.Tensor:
        return loss(chosen, rejected, 0 * ref_chosen, 0 * ref_rejected, **rest)

    return faulty


FAULTS = [beta_twice, sign, swapped, no_reference]


def plant(monkeypatch: pytest.MonkeyPatch, name: str, row: Method) -> None:
    monkeypatch.setitem(METHODS, name, row)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", ["dpo", "hinge", "nca"])
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, method: str, fault: Callable[[Loss], Loss]) -> None:
    row = METHODS[method]
    plant(monkeypatch, method, replace(row, loss=fault(row.loss)))
    assert not next(worst(method)).holds


def test_a_maximum_is_no_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded losses have both, and slopes in proportion to the policy at both."""
    row = METHODS["apo_zero_unpaired"]
    plant(monkeypatch, "apo_zero_unpaired", replace(row, loss=sign(row.loss)))
    assert next(worst("apo_zero_unpaired")).distance == np.inf


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ("rdpo", {"chosen_len": "rejected_len", "rejected_len": "chosen_len"}),
        ("reward", {"margin": "margin", "chosen_scores": "rejected_scores"}),
        ("ld_dpo", {"ref_chosen_parts": "ref_rejected_parts"}),
        ("kto", {"kl": "delta"}),
    ],
)
def test_columns_led_astray_are_caught(monkeypatch: pytest.MonkeyPatch, method: str, columns: dict[str, str]) -> None:
    plant(monkeypatch, method, replace(METHODS[method], columns=columns, coupling="reward_shift" if method == "kto" else ""))
    assert not next(worst(method)).holds


def test_without_rewards_nothing_is_learned_and_a_claim_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = METHODS["prm"]
    plant(monkeypatch, "prm", replace(row, loss=wraps(row.loss)(lambda logits, labels: 0 * logits)))
    monkeypatch.setattr("prefopt.verify.run.LEARNERS", ("table",))
    assert cli.run(["verify", "prm"]) == 1
    out, err = capsys.readouterr()
    assert "FAILS" in out
    assert "0 of 1 hold" in out
    assert err.startswith("prefopt: some claims fail")


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'sft'"):
        list(verify("sfft"))


def test_nan_does_not_hold_and_the_table_says_so() -> None:
    assert not Verdict(CLAIMS[0], "table", float("nan")).holds
    lines = table([Verdict(CLAIMS[0], "table", 0.5), Verdict(CLAIMS[1], "transformer", 0.001)]).splitlines()
    assert [line.split()[-1] for line in lines] == ["verdict", "FAILS", "holds"]


def test_the_table_policy_is_a_law_and_its_loss_is_the_population_s() -> None:
    """The row, its columns and `reduce` give DPO's population loss, computed by other means."""
    population = claims.bradley_terry()
    torch.manual_seed(0)
    policy, reference = (Table(population.whole.tokens, 3) for _ in range(2))
    batch, row = population.lay_out(population.trees), METHODS["dpo"]

    def logps(model: Table) -> torch.Tensor:
        return model.rows[batch.source_T].log_softmax(-1).gather(1, batch.target_T[:, None])[:, 0]

    view = View(batch=batch, logps_T=logps(policy), ref_logps_T=logps(reference))
    found = float(reduce(row.terms(view, {"beta": 0.5}), {"pair": count(batch, "pair")}).detach())
    laws = []
    whole = population.whole
    for model in (policy, reference):
        token = model.rows[whole.source_T].log_softmax(-1).gather(1, whole.target_T[:, None])[:, 0]
        laws.append(torch.zeros(30, dtype=torch.float64).index_add(0, whole.sequence_T, token).exp().reshape(2, 15).detach().numpy())
    np.testing.assert_allclose(laws[0].sum(1), 1)
    preferences, expected = exact.bradley_terry(claims.MANY.rewards), 0.0
    for p, wins in enumerate(population.wins.astype(float)):
        w = wins + wins.T
        expected += exact.dpo_loss(laws[0][p], laws[1][p], preferences[p], w, 0.5) * w.sum() / 2
    assert found == pytest.approx(expected / population.wins.sum())


# --- methods that sample ------------------------------------------------------------------------------------------------


def of(method: str, **changes: Any) -> float:
    """The distance of the first claim of a method, with changes planted into it."""
    claim = next(claim for claim in CLAIMS if claim.method == method)
    return replace(claim, **changes).tried("table")


SAMPLING = [name for name, row in METHODS.items() if row.online is not None and "keep" not in row.online.gives]


@pytest.mark.parametrize("method", SAMPLING)
def test_expected_gradients_are_those_of_theory(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with the sign turned round, which would be an angle of 180 degrees."""
    assert of(method) < 1e-9
    plant(monkeypatch, method, replace(METHODS[method], loss=sign(METHODS[method].loss)))
    assert of(method) > 0.1


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ppo", {"options": {"lam": 0.5}}),  # a critic that knows nothing biases all but lambda = 1
        ("rloo", {"kl": claims.FREE, "distance": sampled.gradient(lambda whole, logp: sampled.objective(_with(whole, 0.5), logp))}),
        ("reinforce", {"options": {"decay": 0.0}, "distance": sampled.gradient(sampled.signs)}),
    ],
)
def test_what_biases_a_gradient_is_caught(method: str, changes: dict[str, Any]) -> None:
    assert of(method, **changes) > 1e-3


def _with(whole: Any, kl: float) -> Any:
    whole.kl = kl
    return whole


IN_LOSS = [claim for claim in CLAIMS if isinstance(claim, claims.SampledClaim) and claim.kl.place == "loss" and claim.bound is not None]


@pytest.mark.parametrize("claim", IN_LOSS, ids=lambda claim: f"{claim.method}-{claim.kl.estimator or 'k2'}-{claim.kl.ratio}")
def test_kl_in_the_loss_has_the_gradient_of_theory(claim: claims.SampledClaim, monkeypatch: pytest.MonkeyPatch) -> None:
    """And half of the price, or another estimator, is told from it."""
    assert claim.tried("table") < 1e-9
    for planted in ({"coefficient": 0.25}, {"kind": "k2" if claim.kl.estimator == "k3" else "k3", "ratio": False}):
        monkeypatch.setattr(sampled, "Penalty", lambda *given, planted=planted: replace(Penalty(*given), **planted))
        differs = claim.tried("table") > 1e-4
        assert differs or (claim.kl.ratio and "kind" in planted)  # the ratio times k3 is k2


def test_dr_grpo_s_price_is_divided_as_its_rewards_are(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = next(claim for claim in IN_LOSS if claim.method == "dr_grpo")
    monkeypatch.setattr(Method, "divided_by", lambda *_: 1.0)
    assert claim.tried("table") > 1e-2


def test_kl_in_the_loss_leads_elsewhere_than_in_the_reward() -> None:
    """By hand, two tokens, ref ½ at each: stop, go on and stop, or go on twice, which alone earns log 20."""
    world = replace(claims.MANY, prompts=((1, 2),), vocabulary=2, length=2, strengths=((1, 1, 20),))
    whole = SimpleNamespace(world=world, kl=1.0)
    ref = np.array([[0.5, 0.25, 0.25]])
    law = sampled.boltzmann_by_token(whole, ref)  # type: ignore[arg-type]
    value = 20 / 21 * np.log(20)  # of going on: the second token's odds are 20 : 1
    first = np.exp(value) / (1 + np.exp(value))
    np.testing.assert_allclose(law, [[1 - first, first / 21, first * 20 / 21]])
    np.testing.assert_allclose(exact.boltzmann(ref, world.rewards, 1.0), np.array([[2, 1, 20]]) / 23)


def test_a_wrong_baseline_and_a_lost_length_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    online = METHODS["rloo"].online
    assert online is not None

    def own(rewards: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        return rewards * rewards.sign()  # depends on the answer it is taken from

    plant(monkeypatch, "rloo", replace(METHODS["rloo"], online=replace(online, make=own)))
    assert of("rloo") > 1e-3
    plant(monkeypatch, "dr_grpo", replace(METHODS["dr_grpo"], within="mean"))
    assert of("dr_grpo") > 1e-3


def test_the_boltzmann_optimum_is_reached_by_sampling() -> None:
    claim = next(c for c in CLAIMS if c.method == "reinforce" and c.says == claims.OPTIMUM)
    assert claim.tried("table") < 0.001


@pytest.mark.slow
def test_all_claims_hold() -> None:
    assert [(v.claim.method, v.learner, v.distance) for v in verify(processes=2) if not v.holds] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.unit in ("pair", "sequence") and row.reads == "logps"])
def test_the_sign_is_caught_everywhere(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    row = METHODS[method]
    plant(monkeypatch, method, replace(row, loss=sign(row.loss)))
    assert not next(worst(method)).holds
