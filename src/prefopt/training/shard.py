"""FSDP2: weights, gradients and optimizer state split over the ranks (`train.shard`), each whole only while a layer is at work.

The loop does not change. Three things do: a rank that has run out of rows still takes part in every pass (`idle`), because gathering
weights needs all ranks; gradients arrive already added up and split; what is written to disk is gathered first (`full`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from prefopt.errors import OptionError
from prefopt.model.forward import FORWARDS, METHOD, base_of, layers_of
from prefopt.model.load import device
from prefopt.model.split import full
from prefopt.training import distributed
from prefopt.types import Batch

_POSITIONS = ("ids_BC", "positions_BC", "mask_BC", "spans")


def split(model: Any, precision: str) -> None:
    """Split a model in place; it computes in `precision` from fp32 weights.

    Raises:
        OptionError: there is one process only.
    """
    if distributed.world_size() == 1:
        raise OptionError("there is one process, so nothing to split over", where="train.shard", fix="start it with torchrun")
    base: Any = base_of(model)
    mesh = init_device_mesh(base.device.type, (distributed.world_size(),))
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if precision == "bf16" else MixedPrecisionPolicy()
    )
    base.float()
    for module in (*layers_of(base), base):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in base.modules():
        if isinstance(module, FSDPModule):  # losses are divided already: add, and never average
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    for name, forward in FORWARDS.items():
        setattr(base, METHOD + name, MethodType(forward, base))
        register_fsdp_forward_method(base, METHOD + name)
    with torch.no_grad():  # FSDP notes which parameters learn in its first pass, which may not be one with the adapter off
        base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=base.device), use_cache=False)


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors whole and on the CPU where this is rank 0, which writes them; nothing elsewhere."""
    found = {}
    for name, tensor in tensors.items():
        gathered = full(tensor)
        if distributed.rank() == 0:
            found[name] = gathered.cpu() if isinstance(tensor, DTensor) else gathered
    return found


def join(model: Any) -> None:
    """Put a split model together again, on rank 0 and on the CPU, to be merged and written; it takes no forward pass any more."""
    met: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor) and id(parameter) not in met:
                gathered = full(parameter.detach())
                met[id(parameter)] = nn.Parameter(gathered.cpu(), parameter.requires_grad) if distributed.rank() == 0 else parameter
            if parameter is not None and distributed.rank() == 0:
                module._parameters[name] = met.get(id(parameter), parameter)
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__bases__[1]  # fully_shard made a class FSDPName(FSDPModule, Name)


def as_many(batches: Sequence[Batch], spare: Callable[[], Batch]) -> list[Batch]:
    """The batches of this rank, and as many idle ones as make their number that of the rank which has most."""
    most = torch.tensor(len(batches), device=device())
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [*batches, *(idle(spare()) for _ in range(int(most) - len(batches)))]


def idle(batch: Batch) -> Batch:
    """The same positions with nothing to learn from: every column of the losses is empty."""
    columns: dict[str, Any] = {
        name: value[:0] for name, value in vars(batch).items() if name not in _POSITIONS and isinstance(value, torch.Tensor)
    }
    return replace(batch, **columns)
