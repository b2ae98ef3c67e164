"""Suites: figures follow from the answers, a better policy is told from a worse one, and rows that cannot be judged are refused."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from prefopt.errors import DataError, OptionError
from prefopt.evaluate import pairs, shift, suites, table
from prefopt.evaluate.guard import Training
from prefopt.pack.prepare import prepare
from prefopt.pipeline import stages
from prefopt.pipeline.kinds import SuiteName
from prefopt.pipeline.recipe import single
from prefopt.pipeline.run import Context
from prefopt.rollout.policy import RewardModel
from prefopt.settings import DataSettings, JudgeSettings, RolloutSettings
from prefopt.text.chat import Renderer
from prefopt.types import Completion, Example, Message, TokenTree
from prefopt.world import World
from tests.benches import Scripted, Spoken, bench_of, figures_in, rows_of
from tests.chat_shapes import tokenizer as chat_tokenizer
from tests.tiny import tiny_model
from tests.worlds import language_model

WORLD = World(0)
REQUESTS = WORLD.requests(60, seed=5, split="heldout")


@pytest.mark.parametrize("module", [shift, table])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_the_recipe_knows_every_suite() -> None:
    assert set(get_args(SuiteName)) == {*suites.SUITES, *suites.GROUPS}


def test_ideal_answers_beat_drafts_by_the_gold_reward(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ideal, drafts = [WORLD.ideal(r) for r in REQUESTS], [WORLD.draft(r, rng) for r in REQUESTS]
    told = suites.run("world", bench_of(tmp_path, Scripted("dpo", ideal), Scripted("sft", drafts, -2.0), rows=rows_of(REQUESTS)))
    found = figures_in(tmp_path)
    assert found["gold", "dpo", "all", ""]["value"] == pytest.approx(1.0)
    gold = [WORLD.gold(r.meta, text) for r, text in zip(REQUESTS, drafts, strict=True)]
    assert found["gold", "sft", "all", ""]["value"] == pytest.approx(np.mean(gold))
    assert found["gold", "sft", "all", ""]["low"] < np.mean(gold) < found["gold", "sft", "all", ""]["high"]
    ties = sum(value == 1.0 for value in gold)
    assert found["win_rate", "dpo", "all", ""]["value"] == pytest.approx((len(gold) - ties / 2) / len(gold))
    assert found["gold", "dpo", "all", "sft"]["value"] == pytest.approx(1 - np.mean(gold))
    assert found["kl", "dpo", "all", ""]["value"] == pytest.approx(3.0)
    assert found["over_refusal", "dpo", "harmless", ""]["value"] == 0.0
    assert found["refusal", "dpo", "harmful", ""]["value"] == 1.0
    assert "wins" in told


def test_equal_answers_to_one_request_are_all_written(tmp_path: Path) -> None:
    """Of four equal answers to each of five requests one was left, in samples.jsonl and in what other tools read."""
    known = {request.prompt[-1].content: WORLD.ideal(request) for request in REQUESTS[:5]}
    both = Spoken("dpo", lambda prompt: known[prompt[-1].content]), Spoken("sft", lambda prompt: "No idea.")
    rollout = RolloutSettings(samples=4)
    suites.run("world", bench_of(tmp_path, *both, rows=rows_of(REQUESTS[:5]), rollout=rollout, formats=["alpaca_eval"]))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    assert all({"gold", "preferred"} <= row.keys() for row in samples)
    assert "20" in (tmp_path / "alpaca_eval" / "leaderboard.csv").read_text().splitlines()[1].split(",")
    assert len(json.loads((tmp_path / "alpaca_eval" / "model_outputs.json").read_text())) == 20


def test_the_sign_test_is_of_prompts(tmp_path: Path) -> None:
    """Eight answers to each of five requests, all won, are five signs."""
    known = {request.prompt[-1].content: WORLD.ideal(request) for request in REQUESTS[:5]}
    both = Spoken("dpo", lambda prompt: known[prompt[-1].content]), Spoken("sft", lambda prompt: "No idea.")
    suites.run("preference", bench_of(tmp_path, *both, rows=rows_of(REQUESTS[:5]), rollout=RolloutSettings(samples=8)))
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["wins"], found["sign_test"]) == (40, pytest.approx(2 * 0.5**5))


@pytest.mark.parametrize(
    "rollout",
    [{"temperature": 0.7}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"banned": "x"}, {"required": ["x"]}],
)
def test_only_plain_samples_tell_of_a_kl(rollout: Any, tmp_path: Path) -> None:
    ideal = [WORLD.ideal(r) for r in REQUESTS]
    both = Scripted("dpo", ideal), Scripted("sft", ideal, -2.0)
    told = suites.run("shift", bench_of(tmp_path, *both, rows=rows_of(REQUESTS), rollout=RolloutSettings(**rollout)))
    found = figures_in(tmp_path)
    assert ("kl", "dpo", "all", "") not in found
    assert found["log_ratio", "dpo", "all", ""]["value"] == pytest.approx(3.0)
    assert told == "log-ratio 3.00 nats"


def test_every_row_says_what_it_stands_on(tmp_path: Path) -> None:
    ideal = [WORLD.ideal(r) for r in REQUESTS]
    suites.run("world", bench_of(tmp_path, Scripted("dpo", ideal), Scripted("sft", ideal[::-1]), rows=rows_of(REQUESTS)))
    for row in figures_in(tmp_path).values():
        assert row["n"] > 0
        assert row["low"] <= row["value"] <= row["high"]
        assert row["method"]
        assert row["data_sha256"] == "d"
        assert row["model_sha256"] == f"sha of {row['model']}" or row["metric"] == "kappa"
        assert bool(row["baseline_sha256"]) == bool(
            row["difference_from"] or row["metric"] in ("win_rate", "length_controlled_win_rate", "kl")
        )


def test_equal_policies_win_half_and_samples_stand_side_by_side(tmp_path: Path) -> None:
    answers = [WORLD.ideal(r) for r in REQUESTS]
    suites.run(["truth", "preference"], bench_of(tmp_path, Scripted("a", answers), Scripted("b", answers), rows=rows_of(REQUESTS)))
    assert figures_in(tmp_path)["win_rate", "a", "all", ""]["value"] == 0.5
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == len(REQUESTS)
    assert samples[0]["answers"] == {"a": answers[0], "b": answers[0]}
    assert samples[0]["gold"] == {"a": 1.0, "b": 1.0}
    assert samples[0]["preferred"] == {"a": 0.5, "b": 0.5}


def test_models_of_one_name_are_told_apart() -> None:
    assert table.names_of(["x/dpo/model", "y/dpo/model"]) == ["x/dpo", "y/dpo"]


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_suites_that_lack_something_say_what(tmp_path: Path) -> None:
    bare = [Example(prompt="why?", where="rows.jsonl:1")]
    with pytest.raises(DataError, match=r"'truth' needs .*synthetic world"):
        suites.run("truth", bench_of(tmp_path, Scripted("a", ["x"]), rows=bare))
    with pytest.raises(DataError, match="'preference' needs a baseline"):
        suites.run("preference", bench_of(tmp_path, Scripted("a", ["x"]), rows=rows_of(REQUESTS)))
    with pytest.raises(DataError, match="'preference' needs a judge"):
        suites.run("preference", bench_of(tmp_path, Scripted("a", ["x"]), Scripted("b", ["x"]), rows=bare))
    with pytest.raises(OptionError, match="did you mean 'preference'"):
        suites.run("preferences", bench_of(tmp_path, Scripted("a", ["x"]), rows=bare))


def test_a_default_leaves_out_what_cannot_run_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    bench = bench_of(tmp_path, Scripted("a", ["x"]), rows=[Example(prompt="why?", where="rows.jsonl:1")])
    bench.say = said.append
    suites.run("default", bench)
    assert json.loads((tmp_path / "evaluation.json").read_text())["suites"] == ["shift"]
    assert "truth (needs" in said[0]


def test_judges_refuse_rows_they_cannot_judge(tmp_path: Path) -> None:
    bare = [Example(prompt="why?", where="rows.jsonl:1")]
    for judge, message in (
        (JudgeSettings(by="gold"), "rows.jsonl:1: judge.by=gold needs rows of the synthetic world"),
        (JudgeSettings(by="reward"), "judge.by=reward needs judge.path"),
        (JudgeSettings(by="ai"), "judge.by=ai needs judge.url"),
    ):
        bench = bench_of(tmp_path, Scripted("a", ["x"]), Scripted("b", ["x"]), rows=bare, judge=judge)
        with pytest.raises((DataError, OptionError), match=message):
            suites.run("preference", bench)


def test_prompts_are_asked_once_each_where_all_that_a_template_reads_is_the_same(tmp_path: Path) -> None:
    calls = [Message("assistant", "", {"tool_calls": [{"function": {"name": "find", "arguments": {"city": city}}}]}) for city in "ab"]
    turns = [(Message("user", "Where?"), call, Message("tool", "Here.")) for call in calls]
    prompts = [turns[0], turns[1], turns[0], "Where?", (Message("user", "Where?"),)]
    policy, rows = Scripted("agent", ["1", "2", "3", "4"]), [Example(prompt=prompt, where=f"x:{i}") for i, prompt in enumerate(prompts)]
    bench = bench_of(tmp_path, policy, rows=rows)
    found = bench.answers(bench.model, rows)
    assert found.texts == ["1", "2", "1", "3", "4"]
    assert (len(set(found.clusters)), policy.asked) == (4, 4)


# --- people's labels --------------------------------------------------------------------------------------------------


def test_a_judge_reads_conversations_in_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, seen = chat_tokenizer("chatml"), []
    reward = RewardModel(tiny_model("llama", scorer=True), words, Renderer(words), "rm")
    reward.save(tmp_path / "rm")
    monkeypatch.setattr(suites, "run", lambda names, bench: seen.append(bench.reward_model.renderer) or "")
    (tmp_path / "d.jsonl").write_text('{"prompt": "x"}\n')
    given = {"path": str(tmp_path / "rm"), "chat_template": "plain"}
    stage = single({"kind": "evaluate", "model": given, "data": {"path": str(tmp_path / "d.jsonl")}, "judge": {"path": given["path"]}}, [])
    stages.evaluate(stage, tmp_path, Context(tmp_path))
    assert seen[0].template == Renderer(words).template != Renderer(words, "plain").template


def votes(tmp_path: Path) -> DataSettings:
    row = {"response_a": "long enough", "response_b": "no"}
    rows = [
        {"prompt": "p0", "label": "a", "model_a": "x", "model_b": "y", **row},
        {"prompt": "p1", "label": "a", "model_a": "y", "model_b": "x", **row},
        {"prompt": "p2", "label": "tie", "model_a": "y", "model_b": "x", **row},
        {"prompt": "p3", "label": "b", "model_a": "y", "model_b": "x", **row},
        {"prompt": "p4", "label": "b", "model_a": "y", "model_b": "z", **row},
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(path=str(path))


def test_labels_of_people_count_for_the_model_they_name(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "x", "y", data=votes(tmp_path), judge=JudgeSettings(by="labels"))
    suites.run("preference", bench)
    assert figures_in(tmp_path)["win_rate", "x", "all", ""]["value"] == (1 + 0 + 0.5 + 1) / 4
    assert figures_in(tmp_path)["length_chars", "x", "all", ""]["value"] == (11 + 2 + 2 + 2) / 4


def test_names_of_models_are_not_opened_unless_a_suite_is_asked_for_that_does(tmp_path: Path) -> None:
    said: list[str] = []
    bench = bench_of(tmp_path, "x", "y", data=votes(tmp_path), judge=JudgeSettings(by="labels"))
    bench.say = said.append
    suites.run("default", bench)
    assert figures_in(tmp_path)["win_rate", "x", "all", ""]["n"] == 4
    assert "shift (needs models, which are names here (judge.by=labels))" in said[0]


def test_an_unknown_model_among_the_labels_is_named(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "x", "w", data=votes(tmp_path), judge=JudgeSettings(by="labels"))
    with pytest.raises(OptionError, match=r"no row has an answer of w.*\n?.*there are"):
        suites.run("preference", bench)
    bench = bench_of(tmp_path, "x", "z", data=votes(tmp_path), judge=JudgeSettings(by="labels"))
    with pytest.raises(OptionError, match="no row compares x with z"):
        suites.run("preference", bench)


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_pairs_are_judged_by_what_the_model_itself_says(method: str, tmp_path: Path) -> None:
    model = language_model(method)
    texts = [("w5 w6", "w7 w8", "w9"), ("w10", "w11", "w12 w13 w14"), ("w5", "w20 w21", "w22 w23")]
    reads = model.score if method == "reward" else model.logprobs  # type: ignore[attr-defined]
    right = [reads([p], [c])[0] > reads([p], [r])[0] for p, c, r in texts]
    trees = [tree_of(model, p, c, r, index=i) for i, (p, c, r) in enumerate(texts)]
    suites.run("pairs", bench_of(tmp_path, model, trees=trees))
    found = figures_in(tmp_path)
    assert found["accuracy", "tiny", "all", ""]["value"] == pytest.approx(np.mean(right))
    assert found["longer_is_chosen", "tiny", "all", ""]["value"] == pytest.approx(0.5)
    assert found["accuracy", "tiny", "s0", ""]["n"] == 2


def test_an_implicit_reward_is_measured_against_its_reference(tmp_path: Path) -> None:
    model, reference = language_model(seed=1), language_model(seed=1)
    suites.run("pairs", bench_of(tmp_path, model, reference, trees=[tree_of(model, "w5", "w6", "w7 w8")]))
    assert figures_in(tmp_path)["accuracy", "tiny", "all", ""]["value"] == 0.5  # a policy that has not moved prefers nothing


def test_no_preference_at_all_is_an_error(tmp_path: Path) -> None:
    model = language_model()
    tie = tree_of(model, "w5", "w6", "w7")
    tie = replace(tie, branches=tuple(replace(branch, rank=0) for branch in tie.branches))
    with pytest.raises(DataError, match="needs rows with a preference"):
        suites.run("pairs", bench_of(tmp_path, model, trees=[]))
    with pytest.raises(DataError, match="no row holds a preference"):
        pairs.run(bench_of(tmp_path, model, trees=[tie]))


def tree_of(model: Any, prompt: str, chosen: str, rejected: str, index: int = 0) -> TokenTree:
    completions = (Completion(content=chosen, rank=0), Completion(content=rejected, rank=1))
    return model.renderer.tree(Example(prompt=prompt, completions=completions, source=f"s{index % 2}"), index)


def files(folder: Path) -> list[str]:
    """Ten rows of prompts and twenty of pairs."""
    places = folder / "prompts.jsonl", folder / "pairs.jsonl"
    places[0].write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(10)))
    rows = ({"prompt": f"w{i} w{i + 2}", "chosen": " w5 w6", "rejected": " w7", "subset": f"s{i}"} for i in range(20))
    places[1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(place) for place in places]


def test_a_limit_is_one_limit_for_rows_and_preferences(tmp_path: Path) -> None:
    """The guard sees rows alone: pairs beyond the limit went by it, and had no subset."""
    trained = Training(lambda: [Example(prompt=f"w{i} w{i + 2}", where=f"train:{i}") for i in range(2)], ("train",))
    data = DataSettings(path=files(tmp_path), limit=14)
    bench = bench_of(tmp_path, language_model(), data=data, training=trained, seen="drop")
    assert bench.guard()["rows_seen_in_training_dropped"] == 2
    assert [tree.where for tree in bench.trees] == [row.where for row in bench.rows if row.completions]
    assert len(bench.trees) == 2
    assert not bench_of(tmp_path, language_model(), data=DataSettings(path=files(tmp_path), limit=10)).trees


def test_of_several_files_the_preferences_are_held_out_and_the_others_stay(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, language_model(), data=DataSettings(path=files(tmp_path), eval_fraction=0.2))
    assert [tree.where for tree in bench.trees] == [row.where for row in bench.rows if row.completions]
    assert len(bench.trees) == 4
    assert len(bench.rows) == 10 + 4


def test_figures_name_the_data_they_stand_on(tmp_path: Path) -> None:
    prompts, _ = files(tmp_path)
    (tmp_path / "others.jsonl").write_text('{"prompt": "w9"}\n')
    language_model().save(tmp_path / "tiny")
    common = {"kind": "evaluate", "suite": "shift", "model": {"path": str(tmp_path / "tiny")}, "rollout": {"max_new_tokens": 4}}
    digests = []
    for data in ({"path": prompts}, {"path": str(tmp_path / "others.jsonl"), "eval_path": prompts}):
        stages.evaluate(single({**common, "data": data}, []), tmp_path, Context(tmp_path))
        digests.append(figures_in(tmp_path)["length_words", "tiny", "all", ""]["data_sha256"])
    assert digests[0] == digests[1]


# --- shift ------------------------------------------------------------------------------------------------------------


def test_distinct_ngrams_and_self_bleu_by_hand() -> None:
    same = [["a", "b", "c", "d"]] * 3
    assert shift.distinct(same, 1).value == pytest.approx(4 / 12)
    assert shift.self_bleu(same) == pytest.approx([1, 1, 1])
    apart = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert shift.distinct(apart, 2).value == 1.0
    assert shift.self_bleu(apart) == pytest.approx([0, 0, 0])
    # unigrams of "a b x y": 2 of 4 matched; bigrams 1 of 3, trigrams 0 of 2, 4-grams 0 of 1, one added to each above unigrams
    expected = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert shift.self_bleu([["a", "b", "x", "y"], ["a", "b", "c", "d"]])[0] == pytest.approx(expected)


def spoken(prompt: Any, words: int = 8) -> str:
    """Words drawn by the prompt."""
    return " ".join(f"w{k}" for k in np.random.default_rng(list(str(prompt).encode())).integers(20, size=words))


def test_rows_of_one_prompt_are_no_further_variety(tmp_path: Path) -> None:
    """Forty prompts in eighty rows have the answers that they have in forty: self_bleu was 1 and distinct_2 halved."""
    found = []
    for times in (1, 2):
        rows = [Example(prompt=f"p{i % 40}", where=f"x:{i}") for i in range(40 * times)]
        suites.run("shift", bench_of(tmp_path, Spoken("a", spoken), Spoken("b", lambda p: spoken(p + "b")), rows=rows))
        told = figures_in(tmp_path)
        found.append([told[name, "a", "all", ""] for name in ("self_bleu", "distinct_1", "distinct_2")])
        assert told["length_words", "a", "all", ""]["n"] == len(rows)
    assert found[0] == found[1]
    assert found[0][0]["n"] == 40


def test_answers_to_one_prompt_go_together_in_the_share_of_distinct_words() -> None:
    """By hand: 5 words of 8, and 3 of 4 without either prompt; of three answers 1 and 3 of 4."""
    answers = [["a", "b"], ["a", "c"], ["a", "d"], ["a", "e"]]
    found = shift.distinct(answers, 1, ["p", "p", "q", "q"])
    assert (found.value, found.n, found.std_error, found.method) == (5 / 8, 4, 0.0, "clustered jackknife t")
    assert shift.distinct(answers[:3], 1, ["p", "p", "q"]).std_error == pytest.approx(np.sqrt(1 / 2 * 2 * (1 / 8) ** 2))
    assert shift.distinct(answers, 1, ["p"] * 4).high == np.inf


def test_entropy_is_that_of_the_distribution(tmp_path: Path) -> None:
    model = language_model(seed=3)
    rows = [Example(prompt=f"w{i} w5", where=f"rows.jsonl:{i}") for i in range(5, 9)]
    suites.run("shift", bench_of(tmp_path, model, language_model(seed=4), rows=rows))
    found = figures_in(tmp_path)
    assert 0 < found["entropy", "tiny", "all", ""]["value"] < np.log(97)
    assert found["kl", "tiny", "all", ""]["value"] > 0


def test_of_prompts_those_are_asked_that_training_holds_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"w{i} w3"}) + "\n" for i in range(3, 23)))
    bench = bench_of(tmp_path, language_model(), data=DataSettings(path=str(file), eval_fraction=0.25))
    model = bench.model.model
    held = prepare(bench.data, model.renderer, data="prompts", max_length=model.max_length, seed=bench.seed).heldout
    assert [row.where for row in bench.rows] == [tree.where for tree in held]
    assert len(bench.rows) == 5
    assert bench.trees == []
