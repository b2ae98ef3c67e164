r"""The final answer inside a solution, and whether two plain numbers are the same.

A solution says its answer in one of these ways; the first that occurs counts, and of several of a kind the last
(of sentences the last that holds mathematics or, where a number is asked for, that has one):

    \boxed{...}      #### ... (or a line "A: ...")      "the answer is ..." or "Answer: ..."      the last $...$      the last number
"""

from __future__ import annotations

import re
from fractions import Fraction

_MARK = re.compile(r"####\s*(.+)|^A:[ \t]*(.+)", re.MULTILINE)
_SAID = re.compile(r"(?:answer|(?<!as a )result)\b[^\n.:=]{0,30}?(?:\bis\b|:|=)\s*:?[ \t]*\n?(?=(.+))", re.IGNORECASE)
_INLINE = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+(?![\w.]*\d))?")
_PLAIN = re.compile(r"([-+]?)\$?\s*((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:\s?/\s?(\d+))?\s*(?:\\?%)?\.?")
_UNIT = re.compile(r"\\(?:text|mathrm|mbox)\{([^}]*)\}(?:\^\{?[23]\}?)?|\\[%$!, ]")
# bold, and tags around an answer
_MARKUP = re.compile(r"\*\*|</?[A-Za-z]{2,}>")
# a sentence that holds mathematics, or is one letter
_MATHS = re.compile(r"[\d\\^_=+*/<>(\[{]|\A[A-Za-z]\W*\Z")
# beside a number these make an expression of it
_MORE = re.compile(r"\d|[\^!*+<>≤≥±×÷√]|[-/](?!\s?[A-Za-z]{2})")
# numbers of something else: "for 6 shirts"
_OTHER = re.compile(r"\b(?!(?:and|or|to|plus|minus|times)\b)[A-Za-z]{2,}\s\$?\d[\d,.]*(?!\w)")
# several values: "x = 3, y = 5"
_SEVERAL = re.compile(r"=[^=]*(?:[,;]|\bor\b|\band\b)\s*\w+\s*=[^=]*\Z")
# a letter right after a number that is no unit
_GLUED = re.compile(r"(?!(?:[kcm]?m|[km]?g|ml|l|oz|lbs?|ft|hrs?|h|mins?|s|mph|st|nd|rd|th)\b)[A-Za-zα-ω_]")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_THIN = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")


def final_answer(text: str, *, number: bool = False) -> str | None:
    """What a solution says its answer is; None where it says none.

    Args:
        text: the solution.
        number: a plain number is asked for, so the last one in the text will do, and units beside it are left out.

    >>> final_answer("6 * 3 = 18, so she earns 18 dollars.", number=True)
    '18'
    >>> final_answer(r"Hence $x = 3$ and so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    text = text.replace("−", "-").replace("\\$", "$")
    text = _grouped(text) if number else text
    found = boxed(text)
    if found is None:
        found = _last(_MARK, text)
    if found is None:
        said = [_shortened(match[1].strip(), number) for match in _SAID.finditer(text)]
        if number:  # a sentence without one, such as "I hope this answer is helpful", says nothing
            return next((told for sentence in reversed(said) if (told := _number_in(sentence)) is not None), _last_number(text))
        found = next((told for told in reversed(said) if _MATHS.search(told)), (said or [""])[-1]) or None
    if number:
        return _number_in(found) if found is not None else _last_number(text)
    return found if found is not None else _last(_INLINE, text) or _last_number(text)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \fbox{...}), its own braces balanced."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin, depth = text.index("{", start), 0
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin + 1 : at].strip()
    return None


def plain_number(text: str) -> Fraction | None:
    r"""A number written plainly, exactly; None for anything else. A currency or percent sign is no part of it.

    >>> plain_number("$1,250.50"), plain_number("3/4"), plain_number(r"\frac{6}{8}"), plain_number("x")
    (Fraction(2501, 2), Fraction(3, 4), Fraction(3, 4), None)
    """
    text = _grouped(text.strip().strip("$").strip().replace("−", "-"))
    found = _FRACTION.fullmatch(text) or _PLAIN.fullmatch(text)
    if found is None:
        return None
    sign, whole, under = found.groups()
    value = Fraction(whole.replace(",", "").rstrip("."))
    if under is not None:
        if int(under) == 0:
            return None
        value /= int(under)
    return -value if sign == "-" else value


def _grouped(text: str) -> str:
    r"""Thousands as plain text has them: TeX writes 10{,}000, 10,\!000 and 10\,000."""
    return _THIN.sub("", text.replace("\\!", "").replace("{,}", ","))


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = list(pattern.finditer(text))
    return next(group for group in found[-1].groups() if group is not None).strip() if found else None


def _shortened(said: str, number: bool) -> str:
    """The part of a sentence that is the answer: its mathematics where it has some, else all of it without the full stop.

    A number in words with an exclamation mark is no factorial.
    """
    inline = _last(_INLINE, said)
    return inline if inline is not None else re.split(r"[.!](?:\s|$)" if number else r"\.(?:\s|$)", said)[0].strip()


def _number_in(said: str) -> str | None:
    """The number of an answer that else has only words, units or "name ="; any other answer with digits whole, None without.

    >>> _number_in("x = 18 dollars for 6 shirts"), _number_in("3, 5"), _number_in("3x + 2"), _number_in("helpful")
    ('18', '3, 5', '3x + 2', None)
    """
    words = _MARKUP.sub(" ", _UNIT.sub(r" \1 ", said)).strip(" *_`")
    if plain_number(said) is not None or "\\" in words or _SEVERAL.search(words):
        return said
    told = words.rpartition("=")[2]
    told = told if _NUMBER.search(told) else words
    found = _NUMBER.search(told)
    if found is None:
        return said if re.search(r"\d", words) else None
    before, after = told[: found.start()], told[found.end() :]
    rest = _OTHER.sub(" ", before + " " + after)
    return said if _GLUED.match(after) or _MORE.search(rest) else found[0].strip()


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(_grouped(text))
    return found[-1].strip() if found else None
