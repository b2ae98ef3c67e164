"""What this machine can do: each finding is a line with a state and, where something is missing, the way to it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prefopt.errors import RewardError
from prefopt.pipeline import record

State = Literal["ok", "no", "-"]
OPTIONAL = {
    "math_verify": "answers of reward.verifier=math that are no plain numbers; pip install 'prefopt[math]'",
    "openai": "judge.by=ai; pip install 'prefopt[judge]'",
    "vllm": "rollout.engine=vllm; pip install 'prefopt[vllm]'",
    "tensorboard": "track.to=tensorboard; pip install 'prefopt[track]'",
    "trackio": "track.to=trackio; pip install 'prefopt[track]'",
    "lm_eval": "suite lm_eval; pip install 'prefopt[lm-eval]'",
    "wandb": "track.to=wandb; pip install 'prefopt[wandb]'",
}
"""Packages that add something, and what."""
_CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-bf16", "avx512f": "AVX512", "avx2": "AVX2"}


class Finding(NamedTuple):
    """One thing looked at: "ok", "no" (training cannot work) or "-" (something optional is missing)."""

    state: State
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<3} {self.name:<13} {self.text}"


def findings() -> Iterator[Finding]:
    """Everything there is to say, one by one, since some of it takes a second."""
    code = record.code()
    commit = f", commit {code['commit'][:9]}{' with changes' if code['dirty'] else ''}" if code["commit"] else ""
    yield Finding("ok", "prefopt", f"{code['version']}{commit}")
    yield Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in record.packages().items()))
    yield Finding("ok", "processor", f"{record.processor()}, {record.cores()} cores ({', '.join(cpu_flags()) or 'no wide vectors'})")
    yield Finding("ok", "memory", f"{record.memory_gb():.1f} GB, {free_disk_gb():.1f} GB free on this disk")
    for look in (_gpus, _bf16, _fp32, _compiler, _offline):
        yield look()
    for package, use in OPTIONAL.items():
        there = importlib.util.find_spec(package) is not None
        yield Finding("ok" if there else "-", package, "installed" if there else f"not installed: {use}")
    yield _sandbox()
    yield _tried("forward pass", _tiny_forward)


def cpu_flags() -> list[str]:
    """The processor's vector and matrix units that matter for speed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return [name for flag, name in _CPU_FLAGS.items() if flag in flags]


def free_disk_gb() -> float:
    """Room for checkpoints where the command was started, in GB."""
    return shutil.disk_usage(".").free / 1e9


def _gpus() -> Finding:
    names = record.gpus()
    return Finding("ok" if names else "-", "GPU", ", ".join(names) or "none that torch can use; everything runs on the CPU")


def _bf16() -> Finding:
    import torch

    if torch.cuda.is_available():
        good = torch.cuda.is_bf16_supported()
        return Finding("ok" if good else "-", "bf16", "on the GPU" if good else "not on this GPU; train.precision=fp32")
    fast = [name for name in cpu_flags() if name in ("AMX", "AVX512-bf16")]
    text = f"fast on this CPU ({', '.join(fast)}); try train.precision=bf16" if fast else "slow on this CPU; train.precision=fp32 is better"
    return Finding("ok" if fast else "-", "bf16", text)


def _fp32() -> Finding:
    from prefopt.model.linear import CLEARLY, gain

    found = gain()
    used = f"oneDNN's, {found:.1f} times as fast as torch's own here" if found >= CLEARLY else "torch's own"
    return Finding("ok", "fp32 products", used)


def _compiler() -> Finding:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return Finding("ok" if found else "-", "torch.compile", found or "no C++ compiler; leave train.compile=false")


def _offline() -> Finding:
    off = os.environ.get("HF_HUB_OFFLINE") == "1"
    return Finding("-" if off else "ok", "hub", "HF_HUB_OFFLINE=1: only folders and cached models" if off else "hub names are looked up")


def _sandbox() -> Finding:
    from prefopt.rollout.sandbox.run import require

    try:
        require()
    except RewardError as error:
        return Finding("-", "sandbox", f"{error.what}: reward.verifier=code, suite capability; {error.fix}")
    return Finding("ok", "sandbox", "bubblewrap makes one")


def _tried(name: str, attempt: Callable[[], str]) -> Finding:
    """The outcome of something that must work."""
    try:
        return Finding("ok", name, attempt())
    except Exception as error:
        return Finding("no", name, f"{type(error).__name__}: {error}".splitlines()[0])


def _tiny_forward() -> str:
    """One packed forward and backward pass of a very small Llama, against the padded one."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prefopt.model.selfcheck import go_back, self_check
    from prefopt.types import Branch, TokenTree

    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape))
    branches = tuple(
        Branch(ids=np.arange(5, 5 + n, dtype=np.int32), scored=np.ones(n, dtype=np.bool_), rank=i) for i, n in enumerate((4, 3))
    )
    tree = TokenTree(prompt=np.arange(4, dtype=np.int32), branches=branches)
    found = self_check(model, [tree])
    go_back(model, tree)
    return f"a tiny model takes the {found.layout} layout; packed and padded agree within {found.difference:.0e}"
