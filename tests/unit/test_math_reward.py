"""The math verifier: what a final answer is, when two are the same, and the published solutions of GSM8K and MATH."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError, RewardError
from prefopt.rollout.rewards import Rolled
from prefopt.rollout.sampler import Sample
from prefopt.rollout.verify.answers import final_answer, plain_number
from prefopt.rollout.verify.math import MathReward
from prefopt.types import Completion, Example


def rolled(text: str, **meta: Any) -> Rolled:
    sample = Sample(ids=np.zeros(1, np.int32), logps=np.zeros(1, np.float32), text=text, finished=True)
    return Rolled(Example(prompt="Q", meta=meta, where="p.jsonl:3"), sample)


def values(pairs: list[tuple[str, str]], **how: Any) -> list[float | None]:
    reward = MathReward(None, **{"timeout": 30.0, "retries": 0, **how})
    return [verdict.value for verdict in reward.judge([rolled(text, answer=expected) for expected, text in pairs])]


@pytest.mark.parametrize(
    ("text", "number", "found"),
    [
        ("He has 3, then 4. #### 1,234", True, "1,234"),
        ("First \\boxed{3}, no: \\boxed{\\frac{a}{b^{2}}}", False, "\\frac{a}{b^{2}}"),
        ("The answer is 3. Wait. The answer is 12 apples.", True, "12"),
        ("Answer: 3 + 4 = 7 crowns", True, "7"),
        ("So she pays $1,080.50.", True, "$1,080.50"),
        ("It falls by −5 degrees", True, "-5"),
        ("Half of it, 1/2, is left", True, "1/2"),
        ("Therefore $x = 3$ and $y = \\sqrt{2}$.", False, "y = \\sqrt{2}"),
        ("The answer is $\\sqrt{2}$.", False, "\\sqrt{2}"),
        ("The answer is $\\frac{\\pi}{2}$. I hope this answer is helpful!", False, "\\frac{\\pi}{2}"),
        ("The answer is even. No: the answer is odd.", False, "odd"),
        ("As a result, there are 24 - 6 = 18 left. Then 10 come, which makes 28.", True, "28"),
        ("nothing to see", True, None),
        ("\\boxed{open", False, None),
        ("", True, None),
    ],
)
def test_the_final_answer_of_a_solution(text: str, number: bool, found: str | None) -> None:
    assert final_answer(text, number=number) == found


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("18", "18.0", True),
        ("$1,000", "1000", True),
        ("1/2", "0.5", True),
        ("\\frac{2}{4}", "50%", False),
        ("-3", "3", False),
        (".5", "1/2", True),
    ],
)
def test_plain_numbers_are_compared_exactly(left: str, right: str, same: bool) -> None:
    assert (plain_number(left) == plain_number(right)) is same


@pytest.mark.parametrize("text", ["x", "1/0", "12 apples", "1 2", "", "1,23", "--3", "\\sqrt{2}"])
def test_what_is_no_plain_number(text: str) -> None:
    assert plain_number(text) is None


AMONG_WORDS = [
    "18 dollars",
    "$18",
    "18.",
    "x = 18",
    "18%",
    "6 * 3 = 18 apples",
    "18 for 6 shirts",
    "18/hour",
    "18kg",
    "18\\text{ m}^2",
    "18!",
    "**18**",
    "**18 apples**.",
    "_18_",
    "18</answer>",
    "18个",
]
EXPRESSIONS = [
    "3, 5",
    "(3, 7)",
    "3x + 2",
    "3x",
    "3^{4}",
    "3*4",
    "3!",
    "3 1/2",
    "3 or 5",
    "3\\text{ or }5",
    "3 - x",
    "x > 3",
    "y = 5, x = 3",
]


@pytest.mark.parametrize("said", AMONG_WORDS)
def test_a_number_among_words_is_found(said: str) -> None:
    number = final_answer(f"The answer is {said}", number=True)
    assert number is not None
    assert plain_number(number) == 18


def test_an_expression_is_not_the_first_number_in_it() -> None:
    boxes = [f"\\boxed{{{said}}}" for said in EXPRESSIONS]
    assert [final_answer(box, number=True) for box in boxes] == EXPRESSIONS
    assert values([("3", box) for box in boxes]) == [0.0] * len(boxes)


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra math")
def test_expressions_are_compared_by_their_value() -> None:
    pairs = [
        ("\\frac{\\pi}{2}", "so \\boxed{0.5\\pi}"),
        ("(3, \\frac{\\pi}{2})", "\\boxed{\\left(3, \\frac{\\pi}{2}\\right)}"),
        ("\\sqrt{8}", "the answer is $2\\sqrt{2}$."),
        ("\\sqrt{8}", "the answer is $2\\sqrt{3}$."),
        ("18", "\\boxed{\\sqrt{324}}"),
        ("18", "The answer is $\\sqrt{324}$. I hope this answer is helpful!"),
        ("1000000", "\\boxed{10^6}"),
        ("20", "\\boxed{5*4}"),
    ]
    assert values(pairs) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("18", "The answer is 18. I hope this answer is helpful!"),
        ("18", "The answer is easy. Six times three makes 18."),
        ("10000", "$10{,}000$"),
        ("10000", "It costs $10{,}000$ in all."),
        ("10000", "\\boxed{10{,}000\\text{ dollars}}"),
        ("10000", "\\boxed{10\\,000}"),
        ("10000", "\\boxed{10,\\!000\\text{ m}}"),
        ("1{,}234{,}567", "The answer is 1\\,234\\,567."),
        ("10\\,000", "10000"),
    ],
)
def test_numbers_are_read_as_they_are_written(expected: str, text: str) -> None:
    assert values([(expected, text), ("10", text), ("0", text)]) == [1.0, 0.0, 0.0]


def test_verdicts_say_what_was_found() -> None:
    reward = MathReward("goal", timeout=30.0, retries=0)
    notes = [verdict.note for verdict in reward.judge([rolled(text, goal="18") for text in ("It is 17.", "18", "?")])]
    assert notes == ["expected 18, found 17", "18, as expected", "no final answer"]


def test_the_right_answer_is_looked_for_where_rows_have_it() -> None:
    reward = MathReward(None, timeout=30.0, retries=0)
    assert reward.expected(Example(prompt="", meta={"answer": "2+2=<<2+2=4>>4\n#### 4"})) == "4"
    assert reward.expected(Example(prompt="", meta={"solution": "so \\boxed{x^2}"})) == "x^2"
    assert reward.expected(Example(prompt="", completions=(Completion(content="first\n#### 7"),))) == "7"
    with pytest.raises(
        DataError, match=r"p\.jsonl:3: the row has no right answer.*final_answer, answer, solution or a completion\n.*reward\.answer"
    ):
        reward.check([rolled("1", other=3).example])
    with pytest.raises(DataError, match="looked for column 'goal'"):
        MathReward("goal", timeout=1.0, retries=0).check([rolled("1", answer="").example])


def test_without_the_extra_numbers_work_and_expressions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.verify.math.importlib.util.find_spec", lambda name: None)
    assert values([("18", "so 18"), ("18", "\\boxed{x}")]) == [1.0, 0.0]
    with pytest.raises(RewardError, match=r"not a plain number.*\n?.*pip install 'prefopt\[math\]'"):
        values([("x^2", "x^2")])


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra math")
def test_a_comparison_that_takes_for_ever_is_ended() -> None:
    hard = "\\boxed{" + "^".join(["9"] * 9) + "}"
    slow, quick = values([("\\sqrt{2}", hard), ("\\sqrt{4}", "\\boxed{2}")], timeout=1.0)
    assert slow in (None, 0.0)
    assert quick == 1.0


# --- published solutions


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def test_gsm8k_solutions_are_right_and_others_wrong(shared_data: Path) -> None:
    rows = lines(shared_data / "math" / "gsm8k_test.jsonl")
    assert values([(row["final_answer"], row["answer"]) for row in rows]) == [1.0] * len(rows)
    assert values([(row["answer"], row["answer"]) for row in rows]) == [1.0] * len(rows)
    assert values([(str(int(row["final_answer"]) + 1), row["answer"]) for row in rows]) == [0.0] * len(rows)


def test_sampled_gsm8k_solutions_are_judged_as_they_were_marked(shared_data: Path) -> None:
    rows = lines(shared_data / "math" / "gsm8k_model_solutions.jsonl.gz")
    marked = [(row["final_answer"], found["text"], found["is_correct"]) for row in rows for found in row["solutions"]]
    judged = values([(expected, text) for expected, text, _ in marked])
    assert judged == [float(right) for _, _, right in marked]


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra math")
def test_math500_solutions_are_right(shared_data: Path) -> None:
    rows = lines(shared_data / "math" / "math500.jsonl")
    assert values([(row["answer"], row["solution"]) for row in rows]) == [1.0] * len(rows)
