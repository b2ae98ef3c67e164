"""Sampling in this process, from a transformers causal LM.

Prompts are sorted by length and read a batch at a time; the n samples of a prompt share its reading, and all sequences of a
batch decode together. Those that have ended leave the batch.

Shapes: B sequences of a batch, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefopt.errors import ModelError
from prefopt.model.forward import base_of, evaluating, limit_of
from prefopt.model.room import free_memory
from prefopt.rollout import decoding
from prefopt.rollout.constrain import Constraint, Vocabulary, constraint, stopper
from prefopt.rollout.sampler import Decode, Sample, check_prompts, draw, finish
from prefopt.settings import RolloutSettings
from prefopt.types import IntArray

LEAVE = 0.75  # ended sequences leave when at most this share of the batch goes on: leaving copies the cache

Job = tuple[int, int]
"""The place of a prompt and the number of one of its samples."""


@dataclass(frozen=True)
class LocalSampler:
    """Samples from `model`; any of `stop_ids` ends an answer, `decode` turns its ids, after those of its prompt, into text."""

    model: Any
    stop_ids: tuple[int, ...]
    decode: Decode
    vocabulary: Callable[[], Vocabulary] | None = None
    """The bytes of the tokens, for stop strings and constraints."""

    def sample(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> list[list[Sample]]:
        """`settings.samples` completions of each prompt (token ids), in the order of the prompts.

        Every sample has random numbers of its own, drawn from (seed, place of the prompt, number of the sample): the same seed
        gives the same samples in batches of any size, and asking for more samples keeps the first ones.

        Raises:
            DataError: no prompts, an empty one, or one that leaves no room for max_new_tokens in the model's longest sequence.
            ModelError: a batch that cannot fit in memory.
            OptionError: a constraint that cannot be used.
        """
        check_prompts(prompts, settings, limit_of(self.model))
        found: dict[Job, Sample] = {}
        decode: decoding.Decode | None = None
        with torch.no_grad(), evaluating(self.model):
            for jobs in _batches(prompts, settings):
                if decode is None:
                    decode = decoding.decoder(self.model, prompts)
                    self._check_memory(decode, prompts, jobs, settings.max_new_tokens)
                found.update(zip(jobs, self._complete(decode, prompts, jobs, settings), strict=True))
        return [[found[place, number] for number in range(settings.samples)] for place in range(len(prompts))]

    def _complete(self, decode: decoding.Decode, prompts: Sequence[IntArray], jobs: list[Job], settings: RolloutSettings) -> list[Sample]:
        """One batch, decoded to its end."""
        device = next(base_of(self.model).parameters()).device
        room = settings.max_new_tokens
        uniform_BT = torch.from_numpy(np.stack([np.random.default_rng([settings.seed, *job]).random(room) for job in jobs])).to(device)
        ids_BT = torch.full(uniform_BT.shape, -1, device=device)
        logps_BT = torch.zeros(uniform_BT.shape, device=device)
        length_B = torch.full((len(jobs),), room, device=device)
        places = {place: row for row, place in enumerate(dict.fromkeys(place for place, _ in jobs))}
        source_B = torch.tensor([places[place] for place, _ in jobs], device=device)
        growing = decode.start([prompts[place] for place in places], source_B, room)
        rules = Rules(settings, self.vocabulary, self.stop_ids, len(jobs), device)
        rows = torch.arange(len(jobs), device=device)  # the jobs still in the batch
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(room):
            drawn = draw(growing.logits_BV, uniform_BT[rows, step], settings, rules.allowed())
            ids_BT[rows, step], logps_BT[rows, step] = drawn
            now = ~ended & rules.read(drawn.ids_B)
            length_B[rows[now]] = step + 1
            ended |= now
            going = len(ended) - int(ended.sum())
            if going == 0 or step + 1 == room:
                break
            next_B = drawn.ids_B
            if going <= LEAVE * len(ended):
                stay = torch.nonzero(~ended)[:, 0]
                growing.keep(stay)
                rules.keep(stay)
                rows, ended, next_B = rows[stay], ended[stay], next_B[stay]
            growing.append(next_B)
        open_B = torch.zeros(len(jobs), dtype=torch.bool, device=device).index_fill_(0, rows[~ended], True)
        parts = (values.cpu().numpy() for values in (ids_BT, logps_BT, length_B, ~open_B))
        ways = (settings, self.stop_ids, self.decode)
        return [
            finish(ids[:length].tolist(), logps[:length], bool(done), prompts[place], *ways)
            for (place, _), ids, logps, length, done in zip(jobs, *parts, strict=True)
        ]

    def _check_memory(self, decode: decoding.Decode, prompts: Sequence[IntArray], jobs: list[Job], room: int) -> None:
        """The keys and values of the first batch, the longest, fit; a lower bound, as they are not all a batch needs."""
        config = base_of(self.model).config.get_text_config()
        layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
        if not layers or not heads:
            return
        places = {place for place, _ in jobs}
        length = max(len(prompts[place]) for place in places)
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        width = 2 * (getattr(config, "num_key_value_heads", None) or heads) * size * self.model.dtype.itemsize
        needed = width * decode.kept(config, length, room, prompts=len(places), rows=len(jobs))
        free = free_memory(next(base_of(self.model).parameters()).device)
        if needed > free:
            what = f"{len(jobs)} sequences of up to {length + room} tokens need {needed / 1e9:.1f} GB for keys and values"
            fix = "lower rollout.batch_size (it changes no sample) or rollout.max_new_tokens"
            raise ModelError(f"{what}, {free / 1e9:.1f} GB are free", fix=fix)


class Rules:
    """What ends the sequences of a batch, and which tokens their constraint allows."""

    def __init__(
        self,
        settings: RolloutSettings,
        vocabulary: Callable[[], Vocabulary] | None,
        stop_ids: Sequence[int],
        count: int,
        device: torch.device,
    ) -> None:
        machine, self._stopper = constraint(settings), stopper(settings)
        self._device, self._stops = device, torch.tensor(stop_ids, device=device)
        self._constraint: Constraint | None = None
        if machine is not None or self._stopper is not None:
            if vocabulary is None:
                raise ModelError("stop strings and constraints need a tokenizer, and there is none")
            self._vocabulary = vocabulary()
        if machine is not None:
            self._constraint = Constraint(machine, self._vocabulary, stop_ids, count)
        self._states = [self._stopper.start] * count if self._stopper else []

    def allowed(self) -> torch.Tensor | None:
        """Tokens that may come next, [B, V]; None where all may."""
        return None if self._constraint is None else self._constraint.mask().to(self._device)

    def read(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Which sequences [B] the next tokens end."""
        ended_B = torch.isin(ids_B, self._stops)
        if self._constraint is not None:
            self._constraint.read(ids_B.tolist())
        if self._stopper is not None:
            read = self._vocabulary.read
            self._states = [read(self._stopper, state, token) for state, token in zip(self._states, ids_B.tolist(), strict=True)]
            ended_B = ended_B | torch.tensor([bool(found) for found, _ in self._states], device=self._device)
        return ended_B

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only."""
        if self._constraint is not None:
            self._constraint.keep(rows.tolist())
        if self._stopper is not None:
            self._states = [self._states[row] for row in rows.tolist()]


def _batches(prompts: Sequence[IntArray], settings: RolloutSettings) -> Iterator[list[Job]]:
    """Jobs in batches of at most batch_size, prompts of like length together, the longest first (memory runs out at once or never)."""
    places = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    per_batch = max(1, settings.batch_size // settings.samples)
    for begin in range(0, len(places), per_batch):
        jobs = [(place, number) for place in places[begin : begin + per_batch] for number in range(settings.samples)]
        for first in range(0, len(jobs), settings.batch_size):
            yield jobs[first : first + settings.batch_size]
