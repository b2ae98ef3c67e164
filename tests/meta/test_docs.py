"""What is promised of every method holds: a paper, a page, a recipe that parses, and the properties every method inherits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from prefopt.losses.explain import explain
from prefopt.losses.methods import METHODS
from prefopt.pipeline import recipe

ROOT = Path(__file__).resolve().parents[2]
PAPER = re.compile(r"\d{4}\.\d{5}|https?://|\w+\.\w+/")
INHERITED = 5
"""Test functions of tests/methods that must run for every row."""


@pytest.fixture(scope="module")
def covered() -> dict[str, set[str]]:
    """Row of METHODS -> test functions under tests/methods that are parametrised with it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/methods"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    tests: dict[str, set[str]] = defaultdict(set)
    for function, parameters in re.findall(r"::(\w+)\[(.+)\]$", done.stdout, flags=re.MULTILINE):
        for parameter in parameters.split("-"):
            tests[parameter].add(function)
    return tests


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper(name: str) -> None:
    assert PAPER.search(METHODS[name].paper), f"expected an arXiv id or an address, found {METHODS[name].paper!r}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name: str) -> None:
    page = explain(name)
    assert METHODS[name].paper.split()[0] in page
    for option in METHODS[name].options:
        assert option in page
    assert name in explain()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe(name: str) -> None:
    stages = recipe.load(ROOT / "recipes" / "methods" / f"{name}.yaml").stages
    assert name in {stage.kind for stage in stages}


def test_every_recipe_parses() -> None:
    files = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert files
    for path in files:
        assert recipe.load(path).stages


def test_recipes_of_methods_are_of_methods_that_exist() -> None:
    assert {path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml")} <= METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_inherits_the_properties(name: str, covered: dict[str, set[str]]) -> None:
    assert len(covered[name]) >= INHERITED, f"{name} runs only in {sorted(covered[name])}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"
