"""A reward model of the synthetic world beside the best that anybody could do.

    python benchmarks/reward_model.py runs/reward-model

Reads a run of recipes/reward-model.yaml. The annotators' model is known, so for every held-out pair the probability that the one answer is
preferred is known exactly: the Bayes limit of accuracy is the mean of max(p, 1 - p), and the model's own expected accuracy the mean of
the probability of what it chooses, both free of the luck of the labels drawn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from prefopt import load
from prefopt.world import panel, preferred


def main(folder: Path) -> None:
    """Print a table."""
    pairs, names = held_out(folder)
    model = load(str(folder / "reward" / "model"))
    scores = [
        np.array(model.score([row["prompt"] for row in pairs], [_said(row[side]) for row in pairs]))
        for side in ("response_a", "response_b")
    ]
    margin = scores[0] - scores[1]
    p = np.array([preferred(panel(tuple(names)), row["meta"], row["response_a"], row["response_b"]) for row in pairs])
    said_a = np.array([row["label"] == "a" for row in pairs])
    limit, mine = np.maximum(p, 1 - p), np.where(margin > 0, p, 1 - p)
    groups = np.unique([json.dumps(row["prompt"]) for row in pairs], return_inverse=True)[1]
    gap = limit - mine
    sums = np.bincount(groups, weights=gap - gap.mean())
    error = float(np.sqrt((sums**2).sum()) / len(gap))
    probs = 1 / (1 + np.exp(-margin))
    rows = {
        "held-out pairs with a preference": f"{len(pairs)} of {groups.max() + 1} prompts",
        "Bayes limit of accuracy": f"{limit.mean():.4f}",
        "expected accuracy of the model": f"{mine.mean():.4f}",
        "below the limit, in points": f"{100 * gap.mean():.2f} +- {196 * error:.2f}",
        "accuracy on the labels drawn": f"{(said_a == (margin > 0)).mean():.4f}",
        "mean |sigma(difference) - exact probability|": f"{np.abs(probs - p).mean():.4f}",
        **_told(folder),
    }
    wide = max(map(len, rows))
    print("\n".join(f"{name:<{wide}}  {value}" for name, value in rows.items()))


def held_out(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The held-out pairs of the reward stage that state a preference, and who was asked."""
    wheres = (folder / "reward" / "heldout.txt").read_text().split()
    lines = (folder / "label" / "pairs.jsonl").read_text().splitlines()
    rows = [json.loads(lines[int(where.rpartition(":")[2]) - 1]) for where in wheres]
    names = json.loads((folder / "label" / "record.json").read_text())["stage"]["annotators"]
    return [row for row in rows if row["label"] != "tie"], [names] if isinstance(names, str) else names


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
    main(Path(sys.argv[1]))
