"""Which language a text is in: by its script where that says it, and by its most common short words where several languages share one.

Rough on purpose: enough to tell an answer in the language asked for from one in another, on a sentence or more.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "BENGALI": ("bn",),
    "GUJARATI": ("gu",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "GURMUKHI": ("pa",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh",),
    "HEBREW": ("he",),
    "GREEK": ("el",),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "CYRILLIC": ("ru", "bg", "uk"),
    "ARABIC": ("ar", "fa", "ur"),
    "LATIN": ("en", "de", "fi", "fr", "es", "it", "pt", "nl", "sw", "vi", "pl"),
}
_WORDS = {
    "en": "the of and to in is that it for you was with as are this have be not or from by at we can your on an which",
    "de": "der die das und ist nicht ein eine ich sie mit den auf für von dem zu wir es auch sich des im werden oder",
    "fi": "ja on ei se että hän oli ovat mutta niin kuin myös tai joka ole voi kun sen jos mitä olen hyvin tämä kanssa",
    "fr": "le la les et des est une dans que pour qui sur pas avec ce il vous nous sont aux du un plus au ne",
    "es": "el la los y de que en es una por con para las del se no un su como más pero está son lo muy",
    "it": "il di che è la per una non con del sono le gli della nel anche più come ha questo alla un si dei ma",
    "pt": "o de que e do da em um para é com não uma os no se na por mais as dos como mas foi ao você são muito",
    "nl": "de het een en van is dat niet op te zijn voor met ook aan er maar door wordt naar bij nog hebben",
    "sw": "na ya wa kwa ni katika la za kuwa hii huo hiyo yake au lakini pia sana watu kama ili cha vya mimi yetu",
    "vi": "và của là có không được cho một các với những người trong này để đã khi cũng như bạn tôi rất thể nhiều",
    "pl": "w nie się jest że jak ale od po przez dla tym był było są może tylko czy już też jego jej oraz który która gdy ich przy",
    "ru": "и в не на что я с он как это то по она к но они мы ты для от все был есть или у так его очень чтобы",
    "bg": "и на да се е за от не в са с че по като той който ще тя си ни но или това има този един беше със към много",
    "uk": "і в не на що я з як це та він до за але ми ти для від все був є або у так його дуже щоб вона й",
    "hi": "है के में की और का को से यह पर हैं एक नहीं ने था कि इस भी लिए तो हम आप मैं वह कर",
    "mr": "आहे आणि या च्या मध्ये ते हे तो ती व नाही एक होते आहेत मी आम्ही तुम्ही साठी पण की असे त्या करण्यासाठी",
    "ne": "छ र को मा हो यो छन् पनि लागि भएको गर्न तर एक थियो हामी म तपाईं गर्नुहोस् छैन हरू भने त्यो हुन्छ का",
    "ar": "في من على أن إلى هذا هذه التي الذي مع عن كان لا ما أو هو هي ذلك كل بعد قد لم كما بين ثم",
    "fa": "و در به از که این را با است برای آن یک می ها شد خود تا بر هم نیست ما شما من هر اگر بود",
    "ur": "ہے کے میں کی اور کا سے کو یہ پر ہیں نے ایک نہیں کہ بھی تھا لیے تو ہم آپ وہ کر جو گا",
}
_ONLY = {"fa": "پچژگ", "ur": "ٹڈڑںےہھ", "uk": "іїєґ", "ru": "ыэё", "bg": "ѝ", "pl": "ąęłńśźż", "vi": "ăđơưạảấầậắếềệịọốồộớờợụứừựỳ"}
"""Letters that decide between languages of one script."""

CODES = sorted({code for codes in _SCRIPTS.values() for code in codes})
"""The languages that are told apart."""


def language(text: str) -> str | None:
    """The two-letter code of the likeliest language; None where there are no letters, or nothing speaks for any.

    >>> language("The cat is on the mat and it is happy."), language("Die Katze ist nicht auf dem Dach."), language("42!")
    ('en', 'de', None)
    """
    letters = [character for character in text.lower() if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in letters)
    known = {script: count for script, count in scripts.items() if script in _SCRIPTS}
    if not known:
        return None
    if known.get("HIRAGANA", 0) + known.get("KATAKANA", 0) > 0.1 * len(letters):
        return "ja"
    candidates = _SCRIPTS[max(known, key=lambda script: known[script])]
    if len(candidates) == 1:
        return candidates[0]
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0300-\u036f\u093c-\u094d\u0900-\u0903]+[^\W\d_]*)*", text.lower()))
    scores = {code: _score(code, words, letters) for code in candidates}
    best = max(scores, key=lambda code: scores[code])
    return best if scores[best] else None


def _score(code: str, words: Counter[str], letters: list[str]) -> float:
    common = sum(words[word] for word in _WORDS[code].split())
    return common / max(1, sum(words.values())) + 3 * sum(letter in _ONLY.get(code, "") for letter in letters) / len(letters)
