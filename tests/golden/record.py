"""Record golden trajectories anew.

    make golden METHODS="dpo kto" REASON="a line of the changelog"     # no METHODS: all whose numbers moved

The source must be committed, so that the numbers belong to a version; and numbers that were recorded before change only for a reason that
stands under "Changes numbers" in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.golden import trajectory as golden

ROOT = Path(__file__).resolve().parents[2]


def uncommitted(root: Path = ROOT) -> list[str]:
    """Changed or unknown files of the source tree, but for the recordings themselves and the changelog that explains them."""
    found = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line[3:] for line in found if not (line.endswith(".json") and "tests/golden/" in line) and not line.endswith("CHANGELOG.md")]


def reasons(changelog: str) -> str:
    """Everything said under "Changes numbers", of all versions, on one line."""
    sections = changelog.split("### Changes numbers")[1:]
    return " ".join(" ".join(section.partition("\n#")[0].split()) for section in sections)


def given(reason: str, changelog: str) -> bool:
    """Whether a recording's reason is good: the first, or the words of the changelog."""
    return reason == golden.FIRST or (len(reason) > 10 and " ".join(reason.split()) in reasons(changelog))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description=__doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", help="rows of METHODS; all when none is named")
    parser.add_argument("--reason", default="", help="words that stand under 'Changes numbers' in CHANGELOG.md")
    options = parser.parse_args(arguments)
    dirty = uncommitted()
    if dirty:
        raise SystemExit(f"commit first, so that the numbers belong to a version: {', '.join(dirty[:5])}")
    for method in golden.methods(options.methods):
        _record(method, options.reason)


def _record(method: str, reason: str) -> None:
    found = golden.trajectory(method)
    new = not golden.path_of(method).exists()
    moved = [] if new else list(golden.departures(found, golden.recorded(method)))
    if not new and not moved:
        return
    if not new and not (reason and given(reason, (ROOT / "CHANGELOG.md").read_text())):
        raise SystemExit(f"{method}: {moved[0]}. Say why under 'Changes numbers' in CHANGELOG.md, and give those words as --reason")
    golden.write(method, found, golden.FIRST if new else reason)
    print(f"{method}: {'recorded' if new else moved[0]}")


if __name__ == "__main__":
    main()
