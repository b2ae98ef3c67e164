"""Population gradients: packing, columns, units and reduction give the gradient that listing every draw by hand gives.

A table of logits is the policy; the loss is differentiated down to the table. By hand means: each draw's tokens one by one from their
prefix, sums and lengths by Python, one call of the loss on all draws, one mean. With labels and steps mixed into `test_verify`'s claims
this covers every column a loss may read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.columns import View
from prefopt.losses.methods import METHODS
from prefopt.losses.reduce import count, reduce
from prefopt.types import Branch, TokenTree
from prefopt.verify import claims
from prefopt.verify.population import Population

KL, DELTA = 0.3, 0.2
DRAWS: Mapping[str, Callable[[], Population]] = {
    "pairs": claims.with_margins,
    "labels": claims.thumbs,
    "rankings": claims.rankings,
    "demonstrations": claims.demonstrations,
    "text": claims.demonstrations,
}
COVERED = [name for name, row in METHODS.items() if row.reads == "logps" and row.data in DRAWS]


class Listed:
    """What one table of logits says of one draw's branches, token by token."""

    def __init__(self, table: Tensor, population: Population) -> None:
        self.table, self.population = table, population

    def tokens(self, tree: TokenTree, branch: Branch) -> tuple[Tensor, Tensor]:
        """Log-probs [n] of a branch and log Σ p² [n] of the distributions they come from."""
        prefix = tuple(tree.prompt.tolist())
        logps, collisions = [], []
        for token in branch.ids.tolist():
            law = self.table[self.population.places[prefix]].log_softmax(-1)
            logps.append(law[token])
            collisions.append((2 * law.detach()).logsumexp(0))
            prefix = (*prefix, token)
        return torch.stack(logps), torch.stack(collisions)

    def total(self, tree: TokenTree, branch: Branch) -> Tensor:
        return self.tokens(tree, branch)[0].sum()

    def parts(self, tree: TokenTree, branch: Branch) -> Tensor:
        shared = min(len(b.ids) for b in tree.branches)
        logps = self.tokens(tree, branch)[0]
        return torch.stack([logps[:shared].sum(), logps[shared:].sum()])

    def weight(self, tree: TokenTree, branch: Branch) -> Tensor:
        logps, collisions = self.tokens(tree, branch)
        return (logps - collisions).mean().exp()


def columns(trees: list[TokenTree], policy: Listed, reference: Listed) -> dict[str, Callable[[], Any]]:
    """Column -> how it is made one draw at a time."""

    def stacked(make: Callable[[TokenTree, Branch], Any], at: int) -> Callable[[], Tensor]:
        return lambda: torch.stack([torch.as_tensor(make(tree, tree.branches[at]), dtype=torch.float64) for tree in trees])

    def ranked(listed: Listed) -> Callable[[], Tensor]:
        best_first = [sorted(tree.branches, key=lambda b: b.rank or 0) for tree in trees]
        rows = zip(trees, best_first, strict=True)
        return lambda: torch.stack([torch.stack([listed.total(tree, branch) for branch in branches]) for tree, branches in rows])

    found: dict[str, Callable[[], Any]] = {
        "policy": stacked(policy.total, 0),
        "reference": stacked(reference.total, 0),
        "label": lambda: torch.tensor([bool(tree.branches[0].label) for tree in trees]),
        "logps": lambda: torch.cat([policy.tokens(tree, tree.branches[0])[0] for tree in trees]),
        "margin": stacked(lambda tree, _: tree.margin, 0),
        "kl": lambda: torch.tensor(KL, dtype=torch.float64),
        "delta": lambda: torch.tensor(DELTA, dtype=torch.float64),
        "logps_NK": ranked(policy),
        "ref_logps_NK": ranked(reference),
    }
    for at, side in enumerate(("chosen", "rejected")):
        found |= {side: stacked(policy.total, at), f"ref_{side}": stacked(reference.total, at)}
        found |= {f"{side}_parts": stacked(policy.parts, at), f"ref_{side}_parts": stacked(reference.parts, at)}
        found |= {f"{side}_weight": stacked(policy.weight, at), f"{side}_len": stacked(lambda _, branch: len(branch.ids), at)}
    return found


def by_hand(name: str, trees: list[TokenTree], policy: Listed, reference: Listed) -> Tensor:
    """The loss of all draws, and the rows added to it."""
    row, known = METHODS[name], columns(trees, policy, reference)
    value = row.loss(**{argument: known[source]() for argument, source in row.arguments.items()}, **row.options).mean()
    for added, weight in row.plus.items():
        value = value + weight * by_hand(added, trees, policy, reference)
    return value


@pytest.mark.parametrize("name", COVERED)
def test_the_gradient_of_the_population(name: str) -> None:
    row = METHODS[name]
    population = DRAWS[row.data]()
    trees = list(population.trees[:: max(1, len(population.trees) // 25)])
    torch.manual_seed(0)
    policy, reference = (torch.randn(population.whole.tokens, 3, dtype=torch.float64) for _ in range(2))
    policy.requires_grad_()
    batch = population.lay_out(trees)

    def logps(table: Tensor) -> Tensor:
        return table[batch.source_T].log_softmax(-1).gather(1, batch.target_T[:, None])[:, 0]

    collision_T = (2 * policy.detach()[batch.source_T].log_softmax(-1)).logsumexp(1)
    scalars = {"kl": torch.tensor(KL, dtype=torch.float64), "delta": torch.tensor(DELTA, dtype=torch.float64)}
    view = View(batch=batch, logps_T=logps(policy), ref_logps_T=logps(reference), collision_T=collision_T, **scalars)
    found = reduce(row.terms(view), {unit: count(batch, unit) for unit in row.units})
    expected = by_hand(name, trees, Listed(policy, population), Listed(reference, population))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(loss, policy)[0] for loss in (found, expected)]
    assert slopes[1].abs().max() > 0
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-12)
