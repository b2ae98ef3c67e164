"""Rows that stages write of answers: what they carry along, and what comes back when they are read."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from prefopt.data.read import read
from prefopt.pipeline.kinds import LabelOptions
from prefopt.pipeline.rows import labelled, sampled, scored, write_rows
from prefopt.rollout.policy import Policy
from prefopt.rollout.rewards.model import ModelReward
from prefopt.rollout.rewards.protocol import Rolled
from prefopt.rollout.sampler import Sample
from prefopt.settings import RolloutSettings
from prefopt.types import Completion, Example, Message
from prefopt.world import World
from tests.worlds import language_model

TOOLS = ({"type": "function", "function": {"name": "weather"}},)


class Listening:
    """A renderer that remembers the rows and prompts it was given."""

    def __init__(self, renderer: Any) -> None:
        self.renderer, self.rows, self.tools = renderer, [], []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.renderer, name)

    def trees(self, examples: Any) -> Any:
        self.rows += (given := list(examples))
        return self.renderer.trees([Example(prompt="ab", completions=(Completion(content="c"),)) for _ in given])

    def prompt_ids(self, prompt: Any, tools: Any = ()) -> Any:
        self.tools.append(tools)
        return self.renderer.prompt_ids("ab")


def heard(method: str) -> tuple[Any, Listening]:
    model = language_model(method)
    model.renderer = listening = Listening(model.renderer)  # type: ignore[assignment]
    return model, listening


def test_tools_of_a_row_go_along_wherever_its_prompt_is_read() -> None:
    row = Example(prompt="rain", tools=TOOLS, completions=(Completion(content="dry", rank=0),))
    policy, asked = heard("dpo")
    assert isinstance(policy, Policy)
    (drawn,) = sampled(policy, [row], RolloutSettings(max_new_tokens=2))
    assert asked.tools == [TOOLS]
    (rated,) = scored([row], policy)
    assert [given.tools for given in asked.rows] == [TOOLS]
    assert drawn["tools"] == rated["tools"] == [dict(TOOLS[0])]
    model, judged = heard("reward")
    ModelReward(model).judge([Rolled(row, Sample(ids=drawn["finished"], logps=None, text="dry", finished=True))])  # type: ignore[arg-type]
    assert TOOLS in [given.tools for given in judged.rows]


def test_what_was_cut_off_is_still_so_when_it_is_read_again(tmp_path: Path) -> None:
    world = World(0)
    asked = world.requests(1, seed=1)[0]
    best = world.ideal(asked)
    row = Example(prompt=asked.prompt, meta={**asked.meta, "completions": [best, "short"], "finished": [True, False]})
    (pair,) = labelled([row], LabelOptions(annotators="gold"), Counter())
    assert pair["finished"] == [text == best for text in (pair["response_a"], pair["response_b"])]
    (again,) = read(_written(tmp_path, pair))
    assert [completion.ended for completion in again.completions] == [True, False]


def test_scores_keep_who_was_cut_off_whatever_the_order(tmp_path: Path) -> None:
    row = Example(prompt="ab", meta={"completions": ["long", "short", "c"], "finished": [True, False, True]})
    told = dict(zip(row.meta["completions"], row.meta["finished"], strict=True))
    for _ in range(2):  # as it was sampled, and as a ranking
        (rated,) = scored([row], language_model("dpo"))  # type: ignore[arg-type]
        assert dict(zip(rated["completions"], rated["finished"], strict=True)) == told
        (row,) = read(_written(tmp_path, rated))
        assert {completion.content: completion.ended for completion in row.completions} == told


def test_answers_that_are_turns_are_labelled_as_text() -> None:
    world = World(0)
    asked = world.requests(1, seed=1)[0]
    texts = [world.ideal(asked), "no idea"]
    answers = tuple(Completion(content=(Message("assistant", text),), rank=rank) for rank, text in enumerate(texts))
    (pair,) = labelled([Example(prompt=asked.prompt, completions=answers, meta=asked.meta)], LabelOptions(annotators="gold"), Counter())
    assert {pair["response_a"], pair["response_b"]} == set(texts)


def test_values_that_are_not_json_are_written_as_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "meta": {"at": datetime(2026, 1, 2)}}])
    assert json.loads((tmp_path / "rows.jsonl").read_text())["meta"] == {"at": "2026-01-02 00:00:00"}


def _written(folder: Path, row: dict[str, Any]) -> str:
    write_rows(folder / "rows.jsonl", [row])
    return str(folder / "rows.jsonl")
