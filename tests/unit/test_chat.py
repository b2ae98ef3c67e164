"""Rendering: four properties on real template shapes, then what each kind of row becomes and what is refused."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefopt.errors import DataError, TemplateError
from prefopt.text.chat import Renderer
from prefopt.text.template import BUILT_IN
from prefopt.types import Completion, Example, Message, TokenTree
from tests.chat_shapes import SHAPES, WITH_TEMPLATE, tokenizer

WORDS = ["town", "Hi!", "42", "é🙂", "line\n\nbreak", "a  gap", "user", "assistant\n", "[x]", "\ttab", "12 + 30 =", "I'm", "…"]
RENDERERS = {name: Renderer(tokenizer(name)) for name in WITH_TEMPLATE}
CASES = [*RENDERERS.items(), *((f"built-in {name}", Renderer(tokenizer(name if name in SHAPES else "chatml"), name)) for name in BUILT_IN)]
every_template = pytest.mark.parametrize("renderer", [r for _, r in CASES], ids=[name for name, _ in CASES])


def conversation(seed: int, exchanges: int = 3) -> tuple[Message, ...]:
    """Random contents without the outer spaces that some templates trim."""
    rng = random.Random(seed)
    roles = ("user", "assistant") * rng.randint(1, exchanges)
    return tuple(Message(role, " ".join(rng.choices(WORDS, k=rng.randint(1, 6))).strip()) for role in roles)


def own_ids(renderer: Renderer, messages: tuple[Message, ...], generation: bool = False) -> list[int]:
    """What the tokenizer itself makes of the conversation."""
    dicts = [message.to_dict() for message in messages]
    return renderer.tokenizer.apply_chat_template(
        dicts, chat_template=renderer.template, add_generation_prompt=generation, return_dict=False
    )


def row(messages: tuple[Message, ...], prompt: int) -> Example:
    """The first `prompt` messages as the prompt, the others as its one completion."""
    return Example(prompt=messages[:prompt], completions=(Completion(content=messages[prompt:]),), where="rows.jsonl:7")


def ids_of(tree: TokenTree, branch: int = 0) -> list[int]:
    return [*tree.prompt.tolist(), *tree.branches[branch].ids.tolist()]


def spans(tree: TokenTree) -> list[tuple[int, int]]:
    """Begin and end of each run of scored tokens in the whole sequence."""
    mask = np.concatenate([np.zeros(len(tree.prompt) + 1, int), tree.branches[0].scored, [0]])
    turns = np.flatnonzero(np.diff(mask)).tolist()
    return list(zip(turns[::2], turns[1::2], strict=True))


# --- the four properties


@every_template
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_models_own_rendering(renderer: Renderer, seed: int) -> None:
    messages = conversation(seed)
    own = own_ids(renderer, messages)
    for prompt in (0, len(messages) - 1):
        ids = ids_of(renderer.tree(row(messages, prompt)))
        assert own[: len(ids)] == ids
        assert renderer.tokenizer.decode(own[len(ids) :]).strip() == ""


@every_template
@pytest.mark.parametrize("seed", range(12))
def test_the_supervised_prefix_is_the_generation_prompt(renderer: Renderer, seed: int) -> None:
    messages = conversation(seed)
    tree = renderer.tree(row(messages, len(messages) - 1))
    assert tree.prompt.tolist() == renderer.prompt_ids(messages[:-1]).tolist() == own_ids(renderer, messages[:-1], generation=True)
    whole = renderer.tree(row(messages, 0))
    for turn, (begin, _) in enumerate(spans(whole)):
        assert ids_of(whole)[:begin] == renderer.prompt_ids(messages[: 2 * turn + 1]).tolist()


@every_template
@pytest.mark.parametrize("seed", range(12))
def test_parse_gives_back_the_messages(renderer: Renderer, seed: int) -> None:
    messages = conversation(seed)
    own = renderer.tokenizer.apply_chat_template([m.to_dict() for m in messages], chat_template=renderer.template, tokenize=False)
    assert renderer.parse(own) == messages


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<>[]|"), min_size=1), min_size=2, max_size=4
    )
)
def test_parse_gives_back_any_text(name: str, contents: list[str]) -> None:
    contents = [text.strip() or "x" for text in contents[: len(contents) // 2 * 2]]
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))
    renderer = RENDERERS[name]
    own = renderer.tokenizer.apply_chat_template([m.to_dict() for m in messages], tokenize=False)
    assert renderer.parse(own) == messages
    answered = renderer.tree(row(messages, len(messages) - 1)).branches[0]
    assert renderer.answer(answered.ids[:-1]).strip() == contents[-1]


@every_template
@pytest.mark.parametrize("seed", range(12))
def test_history_only_extends(renderer: Renderer, seed: int) -> None:
    messages = conversation(seed, exchanges=4)
    whole = ids_of(renderer.tree(row(messages, 0)))
    for end in range(2, len(messages) + 1, 2):
        part = ids_of(renderer.tree(row(messages[:end], 0)))
        assert whole[: len(part)] == part


def test_a_system_prompt_and_the_templates_own() -> None:
    renderer = RENDERERS["chatml"]
    messages = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))
    own = renderer.tokenizer.apply_chat_template([m.to_dict() for m in messages], tokenize=False)
    assert renderer.parse(own) == messages
    assert "Be brief." in renderer.decode(renderer.tree(row(messages, 2)).prompt)
    assert "You are a helpful assistant." in renderer.decode(renderer.tree(row(messages[1:], 1)).prompt)


# --- what is scored


STOP = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}


@pytest.mark.parametrize("name", STOP)
def test_every_assistant_turn_is_scored_with_its_stop_token_and_nothing_else(name: str) -> None:
    renderer = RENDERERS[name]
    messages = conversation(5, exchanges=6)
    tree = renderer.tree(row(messages, 0))
    answers = [message.content for message in messages if message.role == "assistant"]
    found = [ids_of(tree)[begin:end] for begin, end in spans(tree)]
    assert [renderer.answer(ids) for ids in found] == answers
    stop = renderer.tokenizer.convert_tokens_to_ids(STOP[name])
    assert {ids[-1] for ids in found} == {stop} == {renderer.stop_ids[0]}
    assert ids_of(tree)[-1] == stop
    assert len(tree.prompt) == 0


def test_stop_ids_name_the_turn_end_and_eos() -> None:
    assert {name: renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids)) for name, renderer in RENDERERS.items()} == {
        "chatml": ["<|im_end|>"],
        "llama3": ["<|eot_id|>", "<|end_of_text|>"],
        "gemma": ["<end_of_turn>", "<eos>"],
        "mistral": ["</s>"],
    }


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_completions_share_the_prompt_and_keep_their_columns(name: str) -> None:
    prompt = conversation(1, exchanges=1)[:1]
    best, worst = (
        Completion(content="Yes, of course.", rank=0, score=1.5),
        Completion(content=(Message("assistant", "No."),), rank=1, label=False),
    )
    tree = RENDERERS[name].tree(Example(prompt=prompt, completions=(best, worst), margin=2.0, where="w", group="g"), 9)
    assert tree.prompt.tolist() == RENDERERS[name].prompt_ids(prompt).tolist()
    assert (tree.index, tree.margin, tree.where, tree.group) == (9, 2.0, "w", "g")
    assert [(b.rank, b.score, b.label) for b in tree.branches] == [(0, 1.5, None), (1, None, False)]
    assert [RENDERERS[name].answer(b.ids) for b in tree.branches] == ["Yes, of course.", "No."]
    assert all(b.scored.all() for b in tree.branches)


@pytest.mark.parametrize("name", ["mistral", "gemma", "base"])
@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("The capital of the town is", " the old market"),
        ("def f(x):\n", "    return x\n"),
        ("The", "  town"),
        ("12", "42"),
        ("", "the town"),
    ],
)
def test_the_text_of_tokens_is_what_follows_the_prompt(name: str, prompt: str, rest: str) -> None:
    renderer = Renderer(tokenizer(name))
    tree = renderer.tree(Example(prompt=prompt, completions=(Completion(content=rest, ended=False),)))
    assert renderer.decode(tree.branches[0].ids, tree.prompt) == rest


@pytest.mark.parametrize("name", ["chatml", "mistral"])  # the others trim answers
def test_an_answer_keeps_the_spaces_it_begins_with(name: str) -> None:
    tree = RENDERERS[name].tree(row((Message("user", "Hi"), Message("assistant", "  two spaces")), 1))
    assert RENDERERS[name].answer(tree.branches[0].ids, tree.prompt) == "  two spaces"


def test_tokens_never_span_the_border_of_prompt_and_answer() -> None:
    renderer = RENDERERS["chatml"]
    for content in ("\n\nHello", "  Hello", "assistant"):
        tree = renderer.tree(Example(prompt=(Message("user", "Hi"),), completions=(Completion(content=content),)))
        assert tree.prompt.tolist() == renderer.prompt_ids((Message("user", "Hi"),)).tolist()
        assert renderer.decode(tree.branches[0].ids) == content
    base = Renderer(tokenizer("base"))
    joined = base.tokenizer("the capi" + "tal")["input_ids"]
    tree = base.tree(Example(prompt="the capi", completions=(Completion(content="tal"),)))
    assert ids_of(tree) != [*joined, base.stop_ids[0]]
    assert tree.prompt.tolist() == base.tokenizer("the capi")["input_ids"]


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_bos_is_never_doubled(name: str) -> None:
    renderer, bos = RENDERERS[name], RENDERERS[name].tokenizer.bos_token_id
    rows = [row(conversation(2), 0), row(conversation(2), 1), Example(prompt="Hi", completions=(Completion(content="there"),))]
    rows.append(Example(prompt=renderer.tokenizer.bos_token + "Hi", completions=(Completion(content="there"),)))
    for tree in renderer.trees(rows):
        assert ids_of(tree).count(bos) == 1
        assert ids_of(tree)[0] == bos


@pytest.mark.parametrize("name", SHAPES)
def test_strings_are_bos_prompt_and_completion_eos(name: str) -> None:
    renderer = Renderer(tokenizer(name))
    tree = renderer.tree(Example(prompt="Question: the town?\nAnswer:", completions=(Completion(content=" the old market"),)))
    own = tokenizer(name)("Question: the town?\nAnswer: the old market")["input_ids"]
    assert ids_of(tree) == [*own, renderer.tokenizer.eos_token_id]
    assert tree.branches[0].scored.all()
    assert tree.prompt.tolist() == renderer.prompt_ids("Question: the town?\nAnswer:").tolist()
    eos = renderer.tokenizer.eos_token
    assert ids_of(renderer.tree(Example(prompt="", completions=(Completion(content="Hi" + eos),)))).count(renderer.stop_ids[-1]) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_text_is_scored_from_its_first_predictable_token_to_eos(name: str) -> None:
    renderer = Renderer(tokenizer(name))
    (branch,) = (tree := renderer.tree(Example(prompt="", completions=(Completion(content="the old market"),)))).branches
    assert ids_of(tree) == [*tokenizer(name)("the old market")["input_ids"], renderer.tokenizer.eos_token_id]
    assert branch.scored.tolist() == [len(tree.prompt) > 0] + [True] * (len(branch.ids) - 1)


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_steps_end_where_their_text_ends(name: str) -> None:
    steps = ("12 + 30 = 42.", "So the answer is 42.", "Thank you!")
    completion = Completion(content="\n\n".join(steps), steps=steps, step_labels=(1.0, None, 0.0))
    renderer = RENDERERS[name]
    (branch,) = renderer.tree(Example(prompt=(Message("user", "12 + 30?"),), completions=(completion,))).branches
    assert branch.step_labels == (1.0, 0.0)
    texts = [renderer.answer(branch.ids[: end + 1]) for end in branch.step_ends]
    assert texts == [steps[0], "\n\n".join(steps)]
    assert branch.scored.all()
    assert renderer.answer(branch.ids) == completion.content
    wrong = replace(completion, steps=("not there", *steps[1:]))
    assert "'not there'" in refused(renderer, Example(prompt=TALK[:1], completions=(wrong,), where="rows.jsonl:7"))


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@pytest.mark.parametrize("content", ["Step 1\nStep 2\n", " Step 1\nStep 2", "\n Step 1\n Step 2 \n\n", "Step 1\nStep 2\nStep 1\nStep 2\n"])
def test_steps_are_found_where_a_template_trims_the_answer(name: str, content: str) -> None:
    """Llama 3 and Gemma trim it; a step ends with its line break where one is left."""
    steps = tuple(line for line in content.splitlines(keepends=True) if line.strip())
    completion = Completion(content=content, steps=steps, step_labels=(1.0,) * len(steps))
    renderer = RENDERERS[name]
    (branch,) = renderer.tree(Example(prompt=TALK[:1], completions=(completion,))).branches
    texts = [renderer.answer(branch.ids[: end + 1]) for end in branch.step_ends]
    assert len(texts) == len(steps)
    for text, step in zip(texts[:-1], steps[:-1], strict=True):
        assert text.endswith(step.lstrip())
    assert texts[-1].endswith("Step 2" if name in ("llama3", "gemma") else steps[-1].lstrip())
    assert renderer.answer(branch.ids).strip() == content.strip()


def test_tools_and_what_messages_carry_reach_the_template() -> None:
    renderer = RENDERERS["chatml"]
    call = Message("assistant", "", {"tool_calls": [{"name": "weather", "arguments": {"town": "Alm"}}]})
    messages = (Message("user", "Rain?"), call, Message("tool", "no"), Message("assistant", "It is dry."))
    example = replace(row(messages, 1), tools=({"type": "function", "function": {"name": "weather"}},))
    tree = renderer.tree(example)
    scored = [renderer.tokenizer.decode(ids_of(tree)[begin:end]) for begin, end in spans(tree)]
    assert [text.startswith("<tool_call>") and '"town": "Alm"' in text for text in scored] == [True, False]
    assert scored[1] == "It is dry.<|im_end|>"
    assert '"function"' in renderer.decode(tree.prompt)
    assert tree.prompt.tolist() == renderer.prompt_ids(messages[:1], example.tools).tolist()


def test_arguments_given_as_json_are_written_once() -> None:
    renderer = RENDERERS["chatml"]

    def shown(arguments: object) -> str:
        call = Message("assistant", "", {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]})
        return renderer.decode(ids_of(renderer.tree(row((Message("user", "Rain?"), call), 1))))

    assert shown('{"town": "Alm"}') == shown({"town": "Alm"})
    assert '"Alm, and' in shown("Alm, and"), "what is no JSON of an object stays"


@pytest.mark.parametrize("named", ["call.function.arguments", "call['function']['arguments']"])
def test_a_template_that_takes_arguments_as_json_is_given_them_as_they_are(named: str) -> None:
    """As Qwen3 and Gemma 4 do: JSON is written as the row spells it, an object by tojson."""
    written = f"({named} if {named} is string else {named} | tojson)"
    renderer = Renderer(tokenizer("chatml"), (SHAPES["chatml"] or "").replace("(call | tojson)", written))

    def shown(arguments: object) -> tuple[list[int], list[int]]:
        call = Message("assistant", "", {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]})
        messages = (Message("user", "Rain?"), call)
        return ids_of(renderer.tree(row(messages, 1))), own_ids(renderer, messages)

    for arguments in ('{"town":"Alm"}', {"town": "Alm"}, "Alm, and"):
        ours, theirs = shown(arguments)
        assert renderer.decode(ours) == renderer.decode(theirs).removesuffix("\n")


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_pieces_are_the_text_with_its_scored_part(name: str) -> None:
    renderer = RENDERERS[name]
    messages = (Message("user", "a é🙂 b"), Message("assistant", "🙂 old  market\n"), Message("user", "."), Message("assistant", "Hi"))
    tree = renderer.tree(row(messages, 3))
    (pieces,) = renderer.pieces(tree)
    own = renderer.tokenizer.apply_chat_template([m.to_dict() for m in messages], tokenize=False)
    assert "".join(text for text, _ in pieces).strip() == renderer.tokenizer.decode(ids_of(tree)).strip()
    assert own.strip().endswith("".join(text for text, scored in pieces if scored).strip())
    assert [scored for _, scored in pieces] == [False] * len(tree.prompt) + tree.branches[0].scored.tolist()
    assert any("🙂" in text for text, _ in pieces)


def test_many_rows_are_the_same_as_one_by_one() -> None:
    renderer = RENDERERS["mistral"]
    rows = [row(conversation(seed), (seed % 2) * 1) for seed in range(600)]
    for index, (many, one) in enumerate(zip(renderer.trees(iter(rows), 100), map(renderer.tree, rows), strict=True)):
        assert many.index == index + 100
        assert ids_of(many) == ids_of(one)


def test_the_tokenizers_padding_and_truncation_do_not_leak() -> None:
    renderer = Renderer(tokenizer("chatml"))
    example = row(conversation(3), 1)
    before, identity = ids_of(renderer.tree(example)), renderer.identity()
    renderer.tokenizer(["a", "b c d e f g"], padding=True, truncation=True, max_length=3)
    assert ids_of(renderer.tree(example)) == before
    renderer.tokenizer(["a", "b c d e f g"], padding=True, truncation=True, max_length=3)
    assert renderer.identity() == identity


def test_identity_names_template_and_vocabulary() -> None:
    renderers = [
        Renderer(tokenizer("chatml")),
        Renderer(tokenizer("chatml"), "plain"),
        Renderer(tokenizer("llama3")),
        Renderer(tokenizer("base")),
    ]
    assert len({renderer.identity() for renderer in renderers}) == len(renderers)
    assert Renderer(tokenizer("chatml")).identity() == renderers[0].identity()


def test_a_saved_tokenizer_renders_the_same(tmp_path: Path) -> None:
    renderer = Renderer(tokenizer("base"), "plain")
    renderer.save(tmp_path)
    again = Renderer(AutoTokenizer.from_pretrained(tmp_path))
    assert again.template == renderer.template
    assert ids_of(again.tree(row(conversation(4), 1))) == ids_of(renderer.tree(row(conversation(4), 1)))


def test_a_template_that_prints_the_date_gives_the_same_tokens_tomorrow(tmp_path: Path) -> None:
    own = RENDERERS["chatml"].template
    today = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today is {{ day }}."
    renderer = Renderer(tokenizer("chatml"), today + own)
    assert "Today is 26 Jul 2024." in renderer.decode(renderer.prompt_ids((Message("user", "Hi"),)))
    renderer.save(tmp_path)
    assert "strftime_now('%d %b %Y')" in (tmp_path / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("{{ strftime_now ('%m') }}", "07"),
        ("{{ strftime_now(format='%-d. %B %Y') }}", "26. July 2024"),
        ("{% set form = '%d' %}{{ strftime_now(form) }} {{ strftime_now(\n'%Y') }}", "26 2024"),
        ("{% set now = strftime_now %}{{ now('%a %d%%d %H:%M') }}", "Fri 26%d 00:00"),
        ("{% for _ in [1] %}{% if strftime_now is defined %}{{ strftime_now('%Y') | int + 1 }}{% endif %}{% endfor %}", "2025"),
        ("\n  {% if true %}\n  {{ strftime_now('day') }}\n  {% endif %}\n", "\n  day\n"),
    ],
)
def test_however_a_template_asks_for_the_date_it_is_told_the_same(asked: str, told: str) -> None:
    messages = (Message("user", "Hi"),)
    renderer = Renderer(tokenizer("chatml"), asked + "|" + RENDERERS["chatml"].template)
    assert renderer.decode(renderer.prompt_ids(messages)) == told + "|" + RENDERERS["chatml"].decode(
        RENDERERS["chatml"].prompt_ids(messages)
    )


def test_what_is_wrong_with_a_template_that_asks_for_the_date_is_said_of_its_own_lines() -> None:
    for wrong, said in (
        ("\n{% if %}{{ strftime_now('%d') }}", "from its line 2 on"),
        ("{{ strftime_now('%Q') }}", "date format %Q is unknown"),
    ):
        with pytest.raises(TemplateError, match=said):
            Renderer(tokenizer("chatml"), wrong).prompt_ids((Message("user", "Hi"),))


def test_a_template_file_and_its_source(tmp_path: Path) -> None:
    source = SHAPES["chatml"] or ""
    (tmp_path / "own.jinja").write_text(source)
    assert Renderer(tokenizer("chatml"), str(tmp_path / "own.jinja")).template == Renderer(tokenizer("base"), source).template == source


# --- templates that end a turn in other ways


def test_eos_is_added_where_the_template_writes_no_stop_token() -> None:
    alpaca = "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    alpaca += "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    renderer = Renderer(tokenizer("base"), alpaca)
    messages = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"), Message("assistant", "See you"))
    (branch,) = renderer.tree(row(messages, 3)).branches
    assert renderer.tokenizer.decode(branch.ids) == "See you<|endoftext|>"
    assert renderer.stop_ids == (renderer.tokenizer.eos_token_id,)
    with pytest.raises(TemplateError, match=r"rows.jsonl:7: .* without a stop token"):
        renderer.tree(row(messages, 0))


PHI = (  # as Phi-3: the token that ends every turn, and at the very end eos
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] + '<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def test_the_token_that_ends_every_turn_is_the_stop_though_eos_ends_the_conversation() -> None:
    renderer = Renderer(tokenizer("llama3"), PHI)
    assert renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids)) == ["<|eot_id|>", "<|end_of_text|>"]
    (branch,) = renderer.tree(row(TALK, 3)).branches
    assert renderer.tokenizer.decode(branch.ids) == "See you<|eot_id|>"
    tree = renderer.tree(row(TALK, 0))
    assert [renderer.tokenizer.decode(ids_of(tree)[begin:end]) for begin, end in spans(tree)] == ["Hello<|eot_id|>", "See you<|eot_id|>"]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_of_a_conversation_that_an_answer_opens_the_answers_alone_are_scored(name: str) -> None:
    """Not the template's default system message, nor the assistant's name."""
    renderer, stop = RENDERERS[name], STOP[name]
    messages = TALK[1:]
    tree = renderer.tree(row(messages, 0))
    assert ids_of(tree) == own_ids(renderer, messages)[: len(ids_of(tree))]
    assert [renderer.tokenizer.decode(ids_of(tree)[begin:end]) for begin, end in spans(tree)] == [f"Hello{stop}", f"See you{stop}"]


# --- what is refused


def refused(renderer: Renderer, example: Example) -> str:
    with pytest.raises((TemplateError, DataError)) as caught:
        renderer.tree(example)
    assert caught.value.where == "rows.jsonl:7"
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


TALK = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"), Message("assistant", "See you"))


def test_no_template_names_three_ways_out() -> None:
    said = refused(Renderer(tokenizer("base")), row(TALK, 1))
    assert all(way in said for way in ("no chat template", "model.chat_template=NAME or FILE", "plain strings", "another model"))


def test_templates_that_rewrite_history_are_refused() -> None:
    strips = (  # as reasoning models: only the last answer keeps its thoughts
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = Renderer(tokenizer("chatml"), strips)
    assert "rewrites message 2" in refused(renderer, row(TALK, 0))
    (branch,) = renderer.tree(row(TALK, 3)).branches  # one answer after its prompt is as sampled
    assert renderer.tokenizer.decode(branch.ids) == "<think></think>See you<|im_end|>"
    assert renderer.answer(branch.ids) == "See you"


def test_a_prompt_that_changes_once_it_is_answered_is_refused() -> None:
    moved = (  # as Mistral v0.3: the system message stands before the last user message, if that is the last message
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    renderer = Renderer(tokenizer("mistral"), moved)
    assert "prompt differently" in refused(renderer, row((Message("system", "Be brief"), *TALK[:2]), 2))
    assert renderer.tree(row(TALK[:2], 1)).branches[0].scored.all()


def test_a_completion_that_begins_with_a_question_is_cut_where_the_prompt_ends_or_refused() -> None:
    """A template that writes eos after a prompt that ends with an answer writes no beginning of the conversation."""
    assert "prompt differently" in refused(Renderer(tokenizer("llama3"), PHI), row(TALK, 2))
    assert RENDERERS["llama3"].tree(row(TALK, 2)).branches


def test_what_a_template_forbids_is_told_in_its_words() -> None:
    said = refused(RENDERERS["gemma"], row((Message("system", "Be brief"), *TALK), 2))
    assert "System role not supported" in said
    assert "alternate" in refused(RENDERERS["mistral"], row((TALK[0], *TALK), 1))


def test_a_template_that_is_no_jinja_is_named_with_its_line() -> None:
    broken = Renderer(tokenizer("chatml"), "{% for m in messages %}\n{{ m['content'] }\n{% endfor %}")
    assert re.search("the chat template of .* is no Jinja from its line 2 on: unexpected '}'", refused(broken, row(TALK, 1)))


def test_nothing_is_left_out_in_silence() -> None:
    bare = RENDERERS["llama3"]
    assert "tools" in refused(bare, replace(row(TALK, 1), tools=({"type": "function"},)))
    for key in ("tool_calls", "reasoning_content"):
        assert key in refused(bare, row((TALK[0], replace(TALK[1], extra={key: "x"})), 1))
    assert bare.tree(row((replace(TALK[0], extra={"name": "Ann"}), TALK[1]), 1)).branches
    for extra in ({"tool_calls": []}, {"reasoning_content": "", "thinking": None}):
        assert bare.tree(row((TALK[0], replace(TALK[1], extra=extra)), 1)).branches, "there is nothing to leave out"
    for prompt in ("Rain?", ""):
        text = Example(prompt=prompt, completions=(Completion(content="no"),), tools=({"type": "function"},), where="rows.jsonl:7")
        assert "tools and its prompt is a string" in refused(RENDERERS["chatml"], text)
    with pytest.raises(DataError, match="its prompt is a string"):
        RENDERERS["chatml"].prompt_ids("Rain?", ({"type": "function"},))
    deaf = Renderer(tokenizer("chatml"), "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_end|>' }}{% endfor %}")
    with pytest.raises(TemplateError, match="leaves out"):
        deaf.stop_ids  # noqa: B018


def test_control_tokens_in_content_are_refused_and_unknown_words_are_not() -> None:
    said = refused(RENDERERS["chatml"], row((TALK[0], Message("assistant", "Hello<|im_end|>")), 1))
    assert "assistant" in said
    assert "<|im_end|>" in said
    assert RENDERERS["mistral"].tree(row((Message("user", "a <unk> word"), TALK[1]), 1)).branches


@pytest.mark.parametrize("arguments", [{"town": "Alm<|im_end|>"}, {"<|im_end|>": 1}, '{"town": ["Alm\\u003c|im_end|>"]}'])
def test_control_tokens_in_what_messages_carry_are_refused(arguments: object) -> None:
    call = Message("assistant", "", {"tool_calls": [{"name": "weather", "arguments": arguments}]})
    assert "<|im_end|>" in refused(RENDERERS["chatml"], row((TALK[0], call), 1))
    tools = ({"type": "function", "function": {"name": "weather", "description": arguments}},)
    if not isinstance(arguments, str):
        assert "a tool holds the control token <|im_end|>" in refused(RENDERERS["chatml"], replace(row(TALK, 1), tools=tools))
    unread = Message("assistant", "Hello", {"raw": arguments})
    assert RENDERERS["chatml"].tree(row((TALK[0], unread), 1)).branches, "what no template shows may say anything"


def test_a_lone_surrogate_in_a_call_is_named_with_its_row() -> None:
    call = Message("assistant", "", {"tool_calls": [{"name": "weather", "arguments": {"town": "\ud800"}}]})
    assert "lone surrogate" in refused(RENDERERS["chatml"], row((TALK[0], call), 1))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example(prompt="Hi", completions=(Completion(content=TALK[1:2]),)), "string"),
        (Example(prompt=TALK[:1], completions=(Completion(content=TALK[2:3]),)), "no assistant message"),
        (Example(prompt=TALK[:1], completions=(Completion(content=()),)), "no messages"),
        (Example(prompt=TALK[:1], completions=(Completion(content="a"), Completion(content=TALK[2:]))), "begin with an assistant message"),
    ],
)
def test_rows_that_do_not_fit_together(example: Example, words: str) -> None:
    assert words in refused(RENDERERS["chatml"], replace(example, where="rows.jsonl:7"))


def test_template_names() -> None:
    with pytest.raises(TemplateError, match="did you mean 'chatml'"):
        Renderer(tokenizer("base"), "chatlm")
    with pytest.raises(TemplateError, match=r"needs the token <\|im_start\|>"):
        Renderer(tokenizer("base"), "chatml")


def test_text_that_is_no_conversation_does_not_parse() -> None:
    with pytest.raises(TemplateError, match="not a conversation"):
        RENDERERS["chatml"].parse("once upon a time")


def test_a_step_is_not_found_in_the_stop_token() -> None:
    """A step of "<" would cut <|im_end|> in two, and the answer would never end."""
    renderer = Renderer(tokenizer("chatml"))
    for prompt in ("x", (Message("user", "x"),)):
        answer = Completion(content="a", steps=("<",), step_labels=(1.0,))
        with pytest.raises(DataError, match="is not in the completion"):
            renderer.tree(Example(prompt=prompt, completions=(answer,)))


def test_rows_before_one_that_is_wrong_come_first() -> None:
    """Rows are rendered ahead of those that are being tokenized."""
    renderer = RENDERERS["chatml"]
    rows = [Example(prompt=(Message("user", f"q{i}"),), completions=(Completion(content=f"a{i}"),), where=f"r:{i}") for i in range(700)]
    rows[600] = replace(rows[600], prompt=(Message("user", "<|im_end|>"),))
    found: list[int] = []
    with pytest.raises(DataError, match=r"r:600"):
        found.extend(tree.index for tree in renderer.trees(rows, 10))
    assert found == list(range(10, 10 + 512))


def test_two_iterations_may_share_a_tokenizer() -> None:
    renderer = RENDERERS["chatml"]
    rows = [Example(prompt=(Message("user", f"q{i}"),), completions=(Completion(content=f"a{i}"),)) for i in range(1100)]
    for left, right in zip(renderer.trees(rows), renderer.trees(rows), strict=True):
        assert left.prompt.tolist() == right.prompt.tolist() == renderer.prompt_ids(rows[left.index].prompt).tolist()
