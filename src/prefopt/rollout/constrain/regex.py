r"""Regular expressions as machines that read a text byte by byte and know at each point whether it can still match.

Python's syntax without what is not regular (backreferences, lookaround) and without flags; \d, \w and \s are the ASCII classes. The whole
answer has to match. States are sets of positions in the expression, made as they are reached.
"""

from __future__ import annotations

import re._constants as op  # type: ignore[import-untyped,unused-ignore] # the words of Python's own parser
import re._parser as parser  # type: ignore[import-untyped,unused-ignore]
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from re import error as BadExpression
from typing import Any

from prefopt.errors import OptionError

Ranges = tuple[tuple[int, int], ...]
"""Characters as sorted, separate ranges of code points, both ends included."""
State = tuple[frozenset[int], bytes]
"""Where the expression can be, and the bytes of a character that is not complete."""

LAST = 0x10FFFF
LARGEST = 20_000
"""Positions an expression may take; counted repeats are written out."""
_CLASSES: dict[Any, Ranges] = {
    op.CATEGORY_DIGIT: ((48, 57),),
    op.CATEGORY_WORD: ((48, 57), (65, 90), (95, 95), (97, 122)),
    op.CATEGORY_SPACE: ((9, 13), (32, 32)),
}
_OPPOSITE = {
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
}


class Regex:
    """A machine (see `machines.Machine`) that accepts what the expression matches.

    >>> machine = Regex("[ab]+c?")
    >>> state = machine.start
    >>> for byte in b"abc":
    ...     state = machine.step(state, byte)
    >>> machine.accepts(state), machine.step(state, ord("c"))
    (True, None)
    """

    def __init__(self, pattern: str) -> None:
        self._nfa = _Nfa()
        try:
            tree = parser.parse(pattern)
        except (BadExpression, RecursionError, OverflowError) as error:
            raise OptionError(f"not a regular expression: {error}", where="rollout.regex", fix=pattern[:80]) from None
        if tree.state.flags & ~parser.SRE_FLAG_UNICODE:
            raise OptionError("flags are not supported in constraints", where="rollout.regex", fix="write the alternatives out: [aA]")
        begin = self._nfa.new()
        self._end = self._nfa.sequence(begin, tree)
        self.start: State = (self._closed([begin]), b"")
        self._next = cache(self._follow)

    def step(self, state: State, byte: int) -> State | None:
        """The state after one more byte; None where nothing that begins so matches."""
        return self._next(state, byte)

    def borders(self) -> set[int]:
        """Where a class of characters begins, and where one has ended: between two of these all characters are read alike."""
        return {border for moves in self._nfa.moves for ranges, _ in moves for low, high in ranges for border in (low, high + 1)}

    def accepts(self, state: State) -> bool:
        """Whether what was read matches."""
        return not state[1] and self._end in state[0]

    def _follow(self, state: State, byte: int) -> State | None:
        positions, pending = state
        read = pending + bytes([byte])
        found = span(read)
        if found is None:
            return None
        low, high, complete = found
        moves = [move for position in positions for move in self._nfa.moves[position]]
        if not complete:
            return (positions, read) if any(_meets(ranges, low, high) for ranges, _ in moves) else None
        reached = [target for ranges, target in moves if _meets(ranges, low, low)]
        return (self._closed(reached), b"") if reached else None

    def _closed(self, positions: Iterable[int]) -> frozenset[int]:
        """The positions, and those reached from them without reading."""
        found, todo = set(positions), list(positions)
        while todo:
            for target in self._nfa.empty[todo.pop()]:
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)


@dataclass
class _Nfa:
    """Positions, and how they follow each other: by a character, or by nothing."""

    moves: list[list[tuple[Ranges, int]]] = field(default_factory=list)
    empty: list[list[int]] = field(default_factory=list)

    def new(self) -> int:
        """One more position."""
        if len(self.moves) >= LARGEST:
            raise OptionError(f"the expression takes more than {LARGEST} positions", where="rollout.regex", fix="lower its counts {m,n}")
        self.moves.append([])
        self.empty.append([])
        return len(self.moves) - 1

    def sequence(self, begin: int, items: Any) -> int:
        """Items one after another from `begin`; where they end."""
        for code, value in items:
            begin = self._item(begin, code, value)
        return begin

    def _item(self, begin: int, code: Any, value: Any) -> int:
        if code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            end = self.new()
            self.moves[begin].append((_ranges(code, value), end))
            return end
        if code is op.SUBPATTERN and not value[1] and not value[2]:
            return self.sequence(begin, value[3])
        if code is op.BRANCH:
            end = self.new()
            for branch in value[1]:
                self.empty[self.sequence(begin, branch)].append(end)
            return end
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self._repeat(begin, *value)
        if code is op.AT and value in (op.AT_BEGINNING, op.AT_BEGINNING_STRING, op.AT_END, op.AT_END_STRING):
            return begin  # the whole answer has to match anyway
        raise OptionError(
            f"'{code}' is not supported in constraints", where="rollout.regex", fix="use characters, classes, groups, | and counts"
        )

    def _repeat(self, begin: int, least: int, most: Any, items: Any) -> int:
        for _ in range(least):
            begin = self.sequence(begin, items)
        if most is op.MAXREPEAT:
            loop, end = self.new(), self.new()
            self.empty[begin].append(loop)
            self.empty[self.sequence(loop, items)].append(loop)
            self.empty[loop].append(end)
            return end
        end = self.new()
        for _ in range(most - least):
            self.empty[begin].append(end)
            begin = self.sequence(begin, items)
        self.empty[begin].append(end)
        return end


def _ranges(code: Any, value: Any) -> Ranges:
    """The characters of one item."""
    if code is op.LITERAL:
        return ((value, value),)
    if code is op.NOT_LITERAL:
        return _without(((value, value),))
    if code is op.ANY:
        return _without(((10, 10),))
    negated = value[0][0] is op.NEGATE
    found: list[tuple[int, int]] = []
    for kind, what in value[1:] if negated else value:
        if kind is op.LITERAL:
            found.append((what, what))
        elif kind is op.RANGE:
            found.append(what)
        else:
            found += _without(_CLASSES[_OPPOSITE[what]]) if what in _OPPOSITE else _CLASSES[what]
    merged = tuple(sorted(found))
    return _without(merged) if negated else merged


def _without(ranges: Ranges) -> Ranges:
    """All other characters."""
    found, at = [], 0
    for low, high in ranges:
        if low > at:
            found.append((at, low - 1))
        at = max(at, high + 1)
    return tuple(found) + (((at, LAST),) if at <= LAST else ())


def _meets(ranges: Ranges, low: int, high: int) -> bool:
    return any(first <= high and last >= low for first, last in ranges)


@cache
def span(read: bytes) -> tuple[int, int, bool] | None:
    """The first and last code point whose UTF-8 begins with these bytes, and whether it is complete; None where there is none."""
    lead = read[0]
    size = 1 if lead < 0x80 else 2 if 0xC2 <= lead <= 0xDF else 3 if 0xE0 <= lead <= 0xEF else 4 if 0xF0 <= lead <= 0xF4 else 0
    if not size or len(read) > size or any(not 0x80 <= byte <= 0xBF for byte in read[1:]):
        return None
    value = lead if size == 1 else lead & (0xFF >> (size + 1))
    for byte in read[1:]:
        value = value << 6 | byte & 0x3F
    missing = 6 * (size - len(read))
    low = max(value << missing, {1: 0, 2: 0x80, 3: 0x800, 4: 0x10000}[size])
    high = min((value + 1 << missing) - 1, LAST)
    return (low, high, not missing) if low <= high else None
