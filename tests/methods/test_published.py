"""The papers' own values: every method has some or says why not, and each belongs to something the method reads."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from prefopt.losses import METHODS
from prefopt.losses.explain import explain
from prefopt.losses.published import PUBLISHED, WITHOUT
from prefopt.pipeline.kinds import SAMPLING, SECTIONS

SHARED = {f"{section}.{field.name}" for section, settings in SECTIONS.items() for field in fields(settings)}
ONLY_SAMPLING = {key for key in SHARED if key.partition(".")[0] in SAMPLING}


def test_every_method_has_values_or_a_reason() -> None:
    assert set(PUBLISHED) | set(WITHOUT) == set(METHODS)
    assert not set(PUBLISHED) & set(WITHOUT)
    assert all(PUBLISHED.values())
    assert all(reason.endswith(".") for reason in WITHOUT.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_of_what_the_method_reads(name: str) -> None:
    method = METHODS[name]
    assert set(PUBLISHED[name]) <= set(method.options) | SHARED
    assert method.online or not set(PUBLISHED[name]) & ONLY_SAMPLING


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_such_as_the_method_takes(name: str) -> None:
    found = {key: re.match(r"\d+(?:\.\d+)?(?:e-?\d+)?(?=[ ,;(]|$)", words) for key, words in PUBLISHED[name].items()}
    METHODS[name].check_options({key: float(number[0]) for key, number in found.items() if number and key in METHODS[name].options})


@pytest.mark.parametrize("name", METHODS)
def test_a_page_shows_the_values_of_the_paper(name: str) -> None:
    page = explain(name)
    for key, words in PUBLISHED.get(name, {}).items():
        assert f"\n  {key}: {words}\n" in page
        assert len(words) < 100
        assert "\n" not in words
    assert WITHOUT.get(name, "") in page
