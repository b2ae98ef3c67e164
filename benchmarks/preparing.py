"""Reading, tokenizing, checking and packing 100,000 HH-like pairs: time, and memory as the rows grow.

    .venv/bin/python benchmarks/preparing.py

Rows are pairs of messages through a ChatML template, of random words of a vocabulary that a byte-level BPE tokenizer has learned (prompts
of 134 words at the median, answers of 55, log-normal). Each size runs in a process of its own; packing is one epoch of batches of 32.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, ANSWER = 134, 55


def write_rows(path: Path, count: int) -> None:
    """Pairs of messages, one word in three of several tokens."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=n)) for n in rng.integers(2, 9, 4000)]

    def text(median: int) -> str:
        n = int(np.clip(np.exp(rng.normal(np.log(median), 0.6)), 4, 900))
        return " ".join(words[i] for i in rng.integers(0, len(words), n))

    with path.open("w") as file:
        for _ in range(count):
            row = {"prompt": [{"role": "user", "content": text(PROMPT)}]}
            row |= {name: [{"role": "assistant", "content": text(ANSWER)}] for name in ("chosen", "rejected")}
            file.write(json.dumps(row) + "\n")


def make_tokenizer(path: Path, rows: Path) -> None:
    """A byte-level BPE tokenizer of 8,192 tokens learned from the rows' first two thousand."""
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    with rows.open() as file:
        tokenizer.train_from_iterator((json.loads(line)["prompt"][0]["content"] for line in islice(file, 2000)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>").save_pretrained(path)


def work(folder: Path, count: int) -> dict[str, float]:
    """One size, measured in this process."""
    from prefopt.model.load import load_tokenizer
    from prefopt.pack.plan import Plan, micro_batches
    from prefopt.pack.prepare import prepare
    from prefopt.pack.tree import pack
    from prefopt.settings import DataSettings
    from prefopt.text.chat import Renderer

    renderer = Renderer(load_tokenizer(str(folder / "tokenizer")), "chatml")
    before, start = _peak(), time.perf_counter()
    settings = DataSettings(path=str(folder / "rows.jsonl"), limit=count, eval_fraction=0.05)
    ready = prepare(settings, renderer, data="pairs", max_length=None, seed=0)
    prepared = time.perf_counter()
    plan, tokens = Plan(len(ready.train), 32, 0), 0
    for step in range(plan.steps_per_epoch):
        for micro in micro_batches([ready.train[i] for i in plan.step(step)], 8192):
            tokens += pack(micro).tokens
    packed = time.perf_counter()
    return {
        "rows": count,
        "prepare_s": prepared - start,
        "pack_s": packed - prepared,
        "tokens": tokens,
        "grown_mb": (_peak() - before) / 1e6,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """All sizes, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--json", type=Path, default=Path("runs/bench/preparing.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.rows[0])))
        return
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "rows.jsonl", max(args.rows))
        make_tokenizer(folder / "tokenizer", folder / "rows.jsonl")
        print(f"{'pairs':>8}{'read and tokenize':>20}{'pack':>9}{'tokens':>12}{'memory grown':>14}")
        for count in args.rows:
            command = [sys.executable, __file__, "--worker", str(folder), "--rows", str(count)]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            found.append(row)
            print(f"{count:8,}{row['prepare_s']:18.1f} s{row['pack_s']:7.1f} s{row['tokens']:12,}{row['grown_mb']:11.0f} MB", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
