"""Whatever a recipe says, reading it ends in checked stages or in a PrefoptError of at most three lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefopt.losses.methods import METHODS
from prefopt.pipeline import recipe
from prefopt.pipeline.kinds import SECTIONS
from prefopt.pipeline.recipe import Recipe
from tests.fuzz.effort import FUZZ, short_errors

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [path.read_text() for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
KINDS = [*METHODS, "world", "create", "sample", "score", "label", "evaluate", "report", "gate", "dppo", ""]
FIELDS = {name: sorted(section.__dataclass_fields__) for name, section in SECTIONS.items()}
KEYS = sorted({*SECTIONS, "kind", "name", "beta", "mix", "alpha"}.union(*FIELDS.values()))
ODD = ["1e-3", "auto", "${sft.model}", "${}", "${x", "./m", "rows.jsonl", "no", "2026-01-01", "0x1F", "1:30", "!!"]
LEAVES = st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=6) | st.sampled_from(ODD)
NAMES = st.sampled_from(KEYS) | st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8)
LEFT = st.sampled_from(["train.steps", "beta", "sft.beta", "model", "a.b.c", "", "stages", "data.path"])
RIGHT = st.sampled_from(["1", "x", "", "[", "{a: 1}", "null", "${sft.model}"])
OVERRIDES = st.lists(st.builds("{}={}".format, LEFT, RIGHT) | st.text(max_size=6), max_size=2)
TOP = st.dictionaries(st.sampled_from(["defaults", "stages", "name"]) | st.text(max_size=3), VALUES, max_size=2)


def read(folder: Path, text: str, overrides: list[str]) -> None:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with short_errors():
        found = recipe.load(path, overrides)
        assert isinstance(found, Recipe)
        assert all(stage.kind and stage.name for stage in found.stages)


@st.composite
def stage(draw: Any) -> Any:
    """A stage with a kind and a few keys, some of them known."""
    if draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    sections = {
        name: draw(st.dictionaries(st.sampled_from(FIELDS[name]), LEAVES, max_size=3) | VALUES)
        for name in draw(st.lists(st.sampled_from(sorted(SECTIONS)), max_size=3, unique=True))
    }
    return {"kind": draw(st.sampled_from(KINDS) | LEAVES), **draw(st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=2)), **sections}


@FUZZ
@given(st.lists(stage(), max_size=3), TOP, OVERRIDES)
def test_any_stages(tmp_path: Path, stages: list[Any], top: dict[str, Any], overrides: list[str]) -> None:
    read(tmp_path, yaml.safe_dump({"stages": stages, **top}, allow_unicode=True), overrides)


@FUZZ
@given(VALUES | st.text(max_size=40))
def test_any_yaml(tmp_path: Path, value: Any) -> None:
    read(tmp_path, value if isinstance(value, str) else yaml.safe_dump(value), [])


@FUZZ
@given(st.sampled_from(WRITTEN), st.data())
def test_recipes_with_typing_errors(tmp_path: Path, text: str, data: st.DataObject) -> None:
    """A line lost, doubled or moved, characters lost, changed or put in."""
    lines = text.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    match data.draw(st.integers(0, 4)):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[data.draw(st.integers(0, len(lines) - 1))])
        case 2:
            lines[at] = " " * data.draw(st.integers(0, 6)) + lines[at].lstrip()
        case 3:
            spot = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:spot] + data.draw(st.text(max_size=2) | st.sampled_from(":{}[]&*!|>'\"%@`-#?,")) + lines[at][spot:]
        case _:
            spot = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:spot] + lines[at][spot + data.draw(st.integers(1, 3)) :]
    read(tmp_path, "".join(lines), [])


@FUZZ
@given(st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with short_errors(str(path)):
        recipe.load(path)
