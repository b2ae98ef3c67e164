"""Where the trees of an optimizer step come from. Methods that learn from a data set and those that sample differ in this alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from prefopt.pack.plan import Plan
from prefopt.training.job import Job
from prefopt.training.loop import evaluate
from prefopt.types import TokenTree


class Stream(Protocol):
    """The rows of every step, as a function of the seed, the step and (for samples) the policy."""

    @property
    def ended(self) -> str:
        """Why the run has to end before its last step; "" while it may go on."""
        ...

    @property
    def restarts(self) -> int:
        """Steps after which the learning rate's schedule begins anew, because the weights do; 0 for never."""
        ...

    def step(self, step: int) -> list[TokenTree]:
        """The trees of optimizer step `step` (0-based); none where there is nothing to learn from."""
        ...

    def metrics(self, step: int) -> Mapping[str, float]:
        """What is to be logged with the step besides its own metrics."""
        ...

    def evaluate(self, first: int | None = None) -> dict[str, float]:
        """Metrics on the held-out rows, or on the first of them, under names that begin with "eval/"."""
        ...

    def finish(self) -> str:
        """Called after the last step, before the model is saved; a line to print, or ""."""
        ...

    def state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint after `step` steps must hold: tensors and plain values."""
        ...

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        ...


class Rows:
    """The rows of a data set in a planned order."""

    ended = ""
    restarts = 0

    def __init__(self, job: Job, train: Sequence[TokenTree], heldout: Sequence[TokenTree], plan: Plan) -> None:
        self.job, self.train, self.heldout, self.plan = job, train, heldout, plan

    def step(self, step: int) -> list[TokenTree]:
        """See `Stream`."""
        return [self.train[i] for i in self.plan.step(step)]

    def metrics(self, step: int) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def evaluate(self, first: int | None = None) -> dict[str, float]:
        """See `Stream`."""
        return evaluate(self.job, self.heldout[:first])

    def finish(self) -> str:
        """Nothing."""
        return ""

    def state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing: the order is a function of the seed and the step."""
        return {}, {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Nothing to take back."""
