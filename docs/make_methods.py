"""Write docs/methods/: a page for every row of METHODS, an index by question, and their part of mkdocs.yml.

    python docs/make_methods.py

Everything on a page comes from the code: the row, the docstring of its loss, its recipe, its claims in `prefopt verify`, what `make parity`
found. A test holds the pages to it, so after a change to any of these run the command again.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prefopt.data.preflight import FITS
from prefopt.losses.columns import probe
from prefopt.losses.explain import COUPLINGS, DATA, logged, plain, prose, sized
from prefopt.losses.methods import METHODS, Method
from prefopt.losses.published import PUBLISHED, WITHOUT
from prefopt.pipeline.kinds import SECTIONS
from prefopt.verify.claims import CLAIMS
from prefopt.verify.run import BOUNDS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "methods"
NAV = ROOT / "mkdocs.yml"
BEGIN, END = "  # methods: written by docs/make_methods.py\n", "  # end of methods\n"

ROWS = {
    "text": ('{"text": "The library opens at 8. It is in Oak Street."}', '{"text": "The museum costs 4 crowns."}'),
    "demonstrations": (
        '{"prompt": "When does the library open?", "completion": " At 8."}',
        '{"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "In Oak Street."}]}',
    ),
    "pairs": (
        '{"prompt": "When does the library open?", "chosen": " At 8.", "rejected": " I am not sure."}',
        '{"prompt": [{"role": "user", "content": "Where is it?"}], "chosen": [{"role": "assistant", "content": "In Oak Street."}], '
        '"rejected": [{"role": "assistant", "content": "Somewhere."}]}',
    ),
    "margins": (
        '{"prompt": "When does the library open?", "chosen": " At 8.", "rejected": " I am not sure.", "margin": 1.0}',
        '{"prompt": "Where is it?", "chosen": " In Oak Street.", "rejected": " In Oak Street, I think.", "margin": 0.25}',
    ),
    "judgements": (
        '{"prompt": "When does the library open?", "response_a": " At 8.", "response_b": " I am not sure.", "label": "a"}',
        '{"prompt": "Where is it?", "response_a": " In Oak Street.", "response_b": " It is in Oak Street.", "label": "tie"}',
    ),
    "labels": (
        '{"prompt": "When does the library open?", "completion": " At 8.", "label": true}',
        '{"prompt": "Where is it?", "completion": " Somewhere.", "label": false}',
    ),
    "rankings": (
        '{"prompt": "When does the library open?", "completions": [" At 8.", " Early.", " No idea."], "ranks": [0, 1, 2]}',
        '{"prompt": "Where is it?", "completions": [" Somewhere.", " In Oak Street."], "scores": [0.2, 0.9]}',
    ),
    "steps": (
        '{"prompt": "What do 2 tickets of 4 crowns and a map of 3 cost?", "completions": ["2 x 4 = 8.", "8 + 3 = 11."], '
        '"labels": [true, true]}',
        '{"prompt": "What is left of 9 crowns after 4?", "completions": ["9 - 4 = 6."], "labels": [false]}',
    ),
    "prompts": (
        '{"prompt": "What is 7 + 5?", "answer": "12"}',
        '{"prompt": [{"role": "user", "content": "What is 9 - 4?"}], "answer": "5"}',
    ),
}
"""Two rows of each kind of data; all rows of a file have one layout."""
KINDS = {
    "text": "text",
    "demonstrations": "answers to prompts",
    "pairs": "pairs",
    "rankings": "rankings",
    "labels": "thumbs",
    "steps": "answers with labelled steps",
    "prompts": "prompts",
}
"""The kinds of rows that FITS names, in words."""

Choice = Callable[[Method], bool]
QUESTIONS: tuple[tuple[str, str, str, Choice], ...] = (
    ("Text", "I have text, and no model that knows it", "pretrain", lambda m: m.data == "text"),
    ("Demonstrations", "I have demonstrations: good answers", "sft", lambda m: m.data == "demonstrations"),
    (
        "Pairs",
        "I have pairs, one answer better than the other, and a model to stay close to",
        "dpo",
        lambda m: m.data == "pairs" and m.reads == "logps" and m.needs_reference,
    ),
    (
        "Pairs, no reference",
        "I have pairs, and no memory for a reference model",
        "simpo",
        lambda m: m.data == "pairs" and m.reads == "logps" and not m.needs_reference,
    ),
    ("Thumbs", "I have thumbs up and down", "kto", lambda m: m.data == "labels" and m.reads == "logps"),
    ("Rankings", "I have rankings of several answers", "pl_dpo", lambda m: m.data == "rankings" and m.reads == "logps"),
    ("A score", "I want a score of an answer", "reward", lambda m: m.reads == "scores" and m.data != "steps"),
    ("Steps", "I have solutions with each step marked right or wrong", "prm", lambda m: m.data == "steps"),
    ("A verifier or a reward", "I have prompts, and a verifier or a reward model", "grpo", lambda m: m.data == "prompts"),
    ("Others", "Something else", "", lambda m: True),
)
"""A short name, a question, the method to start with, and which methods answer it; a method stands under the first that takes it."""


# --- text -------------------------------------------------------------------------------------------------------------


def marked(text: str) -> str:
    """Plain text as markdown: nothing of a formula is read as emphasis or HTML, and papers are links."""
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]])", r"\\\1", parts[i])
        parts[i] = parts[i].replace("<", "&lt;").replace("|", "&#124;")  # which mkdocs does not take with a backslash outside tables
        parts[i] = re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", parts[i])
        parts[i] = re.sub(r"\b(ericmitchell\.ai/\S+\.pdf)", r"[\1](https://\1)", parts[i])
    return "".join(parts)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A markdown table, with a blank line after it."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)] + [""]


def fenced(lines: Iterable[str], language: str = "text") -> list[str]:
    """A block of code."""
    return [f"```{language}", *lines, "```", ""]


# --- what the docstring says ------------------------------------------------------------------------------------------

SECTION = re.compile(r"^(Args|Options|Returns|Raises):$")
CITED = re.compile(r"(?:  |\n)\((?=[A-Z][^()]*\d{4})")
"""Where a formula ends and its source begins."""
LABELLED = re.compile(r"^\w+: ")
"""A line of a table of formulas: the value of an option, and the formula that is then meant."""


def paragraphs(method: Method) -> tuple[list[str], list[str]]:
    """The docstring's paragraphs after the first line, and the pitfalls it names ("Beware: ...")."""
    blocks = prose(method).split("\n\n")[1:]
    told = [block for block in blocks if not SECTION.match(block.partition("\n")[0])]
    warned = [(before, after) for before, _, after in (block.partition("Beware: ") for block in told)]
    return [before.strip() for before, _ in warned if before.strip()], [" ".join(after.split()) for _, after in warned if after]


def described(method: Method) -> dict[str, str]:
    """Option -> what the docstring's Options or Args section says of it."""
    found = {}
    for block in prose(method).split("\n\n"):
        name, _, body = block.partition("\n")
        if name in ("Options:", "Args:"):
            for entry in re.split(r"\n {4}(?=\w+: )", "\n" + body)[1:]:
                key, _, text = entry.partition(": ")
                found[key.strip()] = " ".join(text.split())
    return found


def cited(text: str) -> tuple[str, str]:
    """A formula and the words after it, whose first bracket is the source; no formula where the paragraph has no such form.

    A table of formulas is kept whole, with its sources and what stands before it.
    """
    lines = text.split("\n")
    rows = [number for number, line in enumerate(lines, 1) if LABELLED.match(line)]
    if len(rows) > 1:
        return "\n".join(lines[: rows[-1]]), "\n".join(lines[rows[-1] :])
    cut = CITED.search(text)
    if not cut:
        return "", text
    formula, source = text[: cut.start()], text[cut.start() :].strip()
    return " ".join(formula.split()), re.sub(r"^\(((?:[^()]|\([^()]*\))*)\)", r"\1", source)


def facts(method: Method) -> list[str]:
    """Formula, source and what is known of the loss."""
    told, pitfalls = paragraphs(method)
    lines = ["## Formula", ""]
    formula, source = cited(told[0]) if told else ("", "")
    lines += fenced(formula.split("\n"), "{ .text .wrap }") if formula else []
    lines += [line for text in (source, *told[1:]) if text for line in (marked(" ".join(text.split())), "")]
    if pitfalls:
        lines += ["## Beware", "", *(marked(text[0].upper() + text[1:]) for text in pitfalls), ""]
    return lines


# --- what the recipe says ---------------------------------------------------------------------------------------------


class Recipe:
    """recipes/methods/NAME.yaml: its first line in words, its values with their comments, and its file of data."""

    def __init__(self, name: str) -> None:
        text = (ROOT / "recipes" / "methods" / f"{name}.yaml").read_text(encoding="utf-8")
        self.about = text.partition("\n")[0].removeprefix(f"# {name}: ")
        values = re.findall(r"^ +(\w+): ([^\s#][^#\n]*?)(?:  # (.*))?$", text, flags=re.MULTILINE)
        self.values = {key: (value, comment) for key, value, comment in reversed(values)}
        self.settings: dict[str, tuple[str, str]] = {}
        section = ""
        for opened, key, value, comment in re.findall(r"^    (?:(\w+):|  (\w+): ([^\s#][^#\n]*?)(?:  # (.*))?)$", text, flags=re.MULTILINE):
            section = opened or section
            self.settings |= {f"{section}.{key}": (value, comment)} if key else {}
        data = re.search(r"data\.path=(\S+)", text)
        self.data = data.group(1) if data else "data.jsonl"


FROM_PAPERS = (
    "The column *paper* holds what the paper's own experiments used; an empty cell was not found there. The defaults are one set for each "
    "family, so that its methods compare at an equal tie to the reference."
)


def settings(name: str, method: Method) -> dict[str, str]:
    """Setting -> default, of the settings that the method has its own defaults of or its paper values of."""
    rate = f"{method.learning_rate:g}".replace("e-0", "e-")
    own = {key: plain(value) for key, value in (method.online.settings if method.online else {}).items()} | {"train.learning_rate": rate}
    shared = [key for key in PUBLISHED.get(name, {}) if key not in own and key not in method.options]
    return own | {key: plain(getattr(SECTIONS[key.partition(".")[0]], key.partition(".")[2])) for key in shared}


def options(name: str, method: Method, recipe: Recipe) -> list[str]:
    """Every option with its default, the value of the recipe and that of the paper."""
    said, paper = described(method), PUBLISHED.get(name, {})
    rows = []
    for key, default in method.options.items():
        value, comment = recipe.values.get(key, ("", ""))
        rows.append((key, plain(default), value, marked(said.get(key) or comment)))
    rows += [(f"mix.{key}", f"{weight:g}", "", f"weight of the [{key}]({key}.md) term") for key, weight in method.plus.items()]
    for key, default in settings(name, method).items():
        value, comment = recipe.settings.get(key, ("", ""))
        section = key.partition(".")[0]
        rows.append((key, default, value, marked(comment) or f"see [Settings](../settings.md#{section})"))
    told = [marked(WITHOUT[name]), ""] if name in WITHOUT else [f"{FROM_PAPERS} The learning rate is for a {sized(method)}.", ""]
    cells = (
        (f"`{key}`", f"`{default}`", f"`{value}`" if value else "", marked(paper.get(key, "")), words)
        for key, default, value, words in rows
    )
    return ["## Options", "", *told, *table(("option", "default", "recipe", "paper", "meaning"), cells)]


# --- pages ------------------------------------------------------------------------------------------------------------


def start(method: Method) -> str:
    """The loss where policy and reference agree, at the defaults, on one prompt with two answers of one token each."""
    if not method.needs_reference or method.reads != "logps" or method.data == "prompts":
        return ""
    return f"{float(method.terms(probe())[0].values.mean()):.6g}"


def summary(name: str, method: Method, recipe: Recipe) -> list[str]:
    """The table at the top of a page."""
    rows = [
        ("Paper", marked(method.paper)),
        ("Learns from", DATA.get(method.data, method.data)),
        ("Reference policy", "yes" if method.needs_reference else "no"),
        ("Mean over", f"{method.unit}s of the whole optimizer step"),
    ]
    rows += [("Coupled", COUPLINGS.get(method.coupling, method.coupling))] if method.coupling else []
    rows += [("Loss at policy == reference", f"{start(method)} at the defaults")] if start(method) else []
    about, more = (inspect.getdoc(method.loss) or "").partition("\n")[0], method.more_than_its_loss
    lead = [marked(more), ""] if more and more != about else []
    return [f"# {name}", "", *lead, marked(about), "", marked(recipe.about), "", *table(("", ""), rows)]


def example(name: str, method: Method, recipe: Recipe) -> list[str]:
    """Two rows of data and the command."""
    rows = ROWS.get("margins" if method.needs_margin else method.data, ())
    *others, last = (KINDS[kind] for kind in FITS[method.data])
    kinds = f"{', '.join(others)} or {last}" if others else last
    margin = ", each with a `margin`" if method.needs_margin else ""
    lead = f"Rows of `{recipe.data}` look like one of these, or have any layout of [Data](../data.md) that holds {kinds}{margin}:"
    data = ["## Data", "", lead, "", *fenced(rows, "json")] if rows else []
    first = next((f" {key}={plain(value)}" for key, value in method.options.items() if value is not None), "")
    first = " reward.verifier=math" if method.online else first
    commands = (
        f"prefopt train {name} --model ./my-model --data {recipe.data} --out runs/{name}{first}",
        f"prefopt run recipes/methods/{name}.yaml model.path=./my-model data.path={recipe.data}",
    )
    return [*data, "## Command", "", *fenced(commands, "sh")]


def proof(name: str) -> list[str]:
    """What `prefopt verify` claims of the method."""
    claims = [claim for claim in CLAIMS if claim.method == name]
    if not claims:
        return []
    rows = []
    for claim in claims:
        given = ", ".join(f"`{key}={plain(value)}`" for key, value in claim.options.items())
        mixed = ", ".join(f"`mix.{key}={weight:g}`" for key, weight in claim.mix.items())
        bounds = ", ".join(f"{BOUNDS[kind] if claim.bound is None else claim.bound:g} ({kind})" for kind in claim.learners)
        source = (inspect.getdoc(claim.learns_from) or "").partition("\n")[0]
        rows.append((marked(claim.says), marked(source), ", ".join(filter(None, (given, mixed))), bounds))
    told = f"`prefopt verify {name}` trains it where its optimum is known and measures the distance (h is log pi/ref of a completion)."
    return ["## What verify shows", "", told, "", *table(("what it must learn", "from", "options", "distance at most"), rows)]


def peers(name: str, method: Method) -> list[str]:
    """The rows of docs/parity.md that are about the method, or about its loss where that has another name."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| .+? \| .+? \| (.+?) \|$", (ROOT / "docs" / "parity.md").read_text("utf-8"), flags=re.M)
    about = {key: [row for row in rows if re.split(r"[ ,]", row[0])[0] == key] for key in (name, method.loss.__name__)}
    found = about[name] or about[method.loss.__name__]
    if not found:
        return []
    lines = table(("here", "there", "value and gradient"), ((f"`{ours}`", there, verdict) for ours, there, verdict in found))
    return ["## Beside the peers", "", "From [the whole table](../parity.md), with the distances:", "", *lines]


def notation(method: Method) -> list[str]:
    """The module's docstring after its first line: the letters of the formulas."""
    blocks = (inspect.getdoc(inspect.getmodule(method.loss)) or "").split("\n\n")[1:]
    lines: list[str] = []
    for block in blocks:
        indented = block.startswith("    ")
        lines += fenced(inspect.cleandoc(block).split("\n")) if indented else [marked(" ".join(block.split())), ""]
    return ["## Notation", "", *lines] if lines else []


def page(name: str, method: Method) -> str:
    """One method."""
    recipe = Recipe(name)
    metrics = table(("metric", "what it is"), ((f"`{key}`", marked(text)) for key, text in logged(method)))
    parts = [
        summary(name, method, recipe),
        facts(method),
        example(name, method, recipe),
        options(name, method, recipe),
        ["## Metrics", "", "Besides [those of every run](../recipes.md#metrics):", "", *metrics],
        proof(name),
        peers(name, method),
        notation(method),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def grouped() -> Iterator[tuple[str, str, dict[str, Method]]]:
    """Short name, question, methods, the one to start with first."""
    left = dict(METHODS)
    for short, question, first, takes in QUESTIONS:
        found = {name: method for name, method in left.items() if takes(method)}
        left = {name: method for name, method in left.items() if name not in found}
        if found:
            yield short, question, dict(sorted(found.items(), key=lambda item: item[0] != first))


def index() -> str:
    """The methods by what one has."""
    lines = ["# Methods", "", "What do you have? The first method of each table is the one to start with.", ""]
    for _, question, methods in grouped():
        rows = [
            (f"[{name}]({name}.md)", marked(method.summary), marked(Recipe(name).about), marked(method.paper))
            for name, method in methods.items()
        ]
        lines += [f"## {question}", "", *table(("method", "what it is", "when", "paper"), rows)]
    return "\n".join(lines).rstrip() + "\n"


def nav() -> str:
    """mkdocs.yml with the list of pages between its two marks."""
    text = NAV.read_text(encoding="utf-8")
    lines = ["  - Methods:\n", "      - By question: methods/index.md\n"]
    for short, _, methods in grouped():
        lines += [f"      - {short}:\n", *(f"          - {name}: methods/{name}.md\n" for name in methods)]
    return text[: text.index(BEGIN) + len(BEGIN)] + "".join(lines) + text[text.index(END) :]


def pages() -> dict[Path, str]:
    """Every file this script writes."""
    return {
        FOLDER / "index.md": index(),
        **{FOLDER / f"{name}.md": page(name, method) for name, method in METHODS.items()},
        NAV: nav(),
    }


def main() -> None:
    """Write what has changed, and remove the pages of methods that are gone."""
    found = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in set(FOLDER.glob("*.md")) - found.keys():
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
    for path, text in found.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
