"""Real vLLM: in this process and behind `vllm serve`. Skipped where it is not installed (`make vllm` has an environment for it)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefopt.errors import OptionError
from prefopt.rollout.local import LocalSampler
from prefopt.rollout.policy import Policy
from prefopt.rollout.sampler import Sample
from prefopt.rollout.server import ServerSampler
from prefopt.rollout.vllm import VllmSampler
from prefopt.settings import OnlineSettings, RolloutSettings
from prefopt.text.chat import Renderer
from tests.worlds import metrics_of, rollout, run, tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` runs these in an environment of its own")
pytestmark = pytest.mark.slow

GAP = "sampling/sampling_logp_difference/mean"
PROMPTS = [np.array(ids, np.int32) for ids in ([5, 6, 7], [9], [11, 12, 13, 14], [5, 5])]
STEPS = {"steps": 3, "learning_rate": 3e-2, "schedule": "constant", "warmup": 0}


def policy(folder: Path, seed: int = 0) -> Policy:
    """A tiny Llama whose heads are of a size vLLM has kernels for, saved with its tokenizer."""
    words = tokenizer()
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=len(words), max_position_embeddings=128, **shape, **special)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    made = Policy(model.eval(), words, Renderer(words), str(folder))
    made.save(folder)
    return made


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return policy(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="module")
def inside(mine: Policy) -> VllmSampler:
    return VllmSampler(mine.path, mine.renderer.stop_ids, mine.renderer.decode, 128, dtype="float32", memory=0.2)


@pytest.fixture(scope="module")
def url(mine: Policy) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", mine.path, "--port", str(port), "--host", "127.0.0.1"]
    options = ["--dtype", "float32", "--gpu-memory-utilization", "0.2", "--logprobs-mode", "processed_logprobs"]
    env = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
    with open(Path(mine.path) / "serve.log", "w") as log:
        process = subprocess.Popen([*command, *options], env=env, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, Path(mine.path) / "serve.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module", params=["inside", "server"])
def engine(request: pytest.FixtureRequest, mine: Policy) -> Any:
    if request.param == "inside":
        return request.getfixturevalue("inside")
    return ServerSampler(request.getfixturevalue("url"), mine.renderer.stop_ids, mine.renderer.decode, 128)


def settings(**options: Any) -> RolloutSettings:
    return RolloutSettings(**{"samples": 3, "max_new_tokens": 10, "timeout": 60.0, **options})


def flat(rows: list[list[Sample]]) -> list[list[int]]:
    return [sample.ids.tolist() for row in rows for sample in row]


def test_greedy_answers_are_those_of_the_local_sampler(engine: Any, mine: Policy) -> None:
    local = LocalSampler(mine.model, mine.renderer.stop_ids, mine.renderer.decode, mine.vocabulary)
    asked = settings(temperature=0.0, samples=1)
    found, expected = engine.sample(PROMPTS, asked), local.sample(PROMPTS, asked)
    assert flat(found) == flat(expected)
    for mine_row, their_row in zip(expected, found, strict=True):
        assert their_row[0].finished == mine_row[0].finished


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"temperature": 0.6}, {"temperature": 1.3, "top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1, "temperature": 0.9}],
)
def test_the_log_probs_are_of_the_distribution_a_token_was_drawn_from(engine: Any, mine: Policy, options: dict[str, Any]) -> None:
    local = LocalSampler(mine.model, mine.renderer.stop_ids, mine.renderer.decode, mine.vocabulary)
    asked = settings(**options)
    for prompt, row in zip(PROMPTS, engine.sample(PROMPTS, asked), strict=True):
        for sample in row:
            expected = drawn_from(mine, prompt, sample.ids, asked)
            assert sample.logps == pytest.approx(expected, abs=2e-3)
    assert flat(engine.sample(PROMPTS, asked)) == flat(engine.sample(PROMPTS, asked)), "a seed gives the same answers again"
    assert {len(row) for row in local.sample(PROMPTS, asked)} == {3}


def drawn_from(model: Policy, prompt: Any, ids: Any, asked: RolloutSettings) -> Any:
    """log-probs of the tokens under temperature, then min-p, top-k and top-p, written out for one sequence."""
    whole = torch.tensor([[*prompt.tolist(), *ids.tolist()]])
    with torch.no_grad():
        logits = model.model(whole).logits[0, len(prompt) - 1 : -1].float() / asked.temperature
    probs = logits.softmax(-1)
    if asked.min_p:
        logits = logits.masked_fill(probs < asked.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    if asked.top_k:
        logits = logits.masked_fill(logits < logits.topk(asked.top_k).values[:, -1:], -torch.inf)
    if asked.top_p < 1:
        ordered, places = logits.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= asked.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), -torch.inf)
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids.tolist())[:, None])[:, 0].numpy()


def test_a_stop_string_ends_an_answer(engine: Any, mine: Policy) -> None:
    first = engine.sample(PROMPTS[:1], settings(samples=1, temperature=0.0))[0][0]
    word = first.text.split()[2]
    stopped = engine.sample(PROMPTS[:1], settings(samples=1, temperature=0.0, stop=[word]))[0][0]
    assert stopped.finished
    assert word not in stopped.text
    assert first.text.startswith(stopped.text.strip())


def test_a_constraint_is_refused(engine: Any) -> None:
    with pytest.raises(OptionError):
        engine.sample(PROMPTS, settings(regex="w5( w6)+"))


@pytest.mark.parametrize("kind", ["vllm", "server"])
def test_training_gives_it_the_new_weights(kind: str, mine: Policy, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "server":
        sampling = rollout("grpo", engine="server", url=request.getfixturevalue("url"), folder=mine.path, timeout=60.0)
    else:
        sampling = rollout("grpo", engine="vllm", memory=0.2)
    start = policy(tmp_path / "start", seed=3)
    run(tmp_path / "run", "grpo", model=start, train=STEPS, rollout=sampling, online=OnlineSettings(importance_cap=2.0))
    rows = metrics_of(tmp_path / "run")
    assert len(rows) == 3
    assert all(row[GAP] < 2e-3 for row in rows), [row[GAP] for row in rows]
