"""Learn every claim's population, measure its distance to theory, and say so in one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from prefopt.errors import OptionError, did_you_mean
from prefopt.losses.methods import METHODS
from prefopt.verify.claims import CLAIMS, Claim
from prefopt.verify.learn import Kind

BOUNDS: dict[Kind, float] = {"table": 0.001, "transformer": 0.02}


@dataclass(frozen=True)
class Verdict:
    """A claim put to the test: who learned, and how far from theory it ended."""

    claim: Claim
    learner: Kind
    distance: float

    @property
    def bound(self) -> float:
        """The largest distance allowed."""
        return BOUNDS[self.learner] if self.claim.bound is None else self.claim.bound

    @property
    def holds(self) -> bool:
        """Whether the distance is within the bound (NaN is not)."""
        return self.distance <= self.bound


LEARNERS: tuple[Kind, ...] = ("table", "transformer")


def verify(method: str | None = None, *, learners: Sequence[Kind] | None = None, processes: int = 1) -> Iterator[Verdict]:
    """Put the claims of one method, or of all, to the test.

    Args:
        method: a row of METHODS; all when not given.
        learners: the tabular policy, the tiny transformer; both when not given.
        processes: how many claims are tried at a time.

    Raises:
        OptionError: no such method.
    """
    if method is not None and method not in METHODS:
        raise OptionError(f"'{method}' is no method", fix=did_you_mean(method, METHODS))
    claims = [(n, claim) for n, claim in enumerate(CLAIMS) if method in (None, claim.method)]
    tasks = [(n, learner) for n, claim in claims for learner in learners or LEARNERS if learner in claim.learners]
    yield from _tried(tasks, min(processes, len(tasks)))


def _tried(tasks: Sequence[tuple[int, Kind]], processes: int) -> Iterator[Verdict]:
    """One thread a process: the tensors are small, and threads would wait for one another."""
    if processes <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (Verdict(CLAIMS[n], learner, _distance((n, learner))) for n, learner in tasks)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        distances = pool.map(_distance, tasks)
        yield from (Verdict(CLAIMS[n], learner, distance) for (n, learner), distance in zip(tasks, distances, strict=True))


def _distance(task: tuple[int, Kind]) -> float:
    return CLAIMS[task[0]].tried(task[1])


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


WIDTHS = (17, 48, 11, 8, 5)


def heading() -> str:
    """The first line of the table."""
    return _line("method", "learns", "learner", "distance", "bound", "verdict")


def line(verdict: Verdict) -> str:
    """One line of the table."""
    state = "holds" if verdict.holds else "FAILS"
    return _line(verdict.claim.method, verdict.claim.says, verdict.learner, f"{verdict.distance:.1e}", f"{verdict.bound:g}", state)


def table(verdicts: Iterable[Verdict]) -> str:
    """All verdicts under a heading."""
    return "\n".join([heading(), *map(line, verdicts)])


def _line(*cells: str) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)), cells[-1]])
