"""What is promised of every method holds: a paper, a page, a recipe that parses, and the properties every method inherits."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from prefopt.data.read import read
from prefopt.evaluate.suites import GROUPS, SUITES
from prefopt.losses.explain import explain
from prefopt.losses.methods import METHODS
from prefopt.losses.metrics import METRICS_OF_STEPS
from prefopt.losses.published import PUBLISHED, WITHOUT
from prefopt.pipeline import recipe
from prefopt.pipeline.check import hints
from prefopt.pipeline.kinds import KINDS, SECTIONS
from prefopt.verify import CLAIMS

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


def test_the_sweep_begins_as_the_quickstart_does() -> None:
    """Its first stages are not run again in the quickstart's folder, and its DPO differs by beta alone."""
    sweep, quickstart = (recipe.load(ROOT / "recipes" / f"{name}.yaml").stages for name in ("frontier", "quickstart"))
    shared = [stage.kind for stage in quickstart].index("dpo")
    assert sweep[:shared] == quickstart[:shared]
    own = replace(quickstart[shared].sections["train"], eval_every=0)
    assert all(stage.sections["train"] == own for stage in sweep if stage.kind == "dpo")


def test_recipes_of_methods_are_of_methods_that_exist() -> None:
    assert {path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml")} <= METHODS.keys()


def test_the_pages_name_every_kind_and_mark_the_suites_that_are_asked_for() -> None:
    kinds, suites = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("recipes", "evaluation"))
    assert set(re.findall(r"`(\w+)`", kinds.partition("(a method, or ")[2].partition(")")[0])) == KINDS.keys()
    rows = dict(re.findall(r"^\| (\w+)( \(when asked for\))? \| ", suites.partition("| suite |")[2], flags=re.MULTILINE))
    assert rows.keys() == SUITES.keys()
    assert {name for name, mark in rows.items() if not mark} == set(GROUPS["default"])


def test_what_every_run_logs_stands_on_a_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Metrics")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)) == METRICS_OF_STEPS


def test_every_public_file_that_is_read_has_its_source_told() -> None:
    told = set(re.findall(r"^\| `(\w+/\S+)` \| \d+ \| \[", (ROOT / "docs" / "results.md").read_text(), flags=re.MULTILINE))
    recipes = {name for path in (ROOT / "recipes" / "real").glob("*.yaml") for name in re.findall(r"\bdata/(\w+/\S+)", path.read_text())}
    parts = re.findall(
        r'"(agree|arena)" / "(\S+)"', "".join((ROOT / "benchmarks" / f"{b}.py").read_text() for b in ("evidence", "ratings"))
    )
    assert recipes | {"/".join(part) for part in parts} == told


@pytest.mark.parametrize("name", METHODS)
def test_every_method_inherits_the_properties(name: str, covered: dict[str, set[str]]) -> None:
    assert len(covered[name]) >= INHERITED, f"{name} runs only in {sorted(covered[name])}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


# --- generated pages ----------------------------------------------------------------------------------------------------


def generator(name: str = "make_methods") -> ModuleType:
    """A script of docs/, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_methods_are_what_the_code_says() -> None:
    pages = generator().pages()
    stale = [str(path.relative_to(ROOT)) for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    gone = set((ROOT / "docs" / "methods").glob("*.md")) - pages.keys()
    assert not stale, f"run `python docs/make_methods.py` and commit what it writes: {stale}"
    assert not gone, f"pages of methods that are gone: {gone}"


def test_the_page_of_settings_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = generator("make_settings")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run `python docs/make_settings.py` and commit what it writes"
    for section, cls in SECTIONS.items():
        assert all(f"| `{section}.{key}` |" in made.page() for key in hints(cls))
    for kind in KINDS.values():
        assert all(f"| `{key}` |" in made.page() for key in kind.options)
    assert not re.findall(r"^\| (`.+?`) \|.*\|  \|$", made.page(), flags=re.MULTILINE), "keys without a meaning"


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_has_its_formula_data_options_and_claims(name: str) -> None:
    made = generator()
    page = made.page(name, METHODS[name])
    assert page.split("\n")[2] == made.marked(METHODS[name].summary)
    for part in ("## Formula", "## Command", "## Options", "## Metrics", f"prefopt train {name} "):
        assert part in page
    for claim in CLAIMS:
        if claim.method == name:
            assert "## What verify shows" in page
            assert all(f"`{key}=" in page for key in claim.options)
    assert all(f"| `{option}` |" in page for option in METHODS[name].options)
    cells = [line.split(" | ") for line in page.split("\n")]
    published = {row[0].strip("| `"): row[3] for row in cells if len(row) == 5 and row[3] not in ("paper", "---", "")}
    assert published == {key: made.marked(words) for key, words in PUBLISHED.get(name, {}).items()}
    assert WITHOUT.get(name, "") in page


@pytest.mark.parametrize(("name", "option"), [("reward_ties", "tie_law"), ("reward_graded", "form")])
def test_a_table_of_formulas_stands_whole_on_its_page(name: str, option: str) -> None:
    block = generator().page(name, METHODS[name]).partition("## Formula")[2].split("```")[1]
    choices = get_args(METHODS[name].hints[option])
    assert choices
    assert [line.partition(":")[0] for line in block.split("\n") if line.startswith(choices)] == list(choices)


def test_the_example_rows_of_the_pages_are_read_as_their_kind(tmp_path: Path) -> None:
    """Each row is what its method trains on: sides, labels, ranks, steps."""
    examples = {}
    for kind, lines in generator().ROWS.items():
        examples[kind] = []
        for n, line in enumerate(lines):
            path = tmp_path / f"{kind}{n}.jsonl"
            path.write_text(line + "\n")
            examples[kind] += read(str(path))
        assert len(examples[kind]) == len(lines)
    assert [len(row.completions) for row in examples["pairs"] + examples["margins"]] == [2] * 4
    assert [row.margin for row in examples["margins"]] == [1.0, 0.25]
    assert [row.completions[0].label for row in examples["labels"]] == [True, False]
    assert [[answer.rank for answer in row.completions] for row in examples["rankings"]] == [[0, 1, 2], [0, 1]]
    assert examples["rankings"][1].completions[0].content == " In Oak Street."
    assert [row.completions[0].step_labels for row in examples["steps"]] == [(1.0, 1.0), (0.0,)]
    assert [row.completions for row in examples["prompts"]] == [(), ()]
    assert [len(row.completions) for row in examples["text"] + examples["demonstrations"]] == [1] * 4
