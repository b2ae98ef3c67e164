"""How much memory this process may still take, whether a model's weights fit into it, and what running out of it looks like."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from prefopt.errors import ModelError

CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes this process may still take on `device`: what the driver, or the system and the container's limit, leave."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return min(int(psutil.virtual_memory().available), _container_leaves())


def is_oom(error: BaseException) -> bool:
    """Whether an exception means that memory ran out (torch's CPU allocator raises a bare RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ("can't allocate memory", "not enough memory"))


def require_room(folder: Path, dtype: torch.dtype) -> None:
    """Find out before they are read that a folder's weights (safetensors) do not fit into memory as `dtype`.

    Raises:
        ModelError: they do not; a process that tries would be killed without a word.
    """
    size, free = _parameters(folder) * dtype.itemsize, free_memory()
    if size > free:
        what = f"the weights take {size / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')} and {free / 1e9:.1f} GB of memory are free"
        raise ModelError(what, where=str(folder), fix="set model.dtype=bf16, take a smaller model or a machine with more memory")


def _parameters(folder: Path) -> int:
    """Numbers in a folder's weights; a damaged file counts as none, loading says what is wrong with it."""
    total = 0
    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, "pt") as tensors:
                total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError):
            continue
    return total


def _weight_files(folder: Path) -> set[str]:
    """The files that transformers loads; others may hold the same weights in another form (consolidated.safetensors)."""
    if (folder / "model.safetensors").exists():
        return {"model.safetensors"}
    try:
        return set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return set()


def _container_leaves() -> int:
    """Bytes left under a control group's limit (pages of files it read can be given back); without one, no bound."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return 1 << 62
        stats = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - int((CGROUP / "memory.current").read_text()) + int(stats.get("inactive_file", 0))
    except (OSError, ValueError):
        return 1 << 62
