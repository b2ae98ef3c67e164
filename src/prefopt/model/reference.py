"""The reference policy: a frozen copy, the policy with its adapter off, a slowly following copy (TR-DPO), or log-probs kept on disk.

Each answers one question, `logps(batch) -> [T]`: the log-probs of the batch's scored tokens, without gradient. One that moves by a share of
the way is kept in fp32: in half precision a small share would be rounded away, every time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from prefopt.model.forward import base_of, evaluating, policy_logps, scored_states
from prefopt.model.logprobs import Head
from prefopt.model.split import like, local
from prefopt.types import Batch, TokenTree


class Reference(Protocol):
    """What the loop asks of a reference. Its log-probs are those at `temperature`."""

    temperature: float

    def logps(self, batch: Batch) -> torch.Tensor:
        """Log-probs [T] of the batch's scored tokens, float32, no gradient."""
        ...

    def states(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """The hidden states [T, D] that they come from, and the head that reads them."""
        ...

    def sampling(self) -> AbstractContextManager[Any]:
        """Inside, the model given completes prompts as the reference would."""
        ...

    def sync(self, policy: Any, rate: float) -> None:
        """Move towards the policy: reference <- rate * policy + (1 - rate) * reference (TR-DPO, arXiv 2404.09656)."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must keep of it: nothing, unless it follows the policy."""
        ...

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
        ...


class FrozenReference:
    """A second model in memory."""

    temperature = 1.0

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self._moved = False
        self._exact: dict[str, torch.Tensor] = {}
        """In fp32, the weights that the model computes with in less."""

    @torch.no_grad()
    def logps(self, batch: Batch) -> torch.Tensor:
        """See `Reference`."""
        return policy_logps(self.model, batch, temperature=self.temperature).logps_T

    @torch.no_grad()
    def states(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """See `Reference`."""
        return scored_states(self.model, batch, temperature=self.temperature)

    def sampling(self) -> AbstractContextManager[Any]:
        """See `Reference`."""
        return nullcontext(self.model)

    @torch.no_grad()
    def sync(self, policy: Any, rate: float) -> None:
        """See `Reference`."""
        self._moved = True
        for (name, mine), theirs in zip(self.model.named_parameters(), base_of(policy).parameters(), strict=True):
            if rate < 1 and _is_half(mine) and name not in self._exact:
                self._exact[name] = mine.float()
            exact = self._exact.get(name, mine)
            _lerp(exact, theirs, rate)
            if exact is not mine:
                mine.copy_(exact)

    def state(self) -> dict[str, torch.Tensor]:
        """The weights, once they have moved, as exactly as they are known."""
        return {**dict(self.model.named_parameters()), **self._exact} if self._moved else {}

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Reference`."""
        self._moved, self._exact = bool(state), {}
        for name, weight in self.model.named_parameters() if state else ():
            weight.copy_(like(state[name], weight))
            if _is_half(weight) and not _is_half(state[name]):
                self._exact[name] = state[name].to(weight.device, copy=True)


class AdapterReference:
    """The policy's own weights with the adapter off, or with an older copy of the adapter once it has been synced."""

    temperature = 1.0

    def __init__(self, model: Any) -> None:
        self.model = model
        self._adapter: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def logps(self, batch: Batch) -> torch.Tensor:
        """See `Reference`."""
        with self.sampling():
            return policy_logps(self.model, batch, temperature=self.temperature).logps_T

    @torch.no_grad()
    def states(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """See `Reference`; an adapter leaves the head as it is."""
        with self.sampling():
            return scored_states(self.model, batch, temperature=self.temperature)

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """See `Reference`."""
        with self._swapped() if self._adapter else self.model.disable_adapter():
            yield self.model

    @torch.no_grad()
    def sync(self, policy: Any, rate: float) -> None:
        """See `Reference`; before the first sync the reference's adapter is the fresh one, whose update is zero."""
        current = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        if not self._adapter:
            self._adapter = {name: torch.zeros_like(p) if _starts_at_zero(name) else p.detach().clone() for name, p in current.items()}
        if rate < 1:
            self._adapter = {name: kept.float() if _is_half(kept) else kept for name, kept in self._adapter.items()}
        for name, p in current.items():
            _lerp(self._adapter[name], p, rate)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        trained = {name: local(p.detach()) for name, p in self.model.named_parameters() if name in self._adapter}
        kept = {name: weight.clone() for name, weight in trained.items()}
        for name, weight in trained.items():  # in place: a model that is split over ranks gathers its weights from this memory
            weight.copy_(local(self._adapter[name]))
        try:
            with evaluating(self.model):
                yield
        finally:
            for name, weight in trained.items():
                weight.copy_(kept[name])

    def state(self) -> dict[str, torch.Tensor]:
        """The synced adapter, if any."""
        return dict(self._adapter)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Reference`."""
        weights = dict(self.model.named_parameters())
        self._adapter = {name: like(tensor.to(weights[name].device, copy=True), weights[name]) for name, tensor in state.items()}


class CachedReference:
    """Log-probs computed once and kept on disk; `index_P` of a batch says which rows it holds."""

    temperature = 1.0

    def __init__(self, rows: Mapping[int, np.ndarray]) -> None:
        self.rows = rows

    def logps(self, batch: Batch) -> torch.Tensor:
        """See `Reference`."""
        found = np.concatenate([self.rows[int(i)] for i in batch.index_P])
        return torch.from_numpy(found).to(batch.source_T.device)

    def states(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """A cache knows log-probs alone.

        Raises:
            RuntimeError: always; options are checked before a run starts.
        """
        raise RuntimeError("a cached reference has no hidden states")

    def sampling(self) -> AbstractContextManager[Any]:
        """A cache knows no answers but its own.

        Raises:
            RuntimeError: always; options are checked before a run starts.
        """
        raise RuntimeError("a cached reference cannot sample")

    def sync(self, policy: Any, rate: float) -> None:
        """A cache cannot move.

        Raises:
            RuntimeError: always; options are checked before a run starts.
        """
        raise RuntimeError("a cached reference cannot follow the policy")

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing: the file on disk is the state."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing to take back."""


def _starts_at_zero(name: str) -> bool:
    """Whether a weight of an adapter is the one of its two that is zero at first: of embeddings it is A."""
    return "lora_B" in name or "lora_embedding_A" in name


def _is_half(weight: torch.Tensor) -> bool:
    return weight.dtype.itemsize < torch.float32.itemsize


def _lerp(mine: torch.Tensor, theirs: torch.Tensor, rate: float) -> None:
    """Interpolate in float32 whatever the weights' dtype; rate 1 copies exactly."""
    mine.copy_(theirs if rate == 1.0 else torch.lerp(mine.float(), theirs.detach().float(), rate))


# --- the cache on disk ----------------------------------------------------------------------------------------------


def cache_key(model: Any, trees: Sequence[TokenTree]) -> str:
    """A hash of everything that changes the log-probs: weights, their dtype, the architecture, and every token with its mask.

    Token ids stand for tokenizer, template, data and truncation at once.
    """
    digest = hashlib.sha256(base_of(model).config.to_json_string(use_diff=False).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name}:{weight.dtype}:{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data if weight.ndim else repr(weight.item()).encode())
    for tree in trees:
        digest.update(f"{tree.index}:{len(tree.prompt)}".encode() + tree.prompt.tobytes())
        for branch in tree.branches:
            digest.update(branch.ids.tobytes() + b"|" + np.packbits(branch.scored).tobytes())
    return digest.hexdigest()


def cached_reference(
    model: Any, trees: Sequence[TokenTree], micros: Iterable[Sequence[TokenTree]], lay_out: Callable[[Sequence[TokenTree]], Batch]
) -> CachedReference:
    """Read the reference's log-probs of `trees` from disk, or compute and keep them.

    Args:
        model: the reference.
        trees: every tree of training and held-out data, with distinct `index`.
        micros: the same trees cut into forward passes.
        lay_out: makes the batch of one forward pass, on the model's device.
    """
    folder = Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt") / "reference"
    path = folder / f"{cache_key(model, trees)}.safetensors"
    if not path.exists():
        rows: dict[str, np.ndarray] = {}
        for micro in micros:
            rows |= {str(tree.index): logps for tree, logps in zip(micro, _by_tree(model, lay_out(micro)), strict=True)}
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(rows, partial)
        partial.rename(path)
    return CachedReference({int(index): logps for index, logps in load_file(path).items()})


@torch.no_grad()
def _by_tree(model: Any, batch: Batch) -> list[np.ndarray]:
    """The batch's log-probs, one array a tree."""
    logps_T = policy_logps(model, batch).logps_T.cpu()
    sizes = torch.zeros(len(batch.index_P), dtype=torch.long).index_add_(0, batch.prompt_S.cpu(), batch.length_S.cpu())
    return [part.numpy().copy() for part in logps_T.split(sizes.tolist())]
