"""How judging that fails is tried again, and when it is given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.worker import WorkerError

GIVE_UP = 4
"""So many answers that fail one after another, to as many prompts where there are, none before them judged, say that the rest would too."""


def one_by_one(ask: Callable[[Sequence[Rolled]], list[Verdict]], rolled: Sequence[Rolled], *, retries: int) -> list[Verdict]:
    """All answers in one call; where it fails each alone, `retries` times more; what fails then has no value and says why."""
    if not rolled:
        return []
    try:
        return ask(rolled)
    except WorkerError as error:
        if len(rolled) == 1 and retries == 0:
            return [Verdict(None, note=str(error))]
    found: dict[int, Verdict] = {}
    failed, last = 0, ""  # the first ones, one after another
    for place in _in_turn(rolled):
        if failed == GIVE_UP:
            found[place] = Verdict(None, note=f"not tried: the {GIVE_UP} before it failed, the last one with {last}")
            continue
        try:
            found[place] = _alone(ask, rolled[place], retries)
        except WorkerError as error:
            last, failed = str(error), failed + (failed == len(found))
            found[place] = Verdict(None, note=f"{error} (tried {1 + retries} times)" if retries else last)
    return [found[place] for place in range(len(rolled))]


def _in_turn(rolled: Sequence[Rolled]) -> list[int]:
    """The places of the answers, first one to each prompt, then another to each: one prompt says nothing of the others."""
    seen: Counter[int] = Counter()
    turn = []
    for answer in rolled:
        turn.append(seen[id(answer.example)])
        seen[id(answer.example)] += 1
    return sorted(range(len(rolled)), key=turn.__getitem__)


def _alone(ask: Callable[[Sequence[Rolled]], list[Verdict]], answer: Rolled, retries: int) -> Verdict:
    for _ in range(retries):
        with suppress(WorkerError):
            return ask([answer])[0]
    return ask([answer])[0]
