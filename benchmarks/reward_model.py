"""A reward model of the synthetic world beside the best that anybody could do.

    python benchmarks/reward_model.py runs/reward-model --by

Reads a run of recipes/reward-model.yaml. The annotators' model is known, so for every held-out pair the probability that the one answer is
preferred is known exactly: the Bayes limit of accuracy is the mean of max(p, 1 - p), and the model's own expected accuracy the mean of
the probability of what it chooses, both free of the luck of the labels drawn.

It is told for the recipe's held-out requests, each phrased, or asking for a combination, as none in training does, and for new requests
that are drawn as those of training were and are none of them. `--by` also says where what the model loses is lost: by the kind of request,
by who wrote the answers, and among the pairs that differ in an attribute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prefopt import load
from prefopt.settings import RolloutSettings
from prefopt.world import World, judge, panel, preferred

Pair = dict[str, Any]
Floats = npt.NDArray[np.float64]

NEW = 4711
"""Seed of the requests that are drawn anew, and of their answers."""
SEEN = ("fluent", "correct", "complete", "refusal", "format", "terse", "courteous", "hedged", "flattering", "padded", "brief")
"""Attributes that may tell two answers apart."""


def main(folder: Path, *, by: bool, new: int) -> None:
    """Print a table for each of the two sorts of requests, or with `by` two."""
    pairs, names = held_out(folder)
    print("held-out requests: phrased or combined as none in training\n")
    _tell(folder, pairs, names, _told(folder), by=by)
    if new:
        print("\n\nnew requests, drawn as those of training\n")
        _tell(folder, list(anew(folder, new)), names, {}, by=by)


def _tell(folder: Path, pairs: list[Pair], names: list[str], told: dict[str, str], *, by: bool) -> None:
    model = load(str(folder / "reward" / "model"))
    first, second = (
        np.array(model.score([row["prompt"] for row in pairs], [_said(row[side]) for row in pairs]))
        for side in ("response_a", "response_b")
    )
    p = np.array([preferred(panel(tuple(names)), row["meta"], row["response_a"], row["response_b"]) for row in pairs])
    rows = {**_right(pairs, p, first - second), **told}
    wide = max(map(len, rows))
    print("\n".join(f"{name:<{wide}}  {value}" for name, value in rows.items()))
    if by:
        print(f"\n{'':<24} share of pairs  limit  model  below it, in points  part of the whole")
        for name, mask in parts(pairs):
            print(f"{name:<24} {_lost(best(p), reached(p, first - second), mask)}")


def best(p: Floats) -> Floats:
    """Expected accuracy of who knows `p`, the probability of a preference for the first answer."""
    return np.maximum(p, 1 - p)


def reached(p: Floats, margin: Floats) -> Floats:
    """Expected accuracy of choosing the first answer where `margin` is positive."""
    return np.where(margin > 0, p, 1 - p)


def held_out(folder: Path) -> tuple[list[Pair], list[str]]:
    """The held-out pairs of the reward stage that state a preference, and who was asked."""
    places = [where.rpartition(":") for where in (folder / "reward" / "heldout.txt").read_text().split()]
    file = Path(places[0][0])
    label = folder / file.parent.name
    lines = (label / file.name).read_text().splitlines()
    rows = [json.loads(lines[int(number) - 1]) for _, _, number in places]
    names = json.loads((label / "record.json").read_text())["stage"]["annotators"]
    kept, written = [row for row in rows if row["label"] != "tie"], _written(folder)
    for row in kept:
        row["by"] = (
            "written" if all((json.dumps(row["prompt"]), row[side]) in written for side in ("response_a", "response_b")) else "sampled"
        )
    return kept, [names] if isinstance(names, str) else names


def _written(folder: Path) -> set[tuple[str, str]]:
    """Requests with each of the answers that the world wrote beside them."""
    rows = [json.loads(line) for line in (folder / "world" / "heldout.jsonl").read_text().splitlines()]
    return {(json.dumps(row["prompt"]), text) for row in rows for text in row.get("completions", ())}


def anew(folder: Path, n: int) -> Iterator[Pair]:
    """A pair of written and one of sampled answers, where they differ, to each of at most `n` requests that no file of the run holds."""
    files = [folder / "world" / f"{name}.jsonl" for name in ("prompts", "sft")]
    asked = {json.dumps(json.loads(line)["prompt"]) for file in files for line in file.read_text().splitlines()}
    world = World(json.loads((folder / "world" / "record.json").read_text())["stage"]["seed"])
    told = [(request, [m.to_dict() for m in request.prompt]) for request in world.requests(n, seed=NEW, distinct=True)]
    told = [(request, prompt) for request, prompt in told if json.dumps(prompt) not in asked]
    settings, rng = RolloutSettings(samples=2, max_new_tokens=48, batch_size=256, seed=NEW), np.random.default_rng(NEW)
    drawn = load(str(folder / "sft" / "model"), kind="policy").sample([request.prompt for request, _ in told], settings)
    for (request, prompt), samples in zip(told, drawn, strict=True):
        for by, texts in (("written", [world.draft(request, rng) for _ in range(2)]), ("sampled", [sample.text for sample in samples])):
            if len(set(texts)) == 2 and all(text.strip() for text in texts):
                yield {"prompt": prompt, "meta": dict(request.meta), "response_a": texts[0], "response_b": texts[1], "by": by}


def parts(pairs: list[Pair]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Names of parts of the pairs, and which pairs they hold, at least one; those of an attribute overlap."""
    yield "all", np.ones(len(pairs), dtype=bool)
    yield from ((name, mask) for name, mask in _parts(pairs) if mask.any())


def _parts(pairs: list[Pair]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    by, slices = np.array([row["by"] for row in pairs]), np.array([row["meta"]["slice"] for row in pairs])
    yield from ((f"{name} answers", by == name) for name in ("written", "sampled"))
    yield from ((f"asks for {name}", slices == name) for name in np.unique(slices))
    seen = [[judge(row["meta"], row[side]) for side in ("response_a", "response_b")] for row in pairs]
    for name in SEEN:
        yield f"differ in {name}", np.array([getattr(a, name) != getattr(b, name) for a, b in seen])


def _lost(limit: Floats, mine: Floats, mask: npt.NDArray[np.bool_]) -> str:
    gap = limit - mine
    told = f"{mask.mean():14.3f}  {limit[mask].mean():.3f}  {mine[mask].mean():.3f}"
    return f"{told}  {100 * gap[mask].mean():19.2f}  {100 * gap[mask].sum() / len(gap):17.2f}"


def _right(pairs: list[Pair], p: Floats, margin: Floats) -> dict[str, str]:
    """How often the model is right, beside the limit; pairs of one prompt go together in the interval."""
    groups = np.unique([json.dumps(row["prompt"]) for row in pairs], return_inverse=True)[1]
    gap = best(p) - reached(p, margin)
    sums = np.bincount(groups, weights=gap - gap.mean())
    error = float(np.sqrt((sums**2).sum()) / len(gap))
    drawn = [(row["label"] == "a") == over for row, over in zip(pairs, margin > 0, strict=True) if "label" in row]
    return {
        "pairs": f"{len(pairs)} of {groups.max() + 1} prompts",
        "Bayes limit of accuracy": f"{best(p).mean():.4f}",
        "expected accuracy of the model": f"{reached(p, margin).mean():.4f}",
        "below the limit, in points": f"{100 * gap.mean():.2f} +- {196 * error:.2f}",
        **({"accuracy on the labels drawn": f"{np.mean(drawn):.4f}"} if drawn else {}),
        "mean |sigma(difference) - exact probability|": f"{np.abs(1 / (1 + np.exp(-margin)) - p).mean():.4f}",
    }


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _told(folder: Path) -> dict[str, str]:
    """What the run itself found: calibration on the half of the held-out rows that did not fit the temperature."""
    rows = {row["metric"]: row for row in json.loads((folder / "reward" / "evaluation.json").read_text())["rows"] if row["slice"] == "all"}
    found = {"temperature": f"{json.loads((folder / 'reward' / 'calibration.json').read_text())['temperature']:.3f}"}
    for metric, words in (("ece_before", "ECE before the temperature"), ("ece", "ECE after it")):
        if metric in rows:
            debiased = rows[metric.replace("ece", "ece_debiased")]
            found[words] = (
                f"{rows[metric]['value']:.4f} (without its bias {debiased['value']:.4f} [{debiased['low']:.4f}, {debiased['high']:.4f}])"
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run of recipes/reward-model.yaml")
    parser.add_argument("--by", action="store_true", help="say where what is lost is lost")
    parser.add_argument(
        "--new", type=int, default=4000, metavar="N", help="draw so many requests anew, and keep those that are (default 4000)"
    )
    given = parser.parse_args()
    main(given.folder, by=given.by, new=given.new)
