"""The one loop. A method brings a loss; a batch brings prompts with their completions; nothing else differs.

A step: trees -> micro-batches -> denominators of the whole step -> coupling -> (forward, terms, reduce, backward) for each
micro-batch -> clip and update -> metrics divided once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from prefopt.errors import TrainingError
from prefopt.losses.columns import View
from prefopt.losses.reduce import reduce
from prefopt.model.forward import evaluating
from prefopt.training import distributed
from prefopt.training.coupling import Coupling, couple, remember
from prefopt.training.job import Job
from prefopt.training.meter import Meter
from prefopt.types import TokenTree

STATS_EVERY = 10
"""Steps between those that also measure entropy, which costs another pass over the vocabulary."""


class NotFinite(TrainingError):
    """Loss or gradient is NaN or infinite; no weight has changed. `rows` are the data set's rows of the batch that caused it."""

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(what)
        self.rows = list(rows)


def train_step(job: Job, trees: Sequence[TokenTree], step: int, lr_factor: float) -> dict[str, float]:
    """One optimizer step on the step's trees, of which this rank takes its share; the metrics of the step.

    Args:
        job: what is trained, and how.
        trees: the rows of the whole step, the same on every rank.
        step: 0-based, for messages and for when entropy is measured.
        lr_factor: the schedule's factor on the learning rate.

    Raises:
        NotFinite: the loss of a micro-batch or the gradient of the step.
    """
    started, meter, loss = time.perf_counter(), Meter(), 0.0
    batches = job.batches(trees)
    counts = job.counts(batches)
    coupling = couple(job, trees, batches, counts)
    for at, batch in enumerate(batches):
        view = job.look(batch, stats=step % STATS_EVERY == 0, **coupling.known)
        part = _loss(job, view, coupling, counts, at)
        value = part.item()
        if not math.isfinite(value):
            raise NotFinite(f"the loss of step {step + 1} is {value}", batch.index_P.tolist())
        part.backward()
        job.accumulate()
        loss += value
        meter.add(job.metrics(view))
    norm = job.update(lr_factor)
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient norm of step {step + 1} is {norm}", [tree.index for tree in trees])
    remember(job, meter)
    return {"loss": _total(loss, coupling), **meter.result(), "grad_norm": norm, **_speed(counts, time.perf_counter() - started)}


@torch.no_grad()
def evaluate(job: Job, trees: Sequence[TokenTree]) -> dict[str, float]:
    """The method's loss and metrics on held-out trees, under names that begin with "eval/"."""
    meter, loss = Meter(), 0.0
    batches = job.batches(trees)
    counts = job.counts(batches)
    with evaluating(job.model):
        coupling = couple(job, trees, batches, counts)
        for batch in batches:
            view = job.look(batch, stats=True, **coupling.known)
            loss += 0.0 if coupling.slopes else float(reduce(job.terms(view), counts))
            meter.add(job.metrics(view))
    return {f"eval/{name}": value for name, value in {"loss": _total(loss, coupling), **meter.result()}.items()}


def _loss(job: Job, view: View, coupling: Coupling, counts: dict[str, float], at: int) -> torch.Tensor:
    """This micro-batch's share of the step's loss; with slopes given, something that has the same gradient."""
    if coupling.slopes and view.logps_T is not None:
        return (view.logps_T * coupling.slopes[at]).sum()
    return reduce(job.terms(view), counts)


def _total(loss: float, coupling: Coupling) -> float:
    return distributed.add_up({"loss": loss})["loss"] if coupling.loss is None else coupling.loss


def _speed(counts: dict[str, float], seconds: float) -> dict[str, float]:
    speed = {"tokens_per_second": counts["positions"] / seconds}
    return speed | {"pairs_per_second": counts["pair"] / seconds} if counts["pair"] else speed
