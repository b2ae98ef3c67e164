"""Worlds of a few prompts whose completions can all be listed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from prefopt.exact.laws import Array

STOP = 0
"""The token that ends a completion."""


def completions(vocabulary: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Every completion over tokens 0 (stop) to vocabulary - 1 of at most `length` tokens, shortest first.

    A completion ends with the stop token or is cut at `length`, so under any language model their probabilities sum to 1.

    >>> completions(2, 2)
    ((0,), (1, 0), (1, 1))
    """
    letters = range(STOP + 1, vocabulary)
    stopped = [(*word, STOP) for n in range(length) for word in itertools.product(letters, repeat=n)]
    return (*stopped, *itertools.product(letters, repeat=length))


@dataclass(frozen=True)
class World:
    """Prompts, all their completions, and how strong each is in a comparison.

    Attributes:
        prompts: token ids, of one length.
        vocabulary: number of tokens.
        length: tokens of the longest completion.
        strengths: [P][K] positive integers; i beats j with probability s_i / (s_i + s_j), so that the proportions of a finite data
            set can equal the probabilities.
    """

    prompts: tuple[tuple[int, ...], ...]
    vocabulary: int
    length: int
    strengths: tuple[tuple[int, ...], ...]

    @cached_property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        """All completions, the same for every prompt."""
        return completions(self.vocabulary, self.length)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each completion [K]."""
        return np.array([len(completion) for completion in self.completions])

    @cached_property
    def rewards(self) -> Array:
        """log s [P, K], for which the comparisons are Bradley-Terry's."""
        return np.log(np.array(self.strengths, dtype=np.float64))
