"""`make bounds` tests the oldest versions that pyproject.toml allows: the two files say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lower = {re.match(r"[\w-]+", need)[0].lower(): re.search(r">=([\d.]+)", need)[1] for need in wanted}  # type: ignore[index]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == lower.keys()
    for name, version in lower.items():
        assert (pinned[name].rstrip("*").rstrip(".") + ".0").startswith(version), name
