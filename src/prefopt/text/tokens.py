"""Text to ids and back, piece by piece, for any Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.errors import DataError, ModelError
from prefopt.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "qxv"
_ALONE = threading.Lock()
"""A tokenizer refuses to be set up by one thread while another one is reading with it."""


class Tokens:
    """A tokenizer that adds nothing by itself and can tokenize a text as the continuation of another.

    Attributes:
        control: the special tokens as text, which only templates may write.
        bos: the text of the token this tokenizer puts before a plain text, "" where it puts none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
        self.control = tuple(sorted(special - {tokenizer.unk_token, ""}))
        bare, newline, both = self.encode([_PROBE, "\n", "\n" + _PROBE])
        first = tokenizer(_PROBE)["input_ids"][:1]
        self.bos = str(tokenizer.bos_token) if first == [tokenizer.bos_token_id] != bare[:1] else ""
        self._pads = both != newline + bare  # puts a space before each text it is given (SentencePiece models)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text by itself; control tokens in it are read as such.

        Raises:
            DataError: a text that cannot be encoded.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return [[int(i) for i in ids] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        try:
            with _ALONE:
                backend.no_padding()  # left over from the tokenizer's last call, which sets both anew each time
                backend.no_truncation()
                found = backend.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]
        except TypeError as error:
            if not any("\ud800" <= character <= "\udfff" for text in texts for character in text):
                raise
            raise DataError("a text holds a lone surrogate, which is no character", fix="mend the \\u escape it came from") from error

    def follow(self, texts: Sequence[tuple[str, str]]) -> list[IntArray]:
        """Ids of each second text as it stands after the first, never merged with it.

        A tokenizer that puts a space before every text would do so in the middle of a conversation too, so it is given something
        else to put it before, which is cut off again: the control token that comes before, or a character that does not merge.

        Raises:
            ModelError: it merges all the same.
        """
        anchors = [self._anchor(before, text) for before, text in texts]
        heads = {anchor: self.encode([anchor])[0] if anchor else [] for anchor in set(anchors)}
        ids = self.encode([anchor + text for anchor, (_, text) in zip(anchors, texts, strict=True)])
        return [np.asarray(_without(heads[anchor], row), dtype=np.int32) for anchor, row in zip(anchors, ids, strict=True)]

    def _anchor(self, before: str, text: str) -> str:
        if not (self._pads and before):
            return ""
        return next((token for token in self.control if before.endswith(token)), "x" if text[:1].isspace() else "\n")

    def decode(self, ids: Sequence[int] | IntArray, *, control: bool = False, after: Sequence[int] | IntArray = ()) -> str:
        """Text of ids; control tokens are left out unless asked for.

        A tokenizer that puts a space before every text takes one away again. Where the ids go on from the text of others (`after`), that
        would be a space of their own, so they are read after something else, which is cut off again.
        """
        if self._pads and len(after) and self.tokenizer.convert_ids_to_tokens(int(after[-1])) not in self.control:
            (head,) = self.encode(["x"])
            return self.decode([*head, *ids], control=control)[len(self.decode(head)) :]
        text = self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not control, clean_up_tokenization_spaces=False)
        return str(text)

    def token_texts(self, ids: Sequence[int] | IntArray) -> list[str]:
        """What each token adds to the text; "" for a token in the middle of a character, which the last one completes."""
        texts: list[str] = []
        before = begin = 0  # the last complete piece begins at `before` and ends at `begin`; it shows whether a space follows it
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[before:end], control=True)
            if text.endswith("\ufffd") and end < len(ids):
                texts.append("")
                continue
            texts.append(text[len(self.decode(ids[before:begin], control=True)) :])
            before, begin = begin, end
        return texts

    def identity(self) -> dict[str, Any]:
        """Everything that turns text into ids: vocabulary, merges, rules and special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": self.tokenizer.get_vocab()}
        rules |= {"padding": None, "truncation": None}  # state of the last call, not part of the tokenizer
        return rules | {"special": {key: str(value) for key, value in self.tokenizer.special_tokens_map.items()}}


def _without(head: list[int], ids: list[int]) -> list[int]:
    if ids[: len(head)] != head:
        raise ModelError(
            "the tokenizer merges an answer with what comes before it, so prompts and answers cannot be told apart",
            fix="Use the fast tokenizer of the model, or give prompts and completions that begin with a word.",
        )
    return ids[len(head) :]


def fingerprint(*parts: Any) -> str:
    """A hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
