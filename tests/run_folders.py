"""Run folders written by hand from the format, so that reports can be tested without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HOSTILE = "<script>alert('x')</script><img src=http://evil.test/a.png onerror=alert(1)>\u202e\x1b[31m&amp;{{ 7*7 }}"
SLICES = ("fact", "arithmetic", "rewrite", "advice", "harmful", "borderline")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_stage(run: Path, settings: Mapping[str, Any], *, seconds: float = 12.3, **facts: Any) -> Path:
    """A finished stage: recipe, record and outputs."""
    folder = run / settings["name"]
    record = {"kind": settings["kind"], "name": settings["name"], "key": "ab" * 32, "stage": settings, "parents": {"world": "cd" * 32}}
    record |= {"inputs": {}, "code": {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": True}, "seeds": {"train.seed": 0}}
    record |= {"packages": {"python": "3.11.7", "torch": "2.13.0"}, "hardware": {"processor": "a processor", "cores": 2, "gpus": []}}
    record |= {"started": "2026-08-01T10:00:00+00:00", "ended": "2026-08-01T10:05:00+00:00", "seconds": seconds, **facts}
    write_json(folder / "record.json", record)
    write_json(folder / "outputs.json", {"data": "x.jsonl"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stages": [settings]}))
    return folder


def write_metrics(folder: Path, steps: int, *, pairs: bool, seed: int = 0) -> None:
    rng, rows = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        done = step / steps
        row = {"step": step, "loss": (0.69 - 0.25 * done if pairs else 0.4 + 4 * math.exp(-6 * done)) + rng.normal(0, 0.03)}
        row |= {"grad_norm": 1.5 - done + abs(rng.normal(0, 0.1)), "lr": 1e-4 * (1 - done), "tokens_per_second": 9000 + rng.normal(0, 400)}
        row |= {"entropy": 1.4 - 0.6 * done + rng.normal(0, 0.02)}
        if pairs:
            chosen, rejected = 0.5 * done + rng.normal(0, 0.04), -0.9 * done + rng.normal(0, 0.04)
            row |= {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
            row |= {"rewards/accuracies": 0.5 + 0.3 * done + rng.normal(0, 0.05), "kl": -2 * done + rng.normal(0, 0.2)}
            row |= {"logps/chosen": -14 + 10 * chosen, "logps/rejected": -15 + 10 * rejected}
        rows.append(row)
        if pairs and step % 15 == 0:
            rows.append(
                {"step": step, **{f"eval/{k}": v for k, v in row.items() if k in ("loss", "rewards/margins", "rewards/accuracies", "kl")}}
            )
    write_jsonl(folder / "metrics.jsonl", rows)


def write_data(folder: Path, *, text: str = "Open at nine.", where: str = "pairs.jsonl:1") -> None:
    tallies = {"identical completions": {"count": 3, "first": "pairs.jsonl:17"}}
    facts = {
        "rows": 1203,
        "kept": {"train": 1080, "heldout": 120},
        "kinds": {"pairs": 1203},
        "prompts": 803,
        "dropped": tallies,
        "facts": {},
    }
    facts |= {"tokens": {"prompt": 38600, "completion": 142150, "scored": 142150, "packed": 180750, "padded": 219350}}
    facts |= {
        "longest": {"tokens": 121, "where": "pairs.jsonl:76"},
        "max_length": 256,
        "chosen_longer": {"tokens": {"share": 0.49, "pairs": 1200}},
    }
    write_json(folder / "preflight.json", {**facts, "notes": []})
    prompt = [
        ["<|im_start|>", False],
        ["user", False],
        ["\n", False],
        ["When", False],
        [" is it open?", False],
        ["<|im_end|>", False],
        ["\n", False],
    ]
    answer = [[piece, True] for piece in [*(f"{word} " for word in text.split()), "<|im_end|>"]]
    sequences = [{"name": name, "tokens": prompt + answer} for name in ("chosen", "rejected")]
    write_json(folder / "tokens.json", [{"where": where, "sequences": sequences}] * 2)


def figure(metric: str, value: float, reach: float, *, model: str = "dpo", part: str = "all", n: int = 300) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": value,
        "low": value - reach,
        "high": value + reach,
        "n": n,
        "method": "bootstrap",
        "slice": part,
        "model": model,
    }


def world_figures(gain: float = 0.4) -> list[dict[str, Any]]:
    found = [{**figure("gold", gain, 0.07), "difference_from": "sft"}, figure("win_rate", 0.5 + gain / 2, 0.05), figure("kl", 3.1, 0.4)]
    for part in ("all", *SLICES):
        here = 0.0 if part == "all" else 0.15 * math.sin(len(part) * 1.7)
        reach, n = (0.05, 300) if part == "all" else (0.13, 50)
        found.append(figure("gold", 0.1 + here, reach, model="sft", part=part, n=n))
        found.append(figure("gold", 0.1 + here + gain, reach, part=part, n=n))
        found += [figure("win_rate", 0.5 + gain / 2 + here / 3, reach, part=part, n=n)] if part != "all" else []
    for model, shift in (("sft", 0.0), ("dpo", gain)):
        found += [figure("refusal", 0.8 + 0.3 * shift, 0.06, model=model, part="harmful", n=40)]
        found += [figure("over_refusal", 0.1 - 0.1 * shift, 0.03, model=model, part="harmless", n=260)]
        found += [figure("over_refusal", 0.3 - 0.3 * shift, 0.09, model=model, part="borderline", n=40)]
        for metric, value, step in (
            ("correct", 0.6, 0.4),
            ("fluent", 0.9, 0.2),
            ("hedged", 0.3, -0.6),
            ("flattering", 0.2, -0.4),
            ("padded", 0.3, -0.5),
        ):
            found.append(figure(metric, value + step * shift, 0.05, model=model))
        found.append(figure("length_words", 11.2 + 2 * shift, 0.5, model=model))
    return found


def write_samples(folder: Path, n: int = 60, *, answer: str = "We are open from nine to five, every day but Sunday.") -> None:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(n):
        gold = {"sft": round(float(rng.uniform(-1, 1)), 2), "dpo": round(float(rng.uniform(-0.4, 1)), 2)}
        texts = {"sft": "I think maybe it is open, what a clever question!", "dpo": answer}
        prompt = f"system: Be brief.\nuser: When does the bakery open? ({i})"
        rows.append({"prompt": prompt, "slice": SLICES[i % 6], "where": f"heldout.jsonl:{i + 1}", "answers": texts, "gold": gold})
    write_jsonl(folder / "samples.jsonl", rows)


def write_run(run: Path, *, gain: float = 0.4, answer: str | None = None) -> Path:
    """A whole quickstart: every kind of stage, with metrics, data, an evaluation and samples."""
    path = {"model": {"path": "${sft.model}"}, "data": {"path": "${label.data}"}}
    stages: list[dict[str, Any]] = [
        {"kind": "world", "name": "world", "seed": 0, "pretrain": 8000, "sft": 16000, "prompts": 1500, "heldout": 300},
        {"kind": "create", "name": "create", "family": "llama", "data": {"path": ["${world.pretrain}", "${world.sft}"]}},
        {"kind": "pretrain", "name": "pretrain", "model": {"path": "${create.model}"}, "data": {"path": "${world.pretrain}"}},
        {"kind": "sft", "name": "sft", "model": {"path": "${pretrain.model}"}, "data": {"path": "${world.sft}"}},
        {"kind": "sample", "name": "sample", "model": {"path": "${sft.model}"}, "data": {"path": "${world.prompts}"}},
        {"kind": "label", "name": "label", "annotators": "gold", "data": {"path": "${sample.data}"}},
        {"kind": "dpo", "name": "dpo", "beta": 0.1, "reference": {"path": None}, **path},
        {"kind": "evaluate", "name": "evaluate", "baseline": "${sft.model}", "suite": "world", "model": {"path": "${dpo.model}"}},
        {"kind": "report", "name": "report"},
    ]
    stages[-2]["data"] = {"path": "${world.heldout}"}
    facts = {
        "create": {"parameters": 1_400_000},
        "sample": {"completions": 6000, "prompts": 1500, "finished": 0.98},
        "label": {"pairs": 2400},
    }
    steps = {"pretrain": 125, "sft": 250, "dpo": 60}
    for stage in stages:
        name = stage["name"]
        folder = write_stage(run, stage, **facts.get(name, {"steps": steps[name], "stopped": "done"} if name in steps else {}))
        if name in steps:
            write_metrics(folder, steps[name], pairs=name == "dpo")
            write_data(folder)
    (run / "recipe.yaml").write_text(yaml.safe_dump({"stages": stages}))
    told = {
        "suite": "world",
        "model": "dpo",
        "baseline": "sft",
        "n": 300,
        "temperature": 1.0,
        "sign_test": 1e-9,
        "rows": world_figures(gain),
    }
    write_json(run / "evaluate" / "evaluation.json", told)
    write_samples(run / "evaluate", **({} if answer is None else {"answer": answer}))
    return run
