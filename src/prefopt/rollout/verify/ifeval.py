"""Instructions a program can check (IFEval, arXiv 2311.07911): each kind by its published id, with its published arguments.

`CHECKS[id](text, **arguments)` says whether an answer follows one. Written from the paper's table and the public prompts; sentences are
counted and languages told by code of our own, so borderline answers may be judged otherwise than by the authors' code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefopt.errors import DataError, did_you_mean
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.verify.language import CODES
from prefopt.rollout.verify.language import language as language_of
from prefopt.types import Example

_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Inc|Ltd|Co|[A-Z])\.")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def compared(count: int, wanted: str, limit: int) -> bool:
    """Whether a count is "at least" or "less than" a limit."""
    return {"at least": count >= limit, "less than": count < limit}[wanted]


def sentences(text: str) -> int:
    """How many sentences a text has: ends of sentences followed by space, a heading or a list item counting as one."""
    told = _ABBREVIATION.sub("x", re.sub(r"(\d)\.(\d)", r"\1\2", text))
    return sum(bool(re.search(r"\w", part)) for part in re.split(r"[.!?…。！？]+[\"'”’)\]*]*(?:\s|$)|\n\s*\n", told))


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def _found(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Parts between dividers ***; only the first and the last may be empty, and then do not count."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner_empty = any(not part.strip() for part in parts[1:-1])
    return not inner_empty and sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by blank lines."""
    parts = re.split(r"\n\n", text)
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    first = parts[nth_paragraph - 1].split()[:1]
    return bool(first) and re.split(r"[.,?!'\"]", first[0].lstrip("'\""))[0].lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    spelled = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(postscript_marker, re.escape(postscript_marker.lower()))
    return bool(re.search(rf"\s*{spelled}.*$", text.lower(), re.MULTILINE))


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", text) if part.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) - 1 >= num_sections


def _json(text: str) -> bool:
    """As the authors' code reads it: a fence may stand before it, after it, or on its line."""
    told = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        told = told.removeprefix(fence)
    try:
        json.loads(told.removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


def _in_language(text: str, language: str) -> bool:
    code = language.lower().partition("-")[0]  # zh-cn, pt-br
    if code not in CODES:
        raise ValueError(f"language {language!r} is not told from others; these are: {', '.join(CODES)}")
    return language_of(text) == code


def _two(text: str) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    given = [part.strip() for part in parts if part.strip()]
    return len(given) == 2 and given[0] != given[1]


def _capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    return compared(sum(word.isupper() for word in re.findall(r"[\w'’-]+", text)), capital_relation, capital_frequency)


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(_found(re.escape(word), text) for word in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: compared(_found(re.escape(keyword), text), relation, frequency),
    "keywords:forbidden_words": lambda text, forbidden_words: not any(_found(rf"\b{re.escape(word)}\b", text) for word in forbidden_words),
    "keywords:letter_frequency": lambda text, letter, let_relation, let_frequency: compared(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "language:response_language": _in_language,
    "length_constraints:number_sentences": lambda text, num_sentences, relation: compared(sentences(text), relation, num_sentences),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, num_words, relation: compared(len(words(text)), relation, num_words),
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: len(re.findall(r"\[.*?\]", text)) >= num_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(choice in text for choice in _CHOICES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text: any(found.strip("<> ") for found in re.findall(r"<<[^\n]+>>", text)),
    "combination:two_responses": _two,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: text.strip().lower().startswith(prompt_to_repeat.strip().lower()),
    "startend:end_checker": lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == '"' == text.strip()[-1],
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text: text.isupper() and language_of(text) in ("en", None),
    "change_case:english_lowercase": lambda text: text.islower() and language_of(text) in ("en", None),
    "punctuation:no_comma": lambda text: "," not in text,
}
"""Id -> check."""


def instructions(example: Example) -> list[tuple[str, dict[str, Any]]]:
    """The instructions of a row: ids from `instruction_id_list`, arguments from `kwargs`.

    Raises:
        DataError: it has none, unknown ones, or arguments that do not fit.
    """
    ids, given = example.meta.get("instruction_id_list"), example.meta.get("kwargs")
    if not isinstance(ids, Sequence) or not isinstance(given, Sequence) or len(ids) != len(given) or not ids:
        what = "the row has no instructions; looked for instruction_id_list and kwargs, lists of one length"
        raise DataError(what, where=example.where, fix="use rows in IFEval's layout")
    for name in ids:
        if name not in CHECKS:
            raise DataError(f"unknown instruction '{name}'", where=example.where, fix=did_you_mean(str(name), CHECKS))
    return [(name, {key: value for key, value in (own or {}).items() if value is not None}) for name, own in zip(ids, given, strict=True)]


def followed(example: Example, text: str) -> list[bool]:
    """Which of the row's instructions an answer follows.

    Raises:
        DataError: instructions that cannot be read.
    """
    found = []
    for name, arguments in instructions(example):
        try:
            found.append(bool(text.strip()) and bool(CHECKS[name](text, **arguments)))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"the arguments of {name} do not fit: {error}", where=example.where, fix="see the published prompts") from None
    return found


def loosely(text: str) -> list[str]:
    """The forms of an answer of which one has to pass in IFEval's loose accuracy: without asterisks, first or last line, or several."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [text, *cut[1:], *(form.replace("*", "") for form in [text, *cut[1:]])]


def followed_loosely(example: Example, text: str) -> list[bool]:
    """Which instructions one of the loose forms follows."""
    forms = [followed(example, form) for form in loosely(text)]
    return [any(passed) for passed in zip(*forms, strict=True)]


class InstructionReward:
    """1 where an answer follows every instruction of its row, else 0; the share it follows is the part `followed`."""

    def check(self, examples: Sequence[Example]) -> None:
        """Every row has instructions this can check.

        Raises:
            DataError: one has not.
        """
        for example in examples:
            followed(example, "one answer, to try the arguments on")

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """One verdict an answer; the note names what it does not follow."""
        return [_verdict(answer.example, followed(answer.example, answer.sample.text)) for answer in rolled]


def _verdict(example: Example, kept: Sequence[bool]) -> Verdict:
    broken = [name for (name, _), one in zip(instructions(example), kept, strict=True) if not one]
    parts: Mapping[str, float] = {"followed": sum(kept) / len(kept)}
    return Verdict(float(all(kept)), parts, "not followed: " + ", ".join(broken) if broken else "")
