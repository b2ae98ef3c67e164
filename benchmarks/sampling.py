"""The local sampler beside transformers' `model.generate`, in turn in one process.

    python benchmarks/sampling.py [--dtype fp32 bf16] [--groups 4x8 32x1] [--rounds 4] [--threads 1]

A Llama of 7M parameters with random weights completes prompts of 64 tokens by 64 sampled ones, in 32 sequences: 4x8 is 8 samples of each of
4 prompts, 32x1 one sample of each of 32. Nothing ends early, so both make the same number of tokens. Printed are tokens a second of every
round, the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.rollout.local import LocalSampler
from prefopt.settings import RolloutSettings

SHAPE = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 4}
PROMPT = NEW = 64


def model_of(dtype: torch.dtype, kv_heads: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_key_value_heads=kv_heads, tie_word_embeddings=True, max_position_embeddings=512)
    return LlamaForCausalLM(config).to(dtype).eval()


def ours(model: Any, prompts: list[Any], samples: int) -> Callable[[int], int]:
    sampler = LocalSampler(model, (), lambda ids, prompt: "")
    most = len(prompts) * samples

    def run(seed: int) -> int:
        settings = RolloutSettings(samples=samples, max_new_tokens=NEW, batch_size=most, seed=seed)
        return sum(len(sample.ids) for row in sampler.sample(prompts, settings) for sample in row)

    return run


def theirs(model: Any, prompts: list[Any], samples: int) -> Callable[[int], int]:
    ids = torch.from_numpy(np.stack(prompts).astype(np.int64))
    how: dict[str, Any] = {"do_sample": True, "num_return_sequences": samples, "max_new_tokens": NEW, "min_new_tokens": NEW}

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=None, top_k=0, **how)
        return int(out[:, PROMPT:].numel())

    return run


def compare(dtype: str, prompts: int, samples: int, rounds: int, kv_heads: int) -> dict[str, Any]:
    model = model_of({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], kv_heads)
    rng = np.random.default_rng(0)
    asked = [rng.integers(1, SHAPE["vocab_size"], PROMPT).astype(np.int32) for _ in range(prompts)]
    runs = {"prefopt": ours(model, asked, samples), "generate": theirs(model, asked, samples)}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(0)
    for i in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            tokens = run(i)
            speeds[name].append(tokens / (time.perf_counter() - started))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\n{dtype}, {parameters:.1f}M parameters, {kv_heads} key heads, {prompts} prompts x {samples} samples, {PROMPT}+{NEW} tokens")
    for name, found in speeds.items():
        print(f"  {name:9} {median(found):8,.0f} tokens/s   rounds: {' '.join(f'{s:,.0f}' for s in found)}")
    middle = {name: median(found) for name, found in speeds.items()}
    print(f"  ratio     {middle['prefopt'] / middle['generate']:8.2f}")
    shape = {"dtype": dtype, "prompts": prompts, "samples": samples, "key_heads": kv_heads}
    return {**shape, **middle, "ratio": middle["prefopt"] / middle["generate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--groups", nargs="+", default=["4x8", "32x1"], help="prompts x samples")
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=Path("runs/bench/sampling.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {given.threads} threads")
    groups = [tuple(map(int, group.split("x"))) for group in given.groups]
    rows = [compare(dtype, *group, given.rounds, given.kv_heads) for dtype in given.dtype for group in groups]
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
