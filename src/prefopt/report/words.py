"""Numbers as people read them, and text that can be shown safely."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
_SHOWN = {"\n": "\n", "\t": "\t"}


def number(value: Any, digits: int = 3) -> str:
    """About three significant digits, grouped thousands, a real minus sign.

    >>> number(-0.12345), number(16000), number(1e-5), number(3.0), number(None)
    ('−0.123', '16,000', '1e−5', '3', '–')
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}".replace("-", MINUS)
    text = f"{value:,.{max(0, digits - 1 - size)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def fixed(value: Any, decimals: int = 2) -> str:
    """A fixed number of decimals, so that a column of figures lines up.

    >>> fixed(-0.5), fixed(float("nan"))
    ('−0.50', '–')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    text = f"{value:,.{decimals}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", MINUS)


def percent(value: Any, decimals: int = 0) -> str:
    """A share in percent.

    >>> percent(0.715), percent(0.0049, 1)
    ('72%', '0.5%')
    """
    return "–" if not isinstance(value, int | float) or not math.isfinite(value) else f"{fixed(100 * value, decimals)}%"


def duration(seconds: Any) -> str:
    """Seconds as people say them.

    >>> duration(3.4), duration(75), duration(7300)
    ('3.4 s', '1 min 15 s', '2 h 1 min')
    """
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 60:
        return f"{number(round(seconds, 1))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: Any, word: str) -> str:
    """A count with its noun.

    >>> counted(1, "step"), counted(1500, "prompt")
    ('1 step', '1,500 prompts')
    """
    return f"{number(count, 9)} {word}{'' if count == 1 else 's'}"


def listed(words: list[str]) -> str:
    """Words as a sentence lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def shown(text: Any, limit: int = 1200) -> str:
    """Text of anybody's making with what cannot be seen made visible: control characters, marks that turn the direction of writing.

    >>> shown("a\\x00b\\u202ec")
    'a␀b[U+202E]c'
    """
    text = text if isinstance(text, str) else str(text)
    cut = text[:limit] + (f" … ({len(text) - limit:,} more characters)" if len(text) > limit else "")
    return "".join(_visible(c) for c in cut)


def _visible(c: str) -> str:
    if c in _SHOWN or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return c
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cs" else f"[U+{ord(c):04X}]"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; what is not set is left out.

    >>> flat({"train": {"steps": 3, "limit": None}})
    {'train.steps': 3}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found
