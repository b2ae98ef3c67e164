"""How judging that fails is tried again, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.worker import WorkerError

GIVE_UP = 4
"""So many answers that fail one after another, none before them judged, say that the rest would too."""


def one_by_one(ask: Callable[[Sequence[Rolled]], list[Verdict]], rolled: Sequence[Rolled], *, retries: int) -> list[Verdict]:
    """All answers in one call; where it fails each alone, `retries` times more; what fails then has no value and says why."""
    if not rolled:
        return []
    try:
        return ask(rolled)
    except WorkerError as error:
        if len(rolled) == 1 and retries == 0:
            return [Verdict(None, note=str(error))]
    found: list[Verdict] = []
    failed = 0  # the first ones, one after another
    for answer in rolled:
        if failed == GIVE_UP:
            found.append(Verdict(None, note=f"not tried: the {GIVE_UP} before it failed, the last one with {found[GIVE_UP - 1].note}"))
            continue
        try:
            found.append(_alone(ask, answer, retries))
        except WorkerError as error:
            failed += failed == len(found)
            found.append(Verdict(None, note=f"{error} (tried {1 + retries} times)" if retries else str(error)))
    return found


def _alone(ask: Callable[[Sequence[Rolled]], list[Verdict]], answer: Rolled, retries: int) -> Verdict:
    for _ in range(retries):
        with suppress(WorkerError):
            return ask([answer])[0]
    return ask([answer])[0]
