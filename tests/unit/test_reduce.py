"""The one normalisation: denominators of the whole step, units that mean what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefopt.losses import METHODS, nll
from prefopt.losses.methods import Method
from prefopt.losses.reduce import Term, count, reduce
from tests.methods.cases import Row, rows, view_of


def test_terms_are_divided_by_their_own_unit_and_weighted() -> None:
    terms = [Term(torch.tensor([1.0, 3.0]), "pair"), Term(torch.tensor([10.0]), "token", 0.5)]
    assert reduce(terms, {"pair": 4, "token": 2}).item() == pytest.approx(1.0 + 2.5)


def test_a_step_without_terms_is_zero_and_an_uncounted_unit_is_an_error() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    assert reduce([Term(nothing.sum()[None][:0], "pair")], {"pair": 0}).item() == 0
    with pytest.raises(KeyError):
        reduce([Term(torch.ones(1), "list")], {"pair": 1})


def test_counts() -> None:
    made = rows(3, completions=3)
    made[0] = replace(made[0], sequences=made[0].sequences[:1])
    batch = view_of(made).batch
    best = [s for row in made for s in row.sequences if s.rank <= 0]
    assert count(batch, "token") == sum(len(s.logps) for s in best)
    assert count(batch, "sequence") == 7
    assert count(batch, "pair") == 2
    assert count(batch, "list") == 2
    assert count(batch, "step") == sum(len(s.steps) for row in made for s in row.sequences)
    with pytest.raises(ValueError, match="unknown unit 'epoch'"):
        count(batch, "epoch")


def test_a_sequence_mean_of_token_losses_is_a_mean_of_means() -> None:
    made: list[Row] = rows(4, completions=1)
    view = view_of(made)
    by_sequence = Method(nll, "sequence", "demonstrations", "", 1e-5)
    means = [-sum(s.logps) / len(s.logps) for row in made for s in row.sequences]
    found = reduce(by_sequence.terms(view), {"sequence": 4})
    assert found.item() == pytest.approx(sum(means) / 4)
    tokens = [x for row in made for s in row.sequences for x in s.logps]
    assert reduce(METHODS["sft"].terms(view), {"token": len(tokens)}).item() == pytest.approx(-sum(tokens) / len(tokens))
