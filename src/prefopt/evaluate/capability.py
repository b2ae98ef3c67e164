"""The capability suite: what training on preferences may have cost. Every row is measured by what it holds.

perplexity   plain text: exp of the mean negative log-likelihood a token, exp(-sum log p / tokens)
math         a final answer: share of answers that reach it (GSM8K, MATH)
ifeval       instructions that can be checked: share of answers that follow all of them (Zhou et al. 2023, arXiv 2311.07911)
code         tests: pass@k, the chance that one of k answers passes all of them, run in the sandbox (Chen et al. 2021, arXiv 2107.03374)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from prefopt.evaluate.bench import Answers, Bench, Findings, sample_row, slice_of
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import slices
from prefopt.rollout.rewards.build import build
from prefopt.rollout.rewards.protocol import Rolled
from prefopt.settings import RewardSettings, Verifier
from prefopt.stats import Interval, bootstrap, pass_at_k, score_rate
from prefopt.types import Example, Message, TokenTree


@dataclass(frozen=True)
class Task:
    """Rows that a verifier grades: which rows, and what the share of right answers is called."""

    verifier: str
    metric: str
    fits: Callable[[Example], bool]


TASKS = (
    Task("code", "pass_at_1", lambda row: "test_list" in row.meta or {"test", "entry_point"} <= row.meta.keys()),
    Task("ifeval", "instructions_followed", lambda row: "instruction_id_list" in row.meta),
    Task("math", "math_accuracy", lambda row: row.meta.get("final_answer") not in (None, "")),
)
"""A row is of the first task it fits."""


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    if not all(hasattr(who.model, "sample") for who in bench.subjects):
        return "a policy"
    wanted = "rows with plain text, a final_answer, an instruction_id_list, or tests"
    return "" if _texts(bench) or any(_rows(bench, task) for task in _tasks()) else wanted


def run(bench: Bench) -> Findings:
    """Measure every kind of row there is."""
    found = [*_graded(bench), *([_perplexity(bench)] if _texts(bench) else [])]
    return Findings(
        [f for part in found for f in part.figures],
        {name: value for part in found for name, value in part.notes.items()},
        [row for part in found for row in part.samples],
        ", ".join(part.told for part in found),
    )


def _tasks() -> list[Task]:
    return [task for task in TASKS if task.verifier in get_args(Verifier)]


def task_of(row: Example) -> Task | None:
    """The task a row is of."""
    return next((task for task in _tasks() if task.fits(row)), None)


def _rows(bench: Bench, task: Task) -> list[Example]:
    return [asked for row in bench.rows if task_of(row) is task and (asked := _as_request(row)).prompt]


def _as_request(row: Example) -> Example:
    """The row with a prompt: a task described as plain text (MBPP) becomes a user's turn that also shows the tests."""
    if row.prompt or not row.completions or "test_list" not in row.meta:
        return row
    tests = "\n".join(row.meta["test_list"])
    text = f"{row.completions[0].content}\nYour code should pass these tests:\n{tests}"
    return replace(row, prompt=(Message("user", text),), completions=())


# --- answers that a verifier grades -----------------------------------------------------------------------------------


def _graded(bench: Bench) -> Iterator[Findings]:
    for task in _tasks():
        rows = _rows(bench, task)
        if rows:
            yield _grade(bench, task, rows)


def _grade(bench: Bench, task: Task, rows: Sequence[Example]) -> Findings:
    """Answer and grade the rows of one task; answers that could not be judged for any model are left out and counted."""
    reward = build(RewardSettings(verifier=task.verifier))  # type: ignore[arg-type]
    reward.check(rows)
    answers = [bench.answers(who, rows) for who in bench.subjects]
    given = [_values(reward, own) for own in answers]
    judged = ~np.isnan(np.stack(given)).any(axis=0)
    values = [found[judged] for found in given]
    notes = {f"{task.metric}_unjudged": int((~judged).sum())} if not judged.all() else {}
    if not judged.any():
        return Findings([], notes, told=f"{task.metric.replace('_', ' ')}: no answer could be judged")
    kept = [i for i in range(len(judged)) if judged[i]]
    clusters: list[Hashable] = [answers[0].clusters[i] for i in kept]
    parts = slices([slice_of(answers[0].rows[i]) for i in kept])
    figures = bench.compare(task.metric, values, clusters, parts, share=True)
    if task.verifier == "code" and bench.rollout.samples > 1:
        tasks = [(answers[0].rows[i].where, answers[0].clusters[i]) for i in kept]
        figures += [f for found, own in zip(values, answers, strict=True) for f in _pass_at_k(bench, found, tasks, own)]
    samples = [sample_row(i, answers[0].rows[i], answers, right=given) for i in kept]
    own = next(f for f in figures if f.metric == task.metric)
    return Findings(figures, notes, samples, f"{task.metric.replace('_', ' ')} {own.value:.1%} [{own.low:.1%}, {own.high:.1%}]")


def _values(reward: Any, own: Answers) -> np.ndarray:
    rolled = [Rolled(row, sample) for row, sample in zip(own.rows, own.samples, strict=True)]
    return np.array([math.nan if verdict.value is None else verdict.value for verdict in reward.judge(rolled)])


def _pass_at_k(bench: Bench, passed: np.ndarray, tasks: Sequence[tuple[str, Hashable]], own: Answers) -> list[Figure]:
    """pass@k for k = all samples of a task, a share of the tasks; none where no task has all its answers judged."""
    k = bench.rollout.samples
    tried, right = Counter(tasks), Counter(task for task, value in zip(tasks, passed, strict=True) if value == 1)
    whole = [task for task, n in tried.items() if n == k]
    if not whole:
        return []
    estimates = pass_at_k([tried[task] for task in whole], [right[task] for task in whole], k)
    return [bench.figure(f"pass_at_{k}", score_rate(estimates, clusters=[prompt for _, prompt in whole]), who=own.who)]


# --- plain text -------------------------------------------------------------------------------------------------------


def _texts(bench: Bench) -> list[Example]:
    """Rows of plain text, which no task reads."""
    bare = [row for row in bench.rows if not row.prompt and len(row.completions) == 1]
    return [row for row in bare if isinstance(row.completions[0].content, str) and not task_of(row)]


def _perplexity(bench: Bench) -> Findings:
    rows, found = _texts(bench), []
    sums: list[np.ndarray] = []
    whole = [list(who.policy.renderer.trees(rows)) for who in bench.subjects]
    limit = min((most for who in bench.subjects if (most := who.model.max_length) is not None), default=None)  # both read the same text
    for who, texts in zip(bench.subjects, whole, strict=True):
        trees = [_cut(tree, limit) for tree in texts]
        tokens = np.array([int(tree.branches[0].scored.sum()) for tree in trees], dtype=np.float64)
        sums.append(np.stack([-np.array(who.policy.tree_logprobs(trees)), tokens], 1))
        nll = bootstrap(sums[-1], _ratio, rng=bench.rng("perplexity"))
        found += [bench.figure("nll_token", nll, who=who), bench.figure("perplexity", _exp(nll), who=who)]
    if bench.baseline:
        both = np.concatenate(sums, 1)
        for metric, of in (("nll_token", float), ("perplexity", math.exp)):
            interval = bootstrap(both, partial(_apart, of), rng=bench.rng("perplexity"))
            found.append(bench.figure(metric, interval, against=bench.baseline, difference_from=bench.baseline.name))
    own = found[1]
    lost = [excess for tree in whole[0] if limit is not None and (excess := tree.packed_tokens - limit) > 0]
    notes = {"texts": len(rows), **({"texts_cut": len(lost), "tokens_cut": sum(lost)} if lost else {})}
    cut = f"; {len(lost)} of {len(rows)} texts cut to {limit} tokens" if lost else ""
    return Findings(found, notes, told=f"perplexity {own.value:.2f} [{own.low:.2f}, {own.high:.2f}]{cut}")


def _ratio(sums: np.ndarray) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def _apart(of: Callable[[float], float], sums: np.ndarray) -> float:
    return of(_ratio(sums[:, :2])) - of(_ratio(sums[:, 2:]))


def _exp(nll: Interval) -> Interval:
    """The interval of exp(x) from that of x."""
    value, low, high = (math.exp(end) for end in nll[:3])
    return nll._replace(value=value, low=low, high=high, std_error=value * nll.std_error)


def _cut(tree: TokenTree, limit: int | None) -> TokenTree:
    """The text up to the longest sequence that is read."""
    room = None if limit is None else limit - len(tree.prompt)
    (branch,) = tree.branches
    if room is None or len(branch.ids) <= room:
        return tree
    return replace(tree, branches=(replace(branch, ids=branch.ids[:room], scored=branch.scored[:room]),))
