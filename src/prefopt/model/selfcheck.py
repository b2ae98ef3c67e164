"""Before the first step: does the packed path give what the model itself gives, on rows of the real data?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from prefopt.errors import ModelError
from prefopt.model.attention import packed_attention
from prefopt.model.forward import base_of, policy_logps, reward_scores
from prefopt.pack.tree import pack, pad
from prefopt.types import TokenTree

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a log-prob (nats) or score, by the dtype of the weights."""


@dataclass(frozen=True)
class SelfCheck:
    """What was found: the layout to use, the largest difference, and why the packed one was refused."""

    layout: Literal["packed", "padded"]
    difference: float
    reason: str = ""


@torch.no_grad()
def self_check(model: Any, trees: Sequence[TokenTree], *, reads: str = "logps", rows: int = 4) -> SelfCheck:
    """Compare packed with plain padded values on the first `rows` trees.

    Raises:
        ModelError: even the padded path disagrees with the model's own logits, so its head does something we do not know.
    """
    base, sample = base_of(model), list(trees[:rows])
    where = next(base.parameters())
    tolerance = TOLERANCE.get(where.dtype, 1e-4)
    padded, packed = pad(sample).to(where.device), pack(sample).to(where.device)
    read = reward_scores if reads == "scores" else lambda m, b: policy_logps(m, b).logps_T
    own = read(model, padded)
    if reads == "logps":
        _check_head(base, padded, own, tolerance)
    try:
        with packed_attention(base):
            difference = float((read(model, packed) - own).abs().max())
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return SelfCheck("padded", float("nan"), str(error).split("\n")[0])
    if not difference <= tolerance:
        return SelfCheck("padded", difference, f"packed and padded values differ by {difference:.2g}")
    return SelfCheck("packed", difference)


def _check_head(base: Any, padded: Any, own: torch.Tensor, tolerance: float) -> None:
    """The fused head against the logits the model itself returns."""
    logits = base(input_ids=padded.ids_BC, attention_mask=padded.mask_BC, use_cache=False).logits
    theirs = logits.flatten(0, 1)[padded.source_T].float().log_softmax(-1).gather(1, padded.target_T[:, None])[:, 0]
    difference = float((theirs - own).abs().max())
    if not difference <= tolerance:
        what = f"log-probs of the fused head differ from {type(base).__name__}'s own logits by {difference:.2g}"
        raise ModelError(what, fix="this architecture changes its logits in a way prefopt does not know; please report it")
