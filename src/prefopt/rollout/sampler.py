"""What a sampler is, and how one token is drawn.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from prefopt.errors import DataError, OptionError
from prefopt.settings import RolloutSettings, changed
from prefopt.types import IntArray

BLOCK = 128
HEAD = 1024  # most nuclei lie within so many tokens, a quarter of the work of sorting them all


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion.

    Attributes:
        ids: its tokens [n], the stop token included when there is one.
        logps: log-probs [n] (float32, nats) of those tokens under the distribution they were drawn from: after temperature, top_k, min_p,
            top_p and constraints.
            Greedy samples (temperature 0) carry the model's own log-probs, at temperature 1.
        text: the tokens as text, control tokens left out.
        finished: it ended with a stop token or string, not for want of room.
    """

    ids: IntArray
    logps: npt.NDArray[np.float32]
    text: str
    finished: bool


Decode = Callable[[Sequence[int], IntArray], str]
"""The tokens of an answer and of its prompt -> the answer's text."""


class Sampler(Protocol):
    """Anything that completes prompts: this process, or an engine elsewhere."""

    def sample(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> list[list[Sample]]:
        """`settings.samples` completions of each prompt (token ids), in the order of the prompts."""
        ...


def check_prompts(prompts: Sequence[IntArray], settings: RolloutSettings, limit: int | None) -> None:
    """Every prompt has tokens, and leaves room for max_new_tokens in the model's longest sequence (`limit`, None for none).

    Raises:
        DataError: one has or does not.
    """
    for place, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"prompt {place + 1} is empty, so the model has nothing to go on from", fix="Give it at least one token.")
        if limit and len(prompt) + settings.max_new_tokens > limit:
            raise DataError(
                f"prompt {place + 1} has {len(prompt)} tokens, with {settings.max_new_tokens} new ones more than the model's {limit}",
                fix="Lower rollout.max_new_tokens or leave the prompt out.",
            )


READERS = {"url": "server", "folder": "server", "timeout": "server", "retries": "server", "memory": "vllm"}
"""Setting -> the one engine that reads it."""


def check_engine(settings: RolloutSettings) -> None:
    """Refuse settings that the engine does not read, and one that it lacks.

    Raises:
        OptionError: the first of them.
    """
    for name in changed(settings, *READERS):
        if settings.engine != READERS[name]:
            fix = f"set it, or leave rollout.{name} out"
            raise OptionError(f"read by rollout.engine={READERS[name]} alone", where=f"rollout.{name}", fix=fix)
    if settings.engine == "server" and settings.url is None:
        raise OptionError("a server without an address", where="rollout.url", fix="give rollout.url=http://127.0.0.1:8000/v1")


def refuse_constraints(settings: RolloutSettings) -> None:
    """For engines that cannot constrain answers.

    Raises:
        OptionError: the settings ask for it.
    """
    if settings.regex is not None or settings.banned or settings.required:
        what = f"the engine {settings.engine} does not constrain answers"
        raise OptionError(what, where="rollout.engine", fix="use engine local with regex, banned and required")


def finish(
    ids: Sequence[int],
    logps: Sequence[float] | npt.NDArray[np.float32],
    finished: bool,
    prompt: IntArray,
    settings: RolloutSettings,
    stop_ids: Sequence[int],
    decode: Decode,
) -> Sample:
    """The sample of some tokens after a prompt; its text without the stop token or string that ended it."""
    stopped = finished and len(ids) > 0 and ids[-1] in stop_ids
    text = decode(list(ids[:-1] if stopped else ids), prompt)
    if finished and not stopped:
        stops = [settings.stop] if isinstance(settings.stop, str) else settings.stop
        text = text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
    return Sample(ids=np.asarray(ids, np.int32), logps=np.asarray(logps, np.float32), text=text, finished=finished)


class Drawn(NamedTuple):
    """Tokens [B] and their log-probs [B] (float32)."""

    ids_B: torch.Tensor
    logps_B: torch.Tensor


def draw(
    logits_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    settings: RolloutSettings,
    allowed_BV: torch.Tensor | None = None,
) -> Drawn:
    """One token a row from softmax(logits / temperature), cut to the tokens that top_k, min_p and then top_p leave.

    A sample is a function of one uniform number a row (inverse of the distribution function), so it does not depend on the rows
    beside it, and it needs one pass over the vocabulary beyond the softmax. Gumbel-max needs V random numbers and a logarithm
    of each: several times the cost of everything here.

    Args:
        logits_BV: [B, V], any float dtype.
        uniform_B: float64 in [0, 1).
        settings: temperature (0 takes the most probable token), top_k, min_p and top_p (the most probable tokens whose mass before
            them is below it, arXiv 1904.09751).
        allowed_BV: tokens that may be drawn at all; probabilities are renormalised over them.
    """
    if allowed_BV is not None:
        logits_BV = logits_BV.masked_fill(~allowed_BV, float("-inf"))
    if settings.temperature == 0:
        logits_BV = logits_BV.float()
        ids_B = logits_BV.argmax(-1)
        return Drawn(ids_B, _at(logits_BV, ids_B) - logits_BV.logsumexp(-1))
    if settings.temperature != 1:
        logits_BV = logits_BV.float() / settings.temperature
    weight_BV = logits_BV.softmax(-1, dtype=torch.float32)
    if 0 < settings.top_k < weight_BV.shape[1]:
        weight_BV = torch.where(weight_BV >= weight_BV.topk(settings.top_k).values[:, -1:], weight_BV, 0.0)
    if settings.min_p > 0:
        weight_BV = torch.where(weight_BV >= settings.min_p * weight_BV.amax(-1, keepdim=True), weight_BV, 0.0)
    if settings.top_p < 1:
        weight_BV = nucleus(weight_BV, settings.top_p)
    ids_B = inverse_cdf(weight_BV, uniform_B)
    return Drawn(ids_B, _at(weight_BV, ids_B).log() - weight_BV.sum(-1).log())


def nucleus(weight_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The weights with those outside the nucleus set to 0; weights equal to the last one kept are kept too."""
    goal_B = top_p * weight_BV.sum(-1, keepdim=True)
    sorted_BV = weight_BV.topk(min(HEAD, weight_BV.shape[1])).values
    if bool((sorted_BV.sum(-1, keepdim=True) < goal_B).any()):  # flat distributions need all of it
        sorted_BV = weight_BV.sort(dim=-1, descending=True).values
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_B = (before_BV < goal_B).sum(-1).clamp_min(1)
    return torch.where(weight_BV >= _at(sorted_BV, kept_B - 1)[:, None], weight_BV, 0.0)


def inverse_cdf(weight_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token [B] at which the running sum of the weights first exceeds `uniform` of the whole.

    Two levels, blocks of tokens and then tokens of one block, save the running sum over the vocabulary. Sums of blocks are added
    in float64, where a number below 1 times the total stays below the total: a token of weight 0 is never drawn.
    """
    missing = -weight_BV.shape[1] % BLOCK
    blocks_BKW = (F.pad(weight_BV, (0, missing)) if missing else weight_BV).unflatten(1, (-1, BLOCK))
    block_B, rest_B = _find(blocks_BKW.sum(-1).double(), uniform_B.double())
    inside_BW = blocks_BKW[torch.arange(len(block_B), device=block_B.device), block_B]
    return block_B * BLOCK + _find(inside_BW.double(), rest_B)[0]


def _find(mass_BK: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum first exceeds `uniform` of the total, and how far into that item it is, in [0, 1)."""
    sums_BK = mass_BK.cumsum(-1)
    goal_B = uniform_B * sums_BK[:, -1]
    index_B = torch.searchsorted(sums_BK, goal_B[:, None], right=True)[:, 0]
    mass_B = _at(mass_BK, index_B)
    rest_B = (goal_B - _at(sums_BK, index_B) + mass_B) / mass_B
    return index_B, rest_B.clamp(0.0, 1 - 2**-53)


def _at(values_BV: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    return values_BV.gather(-1, index_B[:, None])[:, 0]
