"""Next-token logits of sequences that grow together, with the keys and values kept or, for models that keep none, read anew.

Both classes are made from prompts and the prompt each sequence starts from, and then take one token a sequence at a time.

Shapes: P prompts, B sequences, V vocabulary; H heads, L positions, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from prefopt.model.forward import base_of
from prefopt.rollout.lean import Lean, agrees, lean_model
from prefopt.types import IntArray


class Decoding(Protocol):
    """Sequences being decoded. `logits_BV` predict their next tokens."""

    logits_BV: torch.Tensor

    def append(self, ids_B: torch.Tensor) -> None:
        """Give every sequence its next token."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only."""
        ...


class Decode(NamedTuple):
    """A way of decoding.

    Attributes:
        way: Lean, Cached or Uncached.
        start: sequences that start from `prompts[source]` and grow by at most `room` tokens.
    """

    way: type[Decoding]
    start: Callable[[Sequence[IntArray], torch.Tensor, int], Decoding]

    def kept(self, config: Any, length: int, room: int, *, prompts: int, rows: int) -> int:
        """Positions of which `rows` sequences from `prompts` prompts of `length` tokens keep keys and values, summed over the layers."""
        if self.way is Lean:
            shared = prompts < rows
            return config.num_hidden_layers * ((prompts if shared else rows) * length + rows * room)
        if self.way is Uncached:
            return 0
        layers = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicLayer)]
        return rows * sum(min(length + room, getattr(layer, "sliding_window", length + room)) for layer in layers)


@torch.no_grad()
def decoder(model: Any, prompts: Sequence[IntArray]) -> Decode:
    """How to decode sequences of `model` while its weights stay as they are: the quickest way that is right on the first prompt."""
    base = base_of(model)
    lean = lean_model(model)
    if lean is not None:
        if base not in _AGREE:
            _AGREE[base] = agrees(base, lean, prompts[0])
        if _AGREE[base]:
            return Decode(Lean, lambda texts, source_B, room: Lean(lean, *padded(texts, source_B.device, left=True), source_B, room))
    keeps = "past_key_values" in inspect.signature(base.forward).parameters and not base._is_stateful
    way = Cached if keeps else Uncached
    return Decode(way, partial(way, model))


_AGREE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Models that were checked, and whether the lean path gave what they give."""


class Cached:
    """Each prompt is read once; its keys and values serve all sequences that start from it. Prompts are padded on the left."""

    logits_BV: torch.Tensor

    def __init__(self, model: Any, prompts: Sequence[IntArray], source_B: torch.Tensor, room: int) -> None:
        self._model = model
        self._takes = inspect.signature(base_of(model).forward).parameters.keys()
        self._cache = DynamicCache(config=base_of(model).config)
        self._layers: list[Any] = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self._cache.layers]
        self._cache.layers = self._layers
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=source_B.device)
        ids_PL, mask_PL = padded(prompts, source_B.device, left=True)
        self._padded = bool((lengths != lengths[0]).any())
        self._mask_BL = mask_PL
        self._position_B = lengths
        self._read(ids_PL, (mask_PL.long().cumsum(-1) - 1).clamp_min(0))
        for layer in self._layers:
            if isinstance(layer, RoomyLayer):
                layer.room = room
        self._mask_BL = torch.cat([mask_PL, mask_PL.new_ones(len(prompts), room)], dim=1)
        self.keep(source_B)

    def append(self, ids_B: torch.Tensor) -> None:
        """Read one more token of every sequence."""
        self._read(ids_B[:, None], self._position_B[:, None])
        self._position_B = self._position_B + 1

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only; one may be named several times."""
        for layer in self._layers:
            layer.batch_select_indices(rows)
        self.logits_BV, self._mask_BL, self._position_B = self.logits_BV[rows], self._mask_BL[rows], self._position_B[rows]

    def _read(self, ids_BL: torch.Tensor, positions_BL: torch.Tensor) -> None:
        seen = self._cache.get_seq_length() + ids_BL.shape[1]
        options = {
            "attention_mask": self._mask_BL[:, :seen] if self._padded or "position_ids" not in self._takes else None,
            "position_ids": positions_BL,
            "logits_to_keep": 1,
        }
        chosen = {name: value for name, value in options.items() if name in self._takes}
        out = self._model(input_ids=ids_BL, past_key_values=self._cache, use_cache=True, **chosen)
        self.logits_BV = out.logits[:, -1]


class RoomyLayer(DynamicLayer):
    """Keys and values written in place into room made ahead, where `DynamicLayer` copies all of them for every token."""

    keys: torch.Tensor
    values: torch.Tensor
    room = 0
    _stores: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values [B, H, l, D]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        begin, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if not self._stores or end > self._stores[0].shape[2]:
            self._make_room(key_states.shape[2])
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, begin:end] = states
        self.keys, self.values = (store[:, :, :end] for store in self._stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these sequences."""
        self.keys, self.values = self.keys[indices], self.values[indices]
        self._make_room(0)

    def _make_room(self, needed: int) -> None:
        used = self.keys.shape[2]
        self._stores = tuple(F.pad(states, (0, 0, 0, max(self.room, needed))) for states in (self.keys, self.values))
        self.keys, self.values = (store[:, :, :used] for store in self._stores)


class Uncached:
    """Every step reads every sequence from its beginning: for models without keys and values to keep (state space models)."""

    logits_BV: torch.Tensor

    def __init__(self, model: Any, prompts: Sequence[IntArray], source_B: torch.Tensor, room: int) -> None:
        self._model = model
        ids_PL, mask_PL = padded(prompts, source_B.device, left=False)  # a causal model does not see what is on the right
        self._ids_BL = torch.cat([ids_PL, ids_PL.new_zeros(len(prompts), room)], dim=1)[source_B]
        self._length_B = mask_PL.sum(-1)[source_B]
        self._read()

    def append(self, ids_B: torch.Tensor) -> None:
        """Read every sequence with one more token."""
        self._ids_BL[torch.arange(len(ids_B), device=ids_B.device), self._length_B] = ids_B
        self._length_B = self._length_B + 1
        self._read()

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only."""
        self._ids_BL, self._length_B, self.logits_BV = self._ids_BL[rows], self._length_B[rows], self.logits_BV[rows]

    def _read(self) -> None:
        logits_BLV = self._model(input_ids=self._ids_BL[:, : int(self._length_B.max())], use_cache=False).logits
        self.logits_BV = logits_BLV[torch.arange(len(logits_BLV), device=logits_BLV.device), self._length_B - 1]


def padded(prompts: Sequence[IntArray], device: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [P, L] and the mask [P, L] of real tokens; the padding id is 0 and never read."""
    length = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), length), dtype=np.int64)
    mask = np.zeros_like(ids, dtype=np.bool_)
    for row, prompt in enumerate(prompts):
        place = slice(length - len(prompt), None) if left else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt, True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
