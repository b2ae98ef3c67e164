"""Sums and means over the tokens of each sequence: flat [T] values with ascending sequence ids in, one number a sequence out.

There is no mask to forget: only scored tokens exist here. A sequence without tokens gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.numeric import wide


def lengths(sequence_T: Tensor, sequences: int) -> Tensor:
    """Tokens of each sequence, int64 [S]."""
    return torch.bincount(sequence_T, minlength=sequences)


def segment_sum(values_T: Tensor, sequence_T: Tensor, sequences: int) -> Tensor:
    """Sum of each sequence's values, in fp32 or wider.

    Adds in a fixed order on every device (an atomic scatter would not), so equal runs give equal bits.

    Args:
        values_T: [T].
        sequence_T: [T] int64 ids in [0, S), ascending.
        sequences: S.

    Returns:
        [S], 0 for a sequence without tokens.

    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [3.0, 0.0, 4.0]
    """
    if values_T.shape != sequence_T.shape:
        raise ValueError(f"shapes differ: {tuple(values_T.shape)} and {tuple(sequence_T.shape)}")
    if sequences == 0:
        return wide(values_T)[:0]  # keeps its place in the graph
    return torch.segment_reduce(wide(values_T), "sum", lengths=lengths(sequence_T, sequences), initial=0.0, unsafe=True)


def segment_mean(values_T: Tensor, sequence_T: Tensor, sequences: int) -> Tensor:
    """Mean of each sequence's values [S]; 0 for a sequence without tokens.

    >>> segment_mean(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [2.0, 0.0, 4.0]
    """
    return segment_sum(values_T, sequence_T, sequences) / lengths(sequence_T, sequences).clamp(min=1)


def tokens_of(picked_N: Tensor, length_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of the picked sequences, one after another; a sequence may be picked many times.

    Args:
        picked_N: [N] sequence ids.
        length_S: [S] tokens of each sequence.

    Returns:
        Three [Q] tensors for the Q tokens picked: index into [T], which pick [0, N) it belongs to, and its place in its sequence.

    >>> [x.tolist() for x in tokens_of(torch.tensor([1, 0]), torch.tensor([1, 2]))]
    [[1, 2, 0], [0, 0, 1], [0, 1, 0]]
    """
    length_N = length_S[picked_N]
    pick = torch.repeat_interleave(torch.arange(len(picked_N), device=picked_N.device), length_N)
    place = torch.arange(len(pick), device=pick.device) - (length_N.cumsum(0) - length_N)[pick]
    start_S = length_S.cumsum(0) - length_S
    return start_S[picked_N][pick] + place, pick, place


def rankings(rank_S: Tensor, prompt_S: Tensor) -> Tensor:
    """Sequences of each prompt with two or more ranked completions, best first.

    Completions without a rank (-1) are left out; equal ranks keep the order of the data.

    Args:
        rank_S: [S] rank in its prompt, 0 best, -1 none.
        prompt_S: [S] the prompt of each sequence.

    Returns:
        [N, K] sequence ids, -1 where a list is shorter than the longest.

    >>> rankings(torch.tensor([1, 0, -1, 0, 2, 1]), torch.tensor([0, 0, 0, 1, 1, 1])).tolist()
    [[1, 0, -1], [3, 5, 4]]
    """
    ranked = (rank_S >= 0).nonzero().squeeze(1)
    ranked = ranked[rank_S[ranked].argsort(stable=True)]
    ranked = ranked[prompt_S[ranked].argsort(stable=True)]
    size = torch.bincount(prompt_S[ranked])
    size = size[size > 0]
    row = torch.repeat_interleave(torch.arange(len(size), device=size.device), size)
    place = torch.arange(len(ranked), device=size.device) - (size.cumsum(0) - size)[row]
    table = torch.full((len(size), int(size.max()) if len(size) else 0), -1, dtype=torch.int64, device=size.device)
    table[row, place] = ranked
    return table[size >= 2]
