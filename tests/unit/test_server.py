"""Sampling by a server: what comes back is what the model behind it says, and what the server does not honour is refused."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefopt.errors import DataError, ModelError, OptionError, PrefoptError
from prefopt.rollout.constrain import Vocabulary
from prefopt.rollout.local import LocalSampler
from prefopt.rollout.sampler import Sample
from prefopt.rollout.server import ServerSampler
from prefopt.rollout.vllm import VllmSampler
from prefopt.settings import RolloutSettings
from prefopt.text.chat import Renderer
from tests.chat_shapes import tokenizer
from tests.openai_server import serving

PROMPTS = [np.array(ids, np.int32) for ids in ([5, 6, 7], [9], [11, 12], [5, 5])]


@pytest.fixture(scope="module")
def local() -> LocalSampler:
    made = tokenizer("chatml")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(made), max_position_embeddings=128, **shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    stop = made.convert_tokens_to_ids("<|im_end|>")
    decode = Renderer(made).decode
    return LocalSampler(model.eval(), (stop,), decode, lambda: Vocabulary(made, len(made)))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.rewards.endpoint.PAUSE", 0.0)


def settings(**options: Any) -> RolloutSettings:
    return RolloutSettings(**{"samples": 3, "max_new_tokens": 10, "timeout": 20.0, "retries": 1, **options})


def client(url: str, local: LocalSampler, limit: int | None = 128) -> ServerSampler:
    return ServerSampler(url, local.stop_ids, local.decode, limit)


def flat(rows: list[list[Sample]]) -> list[tuple[list[int], str, bool]]:
    return [(sample.ids.tolist(), sample.text, sample.finished) for row in rows for sample in row]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.6, "top_p": 0.8},
        {"top_k": 5},
        {"min_p": 0.2},
        {"stop": ["e", "th"], "max_new_tokens": 30},
    ],
)
def test_a_server_samples_what_its_model_says(local: LocalSampler, options: dict[str, Any]) -> None:
    how = settings(**options)
    with serving(local) as (url, _):
        found = client(url, local).sample(PROMPTS, how)
    assert [len(row) for row in found] == [3] * len(PROMPTS)
    for place, (prompt, row) in enumerate(zip(PROMPTS, found, strict=True)):
        seed = int(np.random.SeedSequence([how.seed, place]).generate_state(1)[0])
        (expected,) = local.sample([prompt], settings(**options, seed=seed))
        assert flat([row]) == flat([expected])
        for mine, own in zip(row, expected, strict=True):
            assert mine.logps.dtype == np.float32
            np.testing.assert_allclose(mine.logps, own.logps, atol=1e-6)


def test_the_seed_names_the_samples(local: LocalSampler) -> None:
    with serving(local) as (url, _):
        one, again, other = (flat(client(url, local).sample(PROMPTS, settings(seed=seed))) for seed in (1, 1, 2))
    assert one == again != other


def test_penalties_of_the_models_generation_config_are_not_applied(local: LocalSampler) -> None:
    """vLLM applies them to every request that does not name them, and its log-probs are then those of another distribution."""
    with serving(local, penalty=True) as (url, handler):
        found = client(url, local).sample(PROMPTS, settings())
    with serving(local) as (url, _):
        expected = client(url, local).sample(PROMPTS, settings())
    assert flat(found) == flat(expected)
    for mine, own in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_allclose(mine.logps, own.logps, atol=1e-6)
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert all(neutral.items() <= asked.items() for asked in handler.served)


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("seed", {}, "ignores seed"),
        ("top_k", {"top_k": 5}, "ignores top_k"),
        ("min_p", {"min_p": 0.5}, "ignores min_p"),
        ("raw", {"temperature": 0.7}, "not of the distribution.*\n.*--logprobs-mode processed_logprobs"),
    ],
)
def test_what_a_server_does_not_honour_is_refused(local: LocalSampler, fault: str, options: dict[str, Any], said: str) -> None:
    with serving(local, **{fault: True}) as (url, handler):
        with pytest.raises(OptionError, match=rf"rollout\.url: {url}: .*{said}"):
            client(url, local).sample(PROMPTS, settings(**options))
        assert all(asked["max_tokens"] <= 4 for asked in handler.served)
    with serving(local, **{fault: True}) as (url, _):
        if fault != "seed":
            client(url, local).sample(PROMPTS, settings())  # what is not asked for does not matter


@pytest.mark.parametrize("option", [{"regex": "a"}, {"banned": "a"}, {"required": "a"}])
def test_a_server_does_not_constrain(local: LocalSampler, option: dict[str, Any]) -> None:
    with serving(local) as (url, _), pytest.raises(OptionError, match="does not constrain"):
        client(url, local).sample(PROMPTS, settings(**option))


@pytest.mark.parametrize(
    ("faults", "options", "said"),
    [
        ({"names": True}, {}, "tells no token ids"),
        ({"few": True}, {"retries": 0}, "expected 4 choices, found 3"),
        ({"slow": 1.0}, {"timeout": 0.2, "retries": 0}, r"no answer within 0\.2 s"),
        ({"down after": 0}, {"retries": 0}, "500 Internal Server Error.*CUDA out of memory"),
    ],
)
def test_a_server_that_is_broken_is_told(local: LocalSampler, faults: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with serving(local, **faults) as (url, _), pytest.raises(ModelError, match=rf"{url}: the server gave no answer: .*{said}"):
        client(url, local).sample(PROMPTS, settings(**options))


def test_a_server_that_is_not_there(local: LocalSampler) -> None:
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9/v1: .*Connection refused.*\n.*see that it runs"):
        client("http://127.0.0.1:9/v1", local).sample(PROMPTS, settings(retries=0))


def test_answers_before_a_server_went_down_are_kept(local: LocalSampler) -> None:
    with serving(local, **{"down after": 4}) as (url, _), pytest.raises(ModelError, match="after 2 of 4 prompts") as caught:
        client(url, local).sample(PROMPTS, settings(retries=0, batch_size=3))
    path = Path(str(caught.value).rsplit("kept in ", 1)[1])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt_ids"] for row in rows] == [prompt.tolist() for prompt in PROMPTS[:2]]
    assert all(len(row["answers"]) == 3 and row["answers"][0]["ids"] for row in rows)


def test_prompts_are_checked_before_the_server_is_asked(local: LocalSampler) -> None:
    with pytest.raises(DataError, match=r"prompt 1 has 3 tokens.*12"):
        client("http://127.0.0.1:9/v1", local, limit=12).sample(PROMPTS, settings())


# --- vLLM in this process: what it is asked for, and how its answers are read


def test_without_vllm_the_extra_is_named(local: LocalSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(OptionError, match=r"vLLM cannot be imported.*\n.*prefopt\[vllm\]"):
        VllmSampler("model", local.stop_ids, local.decode)


def test_vllm_is_asked_for_what_the_settings_say(local: LocalSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    (stop,) = local.stop_ids

    class Engine:
        def __init__(self, **options: Any) -> None:
            made["options"] = options

        def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> Any:
            made.update(prompts=prompts, parameters=parameters)
            of = SimpleNamespace
            ended = of(token_ids=[9, stop], finish_reason="stop", logprobs=[{9: of(logprob=-0.5)}, {stop: of(logprob=-1.0)}])
            cut = of(token_ids=(9,), finish_reason="length", logprobs=[{9: of(logprob=-0.5), 3: None}])
            return [SimpleNamespace(outputs=[ended, cut])] * len(prompts)

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = Engine, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    sampler = VllmSampler("model", local.stop_ids, local.decode, dtype="float32", memory=0.3)
    share = {"dtype": "float32", "gpu_memory_utilization": 0.3}
    assert made["options"] == {"model": "model", "logprobs_mode": "processed_logprobs", "generation_config": "vllm", **share}
    found = sampler.sample(PROMPTS, settings(samples=2, top_k=7, min_p=0.1, stop="x", temperature=0.5))
    asked = made["parameters"][1]
    assert (asked.n, asked.max_tokens, asked.top_k, asked.min_p, asked.temperature, asked.stop) == (2, 10, 7, 0.1, 0.5, ["x"])
    assert asked.stop_token_ids == list(local.stop_ids)
    assert len({each.seed for each in made["parameters"]}) == len(PROMPTS)
    assert made["prompts"][0] == {"prompt_token_ids": [5, 6, 7]}
    assert [sample.finished for sample in found[0]] == [True, False]
    assert found[0][0].text == found[0][1].text == local.decode([9])
    assert found[0][0].logps.tolist() == [-0.5, -1.0]
    with pytest.raises(PrefoptError, match="does not constrain"):
        sampler.sample(PROMPTS, settings(regex="a"))
