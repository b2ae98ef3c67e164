"""Several processes as one: started by torchrun or `accelerate launch`, gradients added, counts added, weights asserted equal."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from prefopt.errors import PrefoptError, TrainingError
from prefopt.model.load import device

T = TypeVar("T")


def start() -> None:
    """Join the process group when a launcher set WORLD_SIZE (nccl on CUDA, gloo on a CPU), each process on the device of its LOCAL_RANK."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(stop)  # threads of a group that is left open can abort the process after its work is done


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(counts: Mapping[str, float]) -> dict[str, float]:
    """The same counts summed over all ranks."""
    if world_size() == 1:
        return dict(counts)
    names = sorted(counts)
    total = torch.tensor([float(counts[name]) for name in names], dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def add_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Sum every parameter's gradient over the ranks: losses are already divided by the denominator of the whole step.

    Those of parameters that are split over the ranks have been added up in the backward pass.
    """
    named = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if world_size() == 1 or not named:
        return
    touched = torch.tensor([float(p.grad is not None) for p in named], device=device())
    dist.all_reduce(touched)
    for parameter, ranks in zip(named, touched.tolist(), strict=True):
        if ranks:  # one that no rank used stays without a gradient, as it would alone
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)


def assert_same(parameters: Iterable[torch.Tensor]) -> None:
    """Every rank must hold the same weights.

    Raises:
        TrainingError: they differ.
    """
    if world_size() == 1:
        return
    mine = torch.stack([p.detach().double().abs().sum() for p in parameters]).to(device())
    others = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(others, mine)
    if not all(torch.equal(mine, other) for other in others):
        raise TrainingError("the ranks hold different weights", fix="give every rank the same model.path and train.seed")


def each(value: str) -> list[str]:
    """What every rank says, in their order."""
    if world_size() == 1:
        return [value]
    said: list[str] = [""] * world_size()
    dist.all_gather_object(said, value)
    return said


def together(work: Callable[[], T]) -> list[T]:
    """What `work` gives on every rank, in their order; an error of the user's on one rank is raised on all, so that none waits for it.

    Args:
        work: may not speak to other ranks itself.

    Raises:
        PrefoptError: the first rank's that had one.
    """
    if world_size() == 1:
        return [work()]
    mine: tuple[T | None, PrefoptError | None]
    try:
        mine = (work(), None)
    except PrefoptError as error:
        mine = (None, error)
    said: list[Any] = [None] * world_size()
    dist.all_gather_object(said, mine)
    failed = next((error for _, error in said if error is not None), None)
    if failed is not None:
        raise failed
    return [value for value, _ in said]


def wait() -> None:
    """Until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Whether any rank says so (all ranks must stop at the same step)."""
    return add_up({"flag": float(flag)})["flag"] > 0
