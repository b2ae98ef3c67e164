"""Sampling in this process, from a transformers causal LM.

Prompts are sorted by length and read a batch at a time; the n samples of a prompt share its reading, and all sequences of a
batch decode together. Those that have ended leave the batch.

Shapes: B sequences of a batch, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefopt.errors import DataError
from prefopt.model.forward import base_of
from prefopt.rollout.decoding import Decode, decoder
from prefopt.rollout.sampler import Sample, draw
from prefopt.settings import RolloutSettings
from prefopt.types import IntArray

LEAVE = 0.75  # ended sequences leave when at most this share of the batch goes on: leaving copies the cache

Job = tuple[int, int]
"""The place of a prompt and the number of one of its samples."""


@dataclass(frozen=True)
class LocalSampler:
    """Samples from `model`; any of `stop_ids` ends an answer, `decode` turns its ids into text."""

    model: Any
    stop_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]

    def sample(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> list[list[Sample]]:
        """`settings.samples` completions of each prompt (token ids), in the order of the prompts.

        Every sample has random numbers of its own, drawn from (seed, place of the prompt, number of the sample): the same seed
        gives the same samples in batches of any size, and asking for more samples keeps the first ones.

        Raises:
            DataError: an empty prompt, or one that leaves no room for max_new_tokens in the model's longest sequence.
        """
        self._check(prompts, settings)
        found: dict[Job, Sample] = {}
        decode: Decode | None = None
        with torch.no_grad(), _evaluating(self.model):
            for jobs in _batches(prompts, settings):
                decode = decode or decoder(self.model, prompts)
                found.update(zip(jobs, self._complete(decode, prompts, jobs, settings), strict=True))
        return [[found[place, number] for number in range(settings.samples)] for place in range(len(prompts))]

    def _complete(self, decode: Decode, prompts: Sequence[IntArray], jobs: list[Job], settings: RolloutSettings) -> list[Sample]:
        """One batch, decoded to its end."""
        device = next(base_of(self.model).parameters()).device
        room = settings.max_new_tokens
        uniform_BT = torch.from_numpy(np.stack([np.random.default_rng([settings.seed, *job]).random(room) for job in jobs])).to(device)
        ids_BT = torch.full(uniform_BT.shape, -1, device=device)
        logps_BT = torch.zeros(uniform_BT.shape, device=device)
        stops = torch.tensor(self.stop_ids, device=device)
        places = {place: row for row, place in enumerate(dict.fromkeys(place for place, _ in jobs))}
        source_B = torch.tensor([places[place] for place, _ in jobs], device=device)
        growing = decode([prompts[place] for place in places], source_B, room)
        rows = torch.arange(len(jobs), device=device)  # the jobs still in the batch
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(room):
            drawn = draw(growing.logits_BV, uniform_BT[rows, step], temperature=settings.temperature, top_p=settings.top_p)
            ids_BT[rows, step], logps_BT[rows, step] = drawn
            ended = ended | torch.isin(drawn.ids_B, stops)
            going = len(ended) - int(ended.sum())
            if going == 0 or step + 1 == room:
                break
            next_B = drawn.ids_B
            if going <= LEAVE * len(ended):
                stay = torch.nonzero(~ended)[:, 0]
                growing.keep(stay)
                rows, ended, next_B = rows[stay], ended[stay], next_B[stay]
            growing.append(next_B)
        return [self._cut(ids, logps) for ids, logps in zip(ids_BT.cpu().numpy(), logps_BT.cpu().numpy(), strict=True)]

    def _cut(self, ids: Any, logps: Any) -> Sample:
        """The sample that ends with the first stop token."""
        stops = np.flatnonzero(np.isin(ids, self.stop_ids))
        finished = len(stops) > 0
        length = int(stops[0]) + 1 if finished else len(ids)
        text = self.decode(ids[: length - finished].tolist())
        return Sample(ids=ids[:length].astype(np.int32), logps=logps[:length], text=text, finished=finished)

    def _check(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> None:
        limit = getattr(base_of(self.model).config, "max_position_embeddings", None)
        for place, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise DataError(f"prompt {place + 1} is empty, so the model has nothing to go on from", fix="Give it at least one token.")
            if limit and len(prompt) + settings.max_new_tokens > limit:
                raise DataError(
                    f"prompt {place + 1} has {len(prompt)} tokens, with {settings.max_new_tokens} new ones more than the model's {limit}",
                    fix="Lower rollout.max_new_tokens or leave the prompt out.",
                )


def _batches(prompts: Sequence[IntArray], settings: RolloutSettings) -> Iterator[list[Job]]:
    """Jobs in batches of at most batch_size, prompts of like length together, the longest first (memory runs out at once or never)."""
    places = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    per_batch = max(1, settings.batch_size // settings.samples)
    for begin in range(0, len(places), per_batch):
        jobs = [(place, number) for place in places[begin : begin + per_batch] for number in range(settings.samples)]
        for first in range(0, len(jobs), settings.batch_size):
            yield jobs[first : first + settings.batch_size]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout inside, as before outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
