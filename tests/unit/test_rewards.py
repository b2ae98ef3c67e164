"""Rewards: weighted sums by hand, penalties at their knees, and what happens when judging fails."""

from __future__ import annotations

import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefopt.errors import DataError, ModelError, OptionError, PrefoptError, RewardError, TemplateError
from prefopt.model.reading import Reading
from prefopt.rollout.policy import RewardModel, load
from prefopt.rollout.rewards import Rolled, Verdict, build
from prefopt.rollout.rewards.combine import Sum, length_penalty, missing_eos, soft_overlong
from prefopt.rollout.rewards.endpoint import EndpointReward
from prefopt.rollout.rewards.function import FunctionReward
from prefopt.rollout.rewards.model import ModelReward
from prefopt.rollout.sampler import Sample
from prefopt.settings import RewardSettings
from prefopt.text.chat import Renderer
from prefopt.types import Example, Message
from prefopt.world import World
from tests.chat_shapes import tokenizer
from tests.worlds import language_model


def rolled(text: str = "yes", *, prompt: Any = "Q", tokens: int = 3, finished: bool = True, **meta: Any) -> Rolled:
    sample = Sample(ids=np.arange(tokens, dtype=np.int32), logps=np.zeros(tokens, np.float32), text=text, finished=finished)
    return Rolled(Example(prompt=prompt, meta=meta, where="p.jsonl:1"), sample)


class Fixed:
    """A reward that gives what it is told to."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def judge(self, answers: Sequence[Rolled]) -> list[Verdict]:
        return self.verdicts


# --- sums and penalties


def test_a_sum_is_what_its_parts_say() -> None:
    whole = Sum({"a": Fixed(Verdict(2.0, {"tone": 0.5})), "b": Fixed(Verdict(-1.0))}, {"a": 0.5}, {"missing_eos": missing_eos(0.25)})
    (verdict,) = whole.judge([rolled(finished=False)])
    assert verdict.value == 0.5 * 2.0 - 1.0 - 0.25
    assert verdict.parts == {"a": 1.0, "a/tone": 0.25, "b": -1.0, "missing_eos": -0.25}


def test_a_sum_tells_what_was_earned_before_penalties() -> None:
    whole = Sum({"a": Fixed(Verdict(0.3), Verdict(0.3))}, {}, {"missing_eos": missing_eos(0.1)})
    first, second = whole.judge([rolled(finished=False), rolled()])
    assert (first.earned, second.earned) == (0.3, 0.3)
    assert first.value != second.value
    assert Sum({"a": Fixed(Verdict(0.3))}).judge([rolled()])[0].earned is None


def test_a_reward_model_reads_a_cut_answer_without_a_stop_token() -> None:
    """An answer that hit the limit is not scored as if it had ended."""
    model = language_model("reward")
    assert isinstance(model, RewardModel)
    ended, cut = ModelReward(model).judge([rolled("w5 w6 w7", prompt="w9"), rolled("w5 w6 w7", prompt="w9", finished=False)])
    (tree,) = model._trees(["w9"], ["w5 w6 w7"])
    short = replace(tree, branches=(replace(tree.branches[0], ids=tree.branches[0].ids[:-1], scored=tree.branches[0].scored[:-1]),))
    assert ended.value == pytest.approx(model.tree_scores([tree])[0], abs=1e-6)
    assert cut.value == pytest.approx(model.tree_scores([short])[0], abs=1e-6)
    assert cut.value != pytest.approx(ended.value, abs=1e-4)


def reader(name: str, solution: Any = "") -> RewardModel:
    """A tiny reward model of 64 tokens with a real tokenizer and chat template."""
    words = tokenizer(name)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
    config = AutoConfig.for_model("llama", vocab_size=len(words), max_position_embeddings=64, pad_token_id=0, **shape)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return RewardModel(model, words, Renderer(words), "tiny", reading=Reading(solution=solution))


ASKED = (Message("user", "What is the capital?"),)


@pytest.mark.parametrize("solution", ["", "min"])
def test_answers_that_a_reward_model_cannot_read_are_not_judged_and_the_others_are(solution: str) -> None:
    model = reader("llama3", solution)
    texts = ["the town", "the <|eot_id|> town", "town " * 100, " the town\nhall \n"]
    verdicts = ModelReward(model).judge([rolled(text, prompt=ASKED) for text in texts])
    assert [verdict.value is None for verdict in verdicts] == [False, True, True, False]
    assert "holds the control token <|eot_id|>" in verdicts[1].note
    assert "more than the 64 that the reward model takes" in verdicts[2].note
    expected = model.score([ASKED] * 2, [[Message("assistant", text)] for text in (texts[0], texts[3])])
    assert [verdicts[0].value, verdicts[3].value] == pytest.approx(expected, abs=1e-6)
    assert [verdict.value for verdict in ModelReward(model).judge([rolled(texts[1], prompt=ASKED)])] == [None]
    assert ModelReward(model).judge([]) == []


def test_steps_of_an_answer_are_judged_where_the_template_trims_it() -> None:
    model = reader("llama3", "min")
    found = model.step_scores([ASKED] * 2, [[Message("assistant", text)] for text in ("the town\nhall", " the town\nhall\n")])
    assert len(found[0]) == 2
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_prompts_that_a_reward_model_cannot_read_are_refused_before_anything_is_sampled() -> None:
    strict = ModelReward(reader("gemma"))
    strict.check([rolled(prompt=ASKED).example])
    with pytest.raises(TemplateError, match=r"p\.jsonl:1: .*System role not supported"):
        strict.check([rolled(prompt=(Message("system", "Be brief."), *ASKED)).example])
    with pytest.raises(DataError, match=r"p\.jsonl:1: prompt and answer have \d+ tokens, more than the 64(.|\n)*data\.max_length"):
        strict.check([rolled(prompt=ASKED).example, rolled(prompt=(Message("user", "town " * 100),)).example])


def test_an_encoder_is_no_reward_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 900, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    config = AutoConfig.for_model("deberta-v2", **sizes, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer("base").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no score head at the last token") as caught:
        load(str(tmp_path))
    assert caught.value.where == str(tmp_path)


def test_what_one_source_cannot_judge_is_not_judged() -> None:
    whole = Sum({"a": Fixed(Verdict(1.0), Verdict(1.0)), "b": Fixed(Verdict(None, note="no reply"), Verdict(3.0))})
    first, second = whole.judge([rolled(), rolled()])
    assert (first.value, first.parts, first.note) == (None, {"a": 1.0}, "b: no reply")
    assert second.value == 4.0


def test_the_soft_overlong_penalty_has_two_knees() -> None:
    penalty = soft_overlong(limit=20, buffer=8)
    found = {n: penalty(rolled(tokens=n)) for n in (0, 12, 13, 16, 20, 21, 50)}
    assert found == {0: 0.0, 12: 0.0, 13: 0.125, 16: 0.5, 20: 1.0, 21: 1.0, 50: 1.0}


def test_length_and_missing_eos() -> None:
    assert length_penalty(0.01)(rolled(tokens=7)) == pytest.approx(0.07)
    assert [missing_eos(0.3)(rolled(finished=done)) for done in (True, False)] == [0.0, 0.3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_an_error(value: float) -> None:
    with pytest.raises(RewardError, match=r"reward a: (nan|-?inf) for answer 2 of 2"):
        Sum({"a": Fixed(Verdict(1.0), Verdict(value))}).judge([rolled(), rolled()])


def test_a_wrong_number_of_values_is_an_error() -> None:
    with pytest.raises(RewardError, match="reward a: 1 values for 2 answers"):
        Sum({"a": Fixed(Verdict(1.0))}).judge([rolled(), rolled()])


# --- from the settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing rates the answers"),
        ({"verifier": "gold", "weights": {"god": 2.0}}, "reward.weights.god.*\n.*'gold'"),
        ({"function": "rewards.py"}, 'expected "file.py:name"'),
        ({"function": ["a.py:f", "b.py:f"]}, "two sources are named 'f'"),
        ({"url": "localhost:80"}, "starts with http://"),
        ({"verifier": "gold", "overlong_buffer": 4}, "there is no limit"),
        ({"verifier": "gold", "overlong_limit": 4}, "read by reward.overlong_buffer alone"),
        ({"verifier": "gold", "answer": "solution"}, "read by reward.verifier=math alone"),
        ({"verifier": "gold", "overlong_buffer": 4, "overlong_limit": 3}, "longer than the limit of 3"),
    ],
)
def test_settings_that_make_no_reward(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PrefoptError, match=said):
        build(RewardSettings(**settings))


def test_the_world_knows_the_truth() -> None:
    world = World(0)
    request = next(r for r in world.requests(50, seed=1) if r.slice == "arithmetic")
    answers = [rolled(text, prompt=request.prompt, **request.meta) for text in (world.ideal(request), "banana")]
    reward = build(RewardSettings(verifier=["gold", "arithmetic"], weights={"arithmetic": 10.0}))
    assert [v.value for v in reward.judge(answers)] == [11.0, -1.0]
    with pytest.raises(DataError, match=r"p\.jsonl:1: the row has no `meta` of the synthetic world"):
        reward.check([rolled().example])


# --- a Python function


@pytest.fixture
def function(tmp_path: Path) -> Callable[..., FunctionReward]:
    def make(body: str, *, timeout: float = 20.0, retries: int = 1) -> FunctionReward:
        (tmp_path / "mine.py").write_text(body)
        return FunctionReward(f"{tmp_path}/mine.py:f", timeout=timeout, retries=retries)

    return make


def test_a_function_sees_texts_and_columns(function: Callable[..., FunctionReward]) -> None:
    reward = function(
        "def f(prompts, completions, target, **columns):\n    print('noise')\n    assert columns['completion_ids'] == [[0, 1, 2]] * 2\n"
        "    assert prompts[1] == [{'role': 'user', 'content': 'Q'}]\n    return [len(c) - t for c, t in zip(completions, target)]\n"
    )
    answers = [rolled("four", target=1), rolled("sixsix", target=2, prompt=(Message("user", "Q"),))]
    assert [v.value for v in reward.judge(answers)] == [3.0, 4.0]


def test_a_column_that_is_missing_is_named_before_anything_is_sampled(function: Callable[..., FunctionReward]) -> None:
    reward = function("def f(completions, target):\n    return [0]\n")
    with pytest.raises(DataError, match=r"p\.jsonl:1: .*needs a column 'target', the row's extra columns are: goal"):
        reward.check([rolled(goal=1).example])


def test_an_answer_that_makes_the_function_fail_has_no_value_and_the_others_do(function: Callable[..., FunctionReward]) -> None:
    reward = function(
        "import os\nTRIES = 0\ndef f(completions):\n    if 'exit' in completions:\n        os._exit(3)\n"
        "    return [1 / len(c) if c != 'skip' else None for c in completions]\n"
    )
    verdicts = reward.judge([rolled("ab"), rolled(""), rolled("exit"), rolled("skip"), rolled("abcd")])
    assert [v.value for v in verdicts] == [0.5, None, None, None, 0.25]
    assert verdicts[1].note == "ZeroDivisionError: division by zero (mine.py:6) (tried 2 times)"
    assert verdicts[2].note == "the process ended with exit code 3 (tried 2 times)"
    assert "returned None" in verdicts[3].note


def test_a_function_that_hangs_is_ended(function: Callable[..., FunctionReward]) -> None:
    reward = function(
        "def f(completions):\n    while 'loop' in completions: pass\n    return [1] * len(completions)\n", timeout=0.5, retries=0
    )
    verdicts = reward.judge([rolled("a"), rolled("loop"), rolled("b")])
    assert [v.value for v in verdicts] == [1.0, None, 1.0]
    assert verdicts[1].note == "no reply within 0.5 s"


def test_a_fault_that_passes_is_retried(function: Callable[..., FunctionReward], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    reward = function(
        f"import pathlib\nflag = pathlib.Path({str(flag)!r})\n"
        "def f(completions):\n    count = len(flag.read_text()) if flag.exists() else 0\n"
        "    flag.write_text('x' * (count + 1))\n    if count < 2: raise OSError('busy')\n    return [1.0]\n",
        retries=2,
    )
    assert [v.value for v in reward.judge([rolled()])] == [1.0]


def test_a_function_that_always_fails_is_not_asked_for_ever(function: Callable[..., FunctionReward], tmp_path: Path) -> None:
    log = tmp_path / "log"
    reward = function(f"def f(completions):\n    open({str(log)!r}, 'a').write('x')\n    raise ValueError('no')\n", retries=0)
    verdicts = reward.judge([rolled()] * 100)
    assert all(v.value is None for v in verdicts)
    assert "not tried" in verdicts[-1].note
    assert "ValueError: no" in verdicts[-1].note
    assert len(log.read_text()) == 5


def test_answers_that_a_function_does_not_judge_are_no_failures(function: Callable[..., FunctionReward]) -> None:
    reward = function("def f(completions):\n    return [None if c == 'skip' else 1 / len(c) for c in completions]\n", retries=0)
    verdicts = reward.judge([*[rolled("skip")] * 6, rolled(""), rolled("ab")])
    assert [v.value for v in verdicts] == [None] * 7 + [0.5]
    assert verdicts[6].note.startswith("ZeroDivisionError")


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_prompt_that_a_function_cannot_judge_costs_its_own_answers(at: int, function: Callable[..., FunctionReward]) -> None:
    """However many answers it has, and wherever they stand."""
    reward = function("def f(completions):\n    return [1 / len(c) for c in completions]\n", retries=0)
    prompts = [Example(prompt=str(i), where=f"p.jsonl:{i}") for i in range(4)]
    asked = [Rolled(prompt, rolled("" if i == at else "a").sample) for i, prompt in enumerate(prompts) for _ in range(8)]
    assert [v.value for v in reward.judge(asked)] == [None if i == at else 1.0 for i in range(4) for _ in range(8)]


@pytest.mark.parametrize("name", ["math", "json", "mine"])
def test_a_file_may_be_called_as_a_module_of_the_library(name: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 3.0\n")
    (tmp_path / f"{name}.py").write_text(
        "import json, math\nfrom beside import VALUE\ndef f(completions):\n    return [math.sqrt(VALUE**2)]\n"
    )
    assert [v.value for v in FunctionReward(f"{tmp_path}/{name}.py:f", timeout=20.0, retries=0).judge([rolled()])] == [3.0]


def test_a_process_that_ends_takes_its_children_with_it(function: Callable[..., FunctionReward], tmp_path: Path) -> None:
    child = tmp_path / "child"
    body = "import os, subprocess\ndef f(completions):\n    started = subprocess.Popen(['sleep', '60'])\n"
    reward = function(f"{body}    open({str(child)!r}, 'w').write(str(started.pid))\n    os._exit(3)\n", retries=0)
    assert reward.judge([rolled()])[0].note == "the process ended with exit code 3"
    until = time.monotonic() + 10
    while _runs(int(child.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(int(child.read_text()))


def _runs(pid: int) -> bool:
    """Whether a process is there and not only waiting to be told of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def g(): pass", "cannot be loaded: AttributeError.*no attribute 'f'"),
        ("import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError"),
        ("f = 3", "TypeError: .*is not a function"),
        ("def f(completions): return [1.0]", "1 values for 2 answers"),
        ("def f(completions): return [float('nan')] * 2", "nan for answer 1 of 2"),
    ],
)
def test_a_function_that_is_wrong_itself(function: Callable[..., FunctionReward], body: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        Sum({"f": function(body)}).judge([rolled(), rolled()])


# --- an endpoint


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with whatever `replies` holds next; the last one for ever."""

    replies: list[tuple[int, Any]]
    seen: list[Any]

    def do_POST(self) -> None:
        self.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        body = reply(self.seen[-1]) if callable(reply) else reply
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[EndpointReward, type[Server]]]]:
    running = []

    def start(*replies: tuple[int, Any], timeout: float = 5.0, retries: int = 1) -> tuple[EndpointReward, type[Server]]:
        handler = type("Handler", (Server,), {"replies": list(replies), "seen": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return EndpointReward(f"http://127.0.0.1:{server.server_port}/r", timeout=timeout, retries=retries), handler

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.rewards.endpoint.PAUSE", 0.0)


def test_an_endpoint_is_sent_batches_and_answers_numbers(serve: Any) -> None:
    reward, handler = serve((200, lambda body: {"rewards": [len(c) if c else None for c in body["completions"]]}))
    verdicts = reward.judge([rolled("x" * (i % 3), target=i) for i in range(70)])
    assert [v.value for v in verdicts] == [(i % 3) or None for i in range(70)]
    assert [len(body["rows"]) for body in handler.seen] == [64, 6]
    assert handler.seen[1]["rows"][0] == {"target": 64}


def test_a_busy_server_is_asked_again(serve: Any) -> None:
    reward, handler = serve((503, b"busy"), (200, {"rewards": [1]}))
    assert [v.value for v in reward.judge([rolled()])] == [1]
    assert len(handler.seen) == 2


def test_a_server_that_stays_broken_leaves_answers_unjudged_and_is_not_asked_further(serve: Any) -> None:
    reward, handler = serve((200, lambda body: {"rewards": [1.0] * 64}), (500, b"out of memory"))
    verdicts = reward.judge([rolled()] * 200)
    assert [v.value for v in verdicts] == [1.0] * 64 + [None] * 136
    assert "500 Internal Server Error: out of memory (tried 2 times)" in verdicts[-1].note
    assert len(handler.seen) == 3


def test_a_server_that_is_down_or_slow_is_told_apart(serve: Any) -> None:
    nobody = EndpointReward("http://127.0.0.1:9/", timeout=1.0, retries=0)
    assert "cannot be reached: [Errno 111] Connection refused" in nobody.judge([rolled()])[0].note
    gate = threading.Event()
    slow, _ = serve((200, lambda body: gate.wait(5) and {"rewards": [1]}), timeout=0.2, retries=0)
    assert "no answer within 0.2 s" in slow.judge([rolled()])[0].note
    gate.set()
    garbled, _ = serve((200, b"<html>"), retries=0)
    assert "the answer is not JSON" in garbled.judge([rolled()])[0].note


@pytest.mark.parametrize(
    ("status", "reply", "said"),
    [
        (404, b"nothing here", "404 Not Found: nothing here"),
        (200, {"scores": [1]}, "no list of numbers"),
        (200, {"rewards": [1, 2]}, "2 values for 1"),
    ],
)
def test_a_server_that_does_not_understand(serve: Any, status: int, reply: Any, said: str) -> None:
    reward, _ = serve((status, reply))
    with pytest.raises(RewardError, match=said):
        reward.judge([rolled()])


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RewardError, match=r"no file nowhere/mine\.py"):
        FunctionReward("nowhere/mine.py:f", timeout=1.0, retries=0).check([])


def test_options_are_checked_where_the_reward_is_built() -> None:
    with pytest.raises(OptionError):
        build(RewardSettings(function="nothing"))
