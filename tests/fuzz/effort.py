"""How hard to look: a sample with the fast suite, FUZZ=10000 cases a test with `make fuzz`; and what may come out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

from prefopt.errors import PrefoptError

CALM = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
FUZZ = settings(max_examples=int(os.environ.get("FUZZ", "80")), deadline=None, suppress_health_check=CALM)


@contextmanager
def short_errors(start: str = "") -> Iterator[None]:
    """Let a PrefoptError pass that a user can read; anything else escapes."""
    try:
        yield
    except PrefoptError as error:
        said = str(error)
        if not said.startswith(start) or said.count("\n") > 2 or len(said) > 2000:
            raise AssertionError(said) from error
