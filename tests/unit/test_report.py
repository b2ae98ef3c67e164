"""The report: valid, offline, safe to open whatever a model has said, true to its figures, and content with whatever a folder holds."""

from __future__ import annotations

import doctest
import html
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import prefopt.report.charts
import prefopt.report.words
from prefopt import cli
from prefopt.errors import DataError
from prefopt.pipeline.gate import changed
from prefopt.pipeline.record import digest, digest_path
from prefopt.report import build, draw, draw_frontier, evidence, folder, lineage, samples, scatter, training
from prefopt.report.charts import Range, Series, panel, spanning, ticks
from prefopt.report.verdict import verdict
from tests.run_folders import (
    HOSTILE,
    figure,
    world_figures,
    write_data,
    write_json,
    write_jsonl,
    write_metrics,
    write_run,
    write_samples,
    write_stage,
)

VOID = {"meta", "input", "br", "hr", "img", "link"}
LOADS = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """A page's elements, text and what it would load; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.classes: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.classes += [value or "" for name, value in attrs if name == "class"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += "" if self.open and self.open[-1] == "style" else data


def page_of(run: Path) -> tuple[Page, str]:
    text = build(run, changed=changed).read_text(encoding="utf-8")
    return Page(text), text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.mark.parametrize("module", [prefopt.report.words, prefopt.report.charts])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_loads_nothing(full: Path) -> None:
    page, text = page_of(full)
    assert {"html", "h1", "svg", "table", "figure"} <= set(page.tags)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(page.tags)
    assert all(target.startswith("#") and target[1:] in page.ids for target in page.loads)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#to-model", "#to-data"}
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert len(set(page.ids)) == len(page.ids)
    assert len(text.encode()) < 500_000


def test_a_hostile_answer_is_only_ever_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / HOSTILE.split("/")[0].replace("<", "x<"), answer=HOSTILE)
    write_data(run / "dpo", text=HOSTILE, where=HOSTILE)
    told = {"suite": HOSTILE, "model": HOSTILE, "baseline": HOSTILE[::-1], "n": 3, "note": HOSTILE}
    names = {"dpo": HOSTILE, "sft": HOSTILE[::-1]}
    rows = [{**row, "model": names[row["model"]], "slice": row["slice"].replace("fact", HOSTILE)} for row in world_figures()]
    write_json(run / "evaluate" / "evaluation.json", {**told, "rows": rows})
    entry = json.loads((run / "dpo" / "record.json").read_text())
    write_json(run / "dpo" / "record.json", {**entry, "stopped": HOSTILE, "inputs": {HOSTILE: HOSTILE}, "name": HOSTILE, "kind": HOSTILE})
    (run / "dpo" / "recipe.yaml").write_text(HOSTILE)
    page, text = page_of(run)
    assert not {"script", "img"} & set(page.tags)
    assert page.handlers == []
    assert HOSTILE[:28] in page.said
    assert html.escape(HOSTILE[:28], quote=False).replace("'", "&#39;") in text
    assert "{{ 7*7 }}" in page.said
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def test_lone_surrogates_do_not_stop_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answer="half a character: \ud83d")
    assert "half a character: \N{REPLACEMENT CHARACTER}" in page_of(run)[0].said


def test_a_large_run_stays_a_small_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_metrics(run / "dpo", 3_000, pairs=True)
    write_samples(run / "evaluate", 100, answer="word " * 10_000)
    long = {"where": "x:1", "sequences": [{"name": "chosen", "tokens": [["token", True]] * 4_000}] * 4}
    write_json(run / "dpo" / "tokens.json", [long] * 4)
    page, text = page_of(run)
    assert len(text.encode()) < 2_000_000
    assert "3,500 more tokens" in page.said


# --- any folder -------------------------------------------------------------------------------------------------------


def test_only_metrics(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", 40, pairs=True)
    page, _ = page_of(tmp_path / "run")
    assert "for 40 steps" in page.said
    assert "not whether the answers got better" in page.said
    for sentence in ("holds no evaluation", "holds no sampled answers", "holds no account of its data", "no record of what made it"):
        assert sentence in page.said


@pytest.mark.parametrize(
    "name", ["record.json", "metrics.jsonl", "preflight.json", "tokens.json", "evaluation.json", "samples.jsonl", "recipe.yaml"]
)
@pytest.mark.parametrize("junk", [None, "[1, {", "[1, 2]", '{"rows": 3, "kept": "x", "tokens": [], "stage": 1, "step": "a"}'])
def test_every_file_may_be_missing_or_broken(full: Path, tmp_path: Path, name: str, junk: str | None) -> None:
    run = shutil.copytree(full, tmp_path / "run")
    for path in run.rglob(name):
        path.unlink() if junk is None else path.write_text(junk)
    page, _ = page_of(run)
    assert "h1" in page.tags


def test_a_single_stage_shows_the_files_it_read(tmp_path: Path) -> None:
    stage = {"kind": "dpo", "name": "dpo", "model": {"path": "./base"}, "data": {"path": ["a/one.jsonl", "a/two.jsonl"]}}
    run = write_stage(tmp_path, stage, steps=3)
    picture = lineage.lineage(folder.read(run))
    assert [node.name for node in picture.nodes] == ["base", "2 files", "dpo"]
    assert [arc.kind for arc in picture.arcs] == ["model", "data", "data"][: len(picture.arcs)]
    assert "one.jsonl and two.jsonl" in page_of(run)[0].said


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path.mkdir()])
def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x")
    with pytest.raises(DataError, match="prefopt run"):
        build(tmp_path / "x", changed=changed)
    assert not (tmp_path / "x" / "report.html").exists()


# --- what it says -----------------------------------------------------------------------------------------------------


def told(run: Path) -> tuple[str, str]:
    read = folder.read(run)
    found = verdict(read, [evidence.evidence(stage) for stage in read.stages if stage.evaluation])
    return found.tone, f"{found.headline} {found.support}"


@pytest.mark.parametrize(
    ("gain", "tone", "words"),
    [(0.4, "better", "rises by 0.40, from 0.10 to 0.50"), (-0.3, "worse", "falls by 0.30"), (0.05, "open", "No clear difference")],
)
def test_the_verdict_says_what_the_intervals_allow(tmp_path: Path, gain: float, tone: str, words: str) -> None:
    found, text = told(write_run(tmp_path / "run", gain=gain))
    assert found == tone
    assert words in text
    assert f"95% interval {gain - 0.07:.2f} to {gain + 0.07:.2f}".replace("-", "−") in text


def test_what_got_worse_is_said_first(full: Path) -> None:
    rows = [row for row in world_figures() if row["metric"] not in ("over_refusal", "correct")]
    rows += [figure("over_refusal", value, 0.01, model=model, part="harmless") for model, value in (("sft", 0.05), ("dpo", 0.2))]
    stage = folder.Stage(name="evaluate", kind="evaluate", folder=full, evaluation={"model": "dpo", "baseline": "sft", "rows": rows})
    found = verdict(folder.read(full), [evidence.evidence(stage)])
    assert found.also[0] == "worse: refuses harmless requests 5% → 20%"
    assert all(change.startswith("better") for change in found.also[1:])


def test_other_evaluations_are_told_in_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = [figure("accuracy", 0.68, 0.03, model="rm", n=1000)]
    write_json(run / "later" / "evaluation.json", {"suite": "pairs", "model": "rm", "rows": rows})
    write_json(run / "later" / "record.json", {"kind": "evaluate", "name": "later", "started": "2026-08-02"})
    page, _ = page_of(run)
    assert "dpo answers better than sft" in page.said
    assert "rm prefers the better answer in 68% of 1,000 held-out pairs." in page.said


def test_the_headline_is_the_last_comparison(tmp_path: Path) -> None:
    """Where there is no gold reward too: a reward model that was judged later is told below."""
    run = tmp_path / "run"
    pairs, won = [figure("accuracy", 0.68, 0.03, model="rm", n=1000)], [figure("win_rate", 0.7, 0.05)]
    for started, (name, rows) in enumerate((("evaluate", won), ("reward", pairs))):
        write_json(run / name / "record.json", {"kind": "evaluate", "name": name, "started": str(started)})
        write_json(run / name / "evaluation.json", {"model": rows[0]["model"], "baseline": "sft" if rows is won else None, "rows": rows})
    assert told(run)[1].startswith("dpo answers better than sft.")


def test_a_model_alone_has_no_before(tmp_path: Path) -> None:
    rows = [figure("gold", 0.24, 0.05), figure("length_words", 9.0, 0.5)]
    write_json(tmp_path / "evaluation.json", {"suite": "truth", "model": "dpo", "baseline": None, "n": 300, "rows": rows})
    read = folder.read(tmp_path)
    found = verdict(read, [evidence.evidence(stage) for stage in read.stages])
    assert [tile.before for tile in found.tiles] == ["", ""]


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ({}, "Figures on held-out data that no stage was trained on, each"),
        ({"training_unknown": "sft: no record"}, "Figures on rows of which it is not known whether they trained the models, each"),
        ({"rows_seen_in_training_kept": 3}, "Figures in part on rows that trained the models (seen=keep), each"),
        ({"task_items_seen_in_training": 3}, "Figures in part on rows that trained the models (seen=keep), each"),
    ],
)
def test_the_page_says_what_the_figures_stand_on(note: Any, words: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = json.loads((run / "evaluate" / "evaluation.json").read_text())
    write_json(run / "evaluate" / "evaluation.json", {**found, **note})
    page, _ = page_of(run)
    assert words in page.said
    assert ("answers to held-out requests" in page.said) == ("seen=keep" not in words)


def test_accuracy_on_pairs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [figure("accuracy", 0.68, 0.03, model="rm", n=1000), figure("longer_is_chosen", 0.55, 0.03, model="rm", n=1000)]
    write_json(run / "evaluation.json", {"suite": "pairs", "model": "rm", "baseline": None, "n": 1000, "reads": "reward", "rows": rows})
    answers = {"prompt": "p", "slice": "data", "answers": {"chosen": "good", "rejected": "bad"}, "reward": {"chosen": 0.1, "rejected": 0.9}}
    write_jsonl(run / "samples.jsonl", [answers])
    assert told(run)[1].startswith("rm prefers the better answer in 68% of 1,000 held-out pairs.")
    page, _ = page_of(run)
    assert "Choosing the longer answer would be right in 55%" in page.said
    assert "Where it is most wrong" in page.said
    assert "−0.80" in page.said


@pytest.mark.parametrize("unit", ["answer", "step"])
@pytest.mark.parametrize(
    ("value", "tone", "words"),
    [
        (0.91, "better", "tells right from wrong in 91%"),
        (0.81, "open", "is not clearly better than the commoner label alone: right in 81%"),
        (0.7, "worse", "is right less often than the commoner label alone: in 70%"),
    ],
)
def test_accuracy_on_answers_and_steps(value: float, tone: str, words: str, unit: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [figure("accuracy", value, 0.03, model="rm", n=1000), figure("commoner_label", 0.8, 0.03, model="rm", n=1000)]
    write_json(run / "evaluation.json", {"suite": "reward model", "model": "rm", "n": 1000, "reads": "reward", "unit": unit, "rows": rows})
    bins = [{"said": p, "happened": p, "low": p - 0.05, "high": p + 0.05, "n": 9} for p in (0.25, 0.75)]
    write_json(run / "calibration.json", {"curves": {"after": bins}, "unit": unit})
    found, text = told(run)
    assert found == tone
    assert text.startswith(f"rm {words} of 1,000 held-out {unit}s.")
    assert "Calling all of them by the commoner label would be right in 80%" in text
    page, _ = page_of(run)
    assert f"Accuracy on held-out {unit}s" in page.said
    assert "the commoner label" in page.said
    assert not re.search(r"\bpairs?\b|longer answer", page.said)
    assert f"Accuracy on held-out {unit}s" in draw(run, tmp_path / "p.svg").read_text()


def test_dots_lie_where_the_figures_are(full: Path) -> None:
    stage = folder.read(full).last("evaluation")
    assert stage is not None
    plots = {plot.title: plot for plot in evidence.plots(evidence.evidence(stage))}
    (dot,) = plots["Gold win rate"].rows[0].dots
    assert (dot.at, dot.low, dot.high, plots["Gold win rate"].rule) == (70.0, 65.0, 75.0, 50.0)
    assert [d.style for d in plots["Gold reward"].rows[0].dots] == ["before", "after"]
    assert plots["Refusals"].rows[0].label == "refuses harmful requests"
    assert 'cx="70.0%"' in build(full, changed=changed).read_text()


def test_a_figure_without_an_interval_says_so(full: Path) -> None:
    rows = [{"metric": "gold", "value": 0.5, "low": None, "high": math.inf, "n": 1, "model": "m", "slice": "all"}, {"metric": "gold"}, 3]
    stage = folder.Stage(name="e", kind="evaluate", folder=full, evaluation={"model": "m", "rows": rows})
    found = evidence.evidence(stage)
    assert len(found.figures) == 1
    assert evidence.plots(found)[0].rows[0].dots[0].interval == "no interval"


def test_lineage_arcs_run_from_what_is_read_to_the_reader(full: Path) -> None:
    picture = lineage.lineage(folder.read(full))
    arcs = {(arc.title, arc.kind) for arc in picture.arcs}
    assert {("sft → dpo", "model"), ("label → dpo", "data"), ("world → evaluate", "data"), ("sft → evaluate", "model")} <= arcs
    assert "report" not in [node.name for node in picture.nodes]
    assert [node.role for node in picture.nodes][:2] == ["data", "model"]


def test_lineage_shows_every_model_that_a_stage_reads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("sft", "rm", "other"):
        write_stage(run, {"kind": "sft", "name": name})
    write_stage(run, {"kind": "ensemble", "name": "both", "members": ["${rm.model}", "${other.model}"]})
    watched = {"reward": {"model": "${both.model}"}, "critic": {"path": "${rm.model}"}, "monitor": {"evaluator": "${other.model}"}}
    write_stage(run, {"kind": "ppo", "name": "ppo", "model": {"path": "${sft.model}"}, **watched})
    write_stage(run, {"kind": "grpo", "name": "grpo", "model": {"path": "${sft.model}"}, "monitor": {"evaluator": "gold"}})
    write_stage(run, {"kind": "evaluate", "name": "z", "model": {"path": "${ppo.model}"}, "judge": {"path": "${rm.model}"}})
    picture = lineage.lineage(folder.read(run))
    by_name = {node.name: node for node in picture.nodes}
    assert by_name["ppo"].reads == "sft.model, rm.model, both.model, other.model"
    assert [by_name[name].reads for name in ("z", "grpo", "both")] == ["ppo.model, rm.model", "sft.model", "rm.model, other.model"]
    assert by_name["both"].role == "model"
    assert "gold" not in by_name


def test_how_many_answers_the_samples_are_picked_from_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "60 requests in all." in page_of(run)[0].said
    lines = (run / "evaluate" / "samples.jsonl").read_text()
    (run / "evaluate" / "samples.jsonl").write_text(lines * 2)
    assert "120 answers of each model to 60 requests." in page_of(run)[0].said
    pair = {"prompt": "p", "slice": "data", "answers": {"chosen": "good", "rejected": "bad"}, "reward": {"chosen": 0.1, "rejected": 0.9}}
    write_jsonl(run / "evaluate" / "samples.jsonl", [pair] * 5)
    for n, words in ((5, "5 pairs in all."), (1000, "The first 5 of 1,000 pairs.")):
        rows = [figure("accuracy", 0.68, 0.03, n=n)]
        write_json(run / "evaluate" / "evaluation.json", {"suite": "pairs", "model": "dpo", "rows": rows})
        assert words in page_of(run)[0].said


def test_samples_show_the_worst_first_and_the_best_first(full: Path) -> None:
    stage = folder.read(full).last("evaluation")
    assert stage is not None
    (found,) = samples.galleries(evidence.evidence(stage))
    changes = {group.title: [float(s.change.replace("−", "-")) for s in group.samples] for group in found.groups}
    golds = [row["gold"]["dpo"] - row["gold"]["sft"] for row in stage.samples]
    assert changes["Where it got worse"][0] == pytest.approx(min(golds))
    assert changes["Where it got worse"] == sorted(changes["Where it got worse"])
    assert changes["Where it got better"] == sorted(changes["Where it got better"], reverse=True)
    shown = [sample.prompt for group in found.groups for sample in group.samples]
    assert len(shown) == len(set(shown))
    assert max(sum(s.slice == k for s in group.samples) for group in found.groups for k in range(6)) == samples.A_SLICE


def test_scored_tokens_are_coloured(tmp_path: Path) -> None:
    run = write_stage(tmp_path, {"kind": "sft", "name": "sft"})
    write_data(run, text="Open at nine.")
    page, text = page_of(run)
    assert page.classes.count("s") == 2 * 2 * 4
    assert "<span class=s>&lt;|im_end|&gt;</span>" in text
    assert "<span>↵\n</span>" in text
    assert "4 of 11 tokens scored" in page.said
    assert "identical completions, first at pairs.jsonl:17" in page.said


# --- the picture --------------------------------------------------------------------------------------------------------


def test_the_picture_stands_alone(full: Path, tmp_path: Path) -> None:
    text = draw(full, tmp_path / "docs" / "quickstart.svg").read_text()
    root = ElementTree.fromstring(text)
    said = " ".join(root.itertext())
    assert {"Gold reward", "0.50", "sft 0.10", "70%", "dpo over sft, 65% to 75%", "chosen", "rejected"} <= {
        s.strip() for s in root.itertext()
    }
    assert "Log-probs of answers" in said
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {"script", "image", "foreignObject", "use", "a"}
    assert len(text) < 60_000


def test_a_picture_of_a_single_training_run_is_its_curve(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", 5, pairs=False)
    root = ElementTree.fromstring(draw(tmp_path / "run", tmp_path / "p.svg").read_text())
    assert "Loss" in " ".join(root.itertext())


def test_a_run_without_figures_has_no_picture(tmp_path: Path) -> None:
    write_stage(tmp_path, {"kind": "label", "name": "label"})
    with pytest.raises(DataError, match="neither an evaluation"):
        draw(tmp_path, tmp_path / "p.svg")


def test_the_command_draws_either(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(full), "--picture", str(tmp_path / "p.svg")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "p.svg")]
    assert cli.run(["report", str(full)]) == 0
    assert capsys.readouterr().out.split() == [str(full / "report.html")]


# --- charts -----------------------------------------------------------------------------------------------------------


def test_lines_stay_inside_and_names_apart() -> None:
    drawn = panel("t", "", "", [Series(str(k), "after", [(0, 5.0), *((s, 0.01 * k) for s in range(1, 100))]) for k in range(4)])
    heights = sorted(line.label[1] for line in drawn.lines)
    assert all(b - a >= 12.9 for a, b in itertools.pairwise(heights))
    assert drawn.top <= heights[0]
    assert heights[-1] <= drawn.bottom
    numbers = [tuple(map(float, p.split())) for line in drawn.lines for p in line.path[1:].split("L")]
    assert all(drawn.left <= x <= drawn.right and drawn.top <= y <= drawn.bottom for x, y in numbers)


def test_values_that_are_no_numbers_are_left_out_and_counted() -> None:
    drawn = panel("t", "", "", [Series("a", "after", [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])])
    assert drawn.notes == ("2 values were not finite and are left out.",)
    assert "nan" not in drawn.lines[0].path


def test_held_out_figures_are_drawn_beside_the_training_ones(full: Path) -> None:
    dpo = next(stage for stage in folder.read(full).stages if stage.name == "dpo")
    titles = {chart.title: chart for chart in training.charts(dpo)}
    assert list(titles) == ["Loss", "Log-probs of answers", "Margin", "Accuracy", "Log-ratio", "Gradient norm"]
    assert [line.name for line in titles["Loss"].lines] == ["training", "held out"]
    assert [line.name for line in titles["Log-probs of answers"].lines] == ["chosen", "rejected"]
    assert len(titles["Loss"].lines[1].dots) == 4
    chosen, rejected = titles["Log-probs of answers"].lines
    assert chosen.label[1] < rejected.label[1] - 50


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [-1e-9, 1e-9], [1e8, 2e8], [math.nan], [-5, 7]])
def test_axes_hold_their_values_and_have_ticks(values: list[float]) -> None:
    axis = spanning(values)
    assert axis.low < axis.high
    assert all(axis.low <= v <= axis.high for v in values if math.isfinite(v))
    marks = ticks(axis)
    assert 1 <= len(marks) <= 6
    assert len({label for _, label in marks}) == len(marks)


def test_ticks_of_a_narrow_axis_tell_apart() -> None:
    assert [label for _, label in ticks(Range(0.69, 0.70))] == ["0.690", "0.695", "0.700"]


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "stale"), [("", False), ("evaluate/evaluation.json", True), ("model/config.json", False), ("new/evaluation.json", True)]
)
def test_the_gates_verdict_is_at_the_top(moved: str, stale: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gated")
    (run / "model").mkdir()
    write_json(run / "model" / "config.json", {})
    estimate = {"value": 0.7, "low": 0.65, "high": 0.75, "n": 300}
    rules = [
        {"title": "win_rate at least 0.5", "status": "PASS", "estimate": estimate, "reason": ""},
        {"title": "over_refusal (harmless), difference at most 0.02", "status": "FAIL", "estimate": estimate, "reason": HOSTILE},
    ]
    told = {"verdict": "FAIL", "rules": rules, "notes": ["sft: no record"], "policy": {"text": "", "sha256": digest("")}}
    read = [path.parent for path in sorted(run.glob("*/evaluation.json"))]
    told |= {"inputs": {f"{path.name}/evaluation.json": digest_path(path / "evaluation.json") for path in read}}
    write_json(run / "gate.json", {**told, "models": {"model": digest_path(run / "model")}})
    if moved:
        (run / moved).parent.mkdir(exist_ok=True)
        with (run / moved).open("a") as file:
            file.write(" ")
    page, text = page_of(run)
    assert page.said.index("A rule of the gate is broken.") < page.said.index("dpo answers better than sft")
    assert "over_refusal (harmless), difference at most 0.02" in page.said
    assert "0.7 (0.65 to 0.75), n = 300" in page.said
    assert "sft: no record" in page.said
    assert ("run the gate again" in page.said) == stale
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["PASS", "PASS"], "Every rule of the gate holds."),
        (["PASS", "NOT MEASURED"], "Every rule of the gate that was measured holds; not measured: 1 of 2."),
        (["NOT MEASURED", "PASS", "NOT MEASURED"], "Every rule of the gate that was measured holds; not measured: 2 of 3."),
    ],
)
def test_a_pass_tells_what_was_not_measured(statuses: list[str], words: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gated")
    rules = [{"title": f"rule {i}", "status": status, "estimate": {}} for i, status in enumerate(statuses)]
    write_json(run / "gate.json", {"verdict": "PASS", "rules": rules})
    assert words in page_of(run)[0].said


@pytest.mark.parametrize(("own", "shown"), [("2026-08-03T10:00:00+00:00", "PASS"), ("2026-08-01T10:00:00+00:00", "FAIL")])
def test_the_latest_verdict_is_shown(own: str, shown: str, tmp_path: Path) -> None:
    """Of `prefopt gate RUN` and of the run's gate stages."""
    run = write_run(tmp_path / "gated")
    for name, decided in (("gate", "2026-08-02T10:00:00+00:00"), ("before", "2026-07-02T10:00:00+00:00")):
        stage = write_stage(run, {"kind": "gate", "name": name})
        write_json(stage / "gate.json", {"verdict": "FAIL" if name == "gate" else "INCONCLUSIVE", "decided": decided})
    write_json(run / "gate.json", {"verdict": "PASS", "decided": own})
    found = folder.read(run)
    assert found.gate["verdict"] == shown
    assert found.judged_in == (run if shown == "PASS" else run / "gate")


# --- one figure against another ---------------------------------------------------------------------------------------


def test_models_of_one_baseline_make_a_frontier(tmp_path: Path) -> None:
    run = tmp_path / "sweep"
    for i, (name, gold, kl) in enumerate((("low", 0.2, 9.0), ("mid", 0.5, 3.0), ("high", 0.3, 0.5))):
        folder_of = write_stage(run, {"kind": "evaluate", "name": f"at-{name}", "suite": "world"}, seconds=i)
        rows = [figure("gold", gold, 0.1, model=name), figure("kl", kl, 0.2, model=name), figure("gold", 0.1, 0.1, model="sft")]
        write_json(folder_of / "evaluation.json", {"suite": "world", "model": name, "baseline": "sft", "n": 300, "rows": rows})
    evaluations = [evidence.evidence(stage) for stage in folder.read(run).stages]
    found = scatter.frontier(evaluations)
    assert found is not None
    assert [mark.name for mark in found.marks] == ["sft", "high", "mid", "low"]
    assert [mark.x for mark in found.marks] == sorted(mark.x for mark in found.marks)
    assert min(found.marks, key=lambda mark: mark.y).name == "mid"
    assert "Reward against distance" in page_of(run)[0].said
    assert scatter.frontier(evaluations[:1]) is None
    text = draw_frontier(run, tmp_path / "docs" / "frontier.svg").read_text()
    said = {s.strip() for s in ElementTree.fromstring(text).itertext()}
    assert {"nats an answer", *(mark.name for mark in found.marks)} <= said
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    with pytest.raises(DataError, match="no two evaluations"):
        draw_frontier(write_run(tmp_path / "alone"), tmp_path / "alone.svg")
    assert not found.curves
    assert found.path.count(",") == 4


@pytest.mark.parametrize("metric", ["gold", "win_rate"])
def test_a_frontier_is_of_one_data_set_and_one_judge(metric: str, tmp_path: Path) -> None:
    """Three models on one data set, by one judge; a fourth on other data, and a fifth by another judge, which gold does not ask."""
    run = tmp_path / "sweep"
    told = (("a", "A", "x"), ("b", "A", "x"), ("far", "B", "x"), ("c", "A", "x"), ("other", "A", "y"))
    for i, (name, data, judge) in enumerate(told):
        folder_of = write_stage(run, {"kind": "evaluate", "name": f"at-{name}"})
        rows = [{**figure(m, v, 0.01, model=name), "data_sha256": data} for m, v in ((metric, 0.5 + i / 10), ("kl", 1.0 + i))]
        write_json(folder_of / "evaluation.json", {"model": name, "baseline": "sft", "n": 300, "judge": judge, "rows": rows})
    found = scatter.frontier([evidence.evidence(stage) for stage in folder.read(run).stages])
    assert found is not None
    assert [mark.name for mark in found.marks] == (["a", "b", "c", "other"] if metric == "gold" else ["a", "b", "c"])


def test_the_frontier_shows_what_could_be_had(tmp_path: Path) -> None:
    run = tmp_path / "two"
    best = [{"n": n, "kl": k, "reward": r, "low": r - 0.1, "high": r + 0.1} for n, k, r in ((1, 0.0, 0.1), (2, 0.19, 0.4), (4, 0.64, 0.6))]
    optimum = [{"beta": 1.0, "kl": k, "reward": r, "low": r, "high": r, "effective": 8.0} for k, r in ((0.0, 0.1), (0.5, 0.6), (1.0, 0.7))]
    told = {"metric": "gold", "draws": 32, "fewest": 4.0, "best_of_n": best, "optimum": optimum}
    for i, (name, gold, kl) in enumerate((("ppo", 0.3, 2.0), ("dpo", 0.4, 1.5))):
        folder_of = write_stage(run, {"kind": "evaluate", "name": f"evaluate-{name}", "suite": "world"}, seconds=i)
        rows = [figure("gold", gold, 0.1, model=name), figure("kl", kl, 0.2, model=name), figure("gold", 0.1, 0.1, model="sft")]
        more = {"frontier": told} if name == "ppo" else {}
        write_json(folder_of / "evaluation.json", {"suite": "world", "model": name, "baseline": "sft", "n": 300, "rows": rows, **more})
    found = scatter.frontier([evidence.evidence(stage) for stage in folder.read(run).stages])
    assert found is not None
    assert [curve.name for curve in found.curves] == ["optimum, estimated", "best of n"]
    assert [mark for _, _, mark in found.curves[1].dots] == ["2", "4"]
    assert found.curves[0].end[1] < min(mark.y for mark in found.marks)
    assert found.path == ""
    page = page_of(run)[0].said
    assert "32 answers of sft to each request" in page
    assert "where it ends 8 effective answers" in page


def test_calibration_is_drawn_as_a_curve(tmp_path: Path) -> None:
    bins = [{"confidence": 0.5 + i / 10, "accuracy": 0.5 + i / 12, "low": 0.4, "high": 0.95, "n": 40} for i in range(5)]
    run = write_stage(tmp_path, {"kind": "evaluate", "name": "rm"})
    rows = [figure("accuracy", 0.7, 0.05, model="rm")]
    write_json(run / "evaluation.json", {"suite": "pairs", "model": "rm", "n": 200, "rows": rows, "calibration": bins})
    page, _ = page_of(run)
    assert "Calibration" in page.said
    assert page.tags.count("polyline") == 1
    write_json(run / "evaluation.json", {"suite": "pairs", "model": "rm", "n": 200, "rows": rows, "calibration": [{"confidence": "x"}]})
    assert "polyline" not in page_of(run)[0].tags
