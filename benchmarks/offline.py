"""prefopt beside TRL on the same offline work: same rows, weights, dtype, optimizer and batch size, each in a process of its own, in turn.

    make bench                                      # the whole table (needs .venv-bench, which it makes)
    .venv-bench/bin/python benchmarks/offline.py --profiles hh --tasks dpo --rounds 1

First both sides must compute the same loss on the first batch (within 1e-3). Then rounds of A B A B: rows/s over the timed steps, wall
clock from the start of one step to the end of the last, everything between included; peak memory of the process (of the GPU where there
is one). The share of the machine counts useful work alone: matrix products over distinct tokens, three of the policy and one of a
reference that is not cached, no work done twice; against the best rate that this machine reached on a square product.
On a GPU TRL gets what is fastest there and installed: flash-attn and Liger's layers. Its fused head needs no setting; DPOTrainer 1.16 has
its padding-free batches switched off.

    dpo, dpo_cached     the reference in the loop, or its log-probs computed before the timed steps on both sides
    ranking             DPO on all six pairs of four ranked answers; TRL reads them as six rows, and its steps hold as many pairs
    reward, sft         Bradley-Terry; answers alone, TRL flattening its batches (padding_free)
    --lora              rank 16 on every linear layer, the reference being the adapter switched off
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROFILES = {"hh": (134, 55), "tldr": (350, 33), "ultrafeedback": (120, 220)}
"""Median tokens of prompt and answer; lengths are log-normal."""
TASKS = ("dpo", "dpo_cached", "ranking", "reward", "sft")
ANSWERS = {"ranking": 4, "sft": 1}
VOCAB, BATCH, WARM = 8192, 8, 2


class Shape(NamedTuple):
    """A Llama with the sizes of some model."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = VOCAB
    tied: bool = False


MODELS = {
    "11M": Shape(256, 704, 8, 4, 4),
    "60M": Shape(640, 1728, 10, 10, 10),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 151936, tied=True),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151936, tied=True),
}
"""The first two for a CPU, the others for a GPU."""


def rows(profile: str, count: int, task: str = "dpo", seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with their answers, best first, of random words, one word a token."""
    import numpy as np

    rng = np.random.default_rng([seed, sorted(PROFILES).index(profile)])

    def words(median: int) -> str:
        n = int(np.clip(np.exp(rng.normal(np.log(median), 0.6)), 4, 900))
        return " ".join(f"w{i}" for i in rng.integers(3, VOCAB, n))

    prompt, answer = PROFILES[profile]
    answers = ANSWERS.get(task, 2)
    return [{"prompt": words(prompt), "answers": [" " + words(answer) for _ in range(answers)]} for _ in range(count)]


def as_data(task: str, found: Sequence[dict[str, Any]], *, pairs: bool) -> list[dict[str, Any]]:
    """The rows in the columns of the task; `pairs` writes a ranking as its pairs, the form a trainer of pairs reads."""
    if task == "sft":
        return [{"prompt": row["prompt"], "completion": row["answers"][0]} for row in found]
    if task == "ranking" and not pairs:
        return [{"prompt": row["prompt"], "completions": row["answers"], "ranks": [0, 1, 2, 3]} for row in found]
    both = [(row["prompt"], *two) for row in found for two in itertools.combinations(row["answers"], 2)]
    return [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt, better, worse in both]


def useful_work(task: str, shape: Shape, found: Sequence[dict[str, Any]], *, lora: bool) -> float:
    """Floating-point operations that the rows need: 2 a weight and position forward, twice that backward, attention and head included.

    Of the last layer they need keys and values of every position, and all else where something is read of it: for every token of an
    answer, or once an answer for a reward. Under LoRA the frozen weights need no gradient of their own, so the backward pass costs about
    as much as the forward pass.
    """
    hidden, layers = shape.hidden, shape.layers
    keys_and_values = 2 * hidden**2 * shape.kv_heads / shape.heads
    other = 2 * hidden**2 + 3 * hidden * shape.feed_forward
    references = 1 if task in ("dpo", "ranking") else 0
    passes = (2 if lora else 3) + references
    total = 0.0
    for row in found:
        prompt, answers = len(row["prompt"].split()), [len(answer.split()) + 1 for answer in row["answers"]]
        positions, read = prompt + sum(answers), len(answers) if task == "reward" else sum(answers)
        seen_by_answers = sum(n * prompt + n * (n + 1) / 2 for n in answers)
        seen_at_last = sum(prompt + n for n in answers) if task == "reward" else seen_by_answers
        total += 2 * (layers * positions * keys_and_values + ((layers - 1) * positions + read) * other)
        total += 4 * hidden * ((layers - 1) * (prompt * (prompt + 1) / 2 + seen_by_answers) + seen_at_last)
        total += 2 * sum(answers) * hidden * shape.vocabulary if task != "reward" else 0
    return passes * total


def make_model(folder: Path, shape: Shape) -> None:
    """A random Llama, a perturbed reference beside it (so that losses can be compared), and a tokenizer of one word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, max_position_embeddings=4096, tie_word_embeddings=shape.tied,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, shape.vocabulary)}}
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


def run_prefopt(task: str, folder: Path, steps: int, args: argparse.Namespace) -> dict[str, float]:
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
    method = {"dpo_cached": "dpo", "ranking": "dpo"}.get(task, task)
    options: dict[str, Any] = {"train": {"steps": steps, "batch_size": BATCH, "learning_rate": 1e-5, "precision": args.precision,
                                         "schedule": "constant", "warmup": 0, "compile": args.compile}}  # fmt: skip
    if args.lora:
        options["lora"] = {"rank": 16}
    if method == "dpo":
        own = {} if args.lora else {"path": str(folder / "reference")}
        options["reference"] = {**own, "cache": task == "dpo_cached"}
    out = Path(tempfile.mkdtemp(dir=folder))
    train(method, model=str(folder / "policy"), data=str(folder / "rows.jsonl"), out=str(out / "run"), **options)
    first = json.loads((out / "run" / "metrics.jsonl").read_text().splitlines()[0])
    return _result(first["loss"], stamps[2 * WARM], stamps[-1], steps)


def run_trl(task: str, folder: Path, steps: int, args: argparse.Namespace) -> dict[str, float]:
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

    data = Dataset.from_list([json.loads(line) for line in (folder / "rows.jsonl").open()])
    batch = BATCH * (6 if task == "ranking" else 1)
    common = {
        "output_dir": tempfile.mkdtemp(dir=folder), "per_device_train_batch_size": batch, "max_steps": steps, "learning_rate": 1e-5,
        "lr_scheduler_type": "constant", "use_cpu": not torch.cuda.is_available(), "bf16": args.precision == "bf16", "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "max_length": 4096, "optim": "adamw_torch_fused",
        "disable_tqdm": True, "dataloader_pin_memory": False, "train_sampling_strategy": "sequential",
        "use_liger_kernel": installed("liger_kernel"),
    }  # fmt: skip
    rest = {"processing_class": AutoTokenizer.from_pretrained(folder / "policy"), "callbacks": [Clock()], "train_dataset": data}
    form = {"dtype": torch.float32, "attn_implementation": "flash_attention_2" if installed("flash_attn") else "sdpa"}
    if args.lora:
        from peft import LoraConfig

        rest["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    if task == "reward":
        from trl import RewardConfig, RewardTrainer

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1, **form)
        trainer = RewardTrainer(model, args=_config(RewardConfig, common), **rest)
    elif task == "sft":
        from trl import SFTConfig, SFTTrainer

        flat = {"padding_free": True, "max_length": None} if args.padding_free else {}

        model = AutoModelForCausalLM.from_pretrained(folder / "policy", **form)
        trainer = SFTTrainer(model, args=_config(SFTConfig, {**common, **flat}), **rest)
    else:
        from trl import DPOConfig, DPOTrainer

        config = _config(DPOConfig, {**common, "beta": 0.1, "precompute_ref_log_probs": task == "dpo_cached"})
        names = ("policy",) if args.lora else ("policy", "reference")
        models = [AutoModelForCausalLM.from_pretrained(folder / name, **form) for name in names]
        trainer = DPOTrainer(*models, args=config, **rest)
    trainer.train()
    first = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return _result(first, stamps[2 * WARM], stamps[-1], steps)


def installed(module: str) -> bool:
    """Whether a GPU kernel of TRL's is there to be used; there is no GPU use of one on a CPU."""
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec(module) is not None


def _config(kind, options):  # type: ignore[no-untyped-def]
    """A TRL config with those of the options that it knows; an option that matters for fairness must be known."""
    known = set(kind.__dataclass_fields__)
    missing = set(options) - known - {"train_sampling_strategy"}
    if missing:
        raise SystemExit(f"{kind.__name__} of this TRL has no {', '.join(sorted(missing))}")
    return kind(**{name: value for name, value in options.items() if name in known})


def _result(loss: float, start: float, end: float, steps: int) -> dict[str, float]:
    rows_done = (steps - WARM) * BATCH
    import torch

    peak = (
        torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    )
    return {"first_loss": loss, "rows_per_second": rows_done / (end - start), "peak_gb": peak}


# --- both, in turn --------------------------------------------------------------------------------------------------


def side(name: str, task: str, folder: Path, steps: int, args: argparse.Namespace, precision: str) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--tasks", task, "--folder", str(folder), "--steps", str(steps)]
    flags = [f"--{flag.replace('_', '-')}" for flag in ("lora", "compile", "padding_free") if getattr(args, flag)]
    found = subprocess.run(
        [*command, "--precision", precision, *flags], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PREFOPT_CACHE": str(folder / "cache")},
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"{name} {task} failed:\n{found.stderr[-3000:]}")
    return json.loads(found.stdout.strip().splitlines()[-1])


def matrix_rate(precision: str) -> float:
    """The best rate of a matrix product on this machine, FLOP/s."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size).to(device, getattr(torch, {"bf16": "bfloat16", "fp32": "float32"}[precision])) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def compare(task: str, profile: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both sides on one task and profile, the machine's rate measured between them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder, MODELS[args.model])
        steps = {"prefopt": args.steps * 4 + WARM, "trl": args.steps + WARM}
        data = rows(profile, steps["prefopt"] * BATCH, task)
        found: dict[str, list[dict[str, float]]] = {"prefopt": [], "trl": []}
        rates = []
        for _ in range(args.rounds):
            for name in ("prefopt", "trl"):
                write(folder, task, data[: steps[name] * BATCH], name)
                found[name].append(side(name, task, folder, steps[name], args, args.precision))
                rates.append(matrix_rate(args.precision))
    speed = {name: [run["rows_per_second"] for run in runs] for name, runs in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(speed["prefopt"], speed["trl"], strict=True)]
    peak = {name: max(run["peak_gb"] for run in runs) for name, runs in found.items()}
    timed = data[WARM * BATCH :]
    a_row = useful_work(task, MODELS[args.model], timed, lora=args.lora) / len(timed)
    tokens = sum(len(row["prompt"].split()) + sum(len(a.split()) + 1 for a in row["answers"]) for row in timed) / len(timed)
    best = statistics.median(speed["prefopt"])
    return {
        "task": task, "profile": profile, "model": args.model, "lora": args.lora, "precision": args.precision, "compile": args.compile,
        "prefopt": best, "trl": statistics.median(speed["trl"]), "tokens_per_second": best * tokens,
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
        "peak_gb": peak, "memory_ratio": peak["prefopt"] / peak["trl"],
        "machine_rate": max(rates), "share": best * a_row / max(rates),
    }  # fmt: skip


def write(folder: Path, task: str, found: Sequence[dict[str, Any]], name: str) -> None:
    """The rows as the side reads them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in as_data(task, found, pairs=name == "trl")))


def same_loss(task: str, args: argparse.Namespace) -> float:
    """Difference of the two sides' loss on one and the same batch, in fp32."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, losses = Path(temporary), []
        make_model(folder, MODELS[args.model])
        for name in ("prefopt", "trl"):
            write(folder, task, rows("hh", BATCH, task), name)
            losses.append(side(name, task, folder, WARM + 1, args, "fp32")["first_loss"])
    return abs(losses[0] - losses[1])


def main() -> None:
    """The whole comparison, or one worker of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--model", default="11M", choices=list(MODELS))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--lora", action="store_true", help="rank 16 instead of all weights")
    parser.add_argument("--compile", action="store_true", help="prefopt with train.compile=true")
    parser.add_argument("--no-padding-free", dest="padding_free", action="store_false", help="TRL's SFT with padded batches")
    parser.add_argument("--padding-free", action="store_true", default=True, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of TRL; prefopt does four times as many")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/offline.json"), help="rows are added to it, older ones replaced")
    parser.add_argument("--worker", choices=["prefopt", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker = {"prefopt": run_prefopt, "trl": run_trl}[args.worker]
        sys.stdout, real = sys.stderr, sys.stdout
        print(json.dumps(worker(args.tasks[0], args.folder, args.steps, args)), file=real)
        return
    # reward heads are drawn at random, so there is no common first loss
    differences = {task: same_loss(task, args) for task in args.tasks if task != "reward"}
    print("first-batch loss differs by", {task: f"{value:.1e}" for task, value in differences.items()})
    if any(value > 1e-3 for value in differences.values()):
        raise SystemExit("the two sides do not compute the same loss; no speed is compared")
    head = f"{'task':12}{'profile':15}{'prefopt/s':>10}{'TRL/s':>8}{'ratio':>8}{'spread':>14}{'memory':>8}{'share':>7}"
    print(head)
    for task in args.tasks:
        for profile in args.profiles:
            row = compare(task, profile, args) | {"first_loss_difference": differences.get(task), **machine()}
            spread = f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}"
            speeds = f"{row['prefopt']:10.2f}{row['trl']:8.2f}{row['ratio']:8.1f}"
            print(f"{task:12}{profile:15}{speeds}{spread:>14}{row['memory_ratio']:8.2f}{row['share']:7.0%}", flush=True)
            keep(args.json, row)
    print(f"written: {args.json}")


KEYS = ("task", "profile", "model", "lora", "precision", "compile", "device")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers
    import trl

    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)} | {"python": platform.python_version()}
    return {"versions": versions, "cores": os.cpu_count(), "device": device_name(), "date": time.strftime("%Y-%m-%d")}


def device_name() -> str:
    """The GPU, or the processor as the system names it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the file, in the place of an older one of the same setting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    older = json.loads(path.read_text()) if path.exists() else []
    others = [r for r in older if any(r[key] != row[key] for key in KEYS)]
    path.write_text(json.dumps([*others, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
