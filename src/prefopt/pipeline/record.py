"""What made what: hashes of everything read, versions, seeds and the machine, written beside every result."""

from __future__ import annotations

import errno
import functools
import glob
import gzip
import hashlib
import json
import os
import platform
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import prefopt
from prefopt.errors import DataError, TrainingError

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "peft", "safetensors", "numpy", "scipy", "pydantic")
_CHUNK = 1 << 20
HUB = "hub:"
"""What the hash of a hub name begins with."""
_FULL = ("the disk is full", "free some space and give the same command again: it goes on from what is whole")
_CLOSED = ("cannot be written to", "choose another --out")
_UNWRITABLE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: _CLOSED,
    errno.ENOTDIR: _CLOSED,
}


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Write all of a JSON file or nothing: a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a text file or nothing; of the processes of a distributed run only the first writes."""
    if not is_first():
        return
    half = path.with_name(f".{path.name}.part")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def is_first() -> bool:
    """Whether this is the only process, or the first of those torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Inside, a place that cannot be written to is the user's to mend.

    Raises:
        TrainingError: the disk is full, or the place is closed to us.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        what, fix = _UNWRITABLE[error.errno]
        raise TrainingError(what, where=str(error.filename or place), fix=fix) from error


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none or where it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, so that both can be moved together and nothing is told of the machine."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


# --- hashes -----------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """SHA-256 of a plain value in canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def digest_path(path: str | Path) -> str:
    """SHA-256 of a file's content (unpacked, so that gzip's time stamp does not count) or of a folder's files by name.

    A pattern stands for the files that fit it, "folder:split" for the folder. What is not on this disk is a hub name and stands for
    itself ("hub:org/name").

    Raises:
        DataError: a file cannot be read.
    """
    place, (name, colon, split) = Path(path), str(path).rpartition(":")
    if place.is_dir():
        return digest({str(file.relative_to(place)): _digest_file(file) for file in _files(place)})
    if place.is_file():
        return _digest_file(place)
    if glob.has_magic(str(path)):
        return digest({found: digest_path(found) for found in sorted(glob.glob(str(path)))})
    return digest([digest_path(name), split]) if colon and Path(name).is_dir() else f"{HUB}{path}"


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones left out, in order of name."""
    hidden = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return (file for file in hidden if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                try:
                    with gzip.open(raw) as unpacked:
                        return _digest_stream(unpacked)
                except (gzip.BadGzipFile, EOFError, zlib.error):
                    raw.seek(0)  # damaged, as whoever reads its rows will say
            return hashlib.file_digest(raw, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def _digest_stream(stream: gzip.GzipFile) -> str:
    total = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        total.update(chunk)
    return total.hexdigest()


# --- the world around a run -------------------------------------------------------------------------------------------


@functools.cache
def environment() -> Mapping[str, Any]:
    """Code, packages and hardware of this process."""
    return {"code": code(), "packages": packages(), "hardware": hardware()}


def code() -> dict[str, Any]:
    """The version of prefopt and, when it runs from its repository, the commit and whether files differ from it."""
    here = Path(prefopt.__file__).parent
    tracked = _git(here, "ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:
        return {"version": prefopt.__version__, "commit": None, "dirty": None}
    return {
        "version": prefopt.__version__,
        "commit": _git(here, "rev-parse", "HEAD"),
        "dirty": bool(_git(here, "status", "--porcelain", "--", ".")),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def packages() -> dict[str, str]:
    """The versions of what numbers depend on, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """System, processor, cores this process may use, memory in GB and GPUs."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(memory_gb(), 1),
        "gpus": gpus(),
    }


def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """The machine's memory, or the limit of the container this runs in, in GB."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 0.0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, float(text)) / 1e9 if text.isdigit() else total / 1e9


def gpus() -> list[str]:
    """The names of the CUDA devices."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
