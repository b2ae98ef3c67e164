"""The preference suite: how often the model's answer is preferred to the baseline's, as it is and at equal length.

Judges are those of `judges.py`, or people's labels of answers that are in the data. A tie counts one half. The length-controlled win rate
is AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475): what the judge would say if both answers were equally long; `length_preference` is
its coefficient of length, above zero where the judge prefers an answer for being longer; `sign_test` is of whole prompts: of how many the
model's answers won more than half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from prefopt.data.read import tables
from prefopt.errors import DataError, OptionError
from prefopt.evaluate import judges
from prefopt.evaluate.bench import Answers, Bench, Findings, sample_row, slice_of
from prefopt.evaluate.judges import Verdicts
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import kept, slices
from prefopt.rollout.sampler import Sample
from prefopt.stats import length_controlled_win_rate, length_fit, score_rate, sign_test
from prefopt.stats.intervals import cluster_codes, sum_by
from prefopt.types import Example, as_text

FEWEST = 10
"""Pairs that a length-controlled win rate needs."""


class Contest(NamedTuple):
    """Judged pairs of answers."""

    verdicts: Verdicts
    mine: Answers
    theirs: Answers

    @property
    def lengths(self) -> list[np.ndarray]:
        """Characters of the model's answers and of the baseline's."""
        return [np.array([len(text) for text in own.texts], dtype=np.float64) for own in (self.mine, self.theirs)]


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    if bench.baseline is None:
        return "a baseline"
    if judges.named(bench) == "labels":
        return ""
    if not bench.can_answer:
        return "a policy, and rows with a prompt"
    return "" if judges.named(bench) else "a judge (judge.path=REWARD_MODEL, or judge.url=SERVER and judge.model=NAME)"


def run(bench: Bench) -> Findings:
    """Judge the model's answers against the baseline's."""
    contest = labelled(bench) if judges.named(bench) == "labels" else _answered(bench)
    verdicts, mine, theirs = contest
    parts = slices([slice_of(row) for row in mine.rows])
    figures = [f for part, mask in parts for f in _wins(bench, contest, part, mask)]
    if verdicts.metric:
        figures += bench.compare(verdicts.metric, verdicts.rewards, mine.clusters, parts)
    figures += bench.compare("length_chars", contest.lengths, mine.clusters, parts[:1])
    won = verdicts.preferences
    counts = {"wins": int((won > 0.5).sum()), "ties": int((won == 0.5).sum()), "losses": int((won < 0.5).sum())}
    lead = sum_by(cluster_codes(mine.clusters, len(won)), won - 0.5)
    notes = {"judge": verdicts.by, **counts, "sign_test": sign_test(lead, -lead), **verdicts.notes}
    if len(won) > FEWEST:
        notes["length_preference"] = length_fit(won, *contest.lengths, firth=True).length
    facts = {"preferred": [won, 1 - won], **({verdicts.metric: verdicts.rewards} if verdicts.metric else {})}
    samples = [sample_row(i, row, [mine, theirs], **facts) for i, row in enumerate(mine.rows)]
    return Findings(figures, notes, samples, _told(figures, bench))


def _answered(bench: Bench) -> Contest:
    rows = bench.requests()
    mine, theirs = (bench.answers(who, rows) for who in bench.subjects)
    return Contest(judges.judge(bench, mine, theirs), mine, theirs)


def _wins(bench: Bench, contest: Contest, part: str, mask: np.ndarray) -> list[Figure]:
    """The win rate of a slice, and of all pairs the length-controlled one."""
    inside, won = kept(contest.mine.clusters, mask), contest.verdicts.preferences[mask]
    figures = [bench.figure("win_rate", score_rate(won, clusters=inside), slice=part, against=bench.baseline)]
    mine, theirs = (lengths[mask] for lengths in contest.lengths)
    if part == "all" and len(won) > FEWEST:
        controlled = length_controlled_win_rate(won, mine, theirs, clusters=inside, firth=True)
        figures.append(bench.figure("length_controlled_win_rate", controlled, against=bench.baseline))
    return figures


# --- people's labels --------------------------------------------------------------------------------------------------


def labelled(bench: Bench) -> Contest:
    """People's labels of answers of the two models, from rows `prompt, response_a, response_b, label, model_a, model_b`.

    The models are names in `model_a` and `model_b`; neither is opened.

    Raises:
        OptionError: no row compares the two.
        DataError: a label that is none.
    """
    assert bench.baseline is not None
    names = (bench.model.path, bench.baseline.path)
    found = [row for table in tables(bench.data.path) for row in table.rows][: bench.data.limit]
    rows = [row for row in found if {row.fields.get("model_a"), row.fields.get("model_b")} == set(names)]
    if not rows:
        raise _unknown(names, Counter(str(row.fields.get(side)) for row in found for side in ("model_a", "model_b")))
    first = [row.fields["model_a"] == names[0] for row in rows]
    said = [_label(row) for row in rows]
    won = np.array([0.5 if say == "tie" else float((say == "a") == a) for say, a in zip(said, first, strict=True)])
    examples = [Example(prompt=as_text(r.fields["prompt"]), where=r.where, source=str(r.fields.get("source") or "")) for r in rows]
    clusters: list[Hashable] = [str(row.fields["prompt"]) for row in rows]
    sides = [
        Answers(
            who,
            examples,
            clusters,
            [_said(row, "a" if a == mine else "b") for row, a in zip(rows, first, strict=True)],
        )
        for who, mine in ((bench.model, True), (bench.baseline, False))
    ]
    return Contest(Verdicts("people's labels", won), *sides)


def _said(row: Any, side: str) -> Sample:
    text = str(row.fields[f"response_{side}"])
    return Sample(ids=np.zeros(0, np.int32), logps=np.zeros(0, np.float32), text=text, finished=True)


def _label(row: Any) -> str:
    said = row.fields.get("label")
    if said not in ("a", "b", "tie"):
        raise DataError(f"label is {said!r}", where=row.where, fix='people\'s labels are "a", "b" or "tie"')
    return str(said)


def _unknown(names: tuple[str, str], known: Counter[str]) -> OptionError:
    absent = [name for name in names if name not in known]
    what = f"no row has an answer of {' or of '.join(absent)}" if absent else f"no row compares {names[0]} with {names[1]}"
    known.pop("None", None)
    listed = ", ".join(name for name, _ in known.most_common(8)) or "nothing: the rows have no model_a and model_b"
    return OptionError(what, where="model, baseline", fix=f"with judge.by=labels they are names in model_a and model_b; there are {listed}")


def _told(figures: list[Figure], bench: Bench) -> str:
    rate = next(f for f in figures if f.metric == "win_rate")
    told = f"wins {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    controlled = next((f for f in figures if f.metric == "length_controlled_win_rate"), None)
    if controlled:
        told += f" (at equal length {controlled.value:.1%})"
    return f"{told} against {bench.baseline.name if bench.baseline else ''}"
