"""The shape of the source: imports go down only, starting is fast, files and functions are small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "prefopt"
LAYERS = [
    {"types", "errors", "settings", "jsonl"},
    {"losses", "stats", "exact"},
    {"data", "world", "text"},
    {"pack"},
    {"model"},
    {"rollout"},
    {"training"},
    {"evaluate", "report", "verify"},
    {"pipeline"},
    {"cli"},
]
HEIGHT = {package: height for height, packages in enumerate(LAYERS) for package in packages}
FILES = sorted(SOURCE.rglob("*.py"))
LIGHT = ["prefopt", "prefopt.cli", "prefopt.settings", "prefopt.pipeline.recipe"]
LIGHT += [f"prefopt.{path.parent.name}.{path.stem}" for part in ("data", "stats", "world") for path in SOURCE.glob(f"{part}/*.py")]
HEAVY = {"torch", "transformers", "datasets", "peft", "pandas", "tensorboard", "wandb", "trackio"}
FILE_LINES, FUNCTION_LINES, LONGEST = 600, 40, 80


def package_of(path: Path) -> str:
    """The part of the house a file belongs to: "losses", or "errors" for a single module."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, part of the house) of every import of prefopt, those inside functions and for type checking included."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            names = [f"{node.module}.{alias.name}" if node.module == "prefopt" else node.module or "" for alias in node.names]
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("prefopt."))


def upward(path: Path, tree: ast.AST) -> list[str]:
    """Imports of a file that do not go down, as "file:line imports package"."""
    mine = package_of(path)
    wrong = [(line, part) for line, part in imported(tree) if part not in ("__version__", mine) and HEIGHT[part] >= HEIGHT[mine]]
    return [f"{path.relative_to(ROOT)}:{line} imports {part}" for line, part in wrong]


def functions() -> list[tuple[str, int]]:
    """Every function with its length in lines, docstring, decorators and comments not counted."""
    found = []
    for path in FILES:
        text = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(text))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = node.body[0]
                documented = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
                skipped = (doc.end_lineno or 0) - doc.lineno + 1 if documented else 0
                lines = text[node.lineno - 1 : node.end_lineno]
                comments = sum(line.lstrip().startswith("#") for line in lines)
                found.append((f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", len(lines) - skipped - comments))
    return found


def test_every_part_of_the_house_has_a_height() -> None:
    assert {package_of(path) for path in FILES} - {"__init__", "__main__"} <= HEIGHT.keys()


def test_imports_go_down_only() -> None:
    assert [line for path in FILES if path != SOURCE / "__init__.py" for line in upward(path, ast.parse(path.read_text()))] == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("losses/x.py", "from prefopt.text.chat import Renderer", True),
        ("losses/x.py", "from prefopt.stats import wilson", True),
        ("losses/x.py", "from prefopt.types import Batch", False),
        ("losses/x.py", "from prefopt.losses.ragged import segment_sum", False),
        ("training/x.py", "def f():\n    import prefopt.pipeline.recipe", True),
        ("pack/x.py", "from prefopt import model", True),
        ("errors.py", "from prefopt.types import Batch", True),
    ],
)
def test_the_check_itself(file: str, line: str, wrong: bool) -> None:
    assert bool(upward(SOURCE / file, ast.parse(line))) == wrong


def test_starting_loads_nothing_heavy() -> None:
    """`import prefopt` and `prefopt --help` stay fast: one process imports the light modules, one after another."""
    lines = ["import importlib, sys", f"for name in {LIGHT}:", "    importlib.import_module(name)"]
    lines += [f"    assert not {HEAVY} & sys.modules.keys(), (name, {HEAVY} & sys.modules.keys())"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_are_small() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > FILE_LINES} == {}


def test_functions_are_small() -> None:
    lengths = functions()
    long = sorted(((length, name) for name, length in lengths if length >= FUNCTION_LINES), reverse=True)
    assert len(long) <= len(lengths) / 10, long
    assert [name for length, name in long if length > LONGEST] == []


def test_no_block_is_copied() -> None:
    """No eight lines in a row stand in two places (imports, blank lines and brackets aside)."""
    seen: dict[tuple[str, ...], str] = {}
    copies = []
    for path in FILES:
        lines = [(i, line.strip()) for i, line in enumerate(path.read_text().splitlines(), 1)]
        code = [(i, line) for i, line in lines if len(line) > 2 and not line.startswith(("#", "import ", "from "))]
        for at in range(len(code) - 7):
            block = tuple(line for _, line in code[at : at + 8])
            place = f"{path.relative_to(ROOT)}:{code[at][0]}"
            if block in seen:
                copies.append(f"{place} repeats {seen[block]}")
            seen.setdefault(block, place)
    assert copies == []
