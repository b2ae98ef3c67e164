"""A reward that is a Python function of the user's, run in a process of its own.

    def reward(prompts, completions, **columns): -> one number (or None: cannot be judged) for each completion

prompts are strings or lists of {role, content}, completions are strings; every column of the rows arrives as a list of its values, by
name, if the function has a parameter of that name or takes **columns. `completion_ids` are the token ids.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from prefopt.errors import DataError, RewardError
from prefopt.rollout.rewards.attempts import one_by_one
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.rollout.worker import Worker, WorkerError, load_name
from prefopt.types import Example, plain

GIVEN = ("prompts", "completions", "completion_ids")
"""What every function can have, whatever the rows hold."""


class FunctionReward:
    """A function named "file.py:name" or "module:name".

    Args:
        spec: the function.
        timeout: seconds a call may take.
        retries: how often an answer is tried again, alone, after its batch failed.
    """

    def __init__(self, spec: str, *, timeout: float, retries: int) -> None:
        self.spec, self._timeout, self._retries = spec, timeout, retries
        self._worker = Worker("prefopt.rollout.rewards.function:serve", [spec])

    @property
    def reads_tokens(self) -> bool:
        """Whether the function has a parameter `completion_ids`."""
        return "completion_ids" in self._signature()["names"]

    def check(self, examples: Sequence[Example]) -> None:
        """The function can be loaded and the rows have the columns it asks for.

        Raises:
            RewardError: it cannot be loaded. DataError: a column is missing.
        """
        required = set(self._signature()["required"]) - set(GIVEN)
        for example in examples:
            for name in sorted(required - example.meta.keys()):
                found = ", ".join(example.meta) or "none"
                what = f"{self.spec} needs a column '{name}', the row's extra columns are: {found}"
                raise DataError(what, where=example.where, fix=f"add the column, or give the parameter {name} a default")

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """What the function says; where a call with all answers fails each is tried alone.

        Raises:
            RewardError: it cannot be loaded, or returns a wrong number of values.
        """
        self.check([answer.example for answer in rolled])
        return one_by_one(self._ask, rolled, retries=self._retries)

    def _ask(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        values = self._worker.ask(self._request(rolled), self._timeout)
        if len(values) != len(rolled):
            what = f"{len(values)} values for {len(rolled)} answers"
            raise RewardError(what, where=f"reward {self.spec}", fix="return one number for each completion, in their order")
        return [Verdict(value, note="" if value is not None else f"{self.spec} returned None") for value in values]

    def _request(self, rolled: Sequence[Rolled]) -> dict[str, Any]:
        signature = self._signature()
        given: dict[str, list[Any]] = {
            "prompts": [plain(answer.example.prompt) for answer in rolled],
            "completions": [answer.sample.text for answer in rolled],
        }
        if any(len(answer.sample.ids) for answer in rolled):  # answers of a file have none where no model says whose tokens they are
            given["completion_ids"] = [answer.sample.ids.tolist() for answer in rolled]
        columns = dict.fromkeys(name for answer in rolled for name in answer.example.meta)
        given |= {name: [answer.example.meta.get(name) for answer in rolled] for name in columns if name not in given}
        return given if signature["any"] else {name: given[name] for name in signature["names"] if name in given}

    def _signature(self) -> dict[str, Any]:
        try:
            return dict(self._worker.greeting())
        except WorkerError as error:
            fix = 'name it as "file.py:function" or "module:function"'
            raise RewardError(f"the function cannot be loaded: {error}", where=f"reward {self.spec}", fix=fix) from None


def serve(spec: str) -> tuple[Callable[[dict[str, Any]], list[float | None]], dict[str, Any]]:
    """The worker's side: the function as a call on a request, and what it can be given."""
    function = load_name(spec)
    if not callable(function):
        raise TypeError(f"{spec} is not a function")
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    signature = {
        "names": [p.name for p in named],
        "required": [p.name for p in named if p.default is p.empty],
        "any": any(p.kind is p.VAR_KEYWORD for p in parameters),
    }

    def call(request: dict[str, Any]) -> list[float | None]:
        return [None if value is None else float(value) for value in function(**request)]

    return call, signature
