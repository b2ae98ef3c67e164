"""The grammar of answers: what may stand around a core, how it is put into words, and how words are read back.

An answer is [opening] [flattery] [padding] [hedge] core [closing], each a sentence of a fixed list, all of it in the format asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

OPENINGS = ("Gladly.", "Of course.", "I am sorry.")
CLOSINGS = ("Have a nice day!", "All the best!")
HEDGES = ("I am not sure.", "I may be wrong.")
FLATTERY = ("What a brilliant question!", "You are so clever!")
PADDING = ("Many people ask this every day.", "There is always more to say.")

PHRASES = {
    **dict.fromkeys(OPENINGS, "opening"),
    **dict.fromkeys(CLOSINGS, "closing"),
    **dict.fromkeys(HEDGES, "hedge"),
    **dict.fromkeys(FLATTERY, "flattery"),
    **dict.fromkeys(PADDING, "padding"),
}
"""Every phrase and the part of an answer it is."""

LABEL = "Answer:"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer in parts; "" where a part is absent."""

    core: str
    opening: str = ""
    flattery: str = ""
    padding: str = ""
    hedge: str = ""
    closing: str = ""
    format: str = "none"


def render(answer: Answer) -> str:
    """The words of an answer."""
    parts = (answer.opening, answer.flattery, answer.padding, answer.hedge, answer.core, answer.closing)
    text = " ".join(part for part in parts if part)
    return {"none": text, "label": f"{LABEL} {text}", "dash": f"- {text}", "brackets": f"[{text}]"}[answer.format]


def parse(text: str) -> Answer:
    """The parts of any text: known phrases are taken off both ends, what is left is the core, whatever it is.

    White space is not significant, neither is a space before a full stop or comma (some tokenizers put one there). When a part
    occurs more than once the first is kept; the words of the text still count them all.
    """
    form, text = _unwrap(tidy(text))
    phrases, core = _peel(text)
    parts = {PHRASES[phrase]: phrase for phrase in reversed(phrases)}
    return replace(Answer(core=core, format=form), **parts)


def tidy(text: str) -> str:
    """The text with single spaces, none before punctuation."""
    text = " ".join(text.split())
    for mark in ".,:!?)]":
        text = text.replace(f" {mark}", mark)
    return text


def _unwrap(text: str) -> tuple[str, str]:
    if text.startswith(LABEL):
        return "label", text.removeprefix(LABEL).strip()
    if text.startswith("- "):
        return "dash", text.removeprefix("- ").strip()
    if text.startswith("[") and text.endswith("]"):
        return "brackets", text[1:-1].strip()
    return "none", text


def _peel(text: str) -> tuple[list[str], str]:
    """The known phrases at the start, then those at the end, and what is left between them."""
    phrases = []
    while phrase := next((p for p in PHRASES if text.startswith(p)), ""):
        phrases.append(phrase)
        text = text.removeprefix(phrase).strip()
    while phrase := next((p for p in PHRASES if text.endswith(p)), ""):
        phrases.append(phrase)
        text = text.removesuffix(phrase).strip()
    return phrases, text
