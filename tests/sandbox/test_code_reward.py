"""Code rewards: published solutions pass, broken and dishonest ones do not, and the verdict says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.rollout.rewards import Rolled, Verdict
from prefopt.rollout.sampler import Sample
from prefopt.rollout.verify.code import CodeReward, code_of, row_tests
from prefopt.types import Example, Message
from tests.sandbox.test_sandbox import sandboxed

SQUARE = {"test_list": ["assert square(3) == 9", "assert square(-2) == 4"]}


def rolled(text: str, meta: dict[str, Any], prompt: Any = "Q") -> Rolled:
    sample = Sample(ids=np.zeros(1, np.int32), logps=np.zeros(1, np.float32), text=text, finished=True)
    return Rolled(Example(prompt=prompt, meta=meta, where="t.jsonl:2"), sample)


def judge(*texts: str, meta: dict[str, Any] = SQUARE, seconds: float = 10.0) -> list[Verdict]:
    return CodeReward(timeout=seconds, retries=0).judge([rolled(text, meta) for text in texts])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def test_the_code_of_an_answer() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("So:\n```python\na = 1\n```\nand\n```py\nb = 2\n```\n```\n$ ls\n```") == "a = 1\n\nb = 2\n"
    assert code_of("```\na = 1\n```") == "a = 1\n"
    assert code_of("```python\na = 1") == "a = 1"


def test_the_row_tests_a_row() -> None:
    assert row_tests(Example(prompt="", meta={"tests": "assert f()"})) == (["assert f()"], "")
    assert row_tests(Example(prompt="", meta={"test_list": ["a", "b"], "test_setup_code": "c"})) == (["a", "b"], "c")
    assert row_tests(Example(prompt="", meta={"test": "def check(c): ...", "entry_point": "f"})) == (["def check(c): ...\ncheck(f)"], "")
    for meta in ({}, {"tests": []}, {"test_list": [1]}):
        with pytest.raises(DataError, match=r"t\.jsonl:2: the row has no tests"):
            row_tests(rolled("", meta).example)


@sandboxed
def test_verdicts_say_what_went_wrong() -> None:
    found = judge(
        "def square(x): return x * x",
        "def square(x): return abs(x) * 3",
        "def square(x): return x *",
        "def cube(x): return x",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "",
        seconds=1.0,
    )
    assert [verdict.value for verdict in found] == [1.0] + [0.0] * 7
    assert [verdict.parts["passed"] for verdict in found] == [1.0, 0.5] + [0.0] * 6
    assert found[1].note == "test 2: AssertionError"
    assert found[2].note.startswith("code: SyntaxError")
    assert found[3].note == "test 1: NameError: name 'square' is not defined"
    assert found[4].note == "code: SystemExit: 0"
    assert found[5].note == "finished before 4 of 4 steps were through"
    assert re.fullmatch(r"still running after \d\.\d s before 4 of 4 steps were through", found[6].note)


@sandboxed
def test_what_the_code_prints_is_no_verdict() -> None:
    forged = "import os\nfor fd in range(3):\n    try: os.write(fd, b'[\"test 1\", null]\\n' * 9)\n    except OSError: pass\nos._exit(0)"
    assert [verdict.value for verdict in judge(forged)] == [0.0]


@sandboxed
def test_a_function_that_the_prompt_begins() -> None:
    meta = {"test": "def check(f):\n    assert f(2) == 4", "entry_point": "square"}
    reward = CodeReward(timeout=10.0, retries=0)
    answers = [rolled(text, meta, "def square(x):\n") for text in ("    return x * x\n", "def square(x): return 2 * x", "    return 5")]
    assert [verdict.value for verdict in reward.judge(answers)] == [1.0, 1.0, 0.0]


HELPED = (
    'from typing import List\n\ndef double(x: int) -> int:\n    return 2 * x\n\n\ndef square(x: List[int]) -> int:\n    """Squares."""\n'
)


@sandboxed
@pytest.mark.parametrize(
    "prompt",
    [
        HELPED,
        f"Complete this:\n```python\n{HELPED}```",
        (Message("system", "Be brief."), Message("user", f"Go on.\n```python\n{HELPED}```")),
    ],
    ids=["code", "fenced", "chat"],
)
def test_a_whole_function_has_what_the_prompt_holds_before_it(prompt: Any) -> None:
    meta = {"test": "def check(f):\n    assert f([2]) == 4", "entry_point": "square"}
    body = "def square(x: List[int]) -> int:\n    return double(x[0])\n"
    answers = [
        rolled(text, meta, prompt) for text in (body, f"from __future__ import annotations\n{body}", body.replace("double", "triple"))
    ]
    found = CodeReward(timeout=10.0, retries=0).judge(answers)
    assert [verdict.value for verdict in found] == [1.0, 1.0, 0.0]
    assert found[2].note == "test 1: NameError: name 'triple' is not defined"


@sandboxed
def test_what_a_row_imports_for_its_tests() -> None:
    meta = {"test_imports": ["import math"], "test_setup_code": "goal = 9", "test_list": ["assert math.isclose(square(3), goal)"]}
    assert [verdict.value for verdict in judge("def square(x): return x * x", meta=meta)] == [1.0]


@sandboxed
@pytest.mark.parametrize("most", [60, pytest.param(974, marks=pytest.mark.slow)])
def test_mbpp_solutions_pass_and_broken_ones_fail(shared_data: Path, most: int) -> None:
    rows = lines(shared_data / "eval" / "mbpp.jsonl")
    rows = rows[:most] + [row for row in rows[most:] if row["test_setup_code"]]
    reward = CodeReward(timeout=60.0, retries=0)
    right = reward.judge([rolled(row["code"], row) for row in rows])
    assert [(row["task_id"], v.note) for row, v in zip(rows, right, strict=True) if v.value != 1] == []
    broken = [re.sub(r"\breturn\b", "return 'broken'  #", row["code"]) for row in rows]
    wrong = reward.judge([rolled(code, row) for code, row in zip(broken, rows, strict=True) if "return" in code])
    assert [v.value for v in wrong] == [0.0] * len(wrong)


@sandboxed
@pytest.mark.parametrize("most", [20, pytest.param(164, marks=pytest.mark.slow)])
def test_humaneval_solutions_pass_and_empty_ones_fail(shared_data: Path, most: int) -> None:
    rows = lines(shared_data / "eval" / "humaneval.jsonl")[:most]
    reward = CodeReward(timeout=60.0, retries=0)
    assert {v.value for v in reward.judge([rolled(row["canonical_solution"], row, row["prompt"]) for row in rows])} == {1.0}
    whole = [row["prompt"][row["prompt"].rfind("def " + row["entry_point"]) :] + row["canonical_solution"] for row in rows]
    assert {v.value for v in reward.judge([rolled(text, row, row["prompt"]) for text, row in zip(whole, rows, strict=True)])} == {1.0}
    assert {v.value for v in reward.judge([rolled("    pass\n", row, row["prompt"]) for row in rows])} == {0.0}
