"""GRPO end to end beside TRL's GRPOTrainer: same model, prompts, reward function and sizes, each in a process of its own, in turn.

    .venv-bench/bin/python benchmarks/online.py [--rounds 2] [--precision fp32 bf16]

A step is 8 prompts of 64 tokens, 8 samples of 64 new tokens each, their rewards, and one update with KL to a reference (k3 in the loss).
Samples a second: wall clock from the end of the first step to the end of the last, sampling, rewards, log-probs and update included.
Memory: the peak of the process, and of the process that prefopt runs the reward function in. TRL takes the samples of a step in batches
of --trl-batch (16); prefopt takes as many positions in a forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import offline

PROMPTS, SAMPLES, PROMPT, NEW = 8, 8, 64, 64
REWARD = '''
def reward(prompts, completions, **_):
    """The share of words with an even number."""
    counted = [[int(word[1:]) % 2 == 0 for word in text.split() if word[0] == "w"] for text in completions]
    return [sum(even) / max(1, len(even)) for even in counted]
'''


def write_prompts(folder: Path, count: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    rows = ({"prompt": " ".join(f"w{i}" for i in rng.integers(3, offline.VOCAB, PROMPT))} for _ in range(count))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)


def run_prefopt(folder: Path, steps: int, args: argparse.Namespace) -> list[float]:
    import prefopt.training.fit as fitting
    from prefopt.pipeline.api import train

    stamps: list[float] = []
    real = fitting.train_step

    def timed(*given, **named):  # type: ignore[no-untyped-def]
        found = real(*given, **named)
        stamps.append(time.perf_counter())
        return found

    fitting.train_step = timed
    options: dict[str, Any] = {
        "train": {"steps": steps, "batch_size": PROMPTS, "learning_rate": 1e-5, "precision": args.precision[0], "schedule": "constant",
                  "warmup": 0, "micro_tokens": args.trl_batch * (PROMPT + NEW)},
        "rollout": {"samples": SAMPLES, "max_new_tokens": NEW, "batch_size": PROMPTS * SAMPLES},
        "reward": {"function": f"{folder}/reward.py:reward"},
        "kl": {"coefficient": 0.04, "place": "loss"},
    }  # fmt: skip
    train("grpo", model=str(folder / "policy"), data=str(folder / "prompts.jsonl"), out=tempfile.mkdtemp(dir=folder) + "/run", **options)
    return stamps


def run_trl(folder: Path, steps: int, args: argparse.Namespace) -> list[float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *given, **named):  # type: ignore[no-untyped-def]
            stamps.append(time.perf_counter())

    scope: dict[str, Any] = {}
    exec((folder / "reward.py").read_text(), scope)
    batch = args.trl_batch
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(dir=folder), per_device_train_batch_size=batch, gradient_accumulation_steps=PROMPTS * SAMPLES // batch,
        max_steps=steps, num_generations=SAMPLES, max_completion_length=NEW, temperature=1.0, beta=0.04, loss_type="grpo",
        learning_rate=1e-5, lr_scheduler_type="constant", use_cpu=True, bf16=args.precision[0] == "bf16", report_to="none",
        save_strategy="no", logging_steps=1, gradient_checkpointing=False, optim="adamw_torch_fused", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        reward_funcs=scope["reward"],
        args=config,
        train_dataset=Dataset.from_list([json.loads(line) for line in (folder / "prompts.jsonl").open()]),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy", padding_side="left"),
        callbacks=[Clock()],
    )
    trainer.train()
    return stamps


def work(name: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """One side, in this process."""
    import psutil

    stamps = {"prefopt": run_prefopt, "trl": run_trl}[name](folder, args.steps + 1, args)
    children = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    speed = args.steps * PROMPTS * SAMPLES / (stamps[-1] - stamps[0])
    return {"samples_per_second": speed, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 + children / 1e9}


def side(name: str, folder: Path, precision: str, args: argparse.Namespace) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--steps", str(args.steps), "--precision", precision]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PREFOPT_CACHE": str(folder / "cache")}
    command += ["--trl-batch", str(args.trl_batch)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if found.returncode:
        raise SystemExit(f"{name} failed:\n{found.stderr[-3000:]}")
    return json.loads(found.stdout.strip().splitlines()[-1])


def compare(precision: str, args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {"prefopt": [], "trl": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        offline.make_model(folder, offline.MODELS[args.model])
        write_prompts(folder, PROMPTS * (args.steps + 1))
        for _ in range(args.rounds):
            for name, found in runs.items():
                found.append(side(name, folder, precision, args))
    speed = {name: [run["samples_per_second"] for run in found] for name, found in runs.items()}
    peak = {name: max(run["peak_gb"] for run in found) for name, found in runs.items()}
    ratios = [ours / theirs for ours, theirs in zip(*speed.values(), strict=True)]
    print(f"\n{precision}, {args.model} parameters, {PROMPTS} prompts x {SAMPLES} samples, {PROMPT}+{NEW} tokens, {args.steps} steps timed")
    for name in runs:
        rounds = " ".join(f"{s:.1f}" for s in speed[name])
        print(f"  {name:8} {statistics.median(speed[name]):7.1f} samples/s   peak {peak[name]:.2f} GB   rounds: {rounds}")
    print(f"  ratio    {statistics.median(ratios):7.2f}             memory {peak['prefopt'] / peak['trl']:.2f}")
    middle = {name: statistics.median(found) for name, found in speed.items()}
    return {"precision": precision, **middle, "ratios": ratios, "peak_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--model", default="11M", choices=list(offline.MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--trl-batch", type=int, default=16)
    parser.add_argument("--worker", choices=["prefopt", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/online.json"))
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.folder, args)))
        return
    import torch
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    rows = [compare(precision, args) for precision in args.precision]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
