"""What the statistics and the refusal classifier find in public data and in the world: one line a figure, with its 95% interval.

    python benchmarks/evidence.py [DATA] [--only pandalm | llmfao | xstest | length] [--requests 3000]

pandalm  Cohen's kappa of each two of three annotators (published: .85, .88, .86)
llmfao   Krippendorff's alpha of a crowd and what Dawid and Skene's model makes of its members, with the CPU time
xstest   agreement with people of our refusal classifier, the authors' string match and GPT-4, on prompts not used to fit the phrases
length   two policies made equally good: an annotator who likes length is fooled by the long-winded one, at equal length is not
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.evaluate import suites
from prefopt.settings import DataSettings
from prefopt.stats import agreement_interval, dawid_skene

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripted policies of the tests
from tests.benches import Spoken, bench_of, figures_in  # noqa: E402
from tests.real import DATA  # noqa: E402
from tests.unit import test_length_bias  # noqa: E402


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file, gzipped or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def told(name: str, value: Any, low: float, high: float, n: int) -> str:
    return f"{name:<58}  {value:6.3f} [{low:6.3f}, {high:6.3f}]  n {n}"


def pandalm(data: Path) -> Iterator[str]:
    """The three annotators, two by two."""
    votes: dict[str, list[str]] = {}
    for row in rows(data / "agree" / "pandalm_votes.jsonl"):
        for vote in row["votes"]:
            votes.setdefault(vote["annotator"], []).append(vote["label"])
    for a, b in itertools.combinations(sorted(votes), 2):
        found = agreement_interval("cohen", np.array([votes[a], votes[b]]), rng=np.random.default_rng(0), draws=1000)
        yield told(f"Cohen's kappa of {a} and {b}", *found[:4])


def llmfao(data: Path) -> Iterator[str]:
    """The crowd of the LLMFAO pairs."""
    pairs = rows(data / "agree" / "llmfao_votes.jsonl.gz")
    started = time.process_time()
    votes = list({(row["id"], v["annotator"]): (row["id"], v["annotator"], v["label"]) for row in pairs for v in row["votes"]}.values())
    people, said = sorted({who for _, who, _ in votes}), {(unit, who): label for unit, who, label in votes}
    ratings = [[said.get((row["id"], who)) for row in pairs] for who in people]
    alpha = agreement_interval("krippendorff", ratings, rng=np.random.default_rng(0), draws=1000)
    yield told(f"Krippendorff's alpha of {len(people)} people, 1000 resamples", *alpha[:4])
    accuracy = sorted(dawid_skene(votes).accuracy().values())
    yield told("Dawid-Skene: accuracy of people, median [least, most]", accuracy[len(accuracy) // 2], accuracy[0], accuracy[-1], len(votes))
    yield f"seconds of one CPU for both: {time.process_time() - started:.2f}"


def xstest(data: Path) -> Iterator[str]:
    """Refusals on the odd-numbered prompts."""
    found = rows(data / "agree" / "xstest_refusal_labels.jsonl.gz")
    odd = [row for row in found if row["completion"] and int(row["id"].split("-")[1].split("/")[0]) % 2]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "odd.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in odd))
        suites.run("safety", bench_of(Path(place), Spoken("none", str), data=DataSettings(path=str(file))))
        for (metric, who, _, _), row in figures_in(Path(place)).items():
            if metric == "kappa_with_people":
                yield told(f"Cohen's kappa with people of {who}", row["value"], row["low"], row["high"], row["n"])


def length(data: Path) -> Iterator[str]:
    """The planted bias of the annotator called easy."""
    with tempfile.TemporaryDirectory() as place:
        found = test_length_bias.judged(Path(place), "annotator")
    for metric in ("win_rate", "length_controlled_win_rate"):
        row = found[metric, "long", "all", ""]
        yield told(f"{metric} of the long-winded, equally good", row["value"], row["low"], row["high"], row["n"])


PARTS: dict[str, Callable[[Path], Iterator[str]]] = {"pandalm": pandalm, "llmfao": llmfao, "xstest": xstest, "length": length}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="the files of docs/results.md: data/, or $PREFOPT_DATA")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--requests", type=int, default=test_length_bias.REQUESTS, help="of the world, for length")
    asked = parser.parse_args()
    test_length_bias.REQUESTS = asked.requests
    for name in [asked.only] if asked.only else PARTS:
        print("\n".join(PARTS[name](asked.data)))
