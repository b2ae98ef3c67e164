"""Machines that read an answer byte by byte: strings it must not hold, strings it must hold, and several conditions at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

from prefopt.errors import OptionError
from prefopt.rollout.constrain.regex import LAST, Regex, span
from prefopt.settings import RolloutSettings

SEARCHED = 20_000
"""States of several conditions that are looked at for a way to an answer, before one is taken for granted."""


class Machine(Protocol):
    """Reads a text byte by byte. States are hashable."""

    start: Any

    def step(self, state: Any, byte: int) -> Any:
        """The state after one more byte; None where no text that begins so is allowed."""
        ...

    def accepts(self, state: Any) -> bool:
        """Whether the text may end here."""
        ...


class Strings:
    """Which of some strings a text holds. A state is what was found, and the longest end of the text that begins one of them."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = [string.encode() for string in strings]
        self._beginnings = {string[:n] for string in self.strings for n in range(len(string) + 1)}
        self.start: tuple[frozenset[int], bytes] = (frozenset(), b"")

    def step(self, state: tuple[frozenset[int], bytes], byte: int) -> tuple[frozenset[int], bytes]:
        """One more byte."""
        found, tail = state
        tail += bytes([byte])
        new = {number for number, string in enumerate(self.strings) if tail.endswith(string)}
        while tail not in self._beginnings:
            tail = tail[1:]
        return found | new if new - found else found, tail


class Banned(Strings):
    """No text that holds one of the strings."""

    def step(self, state: Any, byte: int) -> Any:
        """One more byte."""
        after = super().step(state, byte)
        return None if after[0] else after

    def accepts(self, state: Any) -> bool:
        """Every text that got here."""
        return True


class Required(Strings):
    """A text may end only when it holds all of the strings."""

    def accepts(self, state: Any) -> bool:
        """All were found."""
        return len(state[0]) == len(self.strings)


class All:
    """Several conditions at once.

    An expression may leave no way to go on that meets the others: a state from which no text leads to where all accept is refused. It is
    searched for by letters of which each stands for all that every machine reads alike.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self.start: tuple[Hashable, ...] = tuple(machine.start for machine in machines)
        self._regex = next((place for place, machine in enumerate(machines) if isinstance(machine, Regex)), None)
        self._own = {ord(c) for machine in machines if isinstance(machine, Strings) for string in machine.strings for c in string.decode()}
        borders = {0}.union(*(machine.borders() for machine in machines if isinstance(machine, Regex)))
        self._letters = sorted(self._own | {self._other(border) for border in borders})
        self._alive: dict[Any, bool] = {}

    def step(self, state: Any, byte: int) -> Any:
        """One more byte."""
        after = self._step(state, byte)
        return after if after is not None and self.alive(after) else None

    def accepts(self, state: Any) -> bool:
        """Each of them does."""
        return all(machine.accepts(part) for machine, part in zip(self._machines, state, strict=True))

    def alive(self, state: Any) -> bool:
        """Whether some text leads from here to where all accept: strings alone always leave one, an expression may not."""
        if self._regex is not None and state not in self._alive:
            self._search(state)
        return self._alive.get(state, True)

    def _search(self, state: Any) -> None:
        """Breadth first; what is found out holds for all states on the way there, or for all that were reached."""
        came: dict[Any, Any] = {state: None}
        todo = deque([state])
        while todo:
            at = todo.popleft()
            if self._alive.get(at) or self.accepts(at):
                while at is not None:
                    self._alive[at] = True
                    at = came[at]
                return
            if len(came) > SEARCHED:
                self._regex = None
                return
            new = dict.fromkeys((after for after in self._reached(at) if after not in came and self._alive.get(after, True)), at)
            came |= new
            todo += new
        self._alive |= dict.fromkeys(came, False)

    def _reached(self, state: Any) -> Iterator[Any]:
        """The states after one more letter, or after the rest of one that has begun."""
        assert self._regex is not None
        begun = state[self._regex][1]
        low, high, _ = (span(begun) if begun else None) or (0, LAST, False)
        for letter in {self._other(low), *self._letters}:
            if low <= letter <= high:
                after = state
                for byte in chr(letter).encode()[len(begun) :]:
                    after = None if after is None else self._step(after, byte)
                if after is not None:
                    yield after

    def _step(self, state: Any, byte: int) -> Any:
        after = tuple(machine.step(part, byte) for machine, part in zip(self._machines, state, strict=True))
        return None if None in after else after

    def _other(self, letter: int) -> int:
        """The first character from here on that is in none of the strings; halves of surrogate pairs are no characters."""
        while letter in self._own or 0xD800 <= letter <= 0xDFFF:
            letter += 1
        return letter


def constraint(settings: RolloutSettings) -> Machine | None:
    """What the settings say an answer may be; None where it may be anything.

    Raises:
        OptionError: an expression that cannot be used, an empty string, a string both banned and required, no answer that meets all, or
            stop strings, which may end an answer before it meets them.
    """
    for name in ("regex", "required"):
        if settings.stop and getattr(settings, name):
            what = f"a stop string may end an answer before it meets rollout.{name}"
            raise OptionError(what, where="rollout.stop", fix=f"leave one of rollout.stop and rollout.{name} out")
    machines: list[Machine] = [Regex(settings.regex)] if settings.regex is not None else []
    for name, make in (("banned", Banned), ("required", Required)):
        strings = listed(getattr(settings, name), f"rollout.{name}")
        if strings:
            machines.append(make(strings))
    clash = [r for r in listed(settings.required, "") for b in listed(settings.banned, "") if b in r]
    if clash:
        raise OptionError(f"{clash[0]!r} is required but holds a banned string", where="rollout.required", fix="see rollout.banned")
    if len(machines) < 2:
        return machines[0] if machines else None
    whole = All(machines)
    if not whole.alive(whole.start):
        what = "no answer that matches holds all required strings and none that is banned: the constraints exclude each other"
        raise OptionError(what, where="rollout.regex", fix="see rollout.required and rollout.banned")
    return whole


def stopper(settings: RolloutSettings) -> Strings | None:
    """What finds the stop strings in an answer; None where there are none."""
    strings = listed(settings.stop, "rollout.stop")
    return Strings(strings) if strings else None


def listed(value: str | Sequence[str], where: str) -> list[str]:
    """One string or several, none of them empty."""
    strings = [value] if isinstance(value, str) else list(value)
    if "" in strings:
        raise OptionError("an empty string is in every text", where=where, fix="leave it out")
    return strings
