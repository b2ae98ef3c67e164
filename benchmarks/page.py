"""Fill the tables of docs/benchmarks.md from the files that the benchmarks left in runs/bench, so that no number in it is typed by hand.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from results import MARKED, ROOT, Row, table

BENCH, PAGE = ROOT / "runs" / "bench", ROOT / "docs" / "benchmarks.md"
TASKS = {"dpo": "DPO", "dpo_cached": "DPO, reference cached", "ranking": "DPO, rankings of 4", "reward": "reward model", "sft": "SFT"}
PROFILES = {"hh": "HH-like", "tldr": "TL;DR-like", "ultrafeedback": "UltraFeedback-like"}


def load(name: str) -> Any:
    """What a benchmark wrote, None where it was not run."""
    path = BENCH / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def offline() -> str:
    """Beside TRL."""
    head = ("task", "lengths", "model", "prefopt rows/s", "TRL rows/s", "ratio [lowest, highest]", "memory", "share of the machine")

    def lines() -> Iterator[Row]:
        order = {name: i for i, name in enumerate(TASKS)}
        for row in sorted(load("offline"), key=lambda r: (r["model"], r["lora"], order[r["task"]], list(PROFILES).index(r["profile"]))):
            how = ("LoRA, " if row["lora"] else "") + row["precision"] + (", compiled" if row["compile"] else "")
            memory = f"{row['peak_gb']['prefopt']:.1f} / {row['peak_gb']['trl']:.1f} GB = {row['memory_ratio']:.2f}"
            ratio = f"{row['ratio']:.1f} [{row['ratio_low']:.1f}, {row['ratio_high']:.1f}]"
            task = f"{TASKS[row['task']]} ({how})"
            yield (
                task,
                PROFILES[row["profile"]],
                row["model"],
                f"{row['prefopt']:.2f}",
                f"{row['trl']:.2f}",
                ratio,
                memory,
                f"{row['share']:.0%}",
            )

    return table(head, lines())


def machine() -> str:
    """What it was measured on."""
    rows = load("offline")
    newest = max(rows, key=lambda r: r["date"])
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    rates = [row["machine_rate"] / 1e9 for row in rows]
    return (
        f"{newest['device']}, {newest['cores']} cores; {versions}; {newest['date']}. Best rate of a bf16 product of 2048 x 2048 matrices "
        f"between the runs: {min(rates):,.0f} to {max(rates):,.0f} GFLOP/s.\n"
    )


def scaling() -> str:
    """Time against work."""
    head = ("what is doubled", "rows/s", "measured", "expected")
    rows = load("costs")["scaling"]
    found = ((r["shape"].removesuffix(" x 2"), f"{r['rows_per_second']:.1f}", f"{r['measured']:.2f}", f"{r['expected']:.2f}") for r in rows)
    return table(head, found)


def overhead() -> str:
    """What is not training."""
    head = ("method", "seconds of the run", "forward, backward, optimizer", "everything else")
    rows = load("costs")["overhead"]
    return table(head, ((r["method"], f"{r['seconds']:.1f}", f"{r['inside']:.1f}", f"{r['share_outside']:.1%}") for r in rows))


def preparing() -> str:
    """Data before the first step."""
    head = ("pairs", "read, tokenize, check, s", "pack, s", "tokens", "memory grown by, MB")
    rows = load("preparing")
    found = ((f"{r['rows']:,}", f"{r['prepare_s']:.1f}", f"{r['pack_s']:.1f}", f"{r['tokens']:,}", f"{r['grown_mb']:.0f}") for r in rows)
    return table(head, found)


def sampling() -> str:
    """Beside `generate`."""
    head = ("weights", "prompts x samples", "prefopt tokens/s", "generate tokens/s", "ratio")
    found = (
        (r["dtype"], f"{r['prompts']} x {r['samples']}", f"{r['prefopt']:,.0f}", f"{r['generate']:,.0f}", f"{r['ratio']:.1f}")
        for r in load("sampling")
    )
    return table(head, found)


def online() -> str:
    """GRPO beside TRL."""
    head = ("precision", "prefopt samples/s", "TRL samples/s", "ratio [lowest, highest]", "memory")

    def lines() -> Iterator[Row]:
        for row in load("online"):
            ours, theirs = row["peak_gb"]["prefopt"], row["peak_gb"]["trl"]
            ratio = f"{median(row['ratios']):.1f} [{min(row['ratios']):.1f}, {max(row['ratios']):.1f}]"
            memory = f"{ours:.1f} / {theirs:.1f} GB = {ours / theirs:.2f}"
            yield (row["precision"], f"{row['prefopt']:.1f}", f"{row['trl']:.1f}", ratio, memory)

    return table(head, lines())


TABLES = {f.__name__: f for f in (machine, offline, scaling, overhead, preparing, sampling, online)}


def main() -> None:
    """Write the page."""
    needs = {"machine": "offline", "scaling": "costs", "overhead": "costs"}

    def fill(match: Any) -> str:
        name = match[2]
        known = load(needs.get(name, name)) is not None
        return match[1] + TABLES[name]() + match[3] if known else match[0]

    PAGE.write_text(MARKED.sub(fill, PAGE.read_text()))
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
