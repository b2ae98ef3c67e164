"""A reward server that answers after its time: asked again, then its answers are left out, kept and counted, and never scored 0."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Prefopt, rows, write

Slow = Callable[[list[str]], bool]


class Server(http.server.ThreadingHTTPServer):
    """Rates answers from 5 to 7; a batch that `slow` picks only once `done` is set, which is after any time limit."""

    def __init__(self, slow: Slow) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.slow, self.done, self.asked = slow, threading.Event(), list[int]()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        answers = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["completions"]
        self.server.asked.append(len(answers))
        if self.server.slow(answers):
            self.server.done.wait(20)
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(json.dumps({"rewards": [5 + len(answer) % 3 for answer in answers]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Slow], Server]]:
    monkeypatch.setattr("prefopt.rollout.rewards.endpoint.PAUSE", 0.0)
    running: list[Server] = []

    def start(slow: Slow) -> Server:
        running.append(Server(slow))
        threading.Thread(target=running[-1].serve_forever, args=(0.02,), daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.done.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def command(base: Path, tmp_path: Path) -> Callable[[Server], tuple[object, ...]]:
    """Two rounds of 20 prompts and 80 answers, which are sent in a batch of 64 and one of 16."""
    data = write(tmp_path / "prompts.jsonl", rows("prompts", 40))

    def arguments(server: Server) -> tuple[object, ...]:
        asked = ("train", "grpo", "--model", base, "--data", data, "--out", tmp_path / "run")
        settings = ("rollout.samples=4", "rollout.max_new_tokens=6", "train.batch_size=20", "train.steps=2", "train.learning_rate=1e-4")
        return (*asked, *settings, f"reward.url=http://127.0.0.1:{server.server_port}/", "reward.timeout=0.4", "reward.retries=1")

    return arguments


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_that_comes_too_late_is_asked_again_and_left_out(prefopt: Prefopt, serve: Any, command: Any, tmp_path: Path) -> None:
    server = serve(lambda answers: len(answers) == 16)
    done = prefopt(*command(server))
    assert done.code == 0, done.err
    assert server.asked == [64, 16, 16] * 2, "each late batch was asked for twice"
    for number, row in enumerate(lines(tmp_path / "run" / "metrics.jsonl"), start=1):
        assert row["rollouts/unjudged"] == 16
        assert row["rollouts/learned_from"] <= 64
        kept = lines(tmp_path / "run" / "rollouts" / f"round-{number:06d}.jsonl")
        scores = [score for group in kept for score in group["scores"]]
        assert len(scores) == 64
        assert min(scores) >= 5, "none was scored 0"
        assert row["reward"] == pytest.approx(sum(scores) / 64)
        aside = lines(tmp_path / "run" / "unjudged" / f"round-{number:06d}.jsonl")
        assert len(aside) == 16
        assert all("no answer within 0.4 s" in answer["note"] and "(tried 2 times)" in answer["note"] for answer in aside)
        assert all(answer["prompt"] and "completion" in answer for answer in aside)
        assert f"round {number}: left out 16 answers that could not be judged" in done.err


def test_a_server_that_is_always_late_ends_the_run_with_its_answers_kept(
    prefopt: Prefopt, serve: Any, command: Any, tmp_path: Path
) -> None:
    server = serve(lambda answers: True)
    done = prefopt(*command(server))
    assert done.code == 2
    assert "none of 80 answers could be judged" in done.err
    assert "no answer within 0.4 s" in done.err
    assert server.asked == [64, 64], "once it is down it is not asked further"
    assert len(lines(tmp_path / "run" / "rollouts" / "unjudged.jsonl")) == 80

    server.slow = lambda answers: False
    again = prefopt(*command(server))
    assert again.code == 0, again.err
    assert [row["rollouts/unjudged"] for row in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 0]
