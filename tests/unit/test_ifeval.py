"""IFEval's instructions: for every one in the published prompts an answer that follows it and one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.rollout.rewards import Rolled
from prefopt.rollout.sampler import Sample
from prefopt.rollout.verify.ifeval import CHECKS, InstructionReward, followed, followed_loosely, sentences
from prefopt.rollout.verify.language import _WORDS, language
from prefopt.types import Example

LANGUAGES = {
    "ar": "هذا هو البيت الذي كان في المدينة مع كل الناس.",
    "bg": "Това е къщата, която се намира в града, и тя е много стара.",
    "bn": "এটি একটি পুরানো বাড়ি যা শহরে অবস্থিত।",
    "de": "Das ist das alte Haus in der Stadt, und es ist nicht sehr groß.",
    "fa": "این یک خانه است که در شهر برای ما می سازند و از آن خوشم می آید.",
    "fi": "Se on vanha talo, joka on kaupungissa, ja se ei ole kovin suuri.",
    "gu": "આ એક જૂનું ઘર છે જે શહેરમાં આવેલું છે.",
    "hi": "यह एक पुराना घर है और यह शहर में है लेकिन बड़ा नहीं है।",
    "it": "Questo è il vecchio palazzo della città, che non è molto grande ma è bello.",
    "kn": "ಇದು ನಗರದಲ್ಲಿರುವ ಹಳೆಯ ಮನೆ.",
    "ko": "이것은 도시에 있는 오래된 집입니다.",
    "ml": "ഇത് നഗരത്തിലെ ഒരു പഴയ വീടാണ്.",
    "mr": "हे एक जुने घर आहे आणि ते शहराच्या मध्ये आहे पण मोठे नाही.",
    "ne": "यो एक पुरानो घर हो र यो सहर मा छ तर ठूलो छैन।",
    "pa": "ਇਹ ਸ਼ਹਿਰ ਵਿੱਚ ਇੱਕ ਪੁਰਾਣਾ ਘਰ ਹੈ।",
    "pl": "To jest stary dom w mieście, który nie jest bardzo duży, ale my go lubimy.",
    "pt": "Esta é uma casa que não é muito grande, mas você gosta da cidade e dos jardins.",
    "ru": "Это старый дом, который был в городе, и он не очень большой, но мы его любим.",
    "sw": "Hii ni nyumba ya zamani katika mji na watu wa mji kwa sana wanaipenda.",
    "ta": "இது நகரத்தில் உள்ள பழைய வீடு.",
    "te": "ఇది నగరంలో ఉన్న పాత ఇల్లు.",
    "th": "นี่คือบ้านเก่าที่ตั้งอยู่ในเมือง",
    "ur": "یہ ایک پرانا گھر ہے جو شہر میں ہے اور یہ بڑا نہیں ہے۔",
    "vi": "Đây là một ngôi nhà cũ trong thành phố và không được lớn lắm.",
    "en": "This is the old house in the town, and it is not very large.",
}


def times(relation: str, limit: int) -> tuple[int, int]:
    """Counts that keep a relation and that break it."""
    return (limit, limit - 1) if relation == "at least" else (limit - 1, limit)


def both(name: str, k: dict[str, Any]) -> tuple[str, str]:
    """An answer that follows an instruction, and one that does not."""
    if "relation" in k or "let_relation" in k or "capital_relation" in k:
        return counted(name, k)
    plain = "Zzz"
    made: dict[str, Any] = {
        "keywords:existence": lambda: (" and ".join(k["keywords"]).upper(), " and ".join(k["keywords"][1:]) or plain),
        "keywords:forbidden_words": lambda: (
            plain + " " + " ".join(f"{w}zz" for w in k["forbidden_words"]),
            f"Yes: {k['forbidden_words'][-1]}!",
        ),
        "language:response_language": lambda: (LANGUAGES[k["language"]], LANGUAGES["en"]),
        "length_constraints:number_paragraphs": lambda: tuple(
            "\n***\n".join(["Text"] * n) for n in (k["num_paragraphs"], k["num_paragraphs"] + 1)
        ),
        "length_constraints:nth_paragraph_first_word": lambda: nth(k),
        "detectable_content:number_placeholders": lambda: (
            "[name] " * k["num_placeholders"],
            "[name] " * (k["num_placeholders"] - 1) + plain,
        ),
        "detectable_content:postscript": lambda: (f"{plain}.\n{k['postscript_marker']} More.", plain),
        "detectable_format:number_bullet_lists": lambda: tuple("* item\n" * n + "- last" for n in (k["num_bullets"] - 1, k["num_bullets"])),
        "detectable_format:constrained_response": lambda: ("My answer is maybe.", "My answer is perhaps."),
        "detectable_format:number_highlighted_sections": lambda: (
            "*a part* " * k["num_highlights"],
            "*a part* " * (k["num_highlights"] - 1) + plain,
        ),
        "detectable_format:multiple_sections": lambda: tuple(
            "".join(f"{k['section_spliter']} {i + 1}\nText\n" for i in range(n)) + plain for n in (k["num_sections"], k["num_sections"] - 1)
        ),
        "detectable_format:json_format": lambda: ('```json\n{"a": [1, null]}\n```', '{"a": 1'),
        "detectable_format:title": lambda: ("<<A title>>\nText", "<< >>\n<A title>"),
        "combination:two_responses": lambda: ("One.\n******\nTwo.", "Same.\n******\nSame."),
        "combination:repeat_prompt": lambda: (k["prompt_to_repeat"] + "\nAnswer.", "Answer. " + k["prompt_to_repeat"]),
        "startend:end_checker": lambda: (f"{plain}. {k['end_phrase']}", f"{k['end_phrase']} And more."),
        "startend:quotation": lambda: ('"Quoted."', 'Said "quoted".'),
        "change_case:english_capital": lambda: ("THE HOUSE IS IN THE TOWN.", "THE HOUSE IS in THE TOWN."),
        "change_case:english_lowercase": lambda: ("the house is in the town.", "The house is in the town."),
        "punctuation:no_comma": lambda: ("One; two.", "One, two."),
    }
    return made[name]()


def counted(name: str, k: dict[str, Any]) -> tuple[str, str]:
    """The same for kinds that count something."""
    relation = k.get("relation") or k.get("let_relation") or k.get("capital_relation")
    limit = next(
        value for key, value in k.items() if key in ("frequency", "num_sentences", "num_words", "let_frequency", "capital_frequency")
    )
    unit = {
        "keywords:frequency": lambda: f"{k['keyword']} ",
        "keywords:letter_frequency": lambda: f"{k['letter']} ",
        "length_constraints:number_sentences": lambda: "Dr. No went home at 3.15 today. ",
        "length_constraints:number_words": lambda: "word, ",
        "change_case:capital_word_frequency": lambda: "LOUD word ",
    }[name]()
    filler = {"keywords:letter_frequency": "123", "length_constraints:number_sentences": "", "length_constraints:number_words": ""}.get(
        name, "123"
    )
    return tuple(unit * n + filler or "..." for n in times(str(relation), limit))  # type: ignore[return-value]


def nth(k: dict[str, Any]) -> tuple[str, str]:
    parts = ["Other text"] * k["num_paragraphs"]
    parts[k["nth_paragraph"] - 1] = f"'{k['first_word'].title()}, and so on"
    return "\n\n".join(parts), "\n\n".join(reversed(parts)) + "\n\nmore"


def row(name: str, arguments: dict[str, Any]) -> Example:
    return Example(prompt="", meta={"instruction_id_list": [name], "kwargs": [arguments]}, where="i.jsonl:4")


def test_every_published_instruction_is_told_apart(shared_data: Path) -> None:
    seen = set()
    for line in (shared_data / "ifeval" / "ifeval_prompts.jsonl").open():
        published = json.loads(line)
        for name, arguments in zip(published["instruction_id_list"], published["kwargs"], strict=True):
            good, bad = both(name, arguments)
            assert followed(row(name, arguments), good) == [True], (name, arguments, good)
            assert followed(row(name, arguments), bad) == [False], (name, arguments, bad)
            seen.add(name)
    assert seen == CHECKS.keys()


@pytest.mark.parametrize("code", LANGUAGES)
def test_languages(code: str) -> None:
    assert language(LANGUAGES[code]) == code
    assert code in _WORDS or code in ("bn", "gu", "kn", "ko", "ml", "pa", "ta", "te", "th")


def test_a_language_may_name_its_country() -> None:
    chinese, brazilian = row("language:response_language", {"language": "zh-cn"}), row("language:response_language", {"language": "pt-BR"})
    assert (followed(chinese, "这是城里的一座老房子。"), followed(brazilian, LANGUAGES["pt"])) == ([True], [True])
    assert (followed(chinese, LANGUAGES["pt"]), followed(brazilian, LANGUAGES["it"])) == ([False], [False])


@pytest.mark.parametrize("text", ['{"a": 1}', '```json {"a": 1}```', '```json\n{"a": 1}', '```JSON\n{"a": 1}\n```\n', '```\n{"a": 1}\n```'])
def test_json_in_fences(text: str) -> None:
    assert followed(row("detectable_format:json_format", {}), text) == [True]
    assert followed(row("detectable_format:json_format", {}), "So: " + text) == [False]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Mr. Smith paid 3.50 today.", 1),
        ("No end", 1),
        ("", 0),
        ('He said "Go." Then left.', 2),
        ("Title\n\nText here.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


def test_an_answer_is_right_when_it_follows_all() -> None:
    meta = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {"unused": None}]}
    answers = ['"Yes."', '"Yes, no."', "", "Yes, no."]
    samples = [Sample(ids=np.zeros(1, np.int32), logps=np.zeros(1, np.float32), text=text, finished=True) for text in answers]
    found = InstructionReward().judge([Rolled(Example(prompt="", meta=meta), sample) for sample in samples])
    assert [verdict.value for verdict in found] == [1.0, 0.0, 0.0, 0.0]
    assert [verdict.parts["followed"] for verdict in found] == [1.0, 0.5, 0.0, 0.0]
    assert found[1].note == "not followed: punctuation:no_comma"


def test_the_loose_form_forgives_a_line_around_the_answer() -> None:
    example = row("startend:quotation", {})
    assert (followed(example, 'Sure!\n"Yes."'), followed_loosely(example, 'Sure!\n"Yes."')) == ([False], [True])
    assert followed_loosely(example, "Yes.") == [False]


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "no instructions"),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "unknown instruction.*\n.*'punctuation:no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "lists of one length"),
        (
            {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "id"}]},
            "language 'id' is not told.*: ar, .*, zh",
        ),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 5}]}, "arguments of startend:end_checker do not fit"),
        ({"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 5, "relation": "about"}]}, "about"),
    ],
)
def test_rows_that_cannot_be_checked(meta: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"i\.jsonl:4: .*{said}"):
        InstructionReward().check([Example(prompt="", meta=meta, where="i.jsonl:4")])
    with pytest.raises(DataError, match="arguments of detectable_format:title do not fit"):
        followed(row("detectable_format:title", {"size": 3}), "x")
