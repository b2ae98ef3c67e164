"""Machines that read an answer byte by byte: strings it must not hold, strings it must hold, and several conditions at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from prefopt.errors import OptionError
from prefopt.rollout.constrain.regex import Regex
from prefopt.settings import RolloutSettings


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
    """Several conditions at once."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self.start: tuple[Hashable, ...] = tuple(machine.start for machine in machines)

    def step(self, state: Any, byte: int) -> Any:
        """One more byte."""
        after = tuple(machine.step(part, byte) for machine, part in zip(self._machines, state, strict=True))
        return None if None in after else after

    def accepts(self, state: Any) -> bool:
        """Each of them does."""
        return all(machine.accepts(part) for machine, part in zip(self._machines, state, strict=True))


def constraint(settings: RolloutSettings) -> Machine | None:
    """What the settings say an answer may be; None where it may be anything.

    Raises:
        OptionError: an expression that cannot be used, an empty string, or a string both banned and required.
    """
    machines: list[Machine] = [Regex(settings.regex)] if settings.regex is not None else []
    for name, make in (("banned", Banned), ("required", Required)):
        strings = listed(getattr(settings, name), f"rollout.{name}")
        if strings:
            machines.append(make(strings))
    clash = [r for r in listed(settings.required, "") for b in listed(settings.banned, "") if b in r]
    if clash:
        raise OptionError(f"{clash[0]!r} is required but holds a banned string", where="rollout.required", fix="see rollout.banned")
    return None if not machines else machines[0] if len(machines) == 1 else All(machines)


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
