"""What a training step works with: the model, the method, the reference, and one forward pass over a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.columns import View
from prefopt.losses.methods import Method, Unit
from prefopt.losses.policy import kl_penalty
from prefopt.losses.reduce import Term, count
from prefopt.losses.value import value_clip
from prefopt.model.forward import border_of, head_of, logps_and_hidden, reward_outputs
from prefopt.model.logprobs import token_kl, token_logps
from prefopt.model.reference import Reference
from prefopt.pack.plan import micro_batches, share
from prefopt.training import distributed
from prefopt.training.critic import Critic
from prefopt.training.memory import Load
from prefopt.training.optim import Optimizer
from prefopt.training.shard import as_many
from prefopt.types import Batch, Stat, TokenTree


@dataclass
class Penalty:
    """A KL term of the loss; its coefficient moves with the controller."""

    coefficient: float
    kind: str
    ratio: bool


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
    sharded: bool = False
    learns_RE: Tensor | None = None
    """Of a reward model with several outputs, which of them learn from each row of the data (by `TokenTree.index`), bool."""
    looking_at: Batch | None = None
    """The last batch that went through the model, to be named when memory runs out."""
    shift: dict[str, Stat] = field(default_factory=dict)
    critic: Critic | None = None
    penalty: Penalty | None = None
    entropy: float = 0.0
    """Weight of an entropy bonus."""
    room: int = 0
    """Tokens a sampled answer may have."""
    version: int = 0
    """Counts changes of the policy's weights."""
    temperature: float = 1.0
    """At which the policy's samples were drawn, and all log-probs are taken."""

    @property
    def paid_by(self) -> Unit:
        """What a KL penalty in the loss is the mean over: the method's own unit, but answers where it compares them."""
        return "token" if self.method.unit == "token" else "sequence"

    def batches(self, trees: Sequence[TokenTree]) -> list[Batch]:
        """This rank's share of the trees, cut into forward passes."""
        mine = share(trees, distributed.rank(), distributed.world_size())
        batches = [self.lay_out(micro) for micro in self.passes(mine)]
        return as_many(batches, lambda: self.lay_out(trees[:1])) if self.sharded else batches

    def passes(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        """The trees of each forward pass."""
        return micro_batches(trees, self.micro_tokens, padded=self.padded, border=border_of(self.model))

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Denominators: how many of each unit the whole step holds over all ranks; and its positions and pairs, for the speed."""
        units = self.method.units | {"pair", *(["token"] if self.critic or self.entropy else []), *([self.paid_by] if self.penalty else [])}
        counts = {unit: float(sum(count(batch, unit) for batch in batches)) for unit in sorted(units)}
        return distributed.add_up(counts | {"positions": float(sum(batch.tokens for batch in batches))})

    def look(self, batch: Batch, *, stats: bool = False, divergence: bool = False, **known: Any) -> View:
        """One forward pass of policy and reference: everything the loss's columns are made from.

        Args:
            batch: laid out as this job's model takes it.
            stats: measure entropy too.
            divergence: measure the KL to the reference of every token's distribution too.
            known: what the coupling found out about the whole step (`kl`, `delta`).
        """
        self.looking_at = batch
        if self.method.reads == "scores":
            found = reward_outputs(self.model, batch, steps=self.method.unit == "step", logps="logps" in self.method.readings)
            learns = None if self.learns_RE is None else self.learns_RE[batch.index_P[batch.prompt_S]]
            return View(batch=batch, learns_SE=learns, **found)
        reference, kl_T = self.reference.logps(batch) if self.reference is not None and not divergence else None, None
        measured = stats or self.method.needs_collision or self.entropy > 0
        out, hidden_TD = logps_and_hidden(self.model, batch, stats=measured, temperature=self.temperature)
        if self.reference is not None and divergence:
            states_TD, head = self.reference.states(batch)
            reference = token_logps(states_TD, batch.target_T, head).logps_T
            kl_T = token_kl(hidden_TD, head_of(self.model, self.temperature), states_TD, head)
        return View(
            batch=batch,
            logps_T=out.logps_T,
            ref_logps_T=reference,
            kl_T=kl_T,
            entropy_T=out.entropy_T,
            collision_T=out.collision_T,
            values_T=self.critic.values(batch, hidden_TD) if self.critic is not None else None,
            room=torch.tensor(float(self.room), device=batch.source_T.device),
            **known,
        )

    def terms(self, view: View) -> list[Term]:
        """The method's terms, and those of the KL penalty, the entropy bonus and the critic."""
        terms, batch = self.method.terms(view, self.options), view.batch
        if self.penalty is not None and view.logps_T is not None and view.ref_logps_T is not None:
            old = (view.logps_T.detach() if batch.old_logps_T is None else batch.old_logps_T) if self.penalty.ratio else None
            values = self.method.gathered(kl_penalty(view.logps_T, view.ref_logps_T, old, kind=self.penalty.kind), view)
            terms.append(Term(values, self.paid_by, self.penalty.coefficient / self.method.divided_by(view), "kl"))
        if self.entropy and view.entropy_T is not None:
            terms.append(Term(-view.entropy_T, "token", self.entropy, "entropy"))
        errors = self._errors(view)
        if errors is not None and self.critic is not None:
            terms.append(Term(errors, "token", self.critic.weight, "value"))
        return terms

    def _errors(self, view: View) -> torch.Tensor | None:
        """The critic's loss of every token."""
        batch = view.batch
        if view.values_T is None or batch.returns_T is None or batch.old_values_T is None or self.critic is None:
            return None
        return value_clip(view.values_T, batch.old_values_T, batch.returns_T, clip=self.critic.clip)

    def metrics(self, view: View) -> dict[str, Stat]:
        """The method's, and the critic's loss."""
        found = self.method.metrics(view, self.options)
        errors = self._errors(view)
        if errors is not None:
            found["loss/value"] = Stat(float(errors.detach().sum()), len(errors))
        return found

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The policy's, and the critic's where there is one."""
        return {"optimizer": self.optimizer, **({"critic": self.critic.optimizer} if self.critic is not None else {})}

    def accumulate(self) -> None:
        """Call after every backward pass."""
        for optimizer in self.optimizers.values():
            optimizer.accumulate()

    def update(self, lr_factor: float) -> float:
        """One step of policy and critic; the norm of the policy's gradient, or one of the critic's that is not finite."""
        for optimizer in self.optimizers.values():
            distributed.add_gradients(optimizer.weights.masters.values())
        self.version += 1
        norms = [optimizer.step(lr_factor) for optimizer in self.optimizers.values()]
        return next((norm for norm in norms if not math.isfinite(norm)), norms[0])
