r"""Rewards for code: 1 where every test of the row passes, 0 otherwise; the share of passed tests stands beside it as the part `passed`.

The answer's code and its tests run in the sandbox, and nowhere else. That keeps harm away and catches shortcuts (exit before the tests
are through counts as failed); code written to find the tests inside its own process and to forge their result is not caught by it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from prefopt.errors import DataError
from prefopt.rollout.rewards.attempts import one_by_one
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.sandbox import Limits, Outcome, require, run
from prefopt.rollout.worker import WorkerError
from prefopt.types import Example

_FENCE = re.compile(r"```([^\n`]*)\n(.*?)(?:```|\Z)", re.DOTALL)

_HARNESS = """
import json, os, sys, types

def main():
    given = json.load(sys.stdin)
    report, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    scope = sys.modules.setdefault("solution", types.ModuleType("solution")).__dict__

    def attempt(name, *sources):
        try:
            for source in sources:
                exec(compile(source, name, "exec"), scope)
            told = None
        except BaseException as error:
            told = f"{type(error).__name__}: {error}".strip(": ").split("\\n")[0][:200]
        os.write(report, (given["mark"] + json.dumps([name, told]) + "\\n").encode())
        return told

    if attempt("code", given["before"], given["code"]) is None and attempt("setup", given["setup"]) is None:
        for number, test in enumerate(given["tests"]):
            attempt(f"test {number + 1}", test)

main()
"""


def code_of(text: str) -> str:
    """The code of an answer: its fenced Python blocks one after another, else its other fenced blocks, else all of it."""
    blocks = [(language.strip().lower(), body) for language, body in _FENCE.findall(text)]
    python = [body for language, body in blocks if language in ("python", "py", "python3")]
    return "\n".join(python or [body for _, body in blocks]) or text


def row_tests(example: Example) -> tuple[list[str], str]:
    """The tests of a row, and what runs between code and tests.

    They are `test_list` (or `tests`) with `test_imports` and `test_setup_code`, or `test` with `entry_point`.

    Raises:
        DataError: it has none.
    """
    meta = example.meta
    if isinstance(meta.get("test"), str) and meta.get("entry_point"):
        return [f"{meta['test']}\ncheck({meta['entry_point']})"], ""
    tests = meta.get("test_list") or meta.get("tests")
    found = [tests] if isinstance(tests, str) else list(tests or ())
    if not found or not all(isinstance(test, str) for test in found):
        what = "the row has no tests; looked for test_list, tests (texts of Python), or test with entry_point"
        raise DataError(what, where=example.where, fix="add the column, or leave the row out")
    return found, "\n".join([*(meta.get("test_imports") or ()), str(meta.get("test_setup_code") or "")])


class CodeReward:
    """Every answer in a sandbox of its own, as many at a time as there are processors."""

    def __init__(self, *, timeout: float, retries: int) -> None:
        self._limits, self._retries = Limits(seconds=timeout), retries

    def check(self, examples: Sequence[Example]) -> None:
        """There is a sandbox, and every row has tests.

        Raises:
            RewardError: programs cannot be sandboxed here. DataError: a row has no tests.
        """
        require()
        for example in examples:
            row_tests(example)

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """1 where all tests pass, else 0 with what went wrong; None where the sandbox itself failed.

        Raises:
            RewardError: programs cannot be sandboxed here. DataError: a row has no tests.
        """
        self.check([answer.example for answer in rolled])
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(lambda answer: one_by_one(self._run, [answer], retries=self._retries)[0], rolled))

    def _run(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        (answer,) = rolled
        (tests, setup), mark = row_tests(answer.example), secrets.token_hex(16)
        before, code = _program(answer)
        given = {"mark": mark, "before": before, "code": code, "setup": setup, "tests": tests}
        outcome = run(_HARNESS, stdin=json.dumps(given).encode(), limits=self._limits)
        reports = [json.loads(line[len(mark) :]) for line in outcome.stdout.decode(errors="replace").splitlines() if line.startswith(mark)]
        if not reports and outcome.stderr.startswith(b"bwrap: "):
            raise WorkerError(str(outcome))
        passed = [name for name, told in reports if told is None and name.startswith("test")]
        share = len(passed) / len(tests)
        return [Verdict(float(share == 1), {"passed": share}, _note(reports, len(tests), outcome))]


def _program(answer: Rolled) -> tuple[str, str]:
    """What runs before the answer's code, and the code.

    Code that goes on from a prompt that begins the function has the prompt in front; code with the whole function has what the prompt holds
    before it, imports and helpers, run first.
    """
    code, entry, prompt = code_of(answer.sample.text), answer.example.meta.get("entry_point"), answer.example.prompt
    if not entry:
        return "", code
    if re.search(rf"\bdef {re.escape(entry)}\b", code):
        asked = prompt if isinstance(prompt, str) else next((m.content for m in reversed(prompt) if m.role == "user"), "")
        return next((before for text in (asked, code_of(asked)) if (before := _before(entry, text))), ""), code
    return "", prompt + code if isinstance(prompt, str) else code


def _before(entry: str, text: str) -> str:
    """The code that stands before the last function of this name; "" where there is none, or the text is no code."""
    begins = [found.start() for found in re.finditer(rf"^(?:async )?def {re.escape(entry)}\b", text, re.MULTILINE)]
    before = text[: begins[-1]] if begins else ""
    try:
        ast.parse(before)
    except (SyntaxError, ValueError):
        return ""
    return before


def _note(reports: list[tuple[str, str | None]], tests: int, outcome: Outcome) -> str:
    failed = [f"{name}: {told}" for name, told in reports if told is not None]
    if failed:
        return failed[0]
    missing = 2 + tests - len(reports)
    return f"{outcome} before {missing} of {2 + tests} steps were through" if missing else ""
