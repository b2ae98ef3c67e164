"""What can be seen of an answer without understanding it: courtesy, hedges, refusals, format, repetition. English."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prefopt.text.refusal import refuses

_I = re.IGNORECASE
_PATTERNS = {
    "courtesy": re.compile(
        r"\b(thank(s| you)|please|happy to help|you'?re welcome|of course|certainly|gladly|nice day|all the best)\b", _I
    ),
    "apology": re.compile(r"\b(sorry|apologi[sz]e|apologies|unfortunately)\b", _I),
    "flattery": re.compile(r"\b((great|good|excellent|brilliant|wonderful) (question|choice|idea|point)|you are so)\b", _I),
    "hedge": re.compile(r"\b(i think|i believe|perhaps|maybe|probably|it seems|may be|might be|not sure)\b", _I),
    "list": re.compile(r"^\s*([-*\u2022]|\d+[.)])\s", re.MULTILINE),
    "bold or heading": re.compile(r"\*\*\S|^#+ ", re.MULTILINE),
    "code block": re.compile(r"```"),
    "exclamation": re.compile(r"!"),
}
MARKERS: dict[str, Callable[[str], object]] = {**{name: pattern.search for name, pattern in _PATTERNS.items()}, "refusal": refuses}
"""Name -> whether an answer has it."""


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Share of n-grams of tokens that were there before, in [0, 1]; 0 for answers with fewer than two of them.

    >>> repetition([1, 2, 3, 4, 5]), repetition([1, 2, 3] * 5)
    (0.0, 0.769...)
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
