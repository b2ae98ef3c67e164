"""The same evaluation in other tools' files, so that their viewers and leaderboards open it.

    alpaca_eval   model_outputs.json, reference_outputs.json, annotations.json, leaderboard.csv
    inspect       inspect.json, an EvalLog of version 2 (`inspect view`)
    lm_eval       results_prefopt.json and samples_prefopt.jsonl, as the harness logs them

RewardBench's files are written by the rewardbench suite.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefopt
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import write_jsonl

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Told:
    """What is written: names, figures, the rows of samples.jsonl that are answers, and who judged."""

    model: str
    baseline: str
    path: str
    judge: str
    figures: Sequence[Figure]
    samples: Rows

    def get(self, metric: str, slice: str = "all") -> Figure | None:
        """A figure of the model."""
        wanted = (metric, slice, self.model, "")
        return next((f for f in self.figures if (f.metric, f.slice, f.model, f.difference_from) == wanted), None)

    @property
    def own(self) -> list[Figure]:
        """The model's figures, differences left out."""
        return [f for f in self.figures if f.model == self.model and not f.difference_from]

    @property
    def facts(self) -> list[str]:
        """The columns of the samples that hold a number for the model's answer."""
        known = ("prompt", "slice", "where", "answers")
        return sorted({name for row in self.samples for name, value in row.items() if name not in known and isinstance(value, dict)})


def write(formats: Sequence[str], told: Told, out: Path) -> None:
    """Write each format into a folder of its name."""
    for name in formats:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        FORMATS[name](told, folder)


def alpaca_eval(told: Told, folder: Path) -> None:
    """AlpacaEval: preference is 1 where the baseline's answer is better, 2 where the model's is, 1.5 for a tie."""
    for name, file in ((told.model, "model_outputs"), (told.baseline, "reference_outputs")):
        rows = [{"instruction": r["prompt"], "output": r["answers"][name], "generator": name} for r in told.samples if name in r["answers"]]
        if rows:
            _json(folder / f"{file}.json", rows)
    judged = [row for row in told.samples if "preferred" in row]
    if judged:
        _json(folder / "annotations.json", [_annotation(row, told) for row in judged])
        _leaderboard(told, [row["preferred"][told.model] for row in judged], judged, folder / "leaderboard.csv")


def _annotation(row: Mapping[str, Any], told: Told) -> dict[str, Any]:
    sides = {"output_1": row["answers"][told.baseline], "output_2": row["answers"][told.model]}
    names = {"generator_1": told.baseline, "generator_2": told.model, "annotator": told.judge}
    return {"instruction": row["prompt"], **sides, **names, "preference": 1.0 + row["preferred"][told.model]}


def _leaderboard(told: Told, won: Sequence[float], rows: Rows, path: Path) -> None:
    rate, controlled = told.get("win_rate"), told.get("length_controlled_win_rate")
    n = len(won)
    discrete = sum((w > 0.5) + 0.5 * (w == 0.5) for w in won)
    mean = sum(won) / n
    spread = math.sqrt(sum((w - mean) ** 2 for w in won) / max(1, n - 1))
    line = {
        "": told.model,
        "win_rate": 100 * (rate.value if rate else mean),
        "standard_error": 100 * spread / math.sqrt(n),
        "n_wins": sum(w > 0.5 for w in won),
        "n_wins_base": sum(w < 0.5 for w in won),
        "n_draws": sum(w == 0.5 for w in won),
        "n_total": n,
        "discrete_win_rate": 100 * discrete / n,
        "mode": "community",
        "avg_length": round(sum(len(row["answers"][told.model]) for row in rows) / n),
        "length_controlled_winrate": 100 * controlled.value if controlled else "",
        "lc_standard_error": 100 * controlled.std_error if controlled else "",
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(line))
        writer.writeheader()
        writer.writerow(line)


def inspect(told: Told, folder: Path) -> None:
    """An Inspect EvalLog: one sample a request, its scores the facts known of the model's answer."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    task, ids = "prefopt", [i + 1 for i in range(len(told.samples))]
    spec = {
        "eval_id": _hash([task, now]),
        "run_id": _hash([now]),
        "created": now,
        "task": task,
        "task_id": _hash([task]),
        "task_version": 0,
        "task_args": {},
        "dataset": {"name": "rows", "samples": len(ids), "sample_ids": ids, "shuffled": False},
        "model": f"prefopt/{told.model}",
        "model_args": {"path": told.path},
        "config": {},
        "packages": {"prefopt": prefopt.__version__},
    }
    metrics = {f"{f.metric}[{f.slice}]": {"name": f"{f.metric}[{f.slice}]", "value": f.value, "params": {}} for f in told.own}
    score = {"name": "prefopt", "scorer": "prefopt", "params": {}, "metrics": metrics}
    results = {"total_samples": len(ids), "completed_samples": len(ids), "scores": [score]}
    log = {
        "version": 2,
        "status": "success",
        "eval": spec,
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": results,
        "stats": {"started_at": now, "completed_at": now, "model_usage": {}},
        "samples": [_inspected(i, row, told) for i, row in zip(ids, told.samples, strict=True)],
    }
    _json(folder / "inspect.json", log)


def _inspected(i: int, row: Mapping[str, Any], told: Told) -> dict[str, Any]:
    text = row["answers"].get(told.model, "")
    said = {"role": "assistant", "content": text, "source": "generate"}
    scores = {name: {"value": row[name][told.model], "answer": text} for name in told.facts if told.model in row.get(name, {})}
    return {
        "id": i,
        "epoch": 1,
        "input": row["prompt"],
        "target": row["answers"].get(told.baseline, ""),
        "messages": [{"role": "user", "content": row["prompt"], "source": "input"}, said],
        "output": {"model": told.model, "choices": [{"message": said, "stop_reason": "stop"}]},
        "scores": scores,
        "metadata": {"slice": row["slice"], "where": row["where"]},
        "store": {},
        "events": [],
        "model_usage": {},
        "attachments": {},
    }


def lm_eval(told: Told, folder: Path) -> None:
    """The harness's results file, a task a slice, and its samples file."""
    parts = sorted({f.slice for f in told.own}, key=lambda part: part != "all")
    tasks = {part: "prefopt" if part == "all" else f"prefopt_{part.replace(' ', '_')}" for part in parts}
    results: dict[str, dict[str, Any]] = {task: {"alias": task} for task in tasks.values()}
    for f in told.own:
        results[tasks[f.slice]] |= {
            f"{f.metric},none": f.value,
            f"{f.metric}_stderr,none": f.std_error if math.isfinite(f.std_error) else "N/A",
        }
    sizes = {task: max(f.n for f in told.own if f.slice == part) for part, task in tasks.items()}
    found = {
        "results": results,
        "group_subtasks": {},
        "configs": {task: {"task": task, "num_fewshot": 0, "output_type": "generate_until"} for task in results},
        "versions": dict.fromkeys(results, 0),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: {} for task in results},
        "n-samples": {task: {"original": n, "effective": n} for task, n in sizes.items()},
        "config": {"model": "prefopt", "model_args": f"path={told.path}"},
        "date": datetime.now(UTC).timestamp(),
        "model_name": told.model,
    }
    _json(folder / "results_prefopt.json", found)
    write_jsonl(folder / "samples_prefopt.jsonl", (_logged(i, row, told) for i, row in enumerate(told.samples)))


def _logged(i: int, row: Mapping[str, Any], told: Told) -> dict[str, Any]:
    text = row["answers"].get(told.model, "")
    target = row["answers"].get(told.baseline, "")
    facts = {name: row[name][told.model] for name in told.facts if told.model in row.get(name, {})}
    return {
        "doc_id": i,
        "doc": {"prompt": row["prompt"], "slice": row["slice"], "where": row["where"]},
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": row["prompt"], "arg_1": {}}},
        "resps": [[text]],
        "filtered_resps": [text],
        "filter": "none",
        "metrics": list(facts),
        "doc_hash": _hash(row["prompt"]),
        "prompt_hash": _hash(row["prompt"]),
        "target_hash": _hash(target),
        **facts,
    }


FORMATS: dict[str, Callable[[Told, Path], None]] = {"alpaca_eval": alpaca_eval, "inspect": inspect, "lm_eval": lm_eval}
"""Name -> what writes it into a folder."""


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
