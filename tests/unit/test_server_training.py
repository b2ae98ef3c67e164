"""Training on the samples of a server: it is given the new weights before every round, and shows before the first that it takes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.errors import ModelError, OptionError
from prefopt.rollout.local import LocalSampler
from prefopt.settings import LoraSettings, OnlineSettings, RolloutSettings
from prefopt.training.fit import FitResult
from prefopt.training.setup import Setup
from prefopt.types import TokenTree
from tests.openai_server import Completions, serving
from tests.worlds import language_model, metrics_of, rollout, run

GAP = "sampling/sampling_logp_difference/mean"
STEPS = {"steps": 3, "learning_rate": 3e-2, "schedule": "constant", "warmup": 0}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.rewards.endpoint.PAUSE", 0.0)


@contextmanager
def served(folder: Path, **faults: Any) -> Iterator[tuple[str, type[Completions]]]:
    """A server with a model of its own, whose weights are not those of the run."""
    other = language_model("grpo", seed=5)
    sampler = LocalSampler(other.model, other.renderer.stop_ids, other.renderer.decode, other.vocabulary)
    with serving(sampler, folder, **faults) as (url, handler):
        yield url, handler


def trained(out: Path, url: str, method: str = "grpo", **changes: Any) -> FitResult:
    sampling = rollout(method, engine="server", url=url, folder=str(out / "served"), retries=0)
    online = OnlineSettings(importance_cap=changes.pop("cap", 10.0)) if method == "grpo" else OnlineSettings()
    return run(out, method, train={**STEPS, **changes.pop("train", {})}, **{"rollout": sampling, "online": online, **changes})


def test_the_server_has_the_policys_weights_in_every_round(tmp_path: Path) -> None:
    with served(tmp_path / "served") as (url, handler):
        trained(tmp_path, url)
    rows = metrics_of(tmp_path)
    assert len(rows) == 3
    assert all(row[GAP] < 1e-5 for row in rows), "what it drew from is what the trainer finds"
    assert len(handler.reloads) == 3 + 2, "the first weights, others to see that it takes them, the first again, and two new ones"


def test_weights_that_no_longer_arrive_show_in_the_gap(tmp_path: Path) -> None:
    with served(tmp_path / "served", **{"stale after": 3}) as (url, _):
        trained(tmp_path, url)
    gaps = [row[GAP] for row in metrics_of(tmp_path)]
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-3


def test_a_gap_is_corrected_by_importance_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that says its log-probs 0.1 too high: every token weighs e^-0.1, or the cap where that is smaller."""
    seen: list[TokenTree] = []
    monkeypatch.setattr("prefopt.training.online.trees_of", _spied(seen))
    for cap, weight in ((10.0, np.exp(-0.1)), (0.5, 0.5)):
        seen.clear()
        with served(tmp_path / str(cap) / "served", off=0.1) as (url, _):
            trained(tmp_path / str(cap), url, cap=cap, train={"steps": 1})
        assert metrics_of(tmp_path / str(cap))[0][GAP] == pytest.approx(0.1, abs=1e-4)
        weights = np.concatenate([branch.signals["weights"] for tree in seen for branch in tree.branches])
        assert weights == pytest.approx(weight, abs=1e-4)


def _spied(seen: list[TokenTree]) -> Any:
    from prefopt.training.rounds import trees_of

    def spied(*arguments: Any) -> list[TokenTree]:
        found = trees_of(*arguments)
        seen.extend(found)
        return found

    return spied


def test_greedy_answers_and_those_of_the_reference(tmp_path: Path) -> None:
    """ReMax's greedy ones come from the server too; XPO's last answer is the reference's, drawn in this process."""
    for method, asks in (("remax", 2 * 8 * 3), ("xpo", 8 * 3)):
        with served(tmp_path / method / "served") as (url, handler):
            trained(tmp_path / method, url, method)
        assert len([asked for asked in handler.served if asked["max_tokens"] == 6]) == asks
        assert all(row[GAP] < 1e-5 for row in metrics_of(tmp_path / method) if GAP in row)


def test_the_model_a_run_starts_from_is_not_written_over(tmp_path: Path) -> None:
    model = language_model("grpo")
    model.path = str(tmp_path / "x" / ".." / "served")
    with served(tmp_path / "served") as (url, _), pytest.raises(OptionError, match="over the model that this run starts from"):
        trained(tmp_path, url, model=model)


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ({"no reload": True}, ModelError, r"did not take the new weights.*404(.|\n)*VLLM_SERVER_DEV_MODE=1"),
        ({"stale after": 0}, OptionError, r"says the same(.|\n)*start the server on the folder"),
        ({"down after": 0}, ModelError, "gave no answer"),
    ],
)
def test_a_server_that_cannot_follow_is_refused_before_the_first_round(faults: Any, error: Any, says: str, tmp_path: Path) -> None:
    with served(tmp_path / "served", **faults) as (url, _), pytest.raises(error, match=says):
        trained(tmp_path, url)
    assert not (tmp_path / "rollouts").exists()


def test_a_server_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did not take the new weights: cannot be reached(.|\n)*see that it runs"):
        trained(tmp_path, "http://127.0.0.1:9/v1")


def test_a_server_that_goes_down_costs_nothing_that_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path / "served", **{"down after": 4 + 8 + 3}) as (url, _), pytest.raises(ModelError, match="of 8 prompts"):
        trained(tmp_path, url)
    assert "kept as after step 1" in capsys.readouterr().err


def test_a_run_that_goes_on_gives_the_server_its_weights(tmp_path: Path) -> None:
    with served(tmp_path / "whole" / "served") as (url, _):
        whole = trained(tmp_path / "whole", url)
    with served(tmp_path / "cut" / "served", **{"down after": 4 + 8 + 3}) as (url, _), pytest.raises(ModelError):
        trained(tmp_path / "cut", url)
    with served(tmp_path / "cut" / "served") as (url, _):
        again = trained(tmp_path / "cut", url)
    assert all(row[GAP] < 1e-5 for row in metrics_of(tmp_path / "cut")), "also in the first round after the stop"
    for name, weight in load_file(whole.model / "model.safetensors").items():
        assert torch.equal(weight, load_file(again.model / "model.safetensors")[name]), name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout": {"engine": "server", "url": "http://x/v1"}}, "nothing says where it reads them"),
        ({"rollout": {"folder": "x"}}, "read by rollout.engine=server alone"),
        ({"rollout": {"engine": "vllm"}, "lora": LoraSettings(rank=2)}, "whole models, not adapters"),
        ({"rollout": {"top_k": 3}}, "most probable tokens alone"),
        ({"rollout": {"min_p": 0.1}}, "most probable tokens alone"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], says: str) -> None:
    sampling = rollout("grpo", **changes.pop("rollout"))
    with pytest.raises(OptionError, match=says):
        Setup(method="grpo", rollout=sampling, **changes).check()


def test_a_folder_is_of_training_alone() -> None:
    with pytest.raises(OptionError, match="only training gives"):
        language_model().sample(["w5"], RolloutSettings(folder="x"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ["local", "vllm"])
def test_the_address_of_a_server_is_not_ignored(engine: Literal["local", "vllm"]) -> None:
    with pytest.raises(OptionError, match=r"rollout\.url: read by rollout\.engine=server alone"):
        language_model().sample(["w5"], RolloutSettings(url="http://127.0.0.1:9/v1", engine=engine))  # type: ignore[attr-defined]


def test_vllm_in_this_process_is_given_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that answers as vLLM's does, from the weights it was given."""
    own = language_model("grpo", seed=5)
    given: list[set[str]] = []

    class Engine:
        def __init__(self, **options: Any) -> None:
            assert options["dtype"] == "float32"

        def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
            assert method == "reload_weights"
            weights = load_file(Path(kwargs["weights_path"]) / "model.safetensors")
            given.append(set(weights))
            with torch.no_grad():
                for name, weight in weights.items():
                    own.model.get_parameter(name).copy_(weight)

        def reset_prefix_cache(self) -> None:
            pass

        def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> Any:
            sampler = LocalSampler(own.model, own.renderer.stop_ids, own.renderer.decode, own.vocabulary)
            return [SimpleNamespace(outputs=[_as_vllm(s) for s in _asked(sampler, *one)]) for one in zip(prompts, parameters, strict=True)]

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = Engine, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    run(tmp_path, "grpo", train=STEPS, rollout=rollout("grpo", engine="vllm"), online=OnlineSettings(importance_cap=2.0))
    assert len(given) == 5
    assert given[0] == {name for name, _ in own.model.named_parameters()}
    assert all(row[GAP] < 1e-5 for row in metrics_of(tmp_path))


def _asked(sampler: LocalSampler, prompt: Any, asked: Any) -> Any:
    how = RolloutSettings(samples=asked.n, max_new_tokens=asked.max_tokens, temperature=asked.temperature, seed=asked.seed)
    return sampler.sample([np.asarray(prompt["prompt_token_ids"], np.int32)], how)[0]


def _as_vllm(sample: Any) -> Any:
    logprobs = [{int(i): SimpleNamespace(logprob=float(logp))} for i, logp in zip(sample.ids, sample.logps, strict=True)]
    return SimpleNamespace(token_ids=sample.ids.tolist(), finish_reason="stop" if sample.finished else "length", logprobs=logprobs)
