"""The table itself: complete rows, options that are refused with a way out, metrics, and the page of each method."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace

import pytest
import torch

from prefopt import losses
from prefopt.errors import OptionError
from prefopt.losses import METHODS
from prefopt.losses.columns import COLUMNS, probe
from prefopt.losses.explain import COUPLINGS, DATA, explain
from prefopt.losses.metrics import UNITS_OF_METRICS
from prefopt.losses.numeric import DomainError
from prefopt.losses.reduce import UNITS
from prefopt.training.shard import idle
from tests.methods.cases import Row, Sequence_, rows, view_of


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_complete(name: str) -> None:
    method = METHODS[name]
    assert re.match(r"\d{4}\.\d{4,5}\b|ericmitchell\.ai", method.paper)
    assert method.unit in UNITS
    assert method.data in DATA
    assert method.coupling in ("", *COUPLINGS)
    assert 1e-8 < method.learning_rate < 1e-2
    assert method.needs <= set(COLUMNS)
    assert set(method.plus) <= set(METHODS)
    assert inspect.Parameter.empty not in method.options.values()
    method.check_options({})


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_names_the_paper_of_the_row(name: str) -> None:
    paper = METHODS[name].paper.split()[0]
    row = METHODS[name]
    told = (inspect.getdoc(row.loss) or "") + (inspect.getdoc(row.online.make) or "" if row.online else "")
    assert paper in told or (row.loss is losses.nll and row.online is None)


def test_the_table_fits_a_screen_or_so() -> None:
    source = inspect.getsource(__import__("prefopt.losses.methods", fromlist=["METHODS"]))
    table = source[source.index("METHODS: dict") :]
    assert table.count("\n") <= len(METHODS) + 12


def test_what_a_row_needs() -> None:
    assert METHODS["dpo"].needs == {"chosen", "rejected", "ref_chosen", "ref_rejected"}
    assert METHODS["orpo"].needs == {"chosen", "rejected", "chosen_len", "rejected_len", "logps"}
    assert METHODS["orpo"].units == {"pair", "token"}
    assert {name for name, m in METHODS.items() if m.needs_margin} == {"odpo", "reward_graded"}
    assert METHODS["dpo"].mixed({"odpo": 1.0}).needs_margin
    assert {name for name, m in METHODS.items() if m.needs_collision} == {"wpo"}
    assert not any(METHODS[name].needs_reference for name in ("sft", "simpo", "slic", "cpo", "orpo", "reward", "prm", "reward_ranking"))
    assert METHODS["simpo"].mixed({"dpo": 1.0}).needs_reference
    assert METHODS["kto"].options == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    assert METHODS["ipo"].options == {"beta": 0.1, "length_normalized": False}


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_an_option_no_one_reads_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="no_such_option"):
        METHODS[name].check_options({"no_such_option": 1})


def test_a_near_miss_is_answered_with_a_guess() -> None:
    with pytest.raises(OptionError, match=r"did you mean 'label_smoothing'\?"):
        METHODS["cdpo"].check_options({"label_smoothin": 0.1})
    with pytest.raises(OptionError, match="known: alpha, beta, divergence"):
        METHODS["dpo"].check_options({"label_smoothing": 0.1})


@pytest.mark.parametrize("column", ["kl", "chosen_len", "label"])
def test_a_column_is_not_an_option(column: str) -> None:
    with pytest.raises(OptionError, match="reads no option"):
        METHODS["kto"].check_options({column: 1.0})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dpo", {"beta": "high"}, "beta is 'high', expected a number"),
        ("dpo", {"beta": True}, "expected a number"),
        ("dpo", {"beta": math.nan}, "expected a number"),
        ("dpo", {"beta": None}, "expected a number"),
        ("dpo", {"divergence": "kl"}, "expected one of reverse_kl"),
        ("ipo", {"length_normalized": 1}, "expected true or false"),
        ("wpo", {"max_weight": "x"}, "expected nothing or a number|expected a number or nothing"),
        ("dpo", {"alpha": 0.5}, "left out unless divergence=alpha"),
        ("dpo", {"divergence": "alpha"}, "a number with divergence=alpha"),
        ("robust_dpo", {"label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
        ("exo", {"label_smoothing": 0.0}, r"must be in \(0, 1\)"),
        ("cdpo", {"label_smoothing": 1.5}, r"must be in \[0, 1\)"),
        ("reward", {"label_smoothing": -0.1}, r"must be in \[0, 1\)"),
        ("reward_ties", {"tie_share": 0.0}, r"must be in \(0, 1\)"),
        ("reward_ties", {"tie_law": "thurstone"}, "expected one of rao_kupper, davidson"),
        ("discopop", {"tau": 0.0}, r"must be in \(0, 1\]"),
        ("ld_dpo", {"alpha": 2.0}, r"must be in \[0, 1\]"),
        ("aot", {"label_smoothing": 1}, r"must be in \[0, 1\)"),
        ("dpo", {"beta": 0.0}, "beta must be"),
        ("ipo", {"beta": 0}, "beta must be"),
        ("kto", {"beta": -0.1}, "beta must be"),
        ("kto", {"desirable_weight": -1.0}, "at least 0"),
        ("kto", {"undesirable_weight": -1.0}, "at least 0"),
        ("wpo", {"max_weight": 0.0}, "positive, or left out"),
        ("chipo", {"r_max": 0.0}, "positive"),
        ("rpo", {"alpha": -1.0}, "at least 0"),
        ("cpo", {"nll_weight": -1.0}, "at least 0"),
        ("slic", {"sft_weight": -0.1}, "at least 0"),
        ("orpo", {"weight": -0.1}, "at least 0"),
        ("dpop", {"penalty": -50.0}, "at least 0"),
        ("reward", {"centering": -0.01}, "at least 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name: str, options: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        METHODS[name].check_options(options)


@pytest.mark.parametrize(
    ("method", "ratios", "advantages", "low", "high"),
    [
        ("grpo", (0.5, 1.5), (-1.0, 1.0), 0.5, 0.5),  # a ratio is clipped where it has gone where the advantage sent it
        ("grpo", (0.5, 0.5), (-1.0, -1.0), 1.0, 0.0),
        ("grpo", (1.5, 1.5), (1.0, 1.0), 0.0, 1.0),
        ("grpo", (0.5, 1.5), (1.0, -1.0), 0.0, 0.0),
        ("grpo", (0.9, 1.1), (-1.0, 1.0), 0.0, 0.0),
        ("cispo", (0.5, 7.0), (1.0, -1.0), 0.0, 0.5),  # a weight is clipped whatever the advantage
    ],
)
def test_how_often_a_ratio_is_clipped(
    method: str, ratios: tuple[float, ...], advantages: tuple[float, ...], low: float, high: float
) -> None:
    view = probe()
    unranked = {"rank_S": torch.full((2,), -1), "old_logps_T": torch.full((2,), -1.0)}
    batch = replace(view.batch, advantages_T=torch.tensor(advantages), **unranked)
    view = replace(view, batch=batch, logps_T=torch.tensor(ratios).log() - 1)
    found = METHODS[method].metrics(view, METHODS[method].options)
    shares = [found[f"clip_ratio/{name}_mean"] for name in ("low", "high", "region")]
    assert [share.total / share.count for share in shares] == [low, high, low + high]


@pytest.mark.parametrize("monitored", [False, True])
def test_rewards_of_a_loss_without_a_reference_do_not_depend_on_who_watches(monitored: bool) -> None:
    row = METHODS["online_dpo"].using({"loss": "simpo"})
    view = probe(reference=monitored)
    chosen = float(row.metrics(view, {"loss": "simpo"})["rewards/chosen"].total)
    expected = row.metrics(probe(reference=False), {"loss": "simpo"})["rewards/chosen"].total
    assert chosen == pytest.approx(float(expected))


def test_an_ensembles_rank_without_rankings_adds_nothing() -> None:
    """A rank with fewer passes than another reads batches of which nothing is learned."""
    view = replace(probe(), scores_S=torch.zeros(2, 3))
    batch = idle(view.batch)
    empty = replace(view, batch=batch, scores_S=torch.zeros(0, 3), step_logits_J=None, learns_SE=None)
    assert METHODS["reward_ranking"].terms(empty)[0].values.sum() == 0


def test_good_values_pass() -> None:
    METHODS["dpo"].check_options({"beta": 1, "divergence": "alpha", "alpha": 0.3})
    METHODS["wpo"].check_options({"max_weight": None})
    METHODS["wpo"].check_options({"max_weight": 1})
    METHODS["ipo"].check_options({"length_normalized": True})
    METHODS["cpo"].check_options({"length_normalized": True, "nll_weight": 0})


def test_a_library_user_gets_a_value_error_too() -> None:
    zero = torch.zeros(1)
    with pytest.raises(DomainError) as caught:
        losses.robust_dpo(zero, zero, zero, zero, label_smoothing=0.7)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match="shapes differ"):
        losses.dpo(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="chosen_len"):
        losses.ipo(zero, zero, zero, zero, length_normalized=True)


@pytest.mark.parametrize(
    ("name", "mix", "says"),
    [
        ("dpo", {"stf": 0.1}, "did you mean 'sft'"),
        ("dpo", {"kto": 0.1}, "kto reads labels"),
        ("kto", {"sft": 0.1}, "sft reads demonstrations"),
        ("dpo", {"reward": 0.1}, "reward reads pairs"),
        ("dpo", {"aot": 0.1}, "couples"),
        ("reward_ties", {"reward": 0.1}, "reward reads pairs"),
        ("dpo", {"sft": "much"}, "expected a number"),
        ("grpo", {"sft": 0.1}, "sft reads demonstrations"),
        ("grpo", {"best_of_n": 0.1}, "best_of_n samples its own answers"),
        ("grpo", {"online_dpo": 1.0}, "online_dpo samples its own answers"),
        ("grpo", {"dr_grpo": 0.5}, "dr_grpo samples its own answers"),
        ("online_dpo", {"grpo": 1.0}, "grpo samples its own answers"),
        ("online_dpo", {"online_ipo": 1.0}, "online_ipo samples its own answers"),
        ("online_dpo", {"aot": 1.0}, "couples"),
        ("online_dpo", {"pl_dpo": 1.0}, "pl_dpo reads rankings"),
        ("best_of_n", {"dpo": 1.0}, "dpo reads pairs"),
    ],
)
def test_what_cannot_be_mixed(name: str, mix: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        METHODS[name].check_options({}, mix)


def test_what_can_be_mixed() -> None:
    METHODS["dpo"].check_options({}, {"sft": 0.2, "hinge": 1})
    METHODS["pl_dpo"].check_options({}, {"sft": 0.2, "dpo": 1.0})
    METHODS["orpo"].check_options({}, {"sft": 0.0})
    METHODS["online_dpo"].check_options({}, {"sft": 0.2, "ipo": 1})
    METHODS["xpo"].check_options({}, {"sft": 0.2})
    METHODS["star"].check_options({}, {"dft": 0.2})
    assert METHODS["orpo"].mixed({"sft": 0.5}).plus == {"sft": 0.5}


# --- metrics ----------------------------------------------------------------------------------------------------------


def pair(chosen: float, rejected: float) -> Row:
    """One token each, reference at -1."""
    return Row(
        tuple(Sequence_((x, -1.0), (-1.0, -1.0), (-1.0, -1.0), score=x, rank=k, label=k == 0) for k, x in enumerate((chosen, rejected)))
    )


def test_metrics_are_sums_and_counts_in_their_units() -> None:
    view = view_of([pair(-0.5, -2.0), pair(-1.0, -1.0), pair(-3.0, -1.0)])
    found = METHODS["dpo"].metrics(view, {"beta": 0.5})
    assert found["rewards/chosen"] == pytest.approx((0.5 * (0.5 + 0 - 2), 3))
    assert found["rewards/rejected"] == pytest.approx((0.5 * (-1), 3))
    assert found["rewards/margins"] == pytest.approx((0.5 * (1.5 - 2), 3))
    assert found["rewards/accuracies"] == (1.5, 3)
    assert found["logps/chosen"] == pytest.approx((-4.5 - 3, 3))
    assert found["logps/rejected"] == pytest.approx((-4.0 - 3, 3))
    assert found["kl"] == pytest.approx((-2.5, 6))
    assert found["entropy"] == pytest.approx((8.5 + 6, 12))
    assert METHODS["dpo_norm"].metrics(view)["rewards/margins"] == pytest.approx((5 * (1.5 - 2) / 2, 3))
    assert METHODS["ipo"].metrics(view, {"length_normalized": True})["rewards/margins"] == pytest.approx((0.1 * -0.5 / 2, 3))


def test_metrics_without_reference_by_label_and_of_scores() -> None:
    view = view_of([pair(-0.5, -2.0), pair(-3.0, -1.0)])
    alone = METHODS["simpo"].metrics(replace(view, ref_logps_T=None))
    assert "kl" not in alone
    assert alone["rewards/chosen"] == pytest.approx((2 * (-1.5 - 4) / 2, 2))
    thumbs = METHODS["kto"].metrics(view)
    assert thumbs["rewards/chosen"] == pytest.approx((0.1 * (0.5 - 2), 2))
    assert thumbs["logps/rejected"] == pytest.approx((-3 - 2, 2))
    assert "rewards/margins" not in thumbs
    scores = METHODS["reward"].metrics(replace(view, step_logits_J=None))
    assert scores["rewards/margins"] == pytest.approx((1.5 - 2, 2))
    assert scores["rewards/accuracies"] == (1.0, 2)
    assert scores["scores/mean"] == pytest.approx((-6.5, 4))


def test_a_step_is_right_on_the_side_of_its_label() -> None:
    view = view_of(rows(3, completions=1))
    logits, labels = torch.tensor([2.0, -1.0, 0.5, -0.5, -3.0]), torch.tensor([1.0, 0.0, 0.0, 0.7, 0.2])
    batch = replace(view.batch, step_index_J=torch.arange(5), step_label_J=labels)
    assert METHODS["prm"].metrics(replace(view, batch=batch, step_logits_J=logits, scores_S=None)) == {"steps/accuracy": (3, 5)}


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_has_a_unit_and_no_gradient(name: str) -> None:
    found = METHODS[name].metrics(view_of(rows(3)))
    assert set(found) <= set(UNITS_OF_METRICS)
    assert all(isinstance(stat.total, float) and stat.count > 0 for stat in found.values())


# --- the pages --------------------------------------------------------------------------------------------------------


def test_the_table_lists_every_method_on_one_line() -> None:
    lines = explain().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    column = lines[0].index("paper")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_all_there_is_to_know(name: str) -> None:
    page, method = explain(name), METHODS[name]
    assert page.startswith(f"{name}\n")
    assert ">>>" not in page
    for part in (method.paper, DATA[method.data], f"{method.learning_rate:g}", method.summary, *method.options):
        assert part in page
    assert ("  kl:" in page) == method.needs_reference


def test_defaults_are_shown_as_users_write_them() -> None:
    page = explain("ipo")
    assert "  beta=0.1" in page
    assert "  length_normalized=false" in page
    assert "  centering=0.0" in explain("reward")
    assert "  max_weight=null" in explain("wpo")


def test_an_unknown_method_is_answered_with_a_guess() -> None:
    with pytest.raises(OptionError, match="did you mean 'simpo'"):
        explain("simppo")
