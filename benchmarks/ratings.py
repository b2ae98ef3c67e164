"""How long the ratings of a large arena take: 15,403 real battles, 1,000 bootstrap resamples.

python benchmarks/ratings.py [BATTLES.jsonl.gz]
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np

from prefopt.stats import bradley_terry, davidson, elo_draws, rao_kupper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.real import DATA

DEFAULT = DATA / "arena" / "llmfao_battles.jsonl.gz"


def main() -> None:
    with gzip.open(sys.argv[1] if len(sys.argv) > 1 else DEFAULT, "rt") as file:
        rows = [json.loads(line) for line in file]
    names = sorted({m for row in rows for m in (row["model_a"], row["model_b"])})
    place = {name: i for i, name in enumerate(names)}
    sides = [(place[row["model_a"]], place[row["model_b"]], row["winner"], row["prompt"]) for row in rows]
    won = [(a, b) if w == "a" else (b, a) for a, b, w, _ in sides if w != "tie"]
    tied = [(a, b) for a, b, w, _ in sides if w == "tie"]
    prompts = [p for _, _, w, p in sides if w != "tie"] + [p for _, _, w, p in sides if w == "tie"]
    print(f"{len(rows)} battles, {len(names)} models, {len(set(prompts))} prompts, 1000 resamples of whole prompts; seconds of one CPU")
    total = 0.0
    for fit in (bradley_terry, davidson, rao_kupper):
        started = time.process_time()
        fit(won, len(names), ties=tied, clusters=prompts, draws=1000, rng=np.random.default_rng(0)).intervals()
        seconds = time.process_time() - started
        total += seconds * (fit is bradley_terry)
        print(f"{fit.__name__:<15}{seconds:6.2f} s")
    started = time.process_time()
    elo_draws([side[:3] for side in sides], rng=np.random.default_rng(0), draws=1000, clusters=[side[3] for side in sides]).intervals()
    total += (seconds := time.process_time() - started)
    print(f"{'elo':<15}{seconds:6.2f} s\nBradley-Terry and Elo together {total:.2f} s")


if __name__ == "__main__":
    main()
