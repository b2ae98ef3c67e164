"""The lm_eval suite: any task of EleutherAI's lm-evaluation-harness, run by its own library (extra `lm-eval`).

The library loads the model's folder, asks and scores; what comes back is told as every other figure is. A figure is called
"task/metric", or "task/metric/filter" where the task has a filter other than "none". Where each item has one number and the task's
metric is their mean, the interval is made of these numbers, and a baseline gives the paired difference; otherwise (perplexity, BLEU, groups
of tasks) it is the library's own standard error with a normal interval. The version of each task stands in the evaluation.

The data guard looks at the items when the library has read them: thirteen words in a row that stand in training too are an error.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from prefopt.errors import DataError, OptionError, did_you_mean
from prefopt.evaluate import guard
from prefopt.evaluate.bench import Bench, Findings, Subject
from prefopt.evaluate.rows import Figure
from prefopt.stats import Interval
from prefopt.types import Example

Result = Mapping[str, Any]


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    if not bench.tasks:
        return "tasks of lm-eval, by name or as YAML files (tasks=[arc_easy])"
    return "" if all(hasattr(who.model, "sample") for who in bench.subjects) else "a policy"


def run(bench: Bench) -> Findings:
    """Let the library evaluate every model on the tasks.

    Raises:
        OptionError: the library is not installed, or it knows no such task.
        DataError: the data of a task cannot be had, or hold rows that trained the model.
    """
    library = _library()
    results = [_evaluated(library, bench, who) for who in bench.subjects]
    notes = _guarded(bench, results[0])
    figures = [f for name, metric, key in _metrics(results[0]) for f in _figures(bench, results, (name, metric, key))]
    if not figures:
        raise DataError("the tasks gave no figure", where=", ".join(bench.tasks), fix="choose tasks with a metric")
    versions, shots, size = (results[0].get(key, {}) for key in ("versions", "n-shot", "n-samples"))
    told = {name: {"version": versions.get(name), "shots": shots.get(name), "n": size[name]["effective"]} for name in size}
    line = ", ".join(f"{f.metric} {f.value:.3g} [{f.low:.3g}, {f.high:.3g}]" for f in figures[:1])
    return Findings(figures, {"lm_eval": library.__version__, "lm_eval_tasks": told, **notes}, told=line)


def _library() -> Any:
    try:
        import lm_eval
    except ImportError:
        what = "tasks of lm-eval need its library, which is not installed"
        raise OptionError(what, where="suite: lm_eval", fix="pip install 'prefopt[lm-eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _evaluated(library: Any, bench: Bench, who: Subject) -> Result:
    """What the library says of one model's folder."""
    from lm_eval.tasks import TaskManager

    weight = next(who.policy.model.parameters())
    where = ", ".join(bench.tasks)
    try:
        return library.simple_evaluate(
            model="hf",
            model_args={"pretrained": who.path, "dtype": str(weight.dtype).removeprefix("torch.")},
            tasks=[str(Path(task).resolve()) if Path(task).is_file() else task for task in bench.tasks],
            num_fewshot=bench.shots,
            limit=bench.data.limit,
            apply_chat_template=bench.data.chat,
            device=str(weight.device),
            batch_size=bench.rollout.batch_size,
            random_seed=bench.seed,
            numpy_random_seed=bench.seed,
            torch_random_seed=bench.seed,
            fewshot_random_seed=bench.seed,
        )
    except KeyError as error:
        known = TaskManager().all_tasks
        wrong = next((task for task in bench.tasks if task not in known and not Path(task).is_file()), None)
        if wrong is None:
            raise
        raise OptionError(f"lm-eval knows no task '{wrong}'", where="tasks", fix=did_you_mean(wrong, known)) from error
    except OSError as error:  # the hub's and datasets' errors of missing data and connections are among these
        fix = "run once with a connection so that they are kept, or give the YAML file of a task with data on this disk"
        raise DataError(f"the data of a task cannot be had: {str(error).splitlines()[0][:200]}", where=where, fix=fix) from error


def _metrics(result: Result) -> Iterator[tuple[str, str, str]]:
    """(task, metric, key) of every number told: "acc,none" has its standard error beside it as "acc_stderr,none"."""
    for name, row in result["results"].items():
        for key, value in row.items():
            metric, _, _ = key.partition(",")
            if "," in key and not metric.endswith("_stderr") and isinstance(value, int | float) and math.isfinite(value):
                yield name, metric, key


def _figures(bench: Bench, results: Sequence[Result], which: tuple[str, str, str]) -> Iterator[Figure]:
    name, metric, key = which
    kind = key.partition(",")[2]
    title = f"{name}/{metric}" if kind == "none" else f"{name}/{metric}/{kind}"
    items = [_items(result, which) for result in results]
    if all(found is not None for found in items) and len({tuple(found) for found in items if found is not None}) == 1:
        values = [np.array(list(found.values())) for found in items if found is not None]
        share = all(np.isin(own, (0.0, 1.0)).all() for own in values)
        told = bench.compare(title, values, range(len(values[0])), [("all", np.ones(len(values[0]), bool))], share=share)
    else:
        told = [bench.figure(title, _interval(result, which), who=who) for who, result in zip(bench.subjects, results, strict=True)]
    yield from (replace(f, data_sha256=_data(results[0], name)) for f in told)


def _items(result: Result, which: tuple[str, str, str]) -> dict[str, float] | None:
    """One number an item, where the metric is their mean."""
    name, metric, key = which
    rows = [row for row in result.get("samples", {}).get(name, ()) if row.get("filter") == key.partition(",")[2]]
    found = {str(row["doc_id"]): float(row[metric]) for row in rows if isinstance(row.get(metric), int | float)}
    whole = len(found) == len(rows) > 1
    return found if whole and math.isclose(sum(found.values()) / len(found), result["results"][name][key], abs_tol=1e-9) else None


def _interval(result: Result, which: tuple[str, str, str]) -> Interval:
    """The library's own standard error with a normal interval; without ends where it has none."""
    name, metric, key = which
    row = result["results"][name]
    value, error = float(row[key]), row.get(f"{metric}_stderr,{key.partition(',')[2]}")
    n = result["n-samples"].get(name, {}).get("effective") or int(row.get("sample_len") or 0)
    if not isinstance(error, int | float) or not error > 0:
        return Interval(value, math.nan, math.nan, n, "lm-eval")
    reach = float(stats.norm.ppf(0.975)) * float(error)
    return Interval(value, value - reach, value + reach, n, "lm-eval stderr", std_error=float(error))


def _data(result: Result, name: str) -> str:
    """SHA-256 of a task's items, from the library's hash of each; of all items for a group."""
    rows = result.get("samples", {})
    hashes = sorted({row["doc_hash"] for task in ([name] if name in rows else rows) for row in rows[task]})
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _guarded(bench: Bench, result: Result) -> dict[str, Any]:
    """Refuse items that the models were trained on, unless `seen` is keep."""
    if not bench.training.files:
        return {}
    found, _ = guard.seen(_texts(result), bench.training.rows())  # what could not be read the bench has noted
    if found and bench.seen != "keep":
        guard.write(found, bench.out)
        first = f"{found[0].where} ({found[0].how} as {found[0].trained})"
        what = f"{len(found)} items of the tasks were seen in training, the first is {first}"
        raise DataError(what, where=str(bench.out / guard.FILE), fix="choose other tasks, or accept them with seen=keep")
    return {guard.ITEMS: len(found)} if found else {}


def _texts(result: Result) -> Iterator[Example]:
    """The words of every item."""
    for name, rows in result.get("samples", {}).items():
        for row in {row["doc_id"]: row for row in rows}.values():
            words = [value for value in row["doc"].values() if isinstance(value, str)]
            yield Example(prompt="\n".join(words), where=f"{name}:{row['doc_id']}")
