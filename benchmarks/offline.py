"""prefopt beside TRL on the same offline work: same rows, weights, dtype, optimizer and batch size, each in a process of its own, in turn.

    make bench                                      # the whole table (needs .venv-bench, which it makes)
    .venv-bench/bin/python benchmarks/offline.py --profiles hh --tasks dpo --rounds 1

First both sides must compute the same loss on the first batch (within 1e-3). Then rounds of A B A B: pairs/s over the timed steps, wall
clock from the start of one step to the end of the last, everything between included; peak resident memory of the process.
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

PROFILES = {"hh": (134, 55), "tldr": (350, 33), "ultrafeedback": (120, 220)}
"""Median tokens of prompt and answer; lengths are log-normal."""
TASKS = ("dpo", "dpo_cached", "reward", "sft")
MODELS = {"11M": (256, 704, 8, 4), "60M": (640, 1728, 10, 10)}
"""hidden, feed-forward, layers, heads; vocabulary 8192, untied."""
VOCAB, BATCH, WARM = 8192, 8, 2


def rows(profile: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Preference pairs of random words, one word a token."""
    import numpy as np

    rng = np.random.default_rng([seed, sorted(PROFILES).index(profile)])

    def words(median: int) -> str:
        n = int(np.clip(np.exp(rng.normal(np.log(median), 0.6)), 4, 900))
        return " ".join(f"w{i}" for i in rng.integers(3, VOCAB, n))

    prompt, answer = PROFILES[profile]
    return [{"prompt": words(prompt), "chosen": " " + words(answer), "rejected": " " + words(answer)} for _ in range(count)]


def make_model(folder: Path, size: str) -> None:
    """A random Llama, a perturbed reference beside it (so that losses can be compared), and a tokenizer of one word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, feed_forward, layers, heads = MODELS[size]
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=None, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    for name in ("policy", "reference"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02)


# --- one side, in a process of its own ------------------------------------------------------------------------------


def run_prefopt(task: str, folder: Path, steps: int, precision: str) -> dict[str, float]:
    """The timed steps of prefopt."""
    import prefopt.training.fit as fitting
    from prefopt.pipeline.api import train

    stamps: list[float] = []
    real = fitting.train_step

    def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
        stamps.append(time.perf_counter())
        found = real(*args, **kwargs)
        stamps.append(time.perf_counter())
        return found

    fitting.train_step = timed
    method = {"dpo_cached": "dpo"}.get(task, task)
    options: dict[str, object] = {"train": {"steps": steps, "batch_size": BATCH, "learning_rate": 1e-5, "precision": precision,
                                            "schedule": "constant", "warmup": 0}}  # fmt: skip
    if method == "dpo":
        options["reference"] = {"path": str(folder / "reference"), "cache": task == "dpo_cached"}
    out = Path(tempfile.mkdtemp(dir=folder))
    train(method, model=str(folder / "policy"), data=str(folder / "rows.jsonl"), out=str(out / "run"), **options)
    first = json.loads((out / "run" / "metrics.jsonl").read_text().splitlines()[0])
    return _result(first["loss"], stamps[2 * WARM], stamps[-1], steps)


def run_trl(task: str, folder: Path, steps: int, precision: str) -> dict[str, float]:
    """The timed steps of TRL's trainer for the task."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            stamps.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            stamps.append(time.perf_counter())

    data = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    common = {
        "output_dir": tempfile.mkdtemp(dir=folder), "per_device_train_batch_size": BATCH, "max_steps": steps, "learning_rate": 1e-5,
        "lr_scheduler_type": "constant", "use_cpu": not torch.cuda.is_available(), "bf16": precision == "bf16", "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "max_length": 4096, "optim": "adamw_torch_fused",
        "disable_tqdm": True, "dataloader_pin_memory": False, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    rest = {"processing_class": AutoTokenizer.from_pretrained(folder / "policy"), "callbacks": [Clock()]}
    if task in ("dpo", "dpo_cached"):
        from trl import DPOConfig, DPOTrainer

        args = _config(DPOConfig, {**common, "beta": 0.1, "precompute_ref_log_probs": task == "dpo_cached"})
        model, reference = (AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("policy", "reference"))
        trainer = DPOTrainer(model, reference, args=args, train_dataset=Dataset.from_list(data), **rest)
    elif task == "reward":
        from trl import RewardConfig, RewardTrainer

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1, dtype=torch.float32)
        joined = Dataset.from_list([{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in data])
        trainer = RewardTrainer(model, args=_config(RewardConfig, common), train_dataset=joined, **rest)
    else:
        from trl import SFTConfig, SFTTrainer

        model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        shaped = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in data])
        trainer = SFTTrainer(model, args=_config(SFTConfig, common), train_dataset=shaped, **rest)
    trainer.train()
    first = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return _result(first, stamps[2 * WARM], stamps[-1], steps)


def _config(kind, options):  # type: ignore[no-untyped-def]
    """A TRL config with those of the options that it knows; an option that matters for fairness must be known."""
    known = set(kind.__dataclass_fields__)
    missing = set(options) - known - {"train_sampling_strategy"}
    if missing:
        raise SystemExit(f"{kind.__name__} of this TRL has no {', '.join(sorted(missing))}")
    return kind(**{name: value for name, value in options.items() if name in known})


def _result(loss: float, start: float, end: float, steps: int) -> dict[str, float]:
    rows_done = (steps - WARM) * BATCH
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"first_loss": loss, "rows_per_second": rows_done / (end - start), "peak_gb": peak}


# --- both, in turn --------------------------------------------------------------------------------------------------


def side(name: str, task: str, folder: Path, steps: int, precision: str) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--tasks", task, "--folder", str(folder), "--steps", str(steps)]
    found = subprocess.run(
        [*command, "--precision", precision], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PREFOPT_CACHE": str(folder / "cache")},
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"{name} {task} failed:\n{found.stderr[-3000:]}")
    return json.loads(found.stdout.strip().splitlines()[-1])


def matrix_rate() -> dict[str, float]:
    """Measured matrix products of this machine, GFLOP/s."""
    import torch

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        times = []
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        found[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / min(times) / 1e9
    return found


def compare(task: str, profile: str, args: argparse.Namespace) -> dict[str, object]:
    """Rounds of both sides on one task and profile."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder, args.model)
        steps = {"prefopt": args.steps * 4 + WARM, "trl": args.steps + WARM}
        data = rows(profile, steps["prefopt"] * BATCH)
        found: dict[str, list[dict[str, float]]] = {"prefopt": [], "trl": []}
        for _ in range(args.rounds):
            for name in ("prefopt", "trl"):
                (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data[: steps[name] * BATCH]))
                found[name].append(side(name, task, folder, steps[name], args.precision))
    speed = {name: [run["rows_per_second"] for run in runs] for name, runs in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(speed["prefopt"], speed["trl"], strict=True)]
    return {
        "task": task,
        "profile": profile,
        "model": args.model,
        "prefopt": statistics.median(speed["prefopt"]),
        "trl": statistics.median(speed["trl"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "memory_ratio": max(r["peak_gb"] for r in found["prefopt"]) / max(r["peak_gb"] for r in found["trl"]),
        "peak_gb": {name: max(run["peak_gb"] for run in runs) for name, runs in found.items()},
    }


def same_loss(task: str, args: argparse.Namespace) -> float:
    """Difference of the two sides' loss on one and the same batch, in fp32."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder, args.model)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("hh", BATCH)))
        ours, theirs = (side(name, task, folder, WARM + 1, "fp32")["first_loss"] for name in ("prefopt", "trl"))
    return abs(ours - theirs)


def main() -> None:
    """The whole comparison, or one worker of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--model", default="11M", choices=list(MODELS))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--steps", type=int, default=4, help="timed steps of TRL; prefopt does four times as many")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/offline.json"))
    parser.add_argument("--worker", choices=["prefopt", "trl"])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.worker:
        worker = {"prefopt": run_prefopt, "trl": run_trl}[args.worker]
        sys.stdout, real = sys.stderr, sys.stdout
        print(json.dumps(worker(args.tasks[0], args.folder, args.steps, args.precision)), file=real)
        return
    import torch
    import transformers
    import trl

    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)} | {"python": platform.python_version()}
    report: dict[str, object] = {"versions": versions, "cores": os.cpu_count(), "gflops": matrix_rate(), "precision": args.precision}
    print(json.dumps(report))
    differences = {task: same_loss(task, args) for task in args.tasks if task != "reward"}  # reward heads are drawn at random
    print("first-batch loss differs by", {task: f"{value:.1e}" for task, value in differences.items()})
    if any(value > 1e-3 for value in differences.values()):
        raise SystemExit("the two sides do not compute the same loss; no speed is compared")
    found = []
    print(f"{'task':12}{'profile':15}{'prefopt/s':>10}{'TRL/s':>8}{'ratio':>8}{'spread':>14}{'memory':>8}")
    for task in args.tasks:
        for profile in args.profiles:
            row = compare(task, profile, args)
            found.append(row)
            spread = f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}"
            speeds = f"{row['prefopt']:10.2f}{row['trl']:8.2f}{row['ratio']:8.1f}"
            print(f"{task:12}{profile:15}{speeds}{spread:>14}{row['memory_ratio']:8.2f}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({**report, "first_loss_difference": differences, "rows": found}, indent=1) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
