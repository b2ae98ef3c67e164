"""Whatever is said, by whom and through which template: a tree whose ids and mask can be trusted, or a PrefoptError."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefopt.text.chat import Renderer
from prefopt.text.template import BUILT_IN
from prefopt.types import Completion, Example, Message, TokenTree
from tests.chat_shapes import SHAPES, WITH_TEMPLATE, tokenizer
from tests.fuzz.effort import FUZZ, short_errors

OWN = [(name, None) for name in WITH_TEMPLATE]
CHOSEN = [(name if name in SHAPES else "chatml", name) for name in BUILT_IN]


@cache
def renderer(name: str, template: str | None) -> Renderer:
    return Renderer(tokenizer(name), template)


CONTENT = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        " x ",
        "\n\nx\n",
        "<|im_end|>",
        "</s>",
        "[/INST]",
        "<end_of_turn>\n",
        "user",
        "assistant\n",
        "é🙂",
        "a  b",
        "\ud800",
        "\x00",
    ]
)
ROLES = st.sampled_from(["user", "assistant"] * 4 + ["system", "tool", "", "Human"])
EXTRA = st.just({}) | st.sampled_from(
    [{"name": "x"}, {"tool_calls": [{"name": "f", "arguments": {}}]}, {"thinking": "hm"}, {"content": "y"}]
)


@st.composite
def messages(draw: Any, at_least: int = 0) -> tuple[Message, ...]:
    """Turns in any order, mostly one after the other."""
    count = draw(st.integers(at_least, 5))
    alternating, first = draw(st.booleans()), draw(st.integers(0, 1))
    roles = [("user", "assistant")[(i + first) % 2] if alternating else draw(ROLES) for i in range(count)]
    return tuple(Message(role, draw(CONTENT), draw(EXTRA)) for role in roles)


@st.composite
def examples(draw: Any) -> Example:
    """A prompt and up to three completions, strings or messages or a mixture, with or without steps."""

    def completion(chat: bool) -> Completion:
        content = draw(messages(1) if chat else CONTENT)
        steps = draw(st.lists(CONTENT, max_size=2)) if draw(st.integers(0, 4)) == 0 else []
        return Completion(content=content, rank=draw(st.none() | st.integers(0, 3)), steps=tuple(steps), step_labels=(1.0,) * len(steps))

    chat = draw(st.booleans())
    mixed = draw(st.integers(0, 9)) == 0
    found = [completion(chat != (mixed and k == 1)) for k in range(draw(st.integers(0, 3)))]
    tools = ({"name": "f"},) if draw(st.integers(0, 9)) == 0 else ()
    return Example(prompt=draw(messages() if chat else CONTENT), completions=tuple(found), tools=tools, where="rows.jsonl:7")


def runs(mask: list[bool]) -> int:
    """How many stretches of True."""
    return sum(now and not before for before, now in zip([False, *mask], mask, strict=False))


def turns(completion: Completion) -> int:
    """Answers a completion holds."""
    return 1 if isinstance(completion.content, str) else sum(message.role == "assistant" for message in completion.content)


def trusted(tree: TokenTree, example: Example, found: Renderer) -> None:
    """Ids of the vocabulary; one stretch of scored tokens an answer, each ending with a stop token; steps inside."""
    size = len(found.tokenizer)
    assert len(tree.branches) == len(example.completions)
    assert all(0 <= i < size for i in tree.prompt.tolist())
    for branch, completion in zip(tree.branches, example.completions, strict=True):
        assert len(branch.ids) == len(branch.scored) > 0
        assert all(0 <= i < size for i in branch.ids.tolist())
        unpredicted = 0 if len(tree.prompt) else 1
        assert all(0 <= end < len(branch.ids) and (branch.scored[end] or end < unpredicted) for end in branch.step_ends)
        lost = not len(tree.prompt) and len(branch.ids) == 1  # a first token that nothing predicts
        assert lost or branch.scored[-1]
        assert lost or runs(branch.scored.tolist()) <= turns(completion)
        assert branch.rank == completion.rank
    pieces = found.pieces(tree)
    assert [len(texts) for texts in pieces] == [len(tree.prompt) + len(branch.ids) for branch in tree.branches]


@FUZZ
@given(st.sampled_from(OWN + CHOSEN), examples())
def test_any_conversation_through_any_known_template(shape: tuple[str, str | None], example: Example) -> None:
    found = renderer(*shape)
    with short_errors():
        tree = found.tree(example)
        trusted(tree, example, found)
        for branch in tree.branches if not isinstance(example.prompt, str) else ():
            assert int(branch.ids[-1]) in found.stop_ids or found.tokens.control
        assert tree.prompt.tolist() == _prompt(example, found)


def _prompt(example: Example, found: Renderer) -> list[int]:
    """The prompt as a sampler would begin, when an answer follows; otherwise nothing to compare with."""
    if isinstance(example.prompt, str):
        return found.prompt_ids(example.prompt).tolist()
    begins = [c.content if isinstance(c.content, str) else c.content[0].role for c in example.completions]
    if example.prompt and all(isinstance(c.content, str) or c.content[0].role == "assistant" for c in example.completions):
        return found.prompt_ids(example.prompt, example.tools).tolist()
    return found.tree(example).prompt.tolist() if begins or example.prompt else []


@FUZZ
@given(st.sampled_from(OWN + CHOSEN), st.lists(st.integers(0, 500), max_size=12))
def test_any_ids_decode(shape: tuple[str, str | None], ids: list[int]) -> None:
    found = renderer(*shape)
    known = [i for i in ids if i < len(found.tokenizer)]
    assert isinstance(found.decode(known), str)
    assert isinstance(found.answer(known), str)
    assert len(found.tokens.token_texts(known)) == len(known)


# --- templates nobody has written yet

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
OPEN = ["", "{{ bos_token }}", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}", "{{ nothing.at_all }}"]
HEAD = [
    "",
    IM_START + "{{ m['role'] }}\n",
    "[{{ m.role | upper }}] ",
    "{% if loop.first %}# {% endif %}{{ m['role'] }}: ",
    "{{ loop.length }} ",
]
BODY = [
    "{{ m['content'] }}",
    "{{ m['content'] | trim }}",
    "{{ m.content[:3] }}",
    "{{ m['x'] }}",
    "{{ m.content if loop.last else '' }}",
    "",
]
ONLY_LAST, ONLY_ANSWERS = "{% if not loop.last %}" + IM_END + "{% endif %}", "{% if m.role == 'assistant' %}" + IM_END + "{% endif %}"
TAIL = [IM_END + "\n", "{{ eos_token }}", "\n", "", ONLY_LAST, ONLY_ANSWERS]
ASKED = "{% if add_generation_prompt %}"
CLOSE = ["", ASKED + IM_START + "assistant\n{% endif %}", ASKED + "[ASSISTANT] {% endif %}", "{{ '%' }}", "{% if %}"]


@st.composite
def templates(draw: Any) -> str:
    """A Jinja source of the usual build, with parts that fit together or do not."""
    begin, head, body, tail, end = (draw(st.sampled_from(choices)) for choices in (OPEN, HEAD, BODY, TAIL, CLOSE))
    return begin + "{% for m in messages %}" + head + body + tail + "{% endfor %}" + end


@FUZZ
@given(templates(), messages(2))
def test_any_template(template: str, said: tuple[Message, ...]) -> None:
    example = Example(prompt=said[:-1], completions=(Completion(content=said[-1:]),), where="rows.jsonl:7")
    with short_errors():
        found = Renderer(tokenizer("chatml"), template)
        tree = found.tree(example)
        trusted(tree, example, found)
        assert tree.prompt.tolist() == found.prompt_ids(example.prompt).tolist()
