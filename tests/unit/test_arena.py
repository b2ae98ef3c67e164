"""The arena: ratings and ranks from files, ranks only where the data allow, and every wrong input is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from prefopt.cli import run
from prefopt.errors import DataError
from prefopt.evaluate import arena as arenas

STRENGTH = {"strong": 2.0, "middling": 0.05, "also middling": 0.0, "<script>weak</script>": -2.0}


def battles(n: int = 1600) -> list[dict[str, Any]]:
    rng, names, rows = np.random.default_rng(0), list(STRENGTH), []
    for k in range(n):
        a, b = (names[i] for i in rng.permutation(len(names))[:2])
        p = 1 / (1 + np.exp(STRENGTH[b] - STRENGTH[a]))
        winner = "tie" if rng.random() < 0.1 else "model_a" if rng.random() < p else "model_b"
        rows.append({"model_a": a, "model_b": b, "winner": winner, "prompt": f"p{k % 200}"})
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ranks_are_claimed_where_the_data_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["arena", str(write(tmp_path / "b.jsonl", battles())), "--out", str(tmp_path / "out"), "--draws", "200"]) == 0
    found = json.loads((tmp_path / "out" / "arena.json").read_text())
    assert [s["model"] for s in found["standings"]][::3] == ["strong", "<script>weak</script>"]
    assert [s["ranks"] for s in found["standings"]] == [[1, 1], [2, 3], [2, 3], [4, 4]]
    assert found["prompts"] == 200
    assert "clustered" in found["standings"][0]["method"]
    assert np.mean([s["rating"] for s in found["standings"]]) == pytest.approx(1000)
    assert all(s["low"] < s["rating"] < s["high"] for s in found["standings"])
    assert sum(s["battles"] for s in found["standings"]) == 2 * 1600
    page = (tmp_path / "out" / "arena.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert "2 to 3" in capsys.readouterr().out


def test_winners_in_every_spelling() -> None:
    row = {"model_a": "x", "model_b": "y"}
    told = {"a": 1, "b": 0, "tie": 0.5, "model_a": 1, "model_b": 0, "tie (bothbad)": 0.5, "x": 1, "y": 0, 1: 1, 0.5: 0.5}
    assert [arenas._battle({**row, "winner": w}, "here").score for w in told] == list(told.values())


def test_battles_follow_the_order_of_the_file(tmp_path: Path) -> None:
    """A set of prompts has another order in every process, and with it the seeded bootstrap other draws."""
    places = []
    for name, names in (("a", [f"p{i}" for i in range(40)]), ("b", [f"p{i}" for i in range(39, 3, -1)])):
        places.append(write(tmp_path / f"{name}.jsonl", [{"prompt": p, "completions": ["x"], "scores": [1.0]} for p in names]))
    assert [battle.prompt for battle in arenas.read(places)] == [f"p{i}" for i in range(4, 40)]


def test_battles_without_a_prompt_count_one_by_one() -> None:
    battles = [arenas.Battle("x", "y", float(i % 3 > 0), prompt) for prompt in ("", "p") for i in range(60)]
    kept = {"ties": "half", "ridge": 0.0, "draws": 200, "confidence": 0.95, "seed": 0}
    mixed, alone = arenas.rate(battles, **kept), arenas.rate([b._replace(prompt="") for b in battles], **kept)
    assert (mixed.prompts, alone.prompts) == (1, 0)
    assert "clustered" in mixed.standings[0].rating.method
    assert "clustered" not in alone.standings[0].rating.method


def test_a_round_robin_of_scored_answers(tmp_path: Path) -> None:
    rng, files = np.random.default_rng(0), []
    for name, skill in (("good", 0.6), ("fair", 0.3), ("poor", 0.0)):
        rows = [{"prompt": f"p{i}", "completions": ["."], "scores": [skill + rng.normal()]} for i in range(100 if name != "poor" else 60)]
        files.append(write(tmp_path / f"{name}.jsonl", rows))
    found = arenas.rate(arenas.read(files), ties="half", ridge=0.0, draws=100, confidence=0.95, seed=0)
    assert found.battles == 100 + 60 + 60
    assert found.standings[0].model == "good"


def scored(path: Path, scores: dict[str, float], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, [{"prompt": p, "completions": ["."], "scores": [score], **more} for p, score in scores.items()])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["qwen2.5-7b.jsonl", "qwen2.5-14b.jsonl"], ["qwen2.5-7b", "qwen2.5-14b"]),
        (["a/score/scores.jsonl", "b/score/scores.jsonl", "c.json"], ["a/score/scores", "b/score/scores", "c"]),
        (["a/x.jsonl", "a/x-1.0", "b/x.NDJSON"], ["a/x", "x-1.0", "b/x"]),
    ],
)
def test_files_are_models_of_their_own(files: list[str], names: list[str], tmp_path: Path) -> None:
    places = [scored(tmp_path / name, {"p": float(i)}) for i, name in enumerate(files)]
    battles = arenas.read(places)
    assert {battle.a for battle in battles} | {battle.b for battle in battles} == set(names)
    assert len(battles) == len(files) * (len(files) - 1) // 2
    pair = next(battle for battle in battles if {battle.a, battle.b} == set(names[:2]))
    assert pair.score == float(pair.a == names[1])


def test_files_that_no_folder_tells_apart_need_a_model_in_their_rows(tmp_path: Path) -> None:
    places = [scored(tmp_path / name, {"p": 1.0}) for name in ("x.jsonl", "x.json")]
    with pytest.raises(DataError, match=r"x.jsonl:1: another file has the same name"):
        arenas.read(places)
    scored(places[0], {"p": 1.0}, model="one")
    scored(places[1], {"p": 2.0}, model="two")
    assert arenas.read(places) == [arenas.Battle("one", "two", 0.0, "p")]


def test_answers_to_a_prompt_in_several_rows_are_averaged(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["."], "scores": scores} for scores in ([9.0, 0.0, 0.0], [1.0])]
    one, other = write(tmp_path / "one.jsonl", rows), scored(tmp_path / "other.jsonl", {"p": 2.0})
    assert arenas.read([one, other]) == [arenas.Battle("one", "other", 1.0, "p")]


def test_tie_models_refuse_results_on_a_ladder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"model_a": "x", "model_b": "y", "winner": winner} for winner in ["a"] * 5 + ["tie"] * 3]
    place = write(tmp_path / "b.jsonl", rows)
    assert run(["arena", str(place), "--ties", "davidson", "--draws", "100"]) == 2
    assert "no win goes against the others" in capsys.readouterr().err
    assert run(["arena", str(place), "--ties", "davidson", "--draws", "100", "--ridge", "0.01"]) == 0


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper"])
def test_tie_models(tmp_path: Path, ties: str) -> None:
    place = write(tmp_path / "b.jsonl", battles(400))
    assert run(["arena", str(place), "--ties", ties, "--draws", "100", "--out", str(tmp_path / "o")]) == 0
    assert (json.loads((tmp_path / "o" / "arena.json").read_text())["tie"] is None) == (ties == "half")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"model_a": "x", "model_b": "y", "winner": "left"}], "b.jsonl:1: unknown winner 'left'"),
        ([{"model_a": "x", "model_b": "y"}], "b.jsonl:1: unknown winner None"),
        ([{"model_a": "x", "model_b": "y", "winner": 0.6}], "b.jsonl:1: winner 0.6 is neither a win nor a loss nor a tie"),
        ([{"model_a": "x", "model_b": "y", "winner": w, "prompt": "p"} for w in "ab" * 50], "all battles are on one prompt"),
        ([{"model_a": "x", "model_b": "x", "winner": "a"}], "b.jsonl:1: a battle of 'x' against 'x'"),
        ([{"model_a": "x", "model_b": None, "winner": "a"}], "against None"),
        ([{"model_a": "x", "model_b": "y", "winner": "a"}] * 5, "x never lost"),
        ([], "0 models"),
        ([{"prompt": "p", "scores": [1.0]}], "0 models"),
        ([{"prompt": "p", "scores": []}], "scores are a list"),
        ([{"text": "p"}], "neither a battle"),
        (["p"], "neither a battle"),
    ],
)
def test_wrong_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], message: str) -> None:
    assert run(["arena", str(write(tmp_path / "b.jsonl", rows))]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 3


def test_other_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write(tmp_path / "b.jsonl", [{"model_a": "x", "model_b": "y", "winner": "a"}] * 5)
    assert run(["arena", str(place), "--ridge", "0.1", "--draws", "100"]) == 0
    assert run(["arena", str(place), "--ties", "hal"]) == 2
    assert "did you mean 'half'?" in capsys.readouterr().err
    assert run(["arena", str(place), "--confidence", "95"]) == 2
    assert run(["arena", str(tmp_path / "none.jsonl")]) == 2
    (tmp_path / "bad.jsonl").write_text("{")
    assert run(["arena", str(tmp_path / "bad.jsonl")]) == 2
