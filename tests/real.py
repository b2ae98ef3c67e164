"""Where the public data sets of docs/results.md lie: $PREFOPT_DATA, `data` in this checkout, or a folder that checkouts share."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = [*([Path(os.environ["PREFOPT_DATA"])] if os.environ.get("PREFOPT_DATA") else []), ROOT / "data", ROOT.parent / "shared" / "data"]
DATA = next((place for place in PLACES if place.exists()), ROOT / "data")
