"""Which tokens may come next: the bytes of every token, and a machine that reads them.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch

from prefopt.errors import ModelError
from prefopt.rollout.constrain.machines import Machine

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """The bytes of each token of a tokenizer; None for control tokens.

    Raises:
        ModelError: a tokenizer whose tokens do not say which bytes they stand for.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError("this tokenizer does not tell the bytes of its tokens, which stop strings and constraints need")
        self.size = size
        bytelevel = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
        special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
        self.bytes: list[bytes | None] = [None] * size
        for text, number in tokenizer.get_vocab().items():
            if number < size and number not in special:
                added = number in tokenizer.added_tokens_decoder
                self.bytes[number] = text.encode() if added else _unmapped(text) if bytelevel else _plain(text)
        self._trie: dict[Any, Any] = {}
        for number, token in enumerate(self.bytes):
            if token:
                node = self._trie
                for byte in token:
                    node = node.setdefault(byte, {})
                node.setdefault(None, []).append(number)

    def allowed(self, machine: Machine, state: Any) -> list[int]:
        """The tokens after which the machine still goes on."""
        found: list[int] = []
        todo = [(self._trie, state)]
        while todo:
            node, at = todo.pop()
            for byte, below in node.items():
                if byte is None:
                    found += below
                elif (after := machine.step(at, byte)) is not None:
                    todo.append((below, after))
        return found

    def read(self, machine: Any, state: Any, token: int) -> Any:
        """The machine's state after a token; control tokens are read as nothing."""
        for byte in self.bytes[token] or b"":
            state = machine.step(state, byte)
        return state


class Constraint:
    """A machine for each of B sequences, and the tokens it lets through.

    A stop token is let through where the text may end, and no other control token ever.
    """

    def __init__(self, machine: Machine, vocabulary: Vocabulary, stop_ids: Sequence[int], count: int) -> None:
        self._machine, self._vocabulary, self._stop_ids = machine, vocabulary, list(stop_ids)
        self._states: list[Any] = [machine.start] * count
        self._masks: dict[Any, torch.Tensor] = {}

    def mask(self) -> torch.Tensor:
        """True where a token may come next, [B, V].

        Raises:
            ModelError: no token of the vocabulary can go on from where a sequence stands.
        """
        return torch.stack([self._mask(state) for state in self._states])

    def read(self, ids: Sequence[int]) -> None:
        """The next token of every sequence; a stop token is no part of the text."""
        self._states = [
            state if token in self._stop_ids else self._vocabulary.read(self._machine, state, token)
            for state, token in zip(self._states, ids, strict=True)
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""
        self._states = [self._states[row] for row in rows]

    def _mask(self, state: Any) -> torch.Tensor:
        if state not in self._masks:
            mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
            mask[self._vocabulary.allowed(self._machine, state)] = True
            mask[self._stop_ids] = self._machine.accepts(state)  # whatever text a stop token has
            if not mask.any():
                what = "no token can go on from here and the answer may not end: the constraint cannot be written with this vocabulary"
                raise ModelError(what, where="rollout.regex", fix="use characters the tokenizer has, and a model that has a stop token")
            self._masks[state] = mask
        return self._masks[state]


def _unmapped(text: str) -> bytes:
    """A token of a byte-level BPE, whose characters each stand for one byte."""
    return bytes(_BYTES[character] for character in text) if all(character in _BYTES for character in text) else text.encode()


def _plain(text: str) -> bytes:
    """A token of a SentencePiece-like vocabulary: the space is written as a block, single bytes as <0xAB>."""
    found = _BYTE.fullmatch(text)
    return bytes([int(found[1], 16)]) if found else text.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """The characters byte-level tokenizers write bytes as: printable ones stand for themselves, the others for 256, 257, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_BYTES = _byte_characters()
