"""What a training step works with: the model, the method, the reference, and one forward pass over a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prefopt.losses.columns import View
from prefopt.losses.methods import Method
from prefopt.losses.reduce import count
from prefopt.model.forward import policy_logps, reward_outputs
from prefopt.model.reference import Reference
from prefopt.pack.plan import micro_batches, share
from prefopt.training import distributed
from prefopt.training.memory import Load
from prefopt.training.optim import Optimizer
from prefopt.types import Batch, Stat, TokenTree


@dataclass
class Job:
    """A method with its options on a model; `shift` (BCO's running mean rewards) is all that changes besides the weights."""

    method: Method
    options: Mapping[str, Any]
    model: Any
    optimizer: Optimizer
    reference: Reference | None
    lay_out: Callable[[Sequence[TokenTree]], Batch]
    micro_tokens: int
    load: Load
    padded: bool = False
    learns_RE: Tensor | None = None
    """Of a reward model with several outputs, which of them learn from each row of the data (by `TokenTree.index`), bool."""
    looking_at: Batch | None = None
    """The last batch that went through the model, to be named when memory runs out."""
    shift: dict[str, Stat] = field(default_factory=dict)

    def batches(self, trees: Sequence[TokenTree]) -> list[Batch]:
        """This rank's share of the trees, cut into forward passes."""
        mine = share(trees, distributed.rank(), distributed.world_size())
        return [self.lay_out(micro) for micro in micro_batches(mine, self.micro_tokens, padded=self.padded)]

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Denominators: how many of each unit the whole step holds over all ranks; and its positions and pairs, for the speed."""
        units = self.method.units | {"pair"}
        counts = {unit: float(sum(count(batch, unit) for batch in batches)) for unit in sorted(units)}
        return distributed.add_up(counts | {"positions": float(sum(batch.tokens for batch in batches))})

    def look(self, batch: Batch, *, stats: bool = False, **known: Any) -> View:
        """One forward pass of policy and reference: everything the loss's columns are made from.

        Args:
            batch: laid out as this job's model takes it.
            stats: measure entropy too.
            known: what the coupling found out about the whole step (`kl`, `delta`).
        """
        self.looking_at = batch
        if self.method.reads == "scores":
            found = reward_outputs(self.model, batch, steps=self.method.unit == "step", logps="logps" in self.method.readings)
            learns = None if self.learns_RE is None else self.learns_RE[batch.index_P[batch.prompt_S]]
            return View(batch=batch, learns_SE=learns, **found)
        reference = self.reference.logps(batch) if self.reference is not None else None
        out = policy_logps(self.model, batch, stats=stats or self.method.needs_collision)
        return View(
            batch=batch,
            logps_T=out.logps_T,
            ref_logps_T=reference,
            entropy_T=out.entropy_T,
            collision_T=out.collision_T,
            **known,
        )
