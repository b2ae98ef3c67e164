"""A tiny model folder made by the package itself, data for it in every layout methods read, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prefopt import cli

WORDS = ["blue", "green", "red", "small", "tall", "old", "new", "warm"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Prefopt = Callable[..., Said]


@pytest.fixture
def prefopt(capfd: pytest.CaptureFixture[str]) -> Prefopt:
    """Run a command as a user would: `prefopt("train", "dpo", ...)`."""

    def run(*arguments: object) -> Said:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Said(code, *capfd.readouterr())

    return run


def rows(kind: str, count: int = 24) -> list[dict[str, Any]]:
    """Rows a method of this data kind reads; the better answer names the word asked for."""
    made = []
    for i in range(count):
        good, bad, other = (WORDS[(i + shift) % len(WORDS)] for shift in (0, 3, 5))
        prompt = [{"role": "user", "content": f"Say {good}, number {i}."}]
        yes, no = f"It is {good}.", f"No idea, {bad} or {other}."
        made.append(
            {
                "text": {"text": f"{prompt[0]['content']} {yes}"},
                "demonstrations": {"prompt": prompt, "completion": yes},
                "pairs": {"prompt": prompt, "chosen": yes, "rejected": no, "margin": 0.5 + i % 3},
                "judgements": {"prompt": prompt, "response_a": yes, "response_b": no, "label": ("a", "tie", "a")[i % 3]},
                "labels": {"prompt": prompt, "completion": yes if i % 2 else no, "label": bool(i % 2)},
                "rankings": {"prompt": prompt, "completions": [yes, no, f"{bad}?"], "scores": [2.0, 1.0, 0.5]},
                "steps": {"prompt": prompt, "completions": [f"It is {good}.", f"Not {bad}."], "labels": [True, bool(i % 2)]},
                "prompts": {"prompt": prompt, "meta": {"number": i}},
            }[kind]
        )
    return made


def write(path: Path, content: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a small file of rows of a kind."""
    folder = tmp_path_factory.mktemp("data")

    def path(kind: str) -> Path:
        file = folder / f"{kind}.jsonl"
        return file if file.exists() else write(file, rows(kind))

    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, data: Callable[[str], Path]) -> Path:
    """A Llama of one layer with random weights and a tokenizer of its own."""
    from prefopt.data.read import read
    from prefopt.pipeline.create import create
    from prefopt.pipeline.kinds import CreateOptions

    folder = tmp_path_factory.mktemp("base") / "model"
    shape = CreateOptions(vocab_size=320, hidden_size=32, intermediate_size=64, layers=1, heads=2, max_length=128)
    create(read([str(data("demonstrations")), str(data("pairs"))]), shape, folder)
    return folder
