"""Training and held-out rows, parted by group so that nothing held out has been seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

from prefopt.types import Example, Text, TokenTree

Item = TypeVar("Item", Example, TokenTree)


def prompt_key(item: Example | TokenTree) -> bytes:
    """What must be equal for two rows to be of one prompt; a row without a prompt (plain text, a conversation) is its own."""
    if isinstance(item, TokenTree):
        body = item.branches[0].ids.tobytes() if len(item.prompt) <= 1 and item.branches else b""
        return _digest(item.prompt.tobytes() + b"|" + body)
    body = _bytes(item.completions[0].content) if not item.prompt and item.completions else b""
    return _digest(_bytes(item.prompt) + b"|" + body)


def group_key(item: Example | TokenTree) -> bytes:
    """What must stay on one side of a split: the row's group, or its prompt where it has none."""
    return prompt_key(item) if item.group is None else _digest(b"group " + item.group.encode(errors="surrogatepass"))


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Training and held-out rows, by `sides`."""
    train, heldout = sides(items, fraction, seed)
    return [items[i] for i in train], [items[i] for i in heldout]


def sides(items: Sequence[Example] | Sequence[TokenTree], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The indices of training and of held-out rows: the `fraction` of the groups whose hash with `seed` is smallest is held out.

    The same rows give the same split whatever their order, and a row that is added moves few others. At least one group is held
    out, and one kept, when `fraction` is over 0 and there are two. Order within a side is that of `items`.
    """
    keys = [group_key(item) for item in items]
    groups = set(keys)
    count = round(fraction * len(groups))
    if fraction > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    salt = str(seed).encode()
    held = set(sorted(groups, key=lambda group: _digest(salt + group))[:count])
    found: tuple[list[int], list[int]] = ([], [])
    for index, key in enumerate(keys):
        found[key in held].append(index)
    return found


def overlap(train: Iterable[Item], heldout: Iterable[Item], key: Callable[[Item], bytes] = prompt_key) -> list[str]:
    """The places of held-out rows whose prompt, by its `key`, is also trained on."""
    seen = {key(item) for item in train}
    return [item.where for item in heldout if key(item) in seen]


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()


def _bytes(text: Text) -> bytes:
    if isinstance(text, str):
        return text.encode(errors="surrogatepass")
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in text).encode(errors="surrogatepass")
