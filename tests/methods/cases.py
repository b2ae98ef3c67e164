"""Rows of made-up log-probs, and the View a training step would make of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prefopt.losses.columns import View
from prefopt.losses.methods import Method
from prefopt.losses.reduce import count, reduce
from prefopt.types import Batch

KL, DELTA, ROOM = 0.3, 0.2, 8.0


@dataclass(frozen=True)
class Sequence_:
    """One completion: its tokens' log-probs under policy and reference, and what the data says of it."""

    logps: tuple[float, ...]
    ref: tuple[float, ...]
    collision: tuple[float, ...]
    score: float = 0.0
    rank: int = -1
    label: bool = False
    steps: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Row:
    """A prompt's completions; the first two are a pair when `paired`."""

    sequences: tuple[Sequence_, ...]
    margin: float = 0.0
    paired: bool = True
    tied: bool = False


def rows(count: int = 5, *, seed: int = 0, completions: int = 2) -> list[Row]:
    """Random rows; pairs unless more completions are asked for, whose ranks are shuffled."""
    rng = random.Random(seed)

    def tokens(n: int, low: float = -2.5) -> tuple[float, ...]:
        return tuple(rng.uniform(low, -0.05) for _ in range(n))

    def sequence(k: int, rank: int) -> Sequence_:
        n = rng.randint(1, 6)
        steps = tuple((rng.gauss(0, 1.5), float(rng.random() < 0.5)) for _ in range(k + 1))
        return Sequence_(tokens(n), tokens(n), tokens(n, -1.0), rng.gauss(0, 1.5), rank, rng.random() < 0.5, steps)

    made = []
    for _ in range(count):
        ranks = list(range(completions))
        if completions > 2:
            rng.shuffle(ranks)
        made.append(Row(tuple(sequence(k, rank) for k, rank in enumerate(ranks)), rng.uniform(0, 1)))
    return made


def rows_for(method: Method, count: int = 5, seed: int = 0) -> list[Row]:
    """Rows of the kind the method reads."""
    one = 2 if method.unit == "pair" else 1
    made = rows(count, seed=seed, completions={"rankings": 4, "pairs": 2, "judgements": 2}.get(method.data, one))
    return [replace(row, tied=method.data == "judgements" and i % 2 == 1) for i, row in enumerate(made)]


def view_of(made: Sequence[Row], *, dtype: torch.dtype = torch.float64) -> View:
    """The View of the rows, its policy values leaves that want gradients."""
    flat = [s for row in made for s in row.sequences]
    owner = [p for p, row in enumerate(made) for _ in row.sequences]
    first = [owner.index(p) for p in range(len(made))]
    pairs = [p for p, row in enumerate(made) if row.paired and len(row.sequences) > 1]
    lengths = torch.tensor([len(s.logps) for s in flat], dtype=torch.int64)
    steps = [step for s in flat for step in s.steps]

    def per_token(field: str) -> torch.Tensor:
        return torch.tensor([x for s in flat for x in getattr(s, field)], dtype=dtype)

    empty = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        ids_BC=empty[None],
        positions_BC=empty[None],
        source_T=empty,
        target_T=empty,
        sequence_T=torch.repeat_interleave(torch.arange(len(flat)), lengths),
        last_S=torch.arange(len(flat)),
        prompt_S=torch.tensor(owner, dtype=torch.int64),
        length_S=lengths,
        chosen_N=torch.tensor([first[p] for p in pairs], dtype=torch.int64),
        rejected_N=torch.tensor([first[p] + 1 for p in pairs], dtype=torch.int64),
        margin_N=torch.tensor([made[p].margin for p in pairs], dtype=torch.float32),
        tied_N=torch.tensor([made[p].tied for p in pairs], dtype=torch.bool),
        rank_S=torch.tensor([s.rank for s in flat], dtype=torch.int64),
        label_S=torch.tensor([s.label for s in flat], dtype=torch.float32),
        step_index_J=torch.arange(len(steps)),
        step_label_J=torch.tensor([label for _, label in steps], dtype=torch.float32),
        index_P=torch.arange(len(made)),
        sampled_T=per_token("ref"),
        old_logps_T=per_token("ref"),
        advantages_T=torch.tensor([s.score for s in flat for _ in s.logps], dtype=dtype),
    )
    return View(
        batch=batch,
        logps_T=per_token("logps").requires_grad_(),
        ref_logps_T=per_token("ref").requires_grad_(),
        scores_S=torch.tensor([s.score for s in flat], dtype=dtype, requires_grad=True),
        step_logits_J=torch.tensor([z for z, _ in steps], dtype=dtype, requires_grad=True),
        collision_T=per_token("collision"),
        entropy_T=-per_token("logps").detach(),
        room=torch.tensor(ROOM, dtype=dtype),
        kl=torch.tensor(KL, dtype=dtype),
        delta=torch.tensor(DELTA, dtype=dtype),
    )


def leaf(method: Method, view: View) -> torch.Tensor:
    """What the method's gradient goes to."""
    value = view.logps_T if method.reads == "logps" else view.step_logits_J if method.unit == "step" else view.scores_S
    assert value is not None
    return value


def total(method: Method, view: View, denominators: dict[str, float] | None = None, **options: object) -> torch.Tensor:
    """The loss of the view as a step would compute it."""
    counts = denominators or {unit: float(count(view.batch, unit)) for unit in method.units}
    return reduce(method.terms(view, options), counts)


def gradient(method: Method, view: View, denominators: dict[str, float] | None = None, **options: object) -> torch.Tensor:
    """d loss / d leaf."""
    (found,) = torch.autograd.grad(total(method, view, denominators, **options), leaf(method, view))
    return found
