"""Before the first step: does the packed path give what the model itself gives, on rows of the real data?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from prefopt.errors import ModelError, TrainingError
from prefopt.model.attention import packed_attention
from prefopt.model.forward import base_of, policy_logps, reward_scores
from prefopt.model.room import is_oom
from prefopt.pack.plan import longest
from prefopt.pack.tree import pack, pad
from prefopt.types import Batch, TokenTree

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a log-prob (nats) or score, by the dtype of the weights; see `alike` for large logits in half precision."""
_LAST_BITS = 4


@dataclass(frozen=True)
class SelfCheck:
    """What was found: the layout to use, the largest difference, and why the packed one was refused."""

    layout: Literal["packed", "padded"]
    difference: float
    reason: str = ""


def self_check(model: Any, trees: Sequence[TokenTree], *, reads: str = "logps", rows: int = 4) -> SelfCheck:
    """Compare packed with plain padded values on the first `rows` trees, and on the longest: a window may be longer than the others.

    Raises:
        ModelError: even the padded path disagrees with the model's own logits, so its head does something we do not know.
        TrainingError: there is no room for the rows, which says nothing of the layout.
    """
    samples = [list(trees[:rows])]
    far = max(trees, key=longest)
    if longest(far) > max(map(longest, samples[0])):
        samples.append([_longest_branch(far)])
    try:
        return _compared(model, samples, reads)
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        what = f"out of memory while {sum(map(len, samples))} rows were read packed and padded ({str(error).splitlines()[0][:120]})"
        fix = "lower data.max_length, free memory, or set train.layout=padded, which compares less"
        raise TrainingError(what, where="self-check", fix=fix) from error


@torch.no_grad()
def _compared(model: Any, samples: Sequence[Sequence[TokenTree]], reads: str) -> SelfCheck:
    """The model's own logits, as many as the vocabulary at every position, are asked of the first sample alone."""
    base = base_of(model)
    where = next(base.parameters())
    difference = size = 0.0
    for i, sample in enumerate(samples):
        padded, packed = pad(sample).to(where.device), pack(sample).to(where.device)
        own = _read(model, padded, reads)
        size = (size if i else _compare_head(base, padded, own)) if reads == "logps" else float(own.abs().max())
        try:
            with packed_attention(base):
                found = _read(model, packed, reads)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            if is_oom(error):
                raise
            return SelfCheck("padded", float("nan"), str(error).split("\n")[0])
        difference = max(difference, float((found - own).abs().max()))
        if not alike(found, own, where.dtype, size):
            return SelfCheck("padded", difference, f"packed and padded values differ by {difference:.2g}")
    return SelfCheck("packed", difference)


def _longest_branch(tree: TokenTree) -> TokenTree:
    """The tree with its longest branch alone: one padded row needs no mask, which is large for long ones."""
    return replace(tree, branches=(max(tree.branches, key=lambda branch: len(branch.ids)),))


@torch.no_grad()
def check_head(model: Any, trees: Sequence[TokenTree], *, rows: int = 4) -> None:
    """Compare the fused head with the model's own logits, on the shortest of the first `rows` trees.

    Raises:
        ModelError: they differ, so the model does something to its logits that we do not know.
    """
    base = base_of(model)
    padded = pad([min(trees[:rows], key=longest)]).to(next(base.parameters()).device)
    _compare_head(base, padded, _read(model, padded, "logps"))


def go_back(model: Any, tree: TokenTree, *, reads: str = "logps") -> None:
    """One backward pass through the packed path of a model that is ready to be trained; its gradients are cleared.

    Raises:
        RuntimeError: the pass cannot be done, or memory ran out.
    """
    base = base_of(model)
    packed = pack([tree]).to(next(base.parameters()).device)
    try:
        with packed_attention(base):
            _read(model, packed, reads).sum().backward()
    finally:
        model.zero_grad()


def _read(model: Any, batch: Batch, reads: str) -> torch.Tensor:
    return reward_scores(model, batch) if reads == "scores" else policy_logps(model, batch).logps_T


def alike(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype, size: float) -> bool:
    """Whether two ways to the same log-probs or scores differ by rounding alone.

    In half precision logits are rounded before they are widened: near 60 the last bit of bf16 is 0.25. There they may differ by four last
    bits, but by one at most on average, which a head or a mask that is wrong does not keep to.

    Args:
        one: values.
        other: the same, computed in another way.
        dtype: of the weights.
        size: the largest logit or score behind them.
    """
    gap = (one - other).abs()
    if not len(gap) or float(gap.max()) <= TOLERANCE.get(dtype, 1e-4):
        return True
    last_bit = torch.finfo(dtype).eps * 2.0 ** (math.frexp(size)[1] - 1) if dtype.itemsize == 2 else 0.0
    return float(gap.max()) <= _LAST_BITS * last_bit and float(gap.mean()) <= last_bit


def size_of(logits_TV: torch.Tensor, target_T: torch.Tensor) -> float:
    """The largest of the two logits that a log-prob is made of: the token's, and the top one."""
    both_2T = torch.stack([logits_TV.gather(1, target_T[:, None])[:, 0], logits_TV.amax(-1)])
    return float(both_2T.abs().max()) if len(target_T) else 0.0


def _compare_head(base: Any, padded: Any, own: torch.Tensor) -> float:
    """The fused head against the logits the model itself returns; the largest of them."""
    logits = base(input_ids=padded.ids_BC, attention_mask=padded.mask_BC, use_cache=False).logits
    logits_TV = logits.flatten(0, 1)[padded.source_T].float()
    theirs = logits_TV.log_softmax(-1).gather(1, padded.target_T[:, None])[:, 0]
    size = size_of(logits_TV, padded.target_T)
    told = theirs.isfinite() | own.isfinite()  # weights that are no numbers are told by the first loss, with its rows
    if not alike(theirs[told], own[told], base.dtype, size):
        difference = float((theirs - own)[told].abs().max())
        what = f"log-probs of the fused head differ from {type(base).__name__}'s own logits by {difference:.2g}"
        raise ModelError(what, fix="this architecture changes its logits in a way prefopt does not know; please report it")
    return size
