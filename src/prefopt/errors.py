"""What prefopt says when it cannot go on: what is wrong, where, and how to mend it.

Every error a user can cause is a `PrefoptError`; the command line prints it in at most three lines and exits with its
`exit_code`. Anything else that escapes is a fault of ours (exit code 4, traceback kept in the run folder).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PrefoptError(Exception):
    """Something the user can mend.

    Args:
        what: what was found and what was expected, one sentence.
        where: the file and row, or the recipe key and line ("prefs.jsonl:17", "recipe.yaml:3: train.steps").
        fix: what to do about it, one sentence; name the option or command.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__("\n".join(part for part in (f"{where}: {what}" if where else what, fix) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whole."""
        return _again, (type(self), str(self), self.__dict__)


def _again(kind: type[PrefoptError], message: str, fields: dict[str, Any]) -> PrefoptError:
    error = kind.__new__(kind, message)
    error.__dict__.update(fields)
    return error


class DataError(PrefoptError):
    """Rows that cannot be read, or that a bound of the preflight refuses."""


class OptionError(PrefoptError):
    """A recipe or command line that names an unknown key, a wrong type or an option the method does not read."""


class ModelError(PrefoptError):
    """A model, tokenizer or checkpoint that cannot be used as asked."""


class TemplateError(PrefoptError):
    """A chat template that is absent or that breaks a property training needs."""


class TrainingError(PrefoptError):
    """A run that had to stop: NaN loss, out of memory, disk full."""


class RewardError(PrefoptError):
    """A reward that is wrong itself: no such function, NaN, a wrong number of values, a sandbox that is missing."""


class Refused(PrefoptError):
    """A clear "no" of a check (exit code 1)."""

    exit_code = 1


class Undecided(PrefoptError):
    """A check that the evidence does not decide (exit code 3)."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest of `known` as a question, or the whole list when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(options)
