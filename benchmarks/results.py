"""Fill the tables of docs/results.md from the run folders, so that no number in it is typed by hand.

    python benchmarks/results.py [runs/real]

A table stands between `<!-- table NAME -->` and `<!-- end -->`; what is there is replaced by what the files of the runs say.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SETS = {"hh": "HH harmless", "qa": "QA-Feedback", "gsm8k": "GSM8K solutions"}
JUDGES = {
    "before": "log-prob of the model before",
    "dpo-pairs": "implicit reward of DPO",
    "reward-pairs": "reward model",
}
Row = Sequence[object]


def finished(folder: Path) -> bool:
    """Whether a stage has ended: only such stages are told of."""
    return (folder / "outputs.json").exists()


def table(head: Row, rows: Iterator[Row]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def load(folder: Path, name: str) -> Any:
    """One JSON file of a stage."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def updates(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that tell of a step."""
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if "loss" in row]


def course(folder: Path) -> tuple[object, ...]:
    """Of a training stage: steps, tokens a second (the median step, and the fastest), and the time its tokens take at the median speed.

    Not the time on the clock: a run that was stopped goes on in another process, and a step that was suspended says nothing of speed.
    """
    rows, preflight = updates(folder), load(folder, "preflight")
    kept, found = preflight["kept"], [row["tokens_per_second"] for row in rows]
    tokens = preflight["tokens"]["packed"] * kept["train"] / sum(kept.values()) * rows[-1]["epoch"]
    return len(rows), f"{median(found):,.0f} (best {max(found):,.0f})", minutes(tokens / median(found))


COURSE = ("steps", "tokens/s", "time at that speed")


def minutes(seconds: float) -> str:
    """1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def dropped(preflight: dict[str, Any]) -> str:
    """How many rows, and why."""
    return ", ".join(f"{tally['count']} {reason}" for reason, tally in preflight["dropped"].items()) or "0"


def measured(row: dict[str, Any]) -> str:
    """A share with its interval, in percent."""
    return f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]".replace("%", "")


def figure(evaluation: dict[str, Any], metric: str) -> dict[str, Any]:
    """The row of a metric over all data."""
    return next(row for row in evaluation["rows"] if row["metric"] == metric and row["slice"] == "all")


def base(runs: Path) -> str:
    """The model from scratch."""

    def rows() -> Iterator[Row]:
        for stage in ("pretrain", "sft"):
            folder = runs / "base" / stage
            if not finished(folder):
                continue
            record, preflight = load(folder, "record"), load(folder, "preflight")
            scored = f"{preflight['tokens']['scored'] / 1e6:.2f}"
            first, metrics = updates(folder)[0], record["metrics"]
            losses = (f"{value:.2f}" for value in (first["loss"], metrics["loss"], metrics["eval/loss"]))
            counts = (preflight["rows"], preflight["kept"]["train"], dropped(preflight), scored)
            yield (stage, *counts, *course(folder), *losses)

    sizes = ("rows", "trained on", "dropped", "Mtokens scored")
    return table(("stage", *sizes, *COURSE, "first loss", "last loss", "held-out loss"), rows())


def shape(runs: Path) -> str:
    """One sentence on the model and the machine."""
    if not finished(runs / "base" / "create"):
        return ""
    record = load(runs / "base" / "create", "record")
    options, hardware = record["stage"], record["hardware"]
    return (
        f"A {options['family']} shape with {record['parameters'] / 1e6:.2f}M parameters: {options['layers']} layers of width "
        f"{options['hidden_size']}, vocabulary {options['vocab_size']}, {options['max_length']} positions. Made in "
        f"{minutes(record['seconds'])} on {hardware['cores']} CPU cores ({hardware['processor']}, {hardware['memory_gb']:.0f} GB), "
        f"torch {record['packages']['torch']}.\n"
    )


def said(runs: Path) -> str:
    """The first greedy answers of the SFT model to held-out questions."""

    def rows() -> Iterator[Row]:
        samples = runs / "base" / "sample" / "samples.jsonl"
        for line in samples.read_text(encoding="utf-8").splitlines()[:4] if samples.exists() else ():
            row = json.loads(line)
            yield tuple(" ".join(text.split())[:200].replace("|", "\\|") for text in (row["prompt"][-1]["content"], row["completions"][0]))

    return table(("question", "answer"), rows()).replace("---:", "---")


def data(runs: Path) -> str:
    """What the preflight says of the preference sets."""

    def rows() -> Iterator[Row]:
        for name, title in SETS.items():
            if not finished(runs / name / "dpo"):
                continue
            found = load(runs / name / "dpo", "preflight")
            cut = found["facts"].get("prompt cut on the left", {"count": 0})["count"]
            longer = found["chosen_longer"]["tokens"]["share"]
            yield (title, found["rows"], dropped(found), found["kept"]["train"], found["kept"]["heldout"], cut, f"{longer:.1%}".rstrip("%"))

    return table(("set", "rows", "dropped", "trained on", "held out", "prompts cut", "better is longer, %"), rows())


def accuracy(runs: Path) -> str:
    """Accuracy on held-out pairs."""

    def rows() -> Iterator[Row]:
        for name, title in SETS.items():
            for i, (stage, judge) in enumerate(JUDGES.items()):
                if not finished(runs / name / stage):
                    continue
                found = load(runs / name / stage, "evaluation")
                if i == 0:
                    yield (title, "the longer answer", found["n"], found["groups"], measured(figure(found, "longer_is_chosen")))
                yield ("", judge, found["n"], found["groups"], measured(figure(found, "accuracy")))

    return table(("set", "what chooses", "pairs", "questions", "accuracy, % [95% interval]"), rows())


def training(runs: Path) -> str:
    """How the preference runs went."""

    def rows() -> Iterator[Row]:
        for name, title in SETS.items():
            for method in ("dpo", "reward"):
                folder = runs / name / method
                if not finished(folder):
                    continue
                record = load(folder, "record")
                found, rate = record["metrics"], record["stage"]["train"]["learning_rate"]
                figures = (f"{found[key]:.3f}" for key in ("loss", "eval/loss", "eval/rewards/accuracies"))
                yield (title, method, rate, *course(folder), *figures)

    return table(("set", "method", "learning rate", *COURSE, "last loss", "held-out loss", "held-out accuracy in training"), rows())


def transfer(runs: Path) -> str:
    """Accuracy of the reward models on sets they were not made for, HHH by section."""
    folder = runs / "transfer"
    models = [name for name in SETS if all(finished(folder / f"{name}-on-{which}") for which in ("hhh", "pandalm"))]

    def rows() -> Iterator[Row]:
        for which, title in (("hhh", "HHH alignment"), ("pandalm", "PandaLM")):
            found = [load(folder / f"{name}-on-{which}", "evaluation") for name in models]
            cells = [{r["slice"]: r for r in one["rows"] if r["metric"] == "accuracy"} for one in found]
            longer = {r["slice"]: r for one in found[:1] for r in one["rows"] if r["metric"] == "longer_is_chosen"}
            for i, part in enumerate(name for name in (cells[0] if cells else {}) if not name.startswith("better is ")):
                known = measured(longer[part]) if part in longer else ""
                yield (title if i == 0 else "", part, cells[0][part]["n"], known, *(measured(own[part]) for own in cells))

    return table(("set", "section", "pairs", "the longer answer", *(f"{SETS[name]} model" for name in models)), rows())


EXAMINED = {"reward/hh": "HH harmless", "reward/pandalm": "PandaLM", "reward/qa": "QA-Feedback", "prm/prm": "PRMBench"}
"""Stages that train a reward model and examine it on held-out rows."""


def examined(runs: Path) -> str:
    """What reward models are worth on rows they have not seen."""

    def rows() -> Iterator[Row]:
        for name, title in EXAMINED.items():
            folder = runs / name
            if not finished(folder):
                continue
            found, preflight = load(folder, "evaluation"), load(folder, "preflight")
            beside = next(row for row in found["rows"] if row["metric"] in ("longer_is_chosen", "commoner_label"))
            ece = (f"{figure(found, f'ece{when}')['value']:.3f}" for when in ("_before", ""))
            debiased, brier = figure(found, "ece_debiased"), figure(found, "brier")
            method = load(folder, "record")["stage"]["kind"]
            counts = (preflight["kept"]["train"], dropped(preflight), f"{found['n']} {found['unit']}s")
            accuracy = (measured(figure(found, "accuracy")), f"{measured(beside)}")
            fit = (f"{found['temperature']:.2f}" if found["temperature"] else "-", *ece)
            yield (title, method, *counts, *accuracy, *fit, f"[{debiased['low']:.3f}, {debiased['high']:.3f}]", f"{brier['value']:.3f}")

    head = ("set", "method", "trained on", "dropped", "held out", "accuracy, % [95%]", "the longer answer, or the commoner label, %")
    return table((*head, "temperature", "ECE before", "ECE after", "its interval without bias", "Brier"), rows())


def course_of_samples(runs: Path) -> str:
    """How GRPO with a verifier went, in thirds of the run."""

    def rows() -> Iterator[Row]:
        folder = runs / "gsm8k-grpo" / "grpo"
        if not finished(folder):
            return
        steps = [row for row in updates(folder) if "reward" in row]
        third = len(steps) // 3
        for begin in (0, third, 2 * third):
            part = steps[begin : begin + third if begin < 2 * third else len(steps)]
            answers = sum(row["rollouts/learned_from"] for row in part)
            right = sum(row["reward"] * row["rollouts/learned_from"] for row in part)
            flat = sum(row["frac_reward_zero_std"] for row in part) / len(part)
            length, cut = (sum(row[f"completions/{name}"] for row in part) / len(part) for name in ("mean_length", "clipped_ratio"))
            counts = (f"{begin + 1} to {begin + len(part)}", f"{answers:.0f}", f"{right:.0f}", f"{right / answers:.1%}".rstrip("%"))
            yield (*counts, f"{flat:.0%}".rstrip("%"), f"{length:.0f}", f"{cut:.0%}".rstrip("%"))

    head = ("steps", "answers", "right", "right, %", "problems whose answers were all alike, %", "tokens an answer", "answers cut, %")
    return table(head, rows())


def solved(runs: Path) -> str:
    """Held-out problems before and after."""

    def rows() -> Iterator[Row]:
        folder = runs / "gsm8k-grpo" / "math"
        if not finished(folder):
            return
        for row in load(folder, "evaluation")["rows"]:
            if row["metric"] == "math_accuracy" and row["slice"] == "all":
                who = f"{row['model']} minus {row['difference_from']}" if row["difference_from"] else row["model"]
                yield (who, row["n"], measured(row))

    return table(("model", "problems", "solved, % [95% interval]"), rows())


TABLES: dict[str, Callable[[Path], str]] = {
    "shape": shape,
    "base": base,
    "said": said,
    "data": data,
    "accuracy": accuracy,
    "training": training,
    "transfer": transfer,
    "examined": examined,
    "samples": course_of_samples,
    "solved": solved,
}


def filled(page: str, runs: Path) -> str:
    """The page with every table made anew; one of whose runs none is there stays as it was."""

    def made(match: re.Match[str]) -> str:
        found = TABLES[match[2]](runs)
        return match[0] if found.count("\n") in (0, 2) else match[1] + found + match[3]

    return MARKED.sub(made, page)


if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "real")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")
