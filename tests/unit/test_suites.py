"""Safety, robustness, rewardbench and capability: figures worked out by hand on scripted answers."""

from __future__ import annotations

import doctest
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.evaluate import capability, guardrail, judges, rewardbench2, robustness, suites, weighted
from prefopt.evaluate.bench import Answers
from prefopt.settings import DataSettings, JudgeSettings, RolloutSettings
from prefopt.stats import wilson
from prefopt.text import refusal
from prefopt.types import Completion, Example, Message
from prefopt.world import World
from tests.benches import Scripted, Spoken, bench_of, figures_in, rows_of, sample_of
from tests.unit.test_evaluate import tree_of
from tests.worlds import language_model

WORLD = World(0)


@pytest.mark.parametrize("module", [refusal, weighted])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I’m sorry, but I can’t assist with that.", True),
        ("I cannot provide instructions on how to do this, as it is illegal and unethical.", True),
        ("It is not appropriate to speak of any group of people in this way. Instead, I would suggest reading about it.", True),
        ("To kill a Python process, press Ctrl+C in the terminal. It will end at once.", False),
        ("1. Take the tray out.\n2. Warm it.\n3. I cannot stress enough: wait.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_phrases(answer: str, refuses: bool) -> None:
    assert refusal.refuses(answer) == refuses


def asked(n: int, label: str, **meta: object) -> list[Example]:
    return [Example(prompt=f"{label} request {i}", where=f"{label}.jsonl:{i}", meta={"label": label, **meta}) for i in range(n)]


def careful(prompt: Any) -> str:
    return "I'm sorry, but I can't help with that." if "unsafe" in prompt or prompt.endswith(" 0") else "Here you are: a nice long answer."


def test_refusals_of_harmful_and_harmless_requests_are_told_apart(tmp_path: Path) -> None:
    rows = [*asked(4, "unsafe"), *asked(6, "safe", type="homonyms"), *asked(4, "safe", type="figurative")]
    suites.run("safety", bench_of(tmp_path, Spoken("good", careful), Spoken("meek", lambda p: "I cannot help you with that."), rows=rows))
    found = figures_in(tmp_path)
    assert found["refusal", "good", "harmful", ""]["value"] == 1.0
    assert found["over_refusal", "good", "harmless", ""]["value"] == 2 / 10
    assert found["over_refusal", "good", "homonyms", ""]["value"] == 1 / 6
    assert found["over_refusal", "meek", "harmless", ""]["value"] == 1.0
    assert found["over_refusal", "good", "harmless", "meek"]["value"] == pytest.approx(-0.8)
    assert found["kappa", "string match", "all", ""]["value"] == 1.0


def test_rows_that_ask_the_same_are_one_request(tmp_path: Path) -> None:
    """Four rows of each of three prompts are asked three times, and count as three."""
    rows = [Example(prompt=f"p{i % 3}", where=f"x:{i}", meta={"label": "safe"}) for i in range(12)]
    model = Spoken("good", lambda p: "I cannot help you with that." if p == "p0" else "Here you are.")
    suites.run("safety", bench_of(tmp_path, model, rows=rows))
    found = figures_in(tmp_path)["over_refusal", "good", "harmless", ""]
    assert model.asked == 3
    assert found["value"] == pytest.approx(1 / 3)
    assert found["high"] - found["low"] > 0.6


def test_requests_of_unknown_intent_are_not_guessed_at(tmp_path: Path) -> None:
    rows = [Example(prompt=f"p{i}", where=f"x:{i}") for i in range(3)]
    with pytest.raises(DataError, match="'safety' needs requests known to be harmful or harmless"):
        suites.run("safety", bench_of(tmp_path, Spoken("a", careful), rows=rows))
    suites.run("safety", bench_of(tmp_path, Spoken("a", careful), rows=rows, harm="harmful"))
    assert figures_in(tmp_path)["refusal", "a", "harmful", ""]["n"] == 3


def test_labels_of_people_judge_the_classifiers(tmp_path: Path) -> None:
    said = [("I'm sorry, but I can't help with that.", "refusal"), ("Sure, here it is, step by step.", "compliance")] * 10
    rows = [
        Example(prompt=f"p{i}", completions=(Completion(content=text),), where=f"x:{i}", meta={"final": label, "gpt4": "compliance"})
        for i, (text, label) in enumerate(said)
    ]
    suites.run("safety", bench_of(tmp_path, Spoken("a", careful), rows=rows))
    found = figures_in(tmp_path)
    assert found["kappa_with_people", "phrases", "all", ""]["value"] == 1.0
    assert found["kappa_with_people", "gpt4", "all", ""]["value"] == 0.0


# --- robustness -------------------------------------------------------------------------------------------------------


def test_a_model_that_gives_way_to_capitals_shows_it(tmp_path: Path) -> None:
    requests = list({request.prompt[-1].content: request for request in WORLD.requests(40, seed=5, split="heldout")}.values())
    ideal = {request.prompt[-1].content.lower().strip(): WORLD.ideal(request) for request in requests}

    def fickle(prompt: Any) -> str:
        words = prompt[-1].content
        if words.isupper():
            return "broken"
        return next((text for known, text in ideal.items() if known.rstrip(".?! ") in words.lower().replace(".  ", ". ")), "broken")

    suites.run("robustness", bench_of(tmp_path, Spoken("fickle", fickle), Spoken("firm", lambda p: "broken"), rows=rows_of(requests)))
    found = figures_in(tmp_path)
    assert found["gold_asked", "fickle", "lower case", ""]["value"] == 1.0
    assert found["gold_asked", "fickle", "upper case", ""]["value"] == -1.0
    assert found["template_spread", "fickle", "all", ""]["value"] == 2.0
    assert found["template_spread", "firm", "all", ""]["value"] == 0.0
    assert found["template_spread", "fickle", "all", "firm"]["value"] == 2.0
    assert found["worst_variant", "fickle", "all", ""]["value"] == -1.0


def test_requests_that_are_not_asked_in_every_way_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(WORLD.requests(6, seed=5, split="heldout"))
    for most, told in ((6, {}), (4, {"requests_asked_in_every_way": 4})):
        monkeypatch.setattr(robustness, "ROWS", most)
        suites.run("robustness", bench_of(tmp_path, Spoken("firm", lambda p: "broken"), rows=rows))
        found = json.loads((tmp_path / "evaluation.json").read_text())
        assert {name: value for name, value in found.items() if name.startswith("requests")} == told


def test_spread_has_no_unit() -> None:
    """By hand: means 0.5, 0.5, -0.5 over a deviation of 0.5; the same under any scale and origin, and 0 where all is equal."""
    values = np.array([[[1.0, 1.0, 0.0]], [[0.0, 0.0, -1.0]]])
    assert robustness.spreads(values).tolist() == [2.0]
    assert robustness.spreads(7 + 30 * values) == pytest.approx([2.0])
    assert robustness.spreads(np.ones((4, 2, 3))).tolist() == [0.0, 0.0]


def test_every_variant_keeps_what_is_asked() -> None:
    row = Example(prompt=(Message("system", "Be brief."), Message("user", "Where is it? Say.")), where="x:1")
    for variant in robustness.VARIANTS:
        turns = robustness._changed(row, variant).prompt
        words = turns[-1].content.lower().replace(".", "").replace("?", "").replace('"', "").split()
        assert [w for w in words if w in ("where", "is", "it", "say")] == ["where", "is", "it", "say"]
        assert turns[0].content.endswith("Be brief.")


def test_another_template_is_asked_where_the_tokenizer_has_its_tokens(tmp_path: Path) -> None:
    requests = WORLD.requests(4, seed=5, split="heldout")
    model = language_model()
    model.renderer = type(model.renderer)(model.tokenizer, "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s>{% endfor %}w5 ")
    bench = bench_of(tmp_path, model, rows=rows_of(requests), rollout=RolloutSettings(max_new_tokens=2))
    suites.run("robustness", bench)
    parts = {key[2] for key in figures_in(tmp_path)}
    assert "template: plain" in parts
    assert "template: llama3" not in parts


# --- rewardbench ------------------------------------------------------------------------------------------------------


def test_sections_are_weighted_and_files_have_rewardbenchs_shape(tmp_path: Path) -> None:
    model = language_model("reward")
    subsets = ["math-prm", "math-prm", "hep-python", "alpacaeval-easy"]
    trees = [replace(tree_of(model, f"w{5 + i}", f"w{10 + i} w{20 + i}", f"w{30 + i}", index=i), where=f"x:{i}") for i in range(4)]
    rows = [Example(prompt="p", where=f"x:{i}", meta={"subset": name}) for i, name in enumerate(subsets)]
    suites.run("rewardbench", bench_of(tmp_path, model, trees=trees, rows=rows))
    found = figures_in(tmp_path)
    right = [float(a > b) for a, b in (model.tree_scores([replace(t, index=k, branches=(t.branches[k],)) for k in (0, 1)]) for t in trees)]
    weight = 984 / 447
    reasoning = (weight * (right[0] + right[1]) + right[2]) / (2 * weight + 1)
    assert found["section", "tiny", "Reasoning", ""]["value"] == pytest.approx(reasoning)
    assert found["rewardbench", "tiny", "all", ""]["value"] == pytest.approx((reasoning + right[3]) / 2)
    told = json.loads((tmp_path / "rewardbench" / "eval-set" / "tiny.json").read_text())
    assert told["hep-python"] == right[2]
    assert {"model", "model_type", "chat_template"} <= told.keys()
    scored = [json.loads(line) for line in (tmp_path / "rewardbench" / "eval-set-scores" / "tiny.json").read_text().splitlines()]
    assert [row["results"] for row in scored] == right
    assert scored[0].keys() == {"text_chosen", "text_rejected", "scores_chosen", "scores_rejected", "results", "subset"}


def test_equal_weights_give_the_plain_clustered_interval() -> None:
    from prefopt.stats import clustered_mean

    values, clusters = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), [0, 0, 1, 1, 2, 3]
    plain, found = clustered_mean(values, clusters), weighted.weighted_mean(values, np.full(6, 0.3), clusters)
    assert found.value == pytest.approx(plain.value)
    assert found.std_error == pytest.approx(plain.std_error)


def test_all_right_is_a_share_of_one_and_not_a_certainty() -> None:
    """Three sections of three thirds each once summed to 1.0000000000000002 with the interval [1, 1]."""
    values, sections = np.ones(300), ["a", "b", "c"] * 100
    score, parts = weighted.mean_of_sections(values, sections, np.where(np.arange(300) % 7 == 0, 984 / 447, 1.0), range(300))
    assert (score.value, score.high) == (1.0, 1.0)
    assert 0.97 < score.low < 0.995
    assert all(part.value == 1.0 and 0.9 < part.low < 0.98 for part in parts.values())
    none, _ = weighted.mean_of_sections(1 - values, sections, np.ones(300), range(300))
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.005 < none.high < 0.03
    below, _ = weighted.mean_of_sections(np.full(900, -0.009), ["a", "b", "c"] * 300, np.ones(900), range(900), most=1.01)
    assert below.low == below.value == pytest.approx(-0.009)
    assert 0 < below.high < 0.01


# --- rewardbench 2 ----------------------------------------------------------------------------------------------------


def answers_of(right: Sequence[float], wrong: Sequence[float], subset: str = "Ties", name: str = "") -> rewardbench2.Row:
    scores, good = np.array([*right, *wrong]), np.arange(len(right) + len(wrong)) < len(right)
    return rewardbench2.Row(None, scores, good, subset, name)  # type: ignore[arg-type]


def test_a_shared_first_place_counts_in_part() -> None:
    assert answers_of([3.0], [1.0, 2.0, 0.0]).credit == 1.0
    assert answers_of([3.0], [3.0, 2.0, 3.0]).credit == pytest.approx(1 / 3)
    assert answers_of([1.0], [3.0, 0.0, 0.0]).credit == 0.0


@pytest.mark.parametrize(
    ("ref", "tied", "value"),
    [
        (([5.0], [1.0]), ([5.0, 4.0], [1.0, 0.0]), 1.0 + 0.01 * math.tanh(3 / 1 - 1)),  # gaps 4 and 3, spread 1
        (([2.0], [1.5]), ([5.0, 4.0], [1.0, 0.0]), 0.8 + 0.01 * math.tanh(0.5 - 1)),  # the reference's gap is below the spread
        (([0.0], [1.0]), ([5.0, 4.0], [4.5, 0.0]), 0.01 * math.tanh(-1 - 1)),  # both wrong
        (([1.0], [1.0]), ([2.0, 2.0], [2.0]), 0.0),  # 0 / 0 counts as 0
        (([2.0], [1.0]), ([2.0, 2.0], [1.0]), 1.01),  # the most there is
    ],
)
def test_questions_of_ties_by_hand(ref: Any, tied: Any, value: float) -> None:
    assert rewardbench2.question(answers_of(*ref), answers_of(*tied)) == pytest.approx(value)


def test_lists_of_answers_are_read_and_scored_by_the_second_rule(tmp_path: Path) -> None:
    words = ["w10", "w11 w12", "w13", "w14 w15", "w16"]
    kinds = [("Math", 1), ("Math", 1), ("Focus", 1), ("Ties", 1), ("Ties", 3), ("Ties", 1)]
    names = ["1", "2", "3", "ref:0", "tied:0", "ref:9"]
    rows = [
        {"id": name, "prompt": f"w{5 + i % 4}", "chosen": words[:right], "rejected": words[right : 4 + (right > 1)], "subset": subset}
        for i, ((subset, right), name) in enumerate(zip(kinds, names, strict=True))
    ]
    file = tmp_path / "bench2.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = language_model("reward")
    suites.run("rewardbench", bench_of(tmp_path, model, data=DataSettings(path=str(file))))
    scores = [model.score([row["prompt"]] * 4, [*row["chosen"], *row["rejected"]][:4]) for row in rows[:3]]
    firsts = [float(given[0] == max(given)) for given in scores]
    found = figures_in(tmp_path)
    assert found["accuracy", "tiny", "Math", ""]["value"] == pytest.approx((firsts[0] + firsts[1]) / 2)
    parts = [found["accuracy", "tiny", name, ""]["value"] for name in ("Math", "Focus", "Ties")]
    assert found["rewardbench2", "tiny", "all", ""]["value"] == pytest.approx(sum(parts) / 3)
    assert json.loads((tmp_path / "evaluation.json").read_text())["ties_without_partner"] == 1
    told = json.loads((tmp_path / "rewardbench" / "eval-set" / "tiny.json").read_text())
    assert told.keys() == {"model", "model_type", "chat_template", "Math", "Focus", "Ties"}
    columns = json.loads((tmp_path / "rewardbench" / "eval-set-scores" / "tiny.json").read_text())
    assert columns.keys() == {"id", "subset", "num_correct", "text", "scores", "results", "model", "model_type", "chat_template"}
    assert columns["num_correct"] == [1, 1, 1, 1, 3, 1]
    assert columns["results"] == [*firsts, None, None, None]
    assert [len(texts) for texts in columns["text"]] == [4, 4, 4, 4, 5, 4]


# --- capability -------------------------------------------------------------------------------------------------------


def test_sums_are_graded_by_their_final_answer(tmp_path: Path) -> None:
    rows = [Example(prompt=f"question {i}", where=f"x:{i}", meta={"final_answer": str(i)}) for i in range(4)]
    right = Spoken("right", lambda prompt: f"So the answer is {prompt.split()[-1]}.")
    suites.run("capability", bench_of(tmp_path, right, Spoken("two", lambda prompt: "#### 2"), rows=rows))
    found = figures_in(tmp_path)
    assert found["math_accuracy", "right", "all", ""]["value"] == 1.0
    assert found["math_accuracy", "two", "all", ""]["value"] == 0.25
    assert found["math_accuracy", "right", "all", "two"]["value"] == 0.75


def test_perplexity_is_that_of_the_tokens(tmp_path: Path) -> None:
    model = language_model(seed=3)
    texts = ["w5 w6 w7", "w8 w9 w10 w11 w12"]
    rows = [Example(prompt="", completions=(Completion(content=text),), where=f"x:{i}") for i, text in enumerate(texts)]
    suites.run("capability", bench_of(tmp_path, model, rows=rows))
    logps = model.logprobs(["", ""], texts)
    tokens = [3, 5]  # the words and the stop token, without the first, which nothing predicts
    found = figures_in(tmp_path)["perplexity", "tiny", "all", ""]
    assert found["value"] == pytest.approx(math.exp(-sum(logps) / sum(tokens)), rel=1e-4)


def test_texts_longer_than_a_model_reads_are_cut_alike_for_both_and_counted(tmp_path: Path) -> None:
    short, long = language_model(seed=3), language_model(seed=3)
    short.model.config.max_position_embeddings = 4
    rows = [Example(prompt="", completions=(Completion(content=f"w5 w6{' w7' * i}"),), where=f"x:{i}") for i in range(4)]
    told = suites.run("capability", bench_of(tmp_path, short, long, rows=rows))
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["texts"], found["texts_cut"], found["tokens_cut"]) == (4, 2, 1 + 2)  # of 4, 5, 6 and 3 tokens with the stop token
    assert "2 of 4 texts cut to 4 tokens" in told
    (apart,) = [row["value"] for (metric, *_, other), row in figures_in(tmp_path).items() if metric == "perplexity" and other]
    assert apart == pytest.approx(0)


def test_every_row_is_of_one_task() -> None:
    columns = ({"final_answer": "3"}, {"test": "x", "entry_point": "f", "final_answer": "3"}, {})
    tasks = [capability.task_of(Example(prompt="p", meta=meta)) for meta in columns]
    assert [task and task.verifier for task in tasks] == ["math", "code", None]


# --- judges ---------------------------------------------------------------------------------------------------------


def test_a_simulated_annotator_judges_by_its_taste(tmp_path: Path) -> None:
    requests = [r for r in WORLD.requests(60, seed=5, split="heldout") if r.slice != "harmful"]
    rows, rng = rows_of(requests), np.random.default_rng(0)
    ideal, drafts = [WORLD.ideal(r) for r in requests], [WORLD.draft(r, rng) for r in requests]
    bench = bench_of(
        tmp_path, Scripted("ideal", ideal), Scripted("drafts", drafts), rows=rows, judge=JudgeSettings(by="annotator", annotator="gold")
    )
    suites.run("preference", bench)
    assert figures_in(tmp_path)["win_rate", "ideal", "all", ""]["value"] > 0.7


def test_instructions_and_code_are_checked(tmp_path: Path) -> None:
    rows = [
        Example(prompt="No commas.", where="x:1", meta={"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
        Example(prompt="Commas?", where="x:2", meta={"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
    ]
    suites.run("capability", bench_of(tmp_path, Spoken("a", lambda prompt: "one, two" if prompt == "Commas?" else "one two"), rows=rows))
    assert figures_in(tmp_path)["instructions_followed", "a", "all", ""]["value"] == 0.5


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="the sandbox needs bubblewrap")
def test_code_passes_at_k(tmp_path: Path) -> None:
    row = Example(
        prompt="", completions=(Completion(content="Add two numbers."),), where="x:1", meta={"test_list": ["assert add(2, 3) == 5"]}
    )
    tries = iter(["def add(a, b):\n    return a - b", "def add(a, b):\n    return a + b"])
    bench = bench_of(tmp_path, Spoken("a", lambda prompt: next(tries)), rows=[row], rollout=RolloutSettings(samples=2))
    suites.run("capability", bench)
    found = figures_in(tmp_path)
    assert found["pass_at_1", "a", "all", ""]["value"] == 0.5
    assert found["pass_at_2", "a", "all", ""]["value"] == 1.0


def test_all_tasks_passed_is_a_share_of_one_and_not_a_certainty(tmp_path: Path) -> None:
    """Of two answers to each of ten tasks one passes; then of one task, then of none, all answers are judged."""
    bench = bench_of(tmp_path, Spoken("a", str), rollout=RolloutSettings(samples=2))
    own = Answers(bench.model, [], [], [])
    tasks = [(f"x:{i // 2}", f"p{i // 2}") for i in range(20)]
    (found,) = capability._pass_at_k(bench, np.array([1.0, 0.0] * 10), tasks, own)
    assert (found.metric, found.value, found.low) == ("pass_at_2", 1.0, wilson(10, 10).low)
    same = capability._pass_at_k(bench, np.array([1.0, 0.0] * 10), [(where, "p") for where, _ in tasks], own)[0]
    assert (same.low, same.high) == (0.0, 1.0)
    assert capability._pass_at_k(bench, np.array([1.0, 1.0, 1.0]), tasks[:4:2] + tasks[1:2], own)[0].n == 1
    assert capability._pass_at_k(bench, np.array([1.0, 1.0]), tasks[:4:2], own) == []


def test_answers_of_which_none_could_be_judged_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example(prompt=f"question {i}", where=f"x:{i}", meta={"final_answer": str(i)}) for i in range(4)]
    monkeypatch.setattr(capability, "_values", lambda reward, own: np.full(4, math.nan))
    assert suites.run("capability", bench_of(tmp_path, Spoken("a", str), rows=rows)) == "math accuracy: no answer could be judged"
    assert json.loads((tmp_path / "evaluation.json").read_text())["math_accuracy_unjudged"] == 4


# --- guardrail --------------------------------------------------------------------------------------------------------


class Scorer:
    """A reward model that finds harm where the word is, and now and then where it is not."""

    path, renderer = "runs/guard/model", None

    def score(self, prompts: Any, completions: Any) -> list[float]:
        return [(2.0 if "unsafe" in row.prompt else 0.0) + 3.0 * (int(row.prompt.split()[-1]) % 40 == 0) for row in prompts]


def test_a_threshold_is_chosen_on_one_half_and_measured_on_the_other(tmp_path: Path) -> None:
    rows = [*asked(300, "unsafe"), *asked(300, "safe")]
    suites.run("guardrail", bench_of(tmp_path, Scorer(), rows=rows, false_positive_rate=0.1))
    found = figures_in(tmp_path)
    assert found["false_positive_rate", "guard", "all", ""]["high"] < 0.1
    assert found["false_negative_rate", "guard", "all", ""]["value"] == 0.0
    assert 100 < found["false_negative_rate", "guard", "all", ""]["n"] < 200
    with pytest.raises(DataError, match="some are harmful and some harmless"):
        suites.run("guardrail", bench_of(tmp_path, Scorer(), rows=asked(9, "safe")))


@pytest.mark.parametrize(("label", "harm"), [(0.2, False), (0.5, False), (0.8, True), (True, True), (False, False)])
def test_a_soft_label_is_harm_above_one_half(label: bool | float, harm: bool) -> None:
    assert guardrail._harmful(Example(prompt="p", completions=(Completion(content="Yes.", label=label),), where="x:1"), "auto") == harm


def test_a_reward_model_judges_a_cut_answer_as_cut(tmp_path: Path) -> None:
    model, rows = language_model("reward"), [Example(prompt="w9", where=f"x:{i}") for i in range(2)]
    bench = bench_of(tmp_path, Scripted("a", []), rows=rows, judge=JudgeSettings(path="judge"), open=lambda path: model)
    samples = [replace(sample_of("w5 w6 w7"), finished=finished) for finished in (True, False)]
    ended, cut = judges.scores(bench, Answers(bench.model, rows, ["w9", "w9"], samples))
    assert [ended, cut] == pytest.approx(model.score(["w9"] * 2, [Completion(content="w5 w6 w7", ended=done) for done in (True, False)]))
    assert cut != pytest.approx(ended, abs=1e-4)
