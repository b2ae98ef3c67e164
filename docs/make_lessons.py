"""Run the lessons and write their pages: prose, code, what it printed, and the plot.

    python docs/make_lessons.py            # all of them
    python docs/make_lessons.py 04 23      # some

A lesson is a script in cells. `# %% [markdown]` cells are its words, in which {{expression:format}} is filled from what the code found, so
that no number is typed by hand; `# %% plot` cells draw, and their code is left out of the page.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent / "lessons"
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


class Cell(NamedTuple):
    """A cell: "markdown", "plot" or "code", its text, and the line it begins at."""

    kind: str
    text: str
    line: int


def scripts() -> list[Path]:
    """Every lesson, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def cells(path: Path) -> list[Cell]:
    """The cells of a lesson, the docstring left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    starts = [n for n, line in enumerate(lines) if line.startswith("# %%")]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        kind = lines[start].removeprefix("# %%").strip(" []") or "code"
        found.append(Cell(kind, "\n".join(lines[start + 1 : end]).strip("\n"), start + 2))
    return found


def about(path: Path) -> tuple[str, str]:
    """Title and the one line of the docstring."""
    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# # (.+)$", text, flags=re.MULTILINE)
    line = re.match(r'"""(.+?)"""', text, flags=re.DOTALL)
    if title is None or line is None:
        raise ValueError(f"{path.name} lacks its docstring or its title")
    return title.group(1), " ".join(line.group(1).split())


def slow(path: Path) -> bool:
    """Whether a lesson says of itself that it takes more than two seconds."""
    return "\n# slow" in path.read_text(encoding="utf-8")


def render(path: Path, pictures: Path) -> str:
    """Run a lesson and give its page; its plots go into `pictures`.

    Raises:
        Exception: what the lesson raised; an assertion of it that failed.
    """
    plot = _plots()
    plot.FOLDER = pictures
    plot.SAVED.clear()
    names: dict[str, Any] = {"__name__": "__lesson__"}
    title, line = about(path)
    parts = [f"# {title}", f"*{line}*"]
    with contextlib.chdir("."):  # a lesson may go where it writes its files
        for cell in cells(path):
            parts += [_words(cell.text, names)] if cell.kind == "markdown" else _code(path, cell, names, plot.SAVED)
    parts.append(f"Run it: `python docs/lessons/{path.name}` ([script]({path.name})).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _plots() -> ModuleType:
    """The lessons' plot module, found as it is when a script is run by hand."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    import plot

    return plot


def _words(text: str, names: dict[str, Any]) -> str:
    words = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.split("\n"))
    words = re.sub(r"^# .+\n*", "", words)

    def fill(found: re.Match[str]) -> str:
        return str(eval(f"f'''{{{found.group(1)}}}'''", names)).replace("-", "−") if found.group(1) else ""

    return re.sub(r"\{\{(.+?)\}\}", fill, words).strip()


def _code(path: Path, cell: Cell, names: dict[str, Any], saved: list[tuple[str, str]]) -> list[str]:
    printed, before = io.StringIO(), len(saved)
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (cell.line - 1) + cell.text, str(path), "exec"), names)
    parts = [f"```python\n{cell.text}\n```"] if cell.kind == "code" else []
    parts += [f"```text\n{printed.getvalue().rstrip()}\n```"] if printed.getvalue().strip() else []
    return [*parts, *(f"![{words}](img/{name})" for name, words in saved[before:])]


def index() -> str:
    """The page that lists the lessons."""
    lead = (
        "# Lessons",
        "Experiments with the package, each a script of a page or two that ends in assertions. Most run in a second or two, in worlds "
        "so small that every answer can be listed and what theory says is a number. Every figure on these pages was printed by the "
        "code above it.",
    )
    rows = [(path.stem, *about(path)) for path in scripts()]
    return "\n\n".join([*lead, "\n".join(f"- [{title}]({name}.md): {line}" for name, title, line in rows)]) + "\n"


# --- the same page, but for what differs between machines ---------------------------------------------------------------


def difference(fresh: str, kept: str, *, share: float = 0.02) -> str:
    """The first place where two pages differ by more than rounding; empty when they say the same.

    Words must be equal; numbers within 2% or two units of their last digit.
    """
    pairs = zip(fresh.split("\n"), kept.split("\n"), strict=False)
    for n, (new, old) in enumerate(pairs, 1):
        if NUMBER.sub("#", new) != NUMBER.sub("#", old) or not all(map(_near, NUMBER.findall(new), NUMBER.findall(old), [share] * 99)):
            return f"line {n}: {new!r} is not {old!r}"
    return "" if fresh.count("\n") == kept.count("\n") else "one page is longer"


def _near(new: str, old: str, share: float) -> bool:
    a, b = (float(text.replace("−", "-").replace(",", "")) for text in (new, old))
    digits = len(old.partition("e")[0].partition(".")[2])
    unit = 10.0**-digits * (10.0 ** int(old.partition("e")[2] or 0))
    return abs(a - b) <= max(share * abs(b), 2.01 * unit if digits else 0.0)


def chosen(numbers: list[str]) -> Iterator[Path]:
    """The lessons of these numbers, all when there are none."""
    for path in scripts():
        if not numbers or path.name[:2] in numbers:
            yield path


def main(numbers: list[str]) -> int:
    """Run lessons and write their pages; 1 when one fails."""
    failed = 0
    for path in chosen(numbers):
        started = time.process_time()
        try:
            page = render(path, FOLDER / "img")
        except Exception:
            failed += 1
            print(f"{path.name}: FAILED\n{traceback.format_exc()}")
            continue
        (FOLDER / f"{path.stem}.md").write_text(page, encoding="utf-8")
        print(f"{path.name}: {time.process_time() - started:.1f} s of CPU")
    (FOLDER / "index.md").write_text(index(), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
