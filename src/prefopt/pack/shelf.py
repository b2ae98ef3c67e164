"""Token trees kept in a file and read when they are asked for, so that memory does not grow with the data set."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from prefopt.errors import DataError
from prefopt.types import TokenTree


class Shelf:
    """A nameless file of trees that goes away with the process; memory holds where each begins, 8 bytes a tree.

    The trees are pickled: only this process ever reads them.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="prefopt-")  # noqa: SIM115 - lives as long as the shelf
        self._starts = array("q", [0])

    def put(self, trees: Iterable[TokenTree]) -> Trees:
        """Write more trees.

        Raises:
            DataError: the disk that holds temporary files is full.
        """
        first = len(self._starts) - 1
        try:
            for tree in trees:
                self._starts.append(self._starts[-1] + self._file.write(pickle.dumps(tree, protocol=5)))
            self._file.flush()
        except OSError as error:
            fix = "make room there, or set TMPDIR to a folder on another disk"
            raise DataError(f"the tokens could not be kept on disk: {error}", where=tempfile.gettempdir(), fix=fix) from error
        return Trees(self, np.arange(first, len(self._starts) - 1))

    def get(self, place: int) -> TokenTree:
        """The tree written as number `place`."""
        start, end = self._starts[place], self._starts[place + 1]
        tree: TokenTree = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return tree


class Trees(Sequence[TokenTree]):
    """Trees of a shelf, some or all, in any order: a sequence like a list of them."""

    def __init__(self, shelf: Shelf, places: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._shelf, self._places = shelf, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...

    @overload
    def __getitem__(self, index: slice) -> Trees: ...

    def __getitem__(self, index: int | slice) -> TokenTree | Trees:
        if isinstance(index, slice):
            return Trees(self._shelf, self._places[index])
        return self._shelf.get(int(self._places[index]))

    def pick(self, indices: Sequence[int]) -> Trees:
        """Those of the given indices."""
        return Trees(self._shelf, self._places[np.asarray(indices, dtype=np.int64)])


class Chain(Sequence[TokenTree]):
    """Two sequences of trees, one after the other."""

    def __init__(self, first: Sequence[TokenTree], second: Sequence[TokenTree]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenTree]: ...

    def __getitem__(self, index: int | slice) -> TokenTree | list[TokenTree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._first[index] if index < len(self._first) else self._second[index - len(self._first)]
