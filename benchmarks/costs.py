"""What a run costs: does time follow the work, and how much of a run is neither forward, backward nor optimizer?

    .venv/bin/python benchmarks/costs.py

scaling   DPO with the reference in the loop, all rows alike (a prompt of 128 tokens, answers of 64); then the prompt, the answers, their
          number or the vocabulary doubled, in turn. Rows/s are those of the median step after the first two; "expected" is the change that
          the useful matrix work predicts (offline.useful_work).
overhead  one run of SFT and one of DPO with checkpoints and an evaluation: wall clock of `prefopt train` from reading the data to the saved
          model, against the time inside forward and backward passes and the optimizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import offline
import torch

BATCH = 32
BASE = {"prompt": 128, "answer": 64, "answers": 2, "vocabulary": 8192}
INSIDE = "forward, backward, optimizer"

Times = dict[str, list[float]]
"""Seconds of every call, by what it was."""


def rows(count: int, *, prompt: int, answer: int, answers: int, vocabulary: int) -> list[dict[str, Any]]:
    """Rows of one shape."""
    import numpy as np

    rng = np.random.default_rng(0)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, vocabulary, n))

    return [{"prompt": words(prompt), "answers": [" " + words(answer - 1) for _ in range(answers)]} for _ in range(count)]


def write(folder: Path, data: list[dict[str, Any]], task: str) -> None:
    """The rows as rankings, pairs or demonstrations."""
    if task == "sft":
        shaped = [{"prompt": row["prompt"], "completion": row["answers"][0]} for row in data]
    else:
        ranks = list(range(len(data[0]["answers"])))
        shaped = [{"prompt": row["prompt"], "completions": row["answers"], "ranks": ranks} for row in data]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shaped))


@contextmanager
def timed() -> Iterator[Times]:
    """Inside, forward, backward and optimizer are timed, and whole steps."""
    import prefopt.training.fit as fitting
    from prefopt.training.job import Job
    from prefopt.training.optim import Optimizer

    spent: Times = defaultdict(list)
    patched = [(Job, "look", INSIDE), (torch.Tensor, "backward", INSIDE), (Optimizer, "step", INSIDE), (Optimizer, "accumulate", INSIDE),
               (fitting, "train_step", "steps")]  # fmt: skip
    kept = [(place, name, getattr(place, name)) for place, name, _ in patched]
    for (place, name, key), (*_, real) in zip(patched, kept, strict=True):
        setattr(place, name, _clocked(real, spent, key))
    try:
        yield spent
    finally:
        for place, name, real in kept:
            setattr(place, name, real)


def _clocked(real: Callable[..., Any], spent: Times, key: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent[key].append(time.perf_counter() - start)

    return call


def run(folder: Path, method: str, **train: Any) -> tuple[float, Times]:
    """Seconds of one whole `prefopt.train`, and the parts."""
    from prefopt.pipeline.api import train as start

    options: dict[str, Any] = {"train": {"batch_size": BATCH, "learning_rate": 1e-5, "precision": "bf16", **train}}
    if method == "dpo":
        options["reference"] = {"path": str(folder / "reference")}
    if "eval_every" in train:
        options["data.eval_fraction"] = 0.05
    with timed() as spent:
        begun = time.perf_counter()
        out = tempfile.mkdtemp(dir=folder)
        start(method, model=str(folder / "policy"), data=str(folder / "rows.jsonl"), out=f"{out}/run", **options)
        return time.perf_counter() - begun, spent


def scaling(steps: int, rounds: int) -> list[dict[str, Any]]:
    """Rows/s of the base shape and of each doubling, measured in turn."""
    shapes = {"base": BASE, **{f"{name} x 2": {**BASE, name: 2 * BASE[name]} for name in BASE}}
    times: dict[str, list[float]] = {name: [] for name in shapes}
    work: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(rounds):
            for name, shape in shapes.items():
                folder = Path(temporary) / name.replace(" ", "-")
                model = offline.MODELS["11M"]._replace(vocabulary=shape["vocabulary"])
                if not folder.exists():
                    folder.mkdir()
                    offline.make_model(folder, model)
                data = rows((steps + 2) * BATCH, **shape)
                write(folder, data, "dpo")
                work[name] = offline.useful_work("dpo", model, data[:1], lora=False)
                _, spent = run(folder, "dpo", steps=steps + 2)
                times[name] += spent["steps"][2:]
    speed = {name: BATCH / median(found) for name, found in times.items()}
    return [
        {"shape": name, "rows_per_second": speed[name], "measured": speed[name] / speed["base"], "expected": work["base"] / work[name]}
        for name in shapes
    ]


def overhead(steps: int) -> list[dict[str, Any]]:
    """Share of a run outside forward, backward and optimizer."""
    found = []
    for method in ("sft", "dpo"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            offline.make_model(folder, offline.MODELS["11M"])
            write(folder, rows(steps * BATCH, **BASE), method)
            total, spent = run(folder, method, steps=steps, save_every=max(1, steps // 3), eval_every=max(1, steps // 2))
        inside = sum(spent[INSIDE])
        found.append({"method": method, "seconds": total, "inside": inside, "share_outside": 1 - inside / total})
    return found


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run-steps", type=int, default=40, help="steps of the runs whose overhead is measured")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/costs.json"))
    args = parser.parse_args()
    scaled = scaling(args.steps, args.rounds)
    print(f"{'shape':16}{'rows/s':>8}{'measured':>10}{'expected':>10}")
    for row in scaled:
        print(f"{row['shape']:16}{row['rows_per_second']:8.1f}{row['measured']:10.2f}{row['expected']:10.2f}")
    shares = overhead(args.run_steps)
    for row in shares:
        print(f"{row['method']}: {row['seconds']:.1f} s, of which {row['share_outside']:.1%} outside forward, backward and optimizer")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"scaling": scaled, "overhead": shares, "steps": args.run_steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
