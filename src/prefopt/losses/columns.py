"""Columns: what a loss's arguments are called and how each is read off a batch and its forward passes.

A method names columns by the argument names of its loss; the loss itself knows of no batch. Numbers come out in fp32 (float64 stays),
and a sequence that a column does not read cannot reach it, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.losses.numeric import difference, log_ratio, wide
from prefopt.losses.ragged import rankings, segment_mean, segment_sum, tokens_of
from prefopt.types import Batch


@dataclass(frozen=True, kw_only=True)
class View:
    """A batch and what the models said of it; None for what was not computed.

    Attributes:
        batch: the packed trees.
        logps_T, ref_logps_T: log-probs of the scored tokens under policy and reference, nats.
        scores_S: a reward model's score of each sequence. step_logits_J: its logit at each labelled step. With several outputs both have
            a column for each: [S, E], [J, E].
        learns_SE: which outputs learn from each sequence, bool; None for all.
        kl_T: KL(policy || reference) of the next-token distribution, nats.
        entropy_T: entropy of the policy's next-token distribution, nats. collision_T: log Σ_V p², nats (WPO).
        values_T: the critic's value of the state each scored token was chosen in, reward units.
        room: tokens an answer may have.
        kl: KTO's reference point before clamping, a scalar of the whole step. delta: BCO's reward shift, a scalar of the steps before.
    """

    batch: Batch
    logps_T: Tensor | None = None
    ref_logps_T: Tensor | None = None
    scores_S: Tensor | None = None
    step_logits_J: Tensor | None = None
    learns_SE: Tensor | None = None
    kl_T: Tensor | None = None
    entropy_T: Tensor | None = None
    collision_T: Tensor | None = None
    values_T: Tensor | None = None
    room: Tensor | None = None
    kl: Tensor | None = None
    delta: Tensor | None = None


Column = Callable[[View], Tensor]


def _given(view: View, name: str) -> Tensor:
    """A field of the view that has to be there, in fp32 or wider."""
    value: Tensor | None = getattr(view, name)
    if value is None:
        raise ValueError(f"this method reads View.{name}, which was not computed")
    return wide(value)


def best_T(batch: Batch) -> Tensor:
    """Which scored tokens likelihood terms learn [T] bool: those of unranked and of best-ranked completions."""
    return (batch.rank_S <= 0)[batch.sequence_T]


def _totals(field: str, side: str) -> Column:
    """[N] (or [S] with side "") summed log-probs."""

    def column(view: View) -> Tensor:
        sums_S = segment_sum(_given(view, field), view.batch.sequence_T, view.batch.sequences)
        return sums_S[getattr(view.batch, side)] if side else sums_S

    return column


def _length(side: str) -> Column:
    """[N] scored tokens, as floats."""
    return lambda view: view.batch.length_S[getattr(view.batch, side)].float()


def _score(side: str) -> Column:
    """[N] a reward model's scores."""
    return lambda view: _given(view, "scores_S")[getattr(view.batch, side)]


def _parts(field: str, side: str) -> Column:
    """[N, 2] log-probs summed over the first min(n_w, n_l) tokens, and over the rest (LD-DPO)."""

    def column(view: View) -> Tensor:
        batch = view.batch
        index, pair, place = tokens_of(getattr(batch, side), batch.length_S)
        shared_N = torch.minimum(batch.length_S[batch.chosen_N], batch.length_S[batch.rejected_N])
        logps, shared = _given(view, field)[index], place < shared_N[pair]
        halves = (torch.where(shared, logps, 0.0), torch.where(shared, 0.0, logps))
        return torch.stack([segment_sum(half, pair, batch.pairs) for half in halves], dim=-1)

    return column


def _weight(side: str) -> Column:
    """[N] WPO's weight exp(mean_t(l_t - log Σ_V p_t²))."""

    def column(view: View) -> Tensor:
        excess = difference(_given(view, "logps_T"), _given(view, "collision_T"))
        return segment_mean(excess, view.batch.sequence_T, view.batch.sequences).exp()[getattr(view.batch, side)]

    return column


def _signal(view: View, name: str, otherwise: Tensor | None = None) -> Tensor:
    """A signal of the tokens likelihood terms learn; `otherwise` where the round did not need to measure it."""
    value: Tensor | None = getattr(view.batch, name)
    if value is None and otherwise is None:
        raise ValueError(f"this method reads Batch.{name}, which only rollouts have")
    return wide(otherwise if value is None else value)[best_T(view.batch)]  # type: ignore[arg-type] # one of them is there


def _explored(view: View) -> Tensor:
    """[N] summed log-probs of that answer of each pair which the reference sampled: the one whose label is False."""
    chosen, rejected = COLUMNS["chosen"](view), COLUMNS["rejected"](view)
    return torch.where(COLUMNS["label"](view)[view.batch.chosen_N], rejected, chosen)


def _ranked(values: Column) -> Column:
    """[N, K] values of each ranked prompt's sequences, best first, -inf where a list is shorter."""

    def column(view: View) -> Tensor:
        values_S, table = values(view), rankings(view.batch.rank_S, view.batch.prompt_S)
        return torch.where(table >= 0, values_S[table.clamp(min=0)], -torch.inf)

    return column


COLUMNS: dict[str, Column] = {
    # pairs [N]
    "chosen": _totals("logps_T", "chosen_N"),
    "rejected": _totals("logps_T", "rejected_N"),
    "ref_chosen": _totals("ref_logps_T", "chosen_N"),
    "ref_rejected": _totals("ref_logps_T", "rejected_N"),
    "chosen_len": _length("chosen_N"),
    "rejected_len": _length("rejected_N"),
    "chosen_parts": _parts("logps_T", "chosen_N"),
    "rejected_parts": _parts("logps_T", "rejected_N"),
    "ref_chosen_parts": _parts("ref_logps_T", "chosen_N"),
    "ref_rejected_parts": _parts("ref_logps_T", "rejected_N"),
    "chosen_weight": _weight("chosen_N"),
    "rejected_weight": _weight("rejected_N"),
    "chosen_scores": _score("chosen_N"),
    "rejected_scores": _score("rejected_N"),
    "margin": lambda view: view.batch.margin_N.float(),
    "tied": lambda view: view.batch.tied_N,
    # sequences [S]
    "policy": _totals("logps_T", ""),
    "reference": _totals("ref_logps_T", ""),
    "label": lambda view: view.batch.label_S > 0.5,
    "outcome": lambda view: view.batch.label_S.float(),
    "length": lambda view: view.batch.length_S.float(),
    "scores": lambda view: _given(view, "scores_S"),
    # tokens [T]: those that likelihood terms learn
    "logps": lambda view: _given(view, "logps_T")[best_T(view.batch)],
    "ref_logps": lambda view: _given(view, "ref_logps_T")[best_T(view.batch)],
    "sequence": lambda view: view.batch.sequence_T[best_T(view.batch)],
    # tokens [T] of the policy's own samples
    "old_logps": lambda view: _signal(view, "old_logps_T", _given(view, "logps_T").detach()),
    "advantages": lambda view: _signal(view, "advantages_T"),
    "sampled": lambda view: _signal(view, "sampled_T"),
    "room": lambda view: _given(view, "room"),
    "explored": _explored,
    # lists [N, K]
    "scores_NK": _ranked(lambda view: _given(view, "scores_S")),
    "logps_NK": _ranked(_totals("logps_T", "")),
    "ref_logps_NK": _ranked(_totals("ref_logps_T", "")),
    # steps [J]
    "step_logits": lambda view: _given(view, "step_logits_J"),
    "step_labels": lambda view: view.batch.step_label_J.float(),
    # scalars of the whole optimizer step
    "kl": lambda view: _given(view, "kl"),
    "delta": lambda view: _given(view, "delta"),
}


def policy_ratio(view: View) -> Tensor:
    """L - L^ref of every sequence [S], nats; L alone where there is no reference."""
    policy = COLUMNS["policy"](view)
    return policy if view.ref_logps_T is None else log_ratio(policy, COLUMNS["reference"](view))


def probe(reference: bool = True, *, steps: bool | None = None) -> View:
    """The smallest view, on which a row's options can be tried before any model is loaded: one prompt, two completions of one token.

    Args:
        reference: whether there is a reference policy.
        steps: True for a reward model of steps only, False for one of answers only, None for everything.
    """
    two, one = torch.arange(2), torch.zeros(1, dtype=torch.int64)
    batch = Batch(
        ids_BC=torch.zeros(1, 3, dtype=torch.int64),
        positions_BC=torch.tensor([[0, 1, 1]]),
        source_T=torch.zeros(2, dtype=torch.int64),
        target_T=torch.zeros(2, dtype=torch.int64),
        sequence_T=two,
        last_S=two + 1,
        prompt_S=torch.zeros(2, dtype=torch.int64),
        length_S=torch.ones(2, dtype=torch.int64),
        chosen_N=one,
        rejected_N=one + 1,
        margin_N=torch.zeros(1),
        tied_N=torch.zeros(1, dtype=torch.bool),
        rank_S=two,
        label_S=(two == 0).float(),
        step_index_J=two + 1,
        step_label_J=torch.ones(2),
        index_P=one,
        advantages_T=torch.zeros(2),
    )
    flat, scalar = torch.full((2,), -1.0), torch.zeros(())
    return View(
        batch=batch,
        logps_T=flat,
        ref_logps_T=flat if reference else None,
        scores_S=None if steps else flat,
        step_logits_J=None if steps is False else flat,
        entropy_T=-flat,
        collision_T=flat,
        room=scalar + 1,
        kl=scalar,
        delta=scalar,
    )
