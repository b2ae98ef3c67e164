"""Whether a run fits into memory, said before it starts; and what to change when one did not.

    weights      as the model holds them                    masters     4 bytes a trained parameter (bf16)
    gradients    4 bytes a trained parameter (6 in bf16)    optimizer   8 bytes (AdamW), about 4 (Muon)
    activations  positions * (layers - 1) * (9 width + 3 feed-forward) numbers, 2 width of the last layer
    reference    a second copy of the weights, and where it follows slowly in bf16 one in fp32
    critic       a trunk of its own, its gradients, optimizer and activations

The count of activations is below what was measured on the packed path: Llama keeps 12.3 width + 3 feed-forward numbers per position and
layer for the backward pass (14.9 and 4 in bf16 by transformers' own norms and MLP), GPT-2 9.8 and 5. Where few positions are read, a packed
pass keeps little more of the last layer than what keys and values are made from. With checkpointing a layer keeps its input alone, and one
layer at a time is computed again. Allocator and library overheads are not counted: what is refused would surely not have fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefopt.errors import TrainingError
from prefopt.settings import TrainSettings
from prefopt.types import Batch

GB = 1e9
RANK = 16


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run will hold in memory. `stored` are the bytes of the model's weights, the other counts are numbers, not bytes."""

    stored: int
    parameters: int
    trained: int
    layers: int
    width: int
    feed_forward: int
    positions: int
    """Positions of the largest micro-batch."""
    longest: int
    """Positions of the longest tree, below which micro_tokens cannot go."""
    precision: str = "fp32"
    optimizer: str = "adamw"
    reference: int = 0
    """Parameters of a reference that stays in memory: 0 for none, for a cached one and for an adapter switched off."""
    slow: bool = False
    """Whether it follows the policy by a share of the way, for which it is kept in fp32 too."""
    cacheable: bool = True
    """Whether what it says can be known before the training: not of sampled answers, nor where it follows the policy."""
    critic: int = 0
    """Parameters of a critic with a trunk of its own, of the policy's shape."""
    checkpointing: bool = False
    samples: int = 0
    """Sampled answers to a prompt that are compared, and so stay in one tree; 0 where answers are not sampled."""
    answer: int = 0
    """Positions of such an answer."""

    def parts(self) -> dict[str, int]:
        """Bytes at the peak, by what they are for."""
        bf16 = self.precision == "bf16"
        number = 2 if bf16 else 4
        layer = number * self.positions * (9 * self.width + 3 * self.feed_forward)
        kept = number * self.positions * self.width * self.layers
        last = number * self.positions * 2 * self.width
        activations = kept + layer if self.checkpointing else layer * (self.layers - 1) + last
        return {
            "weights": self.parameters * number,
            "masters": 4 * self.trained if bf16 else 0,
            "gradients": (6 if bf16 else 4) * self.trained,
            "optimizer": (4 if self.optimizer == "muon" else 8) * self.trained,
            "activations": activations,
            "reference": (number + (4 if bf16 and self.slow else 0)) * self.reference,
            "critic": (20 if bf16 else 16) * self.critic + (activations if self.critic else 0),
        }

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts().values())


@dataclass(frozen=True)
class WayOut:
    """An option that takes less memory, and the load with it."""

    option: str
    load: Load


def load_of(
    model: Any, train: TrainSettings, *, precision: str, positions: int, longest: int, reference: int = 0, checkpointing: bool = False
) -> Load:
    """What training `model` will hold.

    Args:
        model: a transformers model, bare or with adapters.
        train: micro_tokens and optimizer are read.
        precision: "fp32" or "bf16", decided.
        positions: packed positions of a whole batch; a micro-batch holds at most micro_tokens of them, or one long tree.
        longest: positions of the longest tree.
        reference: parameters of the reference that stays in memory.
        checkpointing: whether layers are computed again in the backward pass.
    """
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    feed_forward = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    weights = list(model.parameters())
    return Load(
        stored=sum(p.numel() * p.element_size() for p in weights),
        parameters=sum(p.numel() for p in weights),
        trained=sum(p.numel() for p in weights if p.requires_grad),
        layers=int(config.num_hidden_layers),
        width=width,
        feed_forward=experts * int(feed_forward or 4 * width),
        positions=max(longest, min(positions, train.micro_tokens)),
        longest=longest,
        precision=precision,
        optimizer=train.optimizer,
        reference=reference,
        checkpointing=checkpointing,
    )


def require(load: Load, free: int, *, loaded: int = 0) -> None:
    """Refuse a run that cannot fit.

    Args:
        load: what it will hold.
        free: bytes free now.
        loaded: bytes of the load that are in memory already (the weights).

    Raises:
        TrainingError: with what takes how much, and the ways out, the largest first.
    """
    if load.total > free + loaded:
        needs = f"training needs at least {_gb(load.total)} of memory and {_gb(free + loaded)} are free: {_shares(load)}"
        raise TrainingError(needs, where="before the first step", fix=advice(load, free + loaded))


def explain_oom(error: BaseException, *, step: int, batch: Batch | None, load: Load) -> TrainingError:
    """What to tell the user after `error`, an out-of-memory in `step` (1-based) on `batch`."""
    shapes = f" on a micro-batch of {list(batch.ids_BC.shape)} positions in {batch.sequences} sequences" if batch is not None else ""
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    what = f"out of memory{shapes} ({reason}); counted were {_gb(load.total)}: {_shares(load)}"
    return TrainingError(what, where=f"step {step}", fix=advice(load, load.total - 1))


def advice(load: Load, limit: int) -> str:
    """The ways out of `load` for a machine of `limit` bytes, one sentence."""
    ways = sorted(ways_out(load, limit), key=lambda way: way.load.total)
    if not ways:
        return "take a smaller model or a machine with more memory"
    said = [f"{way.option} (-{_gb(load.total - way.load.total)})" for way in ways]
    enough = [text for text, way in zip(said, ways, strict=True) if way.load.total <= limit]
    if enough:
        return "any of these is enough: " + ", ".join(enough)
    return "none alone is enough, largest first: " + ", ".join(said) + "; or a smaller model"


def ways_out(load: Load, limit: int) -> list[WayOut]:
    """Every option that lowers the load."""
    fewer = max(load.longest, _halved(load, limit))
    samples = _fewer_samples(load, limit)
    changes: Mapping[str, Callable[[], Load]] = {
        f"train.micro_tokens={fewer}": lambda: replace(load, positions=min(load.positions, fewer)),
        f"rollout.samples={samples}": lambda: _with_samples(load, samples),
        "reference.cache=true": lambda: replace(load, reference=0) if load.cacheable else load,
        "critic.shared=true": lambda: replace(load, critic=0),
        "model.checkpointing=true": lambda: replace(load, checkpointing=True),
        f"lora.rank={RANK}": lambda: replace(load, trained=min(load.trained, _adapters(load)), reference=0),
        "train.precision=bf16": lambda: replace(load, precision="bf16"),
    }
    ways = [WayOut(option, change()) for option, change in changes.items()]
    return [way for way in ways if way.load.total < load.total]


def _halved(load: Load, limit: int) -> int:
    """The largest micro-batch, halving from the present one, with which the load is within the limit."""
    positions = load.positions
    while positions > load.longest and replace(load, positions=positions).total > limit:
        positions //= 2
    return positions


def _fewer_samples(load: Load, limit: int) -> int:
    """The largest number of answers to compare, halving from the present one, with which the load is within the limit."""
    samples = load.samples
    while samples > 3 and _with_samples(load, samples).total > limit:
        samples //= 2
    return samples


def _with_samples(load: Load, samples: int) -> Load:
    longest = load.longest - (load.samples - samples) * load.answer
    return replace(load, samples=samples, longest=longest, positions=max(longest, load.positions - (load.longest - longest)))


def _adapters(load: Load) -> int:
    """Parameters of adapters on four square and three feed-forward matrices a layer."""
    return load.layers * RANK * (8 * load.width + 3 * (load.width + load.feed_forward))


def _shares(load: Load) -> str:
    parts = sorted(load.parts().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {_gb(size)}" for name, size in parts if size)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.0f} MB"
