"""The lessons run, their assertions hold, and their pages say what they print."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "lessons"


def generator() -> ModuleType:
    """docs/make_lessons.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("make_lessons", ROOT / "docs" / "make_lessons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LESSONS = generator()
SCRIPTS = LESSONS.scripts()
FAST = [path for path in SCRIPTS if not LESSONS.slow(path)]
SLOW = [path for path in SCRIPTS if LESSONS.slow(path)]


@pytest.mark.parametrize("path", FAST, ids=lambda path: path.stem)
def test_a_lesson_holds_and_its_page_says_what_it_prints(path: Path, tmp_path: Path) -> None:
    page = LESSONS.render(path, tmp_path)
    kept = path.with_suffix(".md")
    assert kept.exists(), f"run `python docs/make_lessons.py {path.name[:2]}` and commit what it writes"
    differs = LESSONS.difference(page, kept.read_text(encoding="utf-8"))
    assert not differs, f"{differs}; run `python docs/make_lessons.py {path.name[:2]}`"
    drawn = {picture.name: picture for picture in tmp_path.glob("*.svg")}
    assert drawn, "a lesson draws something"
    for name, picture in drawn.items():
        ElementTree.parse(picture)
        assert picture.stat().st_size < 40_000
        assert abs(picture.stat().st_size - (FOLDER / "img" / name).stat().st_size) < 0.1 * picture.stat().st_size


@pytest.mark.parametrize("path", SLOW, ids=lambda path: path.stem)
def test_a_slow_lesson_holds(path: Path, tmp_path: Path) -> None:
    """It trains for half a minute; how the sums round differs between machines, so its figures are not compared with the page's."""
    LESSONS.render(path, tmp_path)
    assert list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_lesson_asks_expects_finds_and_asserts(path: Path) -> None:
    title, line = LESSONS.about(path)
    assert title.startswith(f"{int(path.name[:2])}. ")
    assert 20 < len(line) < 170
    cells = LESSONS.cells(path)
    words = "\n".join(cell.text for cell in cells if cell.kind == "markdown")
    for part in ("**Question.**", "**Expectation.**", "**Found.**", "**Where it ends.**"):
        assert part in words
    assert cells[-1].kind == "code"
    assert cells[-1].text.count("assert ") >= 4


def test_every_lesson_has_its_page_its_line_in_the_index_and_its_place_in_the_site() -> None:
    stems = [path.stem for path in SCRIPTS]
    pages = {path.stem for path in FOLDER.glob("*.md")}
    assert pages == {*stems, "index"}
    assert (FOLDER / "index.md").read_text(encoding="utf-8") == LESSONS.index(), "run `python docs/make_lessons.py 00`"
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [stem for stem in stems if f"lessons/{stem}.md" not in site] == []
    assert {path.stem for path in (FOLDER / "img").glob("*.svg")} == {stem[:2] for stem in stems}


# --- the comparison itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fresh", "kept", "same"),
    [
        ("KL 0.1234 nats", "KL 0.1235 nats", True),
        ("KL 0.1234 nats", "KL 0.1434 nats", False),
        ("KL 0.1234 nats", "KL 0.1234 bits", False),
        ("distance 3.2e-05", "distance 3.3e-05", True),
        ("distance 3.2e-05", "distance 3.2e-04", False),
        ("1,000 pairs of 12", "1,000 pairs of 12", True),
        ("12 pairs", "14 pairs", False),
        ("a\nb", "a", False),
        ("gap +1.50", "gap −1.50", False),
    ],
)
def test_two_pages_are_the_same_but_for_rounding(fresh: str, kept: str, same: bool) -> None:
    assert (LESSONS.difference(fresh, kept) == "") is same


def test_a_lesson_whose_assertion_fails_fails(tmp_path: Path) -> None:
    script = tmp_path / "99_wrong.py"
    script.write_text('"""A lesson that is wrong."""\n# %% [markdown]\n# # 99. Wrong\n\n# %%\nx = 2\nprint(x)\n\n# %%\nassert x == 3\n')
    with pytest.raises(AssertionError) as caught:
        LESSONS.render(script, tmp_path)
    assert caught.traceback[-1].lineno == 9, "the traceback leads to the line of the script"


def test_words_are_filled_from_what_the_code_found(tmp_path: Path) -> None:
    script = tmp_path / "99_words.py"
    script.write_text(
        '"""Words."""\n# %% [markdown]\n# # 99. Words\n#\n# Before.\n\n# %%\nx = -2.5\nprint("seen", x)\n\n'
        "# %% plot\nfrom plot import Plot\nPlot('one').line('a', [0, 1], [0, 1]).save('99')\n\n# %% [markdown]\n# It is {{x:.2f}}.\n"
    )
    page = LESSONS.render(script, tmp_path)
    assert page.startswith("# 99. Words\n\n*Words.*\n\nBefore.\n\n```python\nx = -2.5\n")
    assert "```text\nseen -2.5\n```" in page
    assert "![one](img/99.svg)" in page
    assert "It is −2.50." in page
    assert "from plot" not in page
