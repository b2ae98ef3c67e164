r"""Rewards for mathematics: 1 where the final answer of a solution equals the row's, 0 otherwise.

Plain numbers are compared exactly, here. Everything else (fractions of expressions, sets, intervals) is compared by math-verify
(extra `math`) in a process of its own, which is ended when it overruns its time: a sympy comparison can take for ever.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from prefopt.errors import DataError, RewardError
from prefopt.rollout.rewards.attempts import one_by_one
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.verify.answers import final_answer, plain_number
from prefopt.rollout.worker import Worker
from prefopt.types import Example

COLUMNS = ("final_answer", "answer", "solution")
"""Where the right answer is looked for, in this order, when no column is named; then the row's own completion."""


class MathReward:
    """The right answer is a column of the row; it may be a whole worked solution, of which the final answer counts."""

    def __init__(self, column: str | None, *, timeout: float, retries: int) -> None:
        self._column, self._timeout, self._retries = column, timeout, retries
        self._worker = Worker("prefopt.rollout.verify.math:serve")

    def check(self, examples: Sequence[Example]) -> None:
        """Every row has an answer, and what it takes to compare it is installed.

        Raises:
            DataError: a row has none. RewardError: it is no plain number and math-verify is not installed.
        """
        for example in examples:
            expected = self.expected(example)
            if plain_number(expected) is None and importlib.util.find_spec("math_verify") is None:
                what = f"the right answer is {expected[:40]!r}, not a plain number, and comparing it needs math-verify"
                raise RewardError(what, where=example.where, fix="pip install 'prefopt[math]'")

    def expected(self, example: Example) -> str:
        """The right answer of a row.

        Raises:
            DataError: it has none.
        """
        columns = (self._column,) if self._column else COLUMNS
        said = next((str(example.meta[name]) for name in columns if example.meta.get(name) not in (None, "")), None)
        if said is None and self._column is None and example.completions:
            content = example.completions[0].content
            said = content if isinstance(content, str) else content[-1].content
        marked = None if said is None else said.strip() if plain_number(said) is not None else _marked(said)
        if not marked:
            looked = f"column '{self._column}'" if self._column else f"a column {', '.join(COLUMNS)} or a completion"
            raise DataError(
                f"the row has no right answer; looked for {looked}", where=example.where, fix="name its column: reward.answer=NAME"
            )
        return marked

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """1 or 0; None, with a note, where the comparison itself failed."""
        self.check([answer.example for answer in rolled])
        found = [self._by_number(answer) for answer in rolled]
        rest = [i for i, verdict in enumerate(found) if verdict is None]
        compared = one_by_one(self._compare, [rolled[i] for i in rest], retries=self._retries)
        for i, verdict in zip(rest, compared, strict=True):
            found[i] = verdict
        return [verdict for verdict in found if verdict is not None]

    def _by_number(self, answer: Rolled) -> Verdict | None:
        expected, said = self._pair(answer)
        if said is None:
            return Verdict(0.0, note="no final answer")
        wanted, given = plain_number(expected), plain_number(said)
        if wanted is None or given is None:
            return None if importlib.util.find_spec("math_verify") else Verdict(0.0, note=_told(False, expected, said))
        return Verdict(float(wanted == given), note=_told(wanted == given, expected, said))

    def _pair(self, answer: Rolled) -> tuple[str, str | None]:
        """The right answer, and what the solution says it is."""
        expected = self.expected(answer.example)
        return expected, final_answer(answer.sample.text, number=plain_number(expected) is not None)

    def _compare(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        pairs = [(expected, said or "") for expected, said in map(self._pair, rolled)]
        right = self._worker.ask(pairs, self._timeout)
        return [Verdict(float(same), note=_told(same, *pair)) for same, pair in zip(right, pairs, strict=True)]


def serve() -> Callable[[list[tuple[str, str]]], list[bool]]:
    """The worker's side: whether expressions are equal. Time limits are the caller's: those of math-verify need the main thread."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)

    def parsed(text: str) -> list[object]:
        return parse(f"${text.strip('$ ')}$", parsing_timeout=None) or parse(text, parsing_timeout=None)

    def call(pairs: list[tuple[str, str]]) -> list[bool]:
        return [bool(verify(parsed(expected), parsed(said), timeout_seconds=None)) for expected, said in pairs]

    parse("$1$", parsing_timeout=None)  # loads the parser's tables
    return call


def _marked(said: str) -> str:
    """The answer a worked solution ends with; text without such a mark is the answer itself."""
    return (final_answer(said) or said).strip() if "####" in said or "\\boxed" in said or "\n" in said else said.strip()


def _told(same: bool, expected: str, said: str) -> str:
    return f"{said[:60]}, as expected" if same else f"expected {expected[:60]}, found {said[:60]}"
