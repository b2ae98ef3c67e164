"""Constraints: the machine against Python's own matcher, tokens that cut characters, and samples that keep what was asked."""

from __future__ import annotations

import copy
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM

from prefopt.errors import DataError, ModelError, OptionError
from prefopt.model import room
from prefopt.rollout.constrain import Vocabulary, constraint
from prefopt.rollout.constrain.regex import Regex
from prefopt.rollout.local import LocalSampler
from prefopt.rollout.sampler import Sample, draw
from prefopt.settings import RolloutSettings
from prefopt.text.chat import Renderer
from tests.chat_shapes import tokenizer

PATTERNS = [
    "abc",
    "a*b+c?",
    "(ab|ba)*",
    "[a-c]{2,4}",
    "[^ab]c",
    ".b.",
    r"\d+(\.\d{2})?",
    r"\w+\s\w+",
    "a{0,2}(b|)c",
    "(?:a|é|日本){2}",
    "[é-ü]+",
    "[^a]*",
    "^ab$",
    "",
    r"\.\*\\",
]


def accepts(machine: Any, text: str) -> bool:
    state = machine.start
    for byte in text.encode():
        state = machine.step(state, byte)
        if state is None:
            return False
    return bool(machine.accepts(state))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_machine_matches_what_python_matches(pattern: str) -> None:
    letters = st.characters(max_codepoint=0x65FF, exclude_categories=["Cs"])

    @given(st.one_of(st.text("abcé日本.1 \n", max_size=6), st.from_regex(pattern, fullmatch=True, alphabet=letters)))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def check(text: str) -> None:
        assert accepts(Regex(pattern), text) == bool(re.fullmatch(pattern, text, re.ASCII)), text

    check()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_can_no_longer_match_is_told_at_once(pattern: str) -> None:
    """A state is never dead: from each one some text leads to a match (found by breadth-first search)."""
    machine = Regex(pattern)
    for text in ("a", "ab", "1", "é"[:1], "c"):
        state: Any = machine.start
        for byte in text.encode():
            state = machine.step(state, byte) if state is not None else None
        seen, todo = {state}, [state] if state is not None else []
        while todo and not any(machine.accepts(s) for s in todo):
            todo = [after for s in todo for byte in range(256) if (after := machine.step(s, byte)) is not None and after not in seen]
            seen |= set(todo)
        assert state is None or todo


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a", "not a regular expression"),
        (r"(a)\1", "not supported"),
        ("a(?=b)", "not supported"),
        ("(?i)a", "flags"),
        ("a{99999}", "positions"),
    ],
)
def test_expressions_that_cannot_be_used(pattern: str, said: str) -> None:
    with pytest.raises(OptionError, match=rf"rollout\.regex: .*{said}"):
        Regex(pattern)


@pytest.mark.parametrize(
    ("options", "yes", "no"),
    [
        ({"banned": ["bad", "ad hoc"]}, ["ba", "b ad", "ad ho", ""], ["bad", "abad", "an ad hoc"]),
        ({"required": ["one", "net"]}, ["onet one net", "onet"], ["one", "ne", ""]),
        ({"required": "x", "banned": "xx", "regex": "[xy]*"}, ["x", "yxy"], ["xx", "y", "xz"]),
    ],
)
def test_strings_banned_and_required(options: dict[str, Any], yes: list[str], no: list[str]) -> None:
    machine = constraint(RolloutSettings(**options))
    assert [accepts(machine, text) for text in yes + no] == [True] * len(yes) + [False] * len(no)


@pytest.mark.parametrize(
    "options",
    [
        {"regex": "(ab|cd)e?", "banned": "b"},
        {"regex": "[0-9]{3}", "required": "42"},
        {"regex": "(é|日)*", "banned": "日", "required": "éé"},
        {"regex": ".{2,3}", "required": ["ba", "ab"]},
        {"regex": "[^x]{2}|x日", "banned": ["a", "b"], "required": "日"},
    ],
)
def test_conditions_together_lead_to_no_dead_end(options: dict[str, Any]) -> None:
    """What is begun can be finished, in the middle of a character too: every text of up to three letters, byte by byte."""
    texts = ["".join(letters) for n in range(4) for letters in product("abcde42é日x", repeat=n)]
    required, banned = ([found] if isinstance(found := options.get(name, []), str) else found for name in ("required", "banned"))
    right = [
        text
        for text in texts
        if re.fullmatch(options["regex"], text) and all(r in text for r in required) and not any(b in text for b in banned)
    ]
    machine: Any = constraint(RolloutSettings(**options))
    assert [text for text in texts if accepts(machine, text)] == right
    assert right
    begun = {text.encode()[:n] for text in right for n in range(1, len(text.encode()) + 1)}
    for start in {text.encode()[:n] for text in texts for n in range(1, len(text.encode()) + 1)}:
        state = machine.start
        for byte in start:
            state = machine.step(state, byte) if state is not None else None
        assert (state is not None) == (start in begun), start


@pytest.mark.parametrize(
    "options", [{"regex": "[a-z]+", "required": "42"}, {"regex": "a|ab", "banned": "a"}, {"regex": "é", "banned": "x", "required": "éé"}]
)
def test_conditions_that_exclude_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"rollout\.regex: .*exclude each other"):
        constraint(RolloutSettings(**options))


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.constrain.machines.SEARCHED", 10)
    machine = constraint(RolloutSettings(regex="[a-z]{500}", required="zz"))
    assert accepts(machine, "a" * 498 + "zz")
    assert not accepts(machine, "a" * 500)


@pytest.mark.parametrize("options", [{"regex": "a+"}, {"required": ["a"]}])
def test_a_stop_string_could_end_an_answer_too_early(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=rf"rollout\.stop: .*before it meets rollout\.{name}"):
        constraint(RolloutSettings(stop="x", **options))
    assert constraint(RolloutSettings(stop="x", banned="y")) is not None


@pytest.mark.parametrize("options", [{"banned": ""}, {"required": ["a", ""]}, {"required": "bad", "banned": "a"}])
def test_strings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        constraint(RolloutSettings(**options))


@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_the_bytes_of_tokens_make_the_text(name: str) -> None:
    made = tokenizer(name)
    vocabulary = Vocabulary(made, len(made))
    text = "What is 12 + 30? I'm sorry."
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert b"".join(vocabulary.bytes[i] or b"" for i in ids).decode().removeprefix(" ") == text
    assert all(vocabulary.bytes[i] is None for i in made.all_special_ids)


# --- sampling


@pytest.fixture(scope="module")
def sampler() -> LocalSampler:
    """A random model over a real byte-level vocabulary."""
    made = tokenizer("chatml")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(made), max_position_embeddings=128, **shape))
    stop = made.convert_tokens_to_ids("<|im_end|>")
    decode = Renderer(made).decode
    return LocalSampler(model.eval(), (stop,), decode, lambda: Vocabulary(made, len(made)))


def ask(sampler: LocalSampler, **options: Any) -> list[Sample]:
    prompts = [np.array([5, 6, 7], np.int32), np.array([9], np.int32)]
    how = RolloutSettings(**{"samples": 8, "max_new_tokens": 30, **options})
    return [sample for row in sampler.sample(prompts, how) for sample in row]


def test_answers_match_the_expression(sampler: LocalSampler) -> None:
    pattern = r"(yes|no), because [a-z ]{3,9}\."
    found = ask(sampler, regex=pattern)
    assert all(re.fullmatch(pattern, sample.text) for sample in found if sample.finished)
    assert sum(sample.finished for sample in found) == len(found)
    assert len({sample.text for sample in found}) > 4
    assert all(np.isfinite(sample.logps).all() and (sample.logps <= 0).all() for sample in found)


def test_logps_are_those_of_the_constrained_distribution(sampler: LocalSampler) -> None:
    found = ask(sampler, regex="[ab]", samples=64)
    single = [sample for sample in found if len(sample.ids) == 2]
    assert {sample.text for sample in single} == {"a", "b"}
    first = {sample.text: float(np.exp(sample.logps[0])) for sample in single[: len(single) // 2]}
    assert sum(first.values()) == pytest.approx(1.0, abs=1e-5)
    assert all(sample.logps[1] == pytest.approx(0.0, abs=1e-6) for sample in single)  # only the stop token was left


def test_characters_of_several_tokens_are_written_whole(sampler: LocalSampler) -> None:
    assert {sample.text for sample in ask(sampler, regex="日|é|ß")} <= {"日", "é", "ß"}


def test_banned_and_required_strings(sampler: LocalSampler) -> None:
    free = ask(sampler, samples=32)
    common = max("aeiou", key=lambda letter: sum(letter in sample.text for sample in free))
    assert any(common in sample.text for sample in free)
    assert not any(common in sample.text for sample in ask(sampler, samples=32, banned=common))
    kept = ask(sampler, samples=32, required="42", regex="[0-9]+")
    assert all("42" in sample.text for sample in kept if sample.finished)


def test_answers_meet_several_constraints_at_once(sampler: LocalSampler) -> None:
    found = ask(sampler, regex="[0-9]{4}", required="42")
    assert all(sample.finished and re.fullmatch("[0-9]*42[0-9]*", sample.text) and len(sample.text) == 4 for sample in found)
    assert {sample.text for sample in ask(sampler, regex="(ab|cd|é日)", banned=["b", "日"])} == {"cd"}


@pytest.mark.parametrize("options", [{"required": "42", "max_new_tokens": 40}, {"regex": "[0-9]{3}"}, {"banned": "end"}])
def test_a_stop_token_that_is_text_too_ends_an_answer_where_it_may_end(sampler: LocalSampler, options: dict[str, Any]) -> None:
    """Some tokenizers add theirs without calling it special."""
    made = copy.deepcopy(tokenizer("chatml"))
    made.add_tokens([AddedToken("<|end|>", special=False)])
    stop = made.convert_tokens_to_ids("<|end|>")
    model = copy.deepcopy(sampler.model)
    model.resize_token_embeddings(len(made))
    found = ask(LocalSampler(model, (stop,), Renderer(made).decode, lambda: Vocabulary(made, len(made))), samples=64, **options)
    ended = [sample.text for sample in found if sample.finished]
    if "required" not in options:
        assert ended
    assert all("42" in text for text in ended if "required" in options)
    assert all(re.fullmatch("[0-9]{3}", text) for text in ended if "regex" in options)


def test_stop_strings_end_an_answer_and_are_cut(sampler: LocalSampler) -> None:
    free = ask(sampler, samples=32)
    stopped = ask(sampler, samples=32, stop=["e", "town"])
    assert any(sample.finished and sample.ids[-1] != sampler.stop_ids[0] for sample in stopped)
    for long, short in zip(free, stopped, strict=True):
        assert short.ids.tolist() == long.ids[: len(short.ids)].tolist()
        cut = min((long.text.find(stop) for stop in ("e", "town") if stop in long.text), default=len(long.text))
        assert short.text == long.text[:cut]
        assert short.finished == (cut < len(long.text) or long.finished)


def test_constraints_do_not_depend_on_the_batch(sampler: LocalSampler) -> None:
    options = {"regex": "[a-z]{1,20}", "banned": "q"}
    together, alone = ask(sampler, **options), ask(sampler, batch_size=1, **options)
    assert [sample.ids.tolist() for sample in together] == [sample.ids.tolist() for sample in alone]


def test_what_cannot_be_done_is_said(sampler: LocalSampler) -> None:
    bare = LocalSampler(sampler.model, (), sampler.decode)
    with pytest.raises(ModelError, match="need a tokenizer"):
        ask(bare, stop="x")
    endless = LocalSampler(sampler.model, (), sampler.decode, sampler.vocabulary)
    with pytest.raises(ModelError, match="no token can go on"):
        ask(endless, regex="ab")


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_sampled(
    sampler: LocalSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here into what a container's limit leaves."""
    for name, value in {"max": "300000", "current": "200000", "stat": "inactive_file 0"}.items():
        (tmp_path / f"memory.{name}").write_text(value)
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert len(ask(sampler, samples=4, batch_size=4)) == 8
    with pytest.raises(ModelError, match=r"64 sequences of up to 33 tokens need .* GB.*\n.*rollout\.batch_size"):
        ask(sampler, samples=64, batch_size=64)


# --- top_k and min_p


def drawn(logits: list[float], **options: Any) -> dict[int, float]:
    """Tokens that can be drawn and their probabilities, from many even draws."""
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ids, logps = draw(torch.tensor(logits).expand(len(uniform), -1), uniform, RolloutSettings(**options))
    for token in ids.unique():
        share = float((ids == token).double().mean())
        assert float(logps[ids == token][0].exp()) == pytest.approx(share, abs=1e-3)
    return {int(token): round(float((ids == token).double().mean()), 3) for token in ids.unique()}


def test_top_k_and_min_p_keep_what_they_say() -> None:
    logits = np.log([0.4, 0.05, 0.3, 0.05, 0.2]).tolist()
    assert drawn(logits, top_k=2) == {0: 0.571, 2: 0.429}
    assert drawn(logits, min_p=0.6) == {0: 0.571, 2: 0.429}
    assert drawn(logits, min_p=0.49) == {0: 0.444, 2: 0.333, 4: 0.222}
    assert drawn(logits, top_k=3, top_p=0.4) == {0: 1.0}  # top_p is of what top_k left: 0.444 reaches it
    assert drawn(logits, top_p=0.41) == {0: 0.571, 2: 0.429}
    assert drawn(logits, top_k=99) == {0: 0.4, 1: 0.05, 2: 0.3, 3: 0.05, 4: 0.2}


def test_an_empty_prompt_is_still_an_error(sampler: LocalSampler) -> None:
    with pytest.raises(DataError, match="prompt 1 is empty"):
        sampler.sample([np.zeros(0, np.int32)], RolloutSettings(regex="a"))
