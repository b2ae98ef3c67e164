"""Trees on a shelf read back as they were, whole, in parts and in any order."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.pack import shelf as shelves
from prefopt.pack.shelf import Chain, Shelf
from prefopt.types import TokenTree
from tests.tiny import random_trees


def _plain(tree: TokenTree) -> list[Any]:
    def value(x: Any) -> Any:
        return x.tolist() if isinstance(x, np.ndarray) else x

    own = [value(getattr(tree, f.name)) for f in fields(tree) if f.name != "branches"]
    return [own, [[value(getattr(b, f.name)) for f in fields(b)] for b in tree.branches]]


def test_what_was_put_is_what_is_read() -> None:
    shelf, trees = Shelf(), random_trees()
    first, second = shelf.put(trees[:2]), shelf.put(iter(trees[2:]))
    together = Chain(first, second)
    assert [_plain(t) for t in together] == [_plain(t) for t in trees]
    assert len(together) == len(trees)
    assert _plain(together[-1]) == _plain(trees[-1])
    assert [_plain(t) for t in together[1:3]] == [_plain(t) for t in trees[1:3]]
    assert [_plain(t) for t in second.pick([1, 0])] == [_plain(trees[3]), _plain(trees[2])]
    assert [_plain(t) for t in first[1:]] == [_plain(trees[1])]
    assert not shelf.put([])
    with pytest.raises(IndexError):
        together[len(trees)]


def test_memory_does_not_hold_the_tokens() -> None:
    """A tree of a million tokens costs the shelf nothing but its place."""
    (tree,) = random_trees(1)[:1]
    large = TokenTree(prompt=np.zeros(1_000_000, dtype=np.int32), branches=tree.branches)
    shelf = Shelf()
    kept = shelf.put([large])
    held = [value for value in vars(shelf).values() if isinstance(value, np.ndarray | list | TokenTree)]
    assert held == []
    assert kept[0].prompt.nbytes == 4_000_000


def test_a_full_disk_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shelf, "_file", Full())
    with pytest.raises(DataError, match="No space left") as caught:
        shelf.put(random_trees(1))
    assert "TMPDIR" in str(caught.value)
    assert shelves.tempfile.gettempdir() in str(caught.value)
