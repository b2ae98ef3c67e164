"""The arena: many models compared pairwise, from a file of battles or from every model's scored answers to the same prompts.

Ratings are Bradley-Terry's on the Elo scale, their mean 1000, with bootstrap intervals that draw whole prompts where prompts are known. A
rank is claimed only where the data allow: each model has the range of ranks it may have, all at once with the stated confidence.
"""

from __future__ import annotations

import gzip
import html
import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefopt.errors import DataError, did_you_mean
from prefopt.stats.elo_ratings import outcome
from prefopt.stats.intervals import Floats, Interval
from prefopt.stats.ratings import Ratings, bradley_terry, check_connected, davidson, rao_kupper

_ELO = 400 / math.log(10)
_SUFFIX = re.compile(r"(\.(jsonl|ndjson|json))?(\.gz)?$", re.IGNORECASE)
MODELS = {"half": bradley_terry, "davidson": davidson, "rao_kupper": rao_kupper}
"""How ties are read -> the rating model."""


class Battle(NamedTuple):
    """Model a against model b on a prompt: a's score is 1, 1/2 or 0."""

    a: str
    b: str
    score: float
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model's place: rating with its interval, the ranks it may have, and what it played."""

    model: str
    rating: Interval
    ranks: tuple[int, int]
    won: float
    battles: int


@dataclass(frozen=True, kw_only=True)
class Arena:
    """The models, best first, and how often each beat each: `wins[i][j]` (ties one half) of `met[i][j]`."""

    standings: tuple[Standing, ...]
    wins: Floats
    met: Floats
    battles: int
    ties: int
    prompts: int
    ratings: Ratings


def rate(battles: Sequence[Battle], *, ties: str, ridge: float, draws: int, confidence: float, seed: int) -> Arena:
    """Ratings of everyone who took part.

    Args:
        battles: all of them.
        ties: a key of MODELS.
        ridge: as in `bradley_terry`; 0 asks that finite ratings exist.
        draws: bootstrap resamples.
        confidence: of intervals and of the ranks together.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two models, models that never lost (the message names them), or all battles on one prompt.
    """
    names = sorted({name for battle in battles for name in (battle.a, battle.b)})
    if len(names) < 2:
        raise DataError(
            f"{len(names)} model{'s' * (len(names) != 1)}: an arena needs two or more", fix="give battles or scores of two models"
        )
    place = {name: i for i, name in enumerate(names)}
    won: list[tuple[int, int]] = []
    tied: list[tuple[int, int]] = []
    order: list[Hashable] = []
    for tie in (False, True):
        for battle in battles:
            if (battle.score == 0.5) == tie:
                i, j = place[battle.a], place[battle.b]
                (tied if tie else won).append((i, j) if battle.score >= 0.5 else (j, i))
                order.append(battle.prompt or len(order))
    wins = np.zeros((len(names), len(names)))
    for i, j in won:
        wins[i, j] += 1
    for i, j in tied:
        wins[i, j] += 0.5
        wins[j, i] += 0.5
    if len(set(order)) == 1 < len(order):
        what = "all battles are on one prompt: what it favours it favours in each, and how other prompts differ is not known"
        raise DataError(what, where="battles", fix="add battles on other prompts, or leave prompt out where it is not the same one")
    clusters = order if len(set(order)) < len(order) else None
    prompts = len({battle.prompt for battle in battles} - {""})
    try:
        if ridge <= 0:
            check_connected(wins, names)
        rng = np.random.default_rng(seed)
        found = MODELS[ties](won, len(names), ties=tied, ridge=ridge, clusters=clusters, draws=draws, rng=rng)
    except ValueError as error:
        raise DataError(
            str(error).split(";", maxsplit=1)[0], where="battles", fix="add battles, leave the model out, or give --ridge 0.01"
        ) from None
    return _arena(names, found, wins, len(tied), prompts, confidence)


def _arena(names: list[str], found: Ratings, wins: Floats, ties: int, prompts: int, confidence: float) -> Arena:
    order = np.argsort(-found.theta, kind="stable")
    ranges, intervals, met = found.rank_ranges(confidence), found.intervals(confidence), wins + wins.T
    standings = tuple(
        Standing(
            model=names[i],
            rating=_on_elo_scale(intervals[i]),
            ranks=ranges[i],
            won=float(wins[i].sum() / max(1.0, met[i].sum())),
            battles=int(met[i].sum()),
        )
        for i in order
    )
    cells = np.ix_(order, order)
    return Arena(standings=standings, wins=wins[cells], met=met[cells], battles=found.n, ties=ties, prompts=prompts, ratings=found)


def _on_elo_scale(found: Interval) -> Interval:
    value, low, high = (1000 + _ELO * x for x in found[:3])
    return found._replace(value=value, low=low, high=high, std_error=_ELO * found.std_error)


# --- files ----------------------------------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> list[Battle]:
    """Battles of files of battles, and of every two files of scored answers on the prompts they share.

    A battle row has model_a, model_b, winner (a, b, tie, model_a, model_b, tie (bothbad), or 1, 0, 0.5), and may have prompt. A row of
    scored answers (`prefopt score`) has prompt, completions and scores; its model is the row's `model`, or the file's name
    without its suffixes, with its folders where files of one name are given. Several scores of a prompt are averaged.

    Raises:
        DataError: a file or row that cannot be read, with its place, or whose model has no name of its own.
    """
    battles: list[Battle] = []
    scores: dict[str, dict[str, list[float]]] = {}
    for path, name in zip(paths, _names(paths), strict=True):
        for number, row in enumerate(_rows(path), 1):
            where = f"{path}:{number}"
            if isinstance(row, Mapping) and {"model_a", "model_b"} <= row.keys():
                battles.append(_battle(row, where))
            elif isinstance(row, Mapping) and {"prompt", "scores"} <= row.keys():
                model = str(row.get("model") or name)
                if not model:
                    fix = "give each file once and under a name of its own, or say the `model` in each row"
                    raise DataError("another file has the same name, which is what its model would be called", where=where, fix=fix)
                scores.setdefault(model, {}).setdefault(_key(row["prompt"]), []).extend(_scores(row["scores"], where))
            else:
                what = "neither a battle (model_a, model_b, winner) nor scored answers (prompt, completions, scores)"
                raise DataError(what, where=where, fix="see docs/arena.md")
    means = {model: {prompt: float(np.mean(given)) for prompt, given in found.items()} for model, found in scores.items()}
    return battles + list(_round_robin(means))


def _names(paths: Sequence[Path]) -> list[str]:
    """What the model of each file is called: the file's name without its suffixes, after as many folders as tell it from the others.

    Files that no folder tells apart have none.
    """
    parts = [(*Path(os.path.abspath(path)).parts[1:-1], _SUFFIX.sub("", path.name)) for path in paths]
    ends = [[own[-k:] for k in range(1, len(own) + 1)] for own in parts]
    count = Counter(end for own in ends for end in own)
    return ["/".join(next((end for end in own if count[end] == 1), ())) for own in ends]


def _rows(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError:
                        raise DataError("not JSON", where=f"{path}:{number}", fix="one JSON object a line") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"cannot be read: {reason}", where=str(path), fix="give a JSONL file, gzipped or not") from None


def _battle(row: Mapping[str, Any], where: str) -> Battle:
    a, b, winner = row["model_a"], row["model_b"], row.get("winner")
    if not isinstance(a, str) or not isinstance(b, str) or not a or not b or a == b:
        raise DataError(f"a battle of {a!r} against {b!r}", where=where, fix="model_a and model_b are two different names")
    if winner in (a, b):
        winner = "a" if winner == a else "b"
    try:
        score = outcome(winner)
    except ValueError:
        known = ["a", "b", "tie", "model_a", "model_b", "tie (bothbad)", a, b]
        raise DataError(f"unknown winner {winner!r}", where=where, fix=did_you_mean(str(winner), known)) from None
    if score not in (0, 0.5, 1):
        fix = "write 1, 0.5 or 0; where answers have scores, give each model's scored answers instead"
        raise DataError(f"winner {winner!r} is neither a win nor a loss nor a tie", where=where, fix=fix)
    return Battle(a, b, score, "" if row.get("prompt") is None else _key(row["prompt"]))


def _scores(found: Any, where: str) -> list[float]:
    numbers: list[float] = [x for x in found if isinstance(x, int | float) and math.isfinite(x)] if isinstance(found, list) else []
    if not numbers or len(numbers) < len(found):
        raise DataError("scores are a list of finite numbers, one or more", where=where, fix="write them with `prefopt score`")
    return numbers


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def _round_robin(scores: Mapping[str, Mapping[str, float]]) -> Iterator[Battle]:
    models = sorted(scores)
    for i, a in enumerate(models):
        for b in models[i + 1 :]:
            for prompt in filter(scores[b].__contains__, scores[a]):  # in the order of the file: a seed decides every draw
                mine, theirs = scores[a][prompt], scores[b][prompt]
                yield Battle(a, b, 0.5 if mine == theirs else float(mine > theirs), prompt)


# --- told -----------------------------------------------------------------------------------------------------------------


def ranks_told(ranks: tuple[int, int]) -> str:
    """A range of ranks in words.

    >>> ranks_told((1, 1)), ranks_told((2, 5))
    ('1', '2 to 5')
    """
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]} to {ranks[1]}"


def lines(found: Arena) -> list[str]:
    """The table as text."""
    width = max(len(s.model) for s in found.standings)
    rows = [f"{'ranks':>9}  {'model':<{width}}  rating  interval        won     battles"]
    for s in found.standings:
        ends = f"[{s.rating.low:.0f}, {s.rating.high:.0f}]"
        rows.append(f"{ranks_told(s.ranks):>9}  {s.model:<{width}}  {s.rating.value:6.0f}  {ends:<14}  {s.won:6.1%}  {s.battles:7d}")
    return rows


def to_json(found: Arena) -> dict[str, Any]:
    """What arena.json holds."""
    return {
        "model": found.ratings.model,
        "tie": None if math.isnan(found.ratings.tie) else found.ratings.tie,
        "battles": found.battles,
        "ties": found.ties,
        "prompts": found.prompts,
        "resamples_without_finite_ratings": found.ratings.not_finite,
        "standings": [
            {"model": s.model, "ranks": list(s.ranks), "won": s.won, "battles": s.battles, **_interval_json(s.rating)}
            for s in found.standings
        ],
        "wins": found.wins.tolist(),
        "met": found.met.tolist(),
    }


def _interval_json(found: Interval) -> dict[str, Any]:
    names = {"value": "rating", "low": "low", "high": "high", "confidence": "confidence", "method": "method", "std_error": "std_error"}
    return {told: getattr(found, name) for name, told in names.items()}


def heat_map(found: Arena) -> str:
    """An SVG: rows beat columns, blue where more often than not, orange where less; empty where two never met."""
    names, cell, left, top = [s.model for s in found.standings], 22, 190, 168
    size = cell * len(names)
    wide = left + size + 90
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {top + size + 10}" width="{wide}" role="img" font-size="11">']
    parts.append("<title>How often the model of a row beats the model of a column</title>")
    for i, name in enumerate(names):
        told, middle = html.escape(name if len(name) <= 28 else name[:27] + "…"), cell * i + cell / 2 + 4
        parts.append(f'<text x="{left - 6}" y="{top + middle:g}" text-anchor="end">{told}</text>')
        parts.append(f'<text transform="translate({left + middle:g} {top - 6}) rotate(-60)">{told}</text>')
        for j, other in enumerate(names):
            if i == j or not found.met[i, j]:
                continue
            share = float(found.wins[i, j] / found.met[i, j])
            colour, strength = ("#2a6fb0", 2 * share - 1) if share >= 0.5 else ("#c8641e", 1 - 2 * share)
            label = html.escape(f"{name} beats {other} in {share:.0%} of {found.met[i, j]:g}")
            place = f'x="{left + cell * j}" y="{top + cell * i}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<rect {place} fill="{colour}" fill-opacity="{0.08 + 0.92 * strength:.2f}"><title>{label}</title></rect>')
    return "".join([*parts, "</svg>"])


def _bar(found: Arena, standing: Standing) -> str:
    """A rating with its interval, drawn on the scale of all ratings; ends beyond it run to the edge."""
    values = [s.rating.value for s in found.standings]
    low, room = min(values), 0.15 * (max(values) - min(values)) or 1.0

    def at(value: float) -> float:
        return round(160 * min(1.0, max(0.0, (value - low + room) / (max(values) - low + 2 * room))), 1)

    r = standing.rating
    line = f'<line x1="{at(r.low)}" x2="{at(r.high)}" y1="6" y2="6"/>'
    return f'<svg width="160" height="12" aria-hidden="true">{line}<circle cx="{at(r.value)}" cy="6" r="3.5"/></svg>'


def page(found: Arena) -> str:
    """One offline HTML page: the table and the heat map; names are text, never markup."""
    rows = "".join(
        f"<tr><td>{ranks_told(s.ranks)}</td><th scope=row>{html.escape(s.model)}</th><td>{s.rating.value:.0f}</td>"
        f"<td>{s.rating.low:.0f} to {s.rating.high:.0f}</td><td class=bar>{_bar(found, s)}</td>"
        f"<td>{s.won:.1%}</td><td>{s.battles}</td></tr>"
        for s in found.standings
    )
    how = f"{found.ratings.model}, {found.battles:,} battles ({found.ties:,} ties)"
    how += f" on {found.prompts:,} prompts" if found.prompts else ""
    return _PAGE.format(rows=rows, how=how, map=heat_map(found), confidence=f"{found.standings[0].rating.confidence:.0%}")


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1"><title>Arena</title>
<style>:root{{--paper:#fdfdfb;--ink:#1c2024;--soft:#59616b;--line:#e4e4df;--after:#1d62b8}}
@media(prefers-color-scheme:dark){{:root{{--paper:#15181b;--ink:#e9e9e5;--soft:#a7afb8;--line:#2d3237;--after:#7fb3f7}}}}
@media(max-width:40rem){{.bar{{display:none}}th,td{{padding:.2rem .35rem!important}}}}
@media print{{:root{{--paper:#fff;--ink:#000}}*{{print-color-adjust:exact}}tr{{break-inside:avoid}}.wide svg{{max-width:100%;height:auto}}}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--paper)}}
h1,h2{{font-family:"Iowan Old Style",Palatino,Charter,Georgia,"Liberation Serif",serif;font-weight:500}}
p{{max-width:40rem;color:var(--soft)}}
.wide{{overflow-x:auto}}table{{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}}
th,td{{padding:.2rem .7rem;text-align:right;white-space:nowrap}}th[scope=row]{{text-align:left;font-weight:400}}
tr{{border-bottom:1px solid var(--line)}}thead th:nth-child(2){{text-align:left}}svg text{{fill:var(--ink)}}
.bar svg{{vertical-align:middle}}.bar line{{stroke:var(--after);stroke-width:1.5}}.bar circle{{fill:var(--after)}}</style>
<main><h1>Arena</h1><p>{how}. Ratings are on the Elo scale with mean 1000 and {confidence} intervals. A rank is claimed only where the
data allow it: with {confidence} confidence all ranges hold at once.</p>
<div class=wide tabindex=0><table><thead><tr><th>ranks</th><th scope=col>model</th><th>rating</th><th>interval</th><th class=bar></th>
<th>won</th><th>battles</th></tr></thead><tbody>{rows}</tbody></table></div>
<h2>Who beats whom</h2><p>How often the model of a row beats the model of a column: blue more often than not, orange less; empty where they
never met. Point at a cell for its numbers.</p><div class=wide tabindex=0>{map}</div></main></html>
"""
