"""make parity: value and gradient of every loss that TRL, verl or OpenRLHF also has, beside theirs; the table goes to docs/parity.md.

Exit code 1 when one that should agree does not, or when a difference that the table names is no longer there.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}

import argparse
import importlib.metadata
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.parity import functions
from benchmarks.parity.cases import PEERS, Case, cases
from benchmarks.parity.ours import Found, tiny_models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
TOLERANCES = {"float64": 1e-6, "float32": 1e-5}


@dataclass(frozen=True)
class Row:
    """A case with what was measured: the difference in value, and of the gradient's largest entry as a share of that entry."""

    case: Case
    value: float
    gradient: float

    @property
    def same(self) -> bool:
        """Whether both sides agree; a gradient alone where the peer's value means nothing."""
        bound = TOLERANCES[self.case.precision]
        return self.gradient <= bound and (self.case.gradient_only or self.value <= bound)

    @property
    def verdict(self) -> str:
        """What the table says."""
        if self.same == bool(self.case.differs):
            return "**UNEXPECTED**"
        return "differs" if self.case.differs else "agrees"


def compare(case: Case, mine: Found, theirs: Found) -> Row:
    """Both sides' value, and gradient by every variable that either knows."""
    names = mine.gradient.keys() | theirs.gradient.keys()
    zero = torch.zeros(1, dtype=torch.float64)
    largest = max(float(g.abs().max()) for g in theirs.gradient.values())
    apart = max(float((mine.gradient.get(n, zero).double() - theirs.gradient.get(n, zero).double()).abs().max()) for n in names)
    return Row(case, abs(mine.value - theirs.value) / max(1.0, abs(theirs.value)), apart / largest)


def page(rows: Sequence[Row], absent: Iterable[str]) -> str:
    """docs/parity.md."""
    known = {peer: importlib.metadata.version(peer) for peer in PEERS if peer not in absent}
    versions = ", ".join(f"{peer} {version}" for peer, version in known.items())
    agree = sum(row.verdict == "agrees" for row in rows)
    differ = sum(row.verdict == "differs" for row in rows)
    lines = [
        "# Beside the peers",
        "",
        f"Written by `make parity` with {versions}, torch {torch.__version__.partition('+')[0]}.",
        f"{agree} comparisons agree, {differ} differ for a reason that is named.",
        "",
        "A tiny model and a handful of rows go through the peer's own trainer (TRL: dataset, collator, loss) or function (verl, OpenRLHF),",
        "and through this package's reader, renderer, packing, coupling and reduction, cut into several micro-batches. *Value* is the",
        "difference of the losses, as a share of a loss above 1; *gradient* the largest difference of any entry, as a share of the largest",
        "entry. All is float64 with the bound 1e-6, but where the peer itself rounds to float32 (TRL's fused output head, OpenRLHF's KL),",
        "where it is 1e-5.",
        "",
        "| ours | peer | value | gradient | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for row in rows:
        value = "–" if row.case.gradient_only else f"{row.value:.0e}"
        said = f"{row.verdict}: {row.case.differs}" if row.case.differs else row.verdict + (f" ({row.case.note})" if row.case.note else "")
        lines.append(f"| `{row.case.ours}` | {row.case.peer} | {value} | {row.gradient:.0e} | {said} |")
    missing = [f"Not installed, so not compared: {', '.join(absent)}."] if absent else []
    return "\n".join([*lines, *(["", *missing] if missing else [])]) + "\n"


def main() -> int:
    """Compare, print, and write the page when nothing was left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only comparisons that hold one of these")
    words = parser.parse_args().words
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    absent = [peer for peer, found in (("verl", functions.verl()), ("openrlhf", functions.openrlhf())) if found is None]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(tiny_models(), Path(scratch), absent):
            if words and not any(word in f"{case.ours} {case.peer}" for word in words):
                continue
            rows.append(compare(case, case.mine(), case.theirs()))
            print(f"{rows[-1].verdict:15}{rows[-1].value:8.0e}{rows[-1].gradient:8.0e}  {case.ours}  |  {case.peer}", flush=True)
    if not words:
        PAGE.write_text(page(rows, absent))
    wrong = [row for row in rows if row.verdict == "**UNEXPECTED**"]
    print(f"{len(rows)} comparisons, {len(wrong)} unexpected")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
