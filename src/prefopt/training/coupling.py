"""What a few methods must know before the first loss of an optimizer step, so that micro-batches cannot change them.

mismatched_kl   KTO's z0: the mean log-ratio of all completions under other rows' prompts, without gradient
reward_shift    BCO's delta: the running mean reward of both classes over the steps before this one
batch           losses that sort or otherwise mix rows (AOT): dL/dlogp is found once, from a pass without gradient over the whole
                step; each micro-batch then back-propagates its part of it, which is exact by the chain rule
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from prefopt.errors import OptionError
from prefopt.losses.reduce import reduce
from prefopt.model.forward import evaluating, limit_of
from prefopt.pack.plan import mismatched
from prefopt.training import distributed
from prefopt.training.job import Job
from prefopt.training.meter import Meter
from prefopt.types import Batch, Stat, TokenTree


@dataclass(frozen=True)
class Coupling:
    """`known` goes into every view of the step; `loss` and `slopes` (dL/dlogp_T, one tensor a micro-batch) replace the loss itself."""

    known: Mapping[str, Any] = field(default_factory=dict)
    loss: float | None = None
    slopes: Sequence[torch.Tensor] = ()


def couple(job: Job, trees: Sequence[TokenTree], batches: Sequence[Batch], counts: Mapping[str, float]) -> Coupling:
    """What the job's method must know of the step's trees (of all ranks) and this rank's batches.

    Raises:
        OptionError: a method that mixes rows runs on several ranks.
    """
    if job.method.coupling == "mismatched_kl":
        return Coupling({"kl": mismatched_kl(job, trees)})
    if job.method.coupling == "reward_shift":
        return Coupling({"delta": torch.tensor(mean_of_classes(job.shift), dtype=torch.float32)})
    if job.method.coupling == "batch":
        if distributed.world_size() > 1:
            raise OptionError("this method's loss mixes the rows of a step", fix="run it as one process")
        return whole_step(job, batches, counts)
    return Coupling()


@torch.no_grad()
def mismatched_kl(job: Job, trees: Sequence[TokenTree]) -> torch.Tensor:
    """mean_i of log pi/ref of another row's completions under prompt i (arXiv 2402.01306, section 4.1); the loss clamps it at 0.

    0 for a step of one row, as the last of an epoch can be: it has no other row.
    """
    if len(trees) < 2:
        return torch.zeros(())
    total = rows = 0.0
    for batch in job.batches(mismatched(trees, limit_of(job.model))):
        with evaluating(job.model):
            view = job.look(batch)
        assert view.logps_T is not None
        assert view.ref_logps_T is not None
        total += float((view.logps_T - view.ref_logps_T).sum())
        rows += batch.sequences
    summed = distributed.add_up({"total": total, "rows": rows})
    return torch.tensor(summed["total"] / summed["rows"], dtype=torch.float32)


def mean_of_classes(shift: Mapping[str, Stat]) -> float:
    """delta = (mean desirable reward + mean undesirable reward) / 2 (arXiv 2404.04656); a class not yet seen counts 0."""
    return sum(stat.total / stat.count for stat in shift.values() if stat.count) / 2


def remember(job: Job, meter: Meter) -> None:
    """Add the step's rewards of both classes to BCO's running means, over all ranks."""
    if job.method.coupling != "reward_shift":
        return
    for name in ("rewards/chosen", "rewards/rejected"):
        step = meter.stats.get(name, Stat(0.0, 0.0))
        added = distributed.add_up({"total": step.total, "count": step.count})
        before = job.shift.get(name, Stat(0.0, 0.0))
        job.shift[name] = Stat(before.total + added["total"], before.count + added["count"])


@torch.no_grad()
def whole_step(job: Job, batches: Sequence[Batch], counts: Mapping[str, float]) -> Coupling:
    """The loss of the step as one batch, and its slope at every scored token."""
    views = [job.look(batch) for batch in batches]
    whole = merge(batches)
    columns = {name: [getattr(view, name) for view in views] for name in ("logps_T", "ref_logps_T", "entropy_T", "collision_T")}
    known = {name: torch.cat(parts) for name, parts in columns.items() if parts[0] is not None}
    logps_T = known["logps_T"].requires_grad_()
    view = replace(views[0], batch=whole, **known)
    with torch.enable_grad():
        loss = reduce(job.terms(view), counts)
        (slope_T,) = torch.autograd.grad(loss, logps_T)
    return Coupling(loss=float(loss), slopes=slope_T.split([len(batch.source_T) for batch in batches]))


def merge(batches: Sequence[Batch]) -> Batch:
    """The flat columns of several batches as one; it has no layout and cannot be run through a model."""
    sequences = prompts = 0
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        offset = {"sequence_T": sequences, "chosen_N": sequences, "rejected_N": sequences, "prompt_S": prompts}
        for name, column in vars(batch).items():
            if isinstance(column, torch.Tensor) and name not in ("ids_BC", "positions_BC", "mask_BC"):
                parts.setdefault(name, []).append(column + offset.get(name, 0) if name in offset else column)
        sequences, prompts = sequences + batch.sequences, prompts + len(batch.index_P)
    return replace(batches[0], **{name: torch.cat(columns) for name, columns in parts.items()}, spans=None, mask_BC=None)
