"""Plant every fault of `faults.FAULTS` in a copy of the source and see whether a test notices.

    make mutate                                # all of them, and the table in docs/mutation.md
    make mutate MUTATE_ARGS=--resume           # only survivors, and what has changed since the last time
    python -m tests.mutation.run reward tree   # those whose names hold one of the words

For each fault the part of the fast suite that concerns its file runs and stops at the first failure. torch and transformers are loaded
once; every fault is tried in a fork. In the end every test that noticed a fault must pass without one. Exit code 1 when fewer than 95%
are killed, when one survives without a known reason, or when one no longer applies to the source.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutation.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutation.md"
KEPT = ROOT / "runs" / "mutation.json"
GOAL = 0.95
PATIENCE = 900
"""Seconds after which a fault that hangs counts as noticed."""

VALUES = (
    "tests/methods/test_values.py",
    "tests/methods/test_table.py",
    "tests/methods/test_doctests.py",
    "tests/methods/test_properties.py",
)
GOLDEN = ("tests/golden/test_golden.py::test_twenty_steps_are_as_recorded",)
PACKINGS = (*GOLDEN, "tests/golden/test_golden.py::test_padded_rows_in_small_micro_batches_meet_the_same_file")
LOSSES = (*VALUES, "tests/exact/test_verify.py", *GOLDEN)
LOOP = (*PACKINGS, "tests/unit/test_training.py")
CONCERNS: Mapping[str, tuple[str, ...]] = {
    "losses/": LOSSES,
    "losses/policy.py": ("tests/methods/test_policy.py", *VALUES),
    "losses/advantages.py": ("tests/methods/test_policy.py", *VALUES),
    "losses/kl.py": ("tests/methods/test_policy.py", "tests/methods/test_kl_budget.py", *VALUES),
    "losses/value.py": ("tests/methods/test_policy.py", *VALUES),
    "losses/ragged.py": (*VALUES, "tests/unit/test_ragged.py", "tests/methods/test_policy.py", "tests/exact/test_verify.py", *GOLDEN),
    "losses/reduce.py": ("tests/unit/test_reduce.py", *VALUES, *LOOP),
    "losses/columns.py": (*VALUES, "tests/unit/test_training.py", "tests/exact/test_verify.py", *GOLDEN),
    "losses/metrics.py": (*VALUES, "tests/unit/test_training.py"),
    "pack/tree.py": ("tests/unit/test_pack.py", *PACKINGS, "tests/unit/test_attention.py", "tests/unit/test_training.py"),
    "pack/plan.py": ("tests/unit/test_pack.py", *LOOP, "tests/e2e/test_distributed.py"),
    "pack/prepare.py": ("tests/unit/test_prepare.py",),
    "data/": (
        "tests/unit/test_data_read.py",
        "tests/unit/test_data_split.py",
        "tests/unit/test_data_formats.py",
        "tests/unit/test_prepare.py",
    ),
    "text/": ("tests/unit/test_chat.py", "tests/unit/test_prepare.py"),
    "model/": (
        "tests/unit/test_logprobs.py",
        "tests/unit/test_attention.py",
        "tests/unit/test_last.py",
        *PACKINGS,
        "tests/exact/test_verify.py",
    ),
    "model/last.py": ("tests/unit/test_last.py",),
    "model/reference.py": ("tests/unit/test_reference.py", *LOOP),
    "training/": LOOP,
    "training/coupling.py": (*LOOP, "tests/e2e/test_distributed.py"),
    "training/optim.py": ("tests/unit/test_optim.py", *LOOP),
    "training/online.py": ("tests/unit/test_online.py", "tests/unit/test_server_training.py", *GOLDEN),
    "training/rounds.py": ("tests/unit/test_online.py", "tests/unit/test_server_training.py", "tests/exact/test_verify.py", *GOLDEN),
    "training/setup.py": ("tests/unit/test_online.py", *LOOP),
    "training/loop.py": (*LOOP, "tests/unit/test_online.py", "tests/e2e/test_distributed.py"),
    "training/job.py": (*LOOP, "tests/unit/test_online.py", "tests/e2e/test_distributed.py"),
    "training/checkpoint.py": ("tests/unit/test_checkpoint.py", "tests/unit/test_training.py"),
    "training/meter.py": ("tests/unit/test_meter.py", *LOOP),
    "training/distributed.py": ("tests/e2e/test_distributed.py",),
}
"""Start of a file's path (the longest counts) -> tests, the narrowest first."""


@dataclass(frozen=True)
class Result:
    """What became of a fault: the test that noticed it ("" when none did), and the seconds that took."""

    fault: Fault
    noticed: str
    seconds: float

    @property
    def state(self) -> str:
        """One word."""
        return "killed" if self.noticed else "survived"


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that concern a file."""
    starts = [start for start in CONCERNS if file.startswith(start)]
    return CONCERNS[max(starts, key=len)]


def mutants(faults: Sequence[Fault], jobs: int, *, minutes: float = math.inf) -> Iterator[Result]:
    """Try the faults, `jobs` at a time, each in a copy of the source of its own; none is begun after `minutes`."""
    last = time.perf_counter() + 60 * minutes
    _load_heavy()
    with tempfile.TemporaryDirectory() as scratch:
        copies = [_copy(Path(scratch) / str(slot)) for slot in range(jobs)]
        running: dict[int, tuple[Fault, Path, float]] = {}
        waiting = list(reversed(faults))
        while waiting or running:
            if time.perf_counter() > last:
                waiting.clear()
            while waiting and copies:
                fault, copy = waiting.pop(), copies.pop()
                running[_start(fault, copy)] = (fault, copy, time.perf_counter())
            if not running:
                break
            child, status = os.wait()
            fault, copy, started = running.pop(child)
            code = os.waitstatus_to_exitcode(status)
            noticed = _noticed(copy) or ("" if code == 0 else f"exit code {code}")
            yield Result(fault, noticed, time.perf_counter() - started)
            copies.append(copy)


def unharmed(tests: Sequence[str]) -> str:
    """The first of the tests that fails although nothing is wrong; "" where all pass."""
    if not tests:
        return ""
    _load_heavy()
    with tempfile.TemporaryDirectory() as scratch:
        copy = _copy(Path(scratch) / "whole")
        _, status = os.waitpid(_start(Fault("types.py", "nothing", "", "", ""), copy, tests), 0)
        code = os.waitstatus_to_exitcode(status)
        return _noticed(copy) or ("" if code == 0 else f"exit code {code}")


def _noticed(copy: Path) -> str:
    found = copy / "noticed"
    return found.read_text() if found.exists() else ""


def _copy(folder: Path) -> Path:
    """Source and tests, so that a test that starts a process of its own finds the fault there too; compiled once for all forks."""
    for part in ("src", "tests", "recipes"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    compileall.compile_dir(folder / "src", quiet=1)
    return folder


def _load_heavy() -> None:
    """What every fork would load for itself; prefopt is not among it."""
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "prefopt" for name in sys.modules)


def _start(fault: Fault, copy: Path, tests: Sequence[str] = ()) -> int:
    """Fork; the child plants the fault, runs the tests and writes the first that fails to `copy/noticed`."""
    (copy / "noticed").unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        signal.alarm(PATIENCE)
        code = _tried(fault, copy, tests or tests_of(fault.file))
    finally:
        os._exit(code)


def _tried(fault: Fault, copy: Path, tests: Sequence[str]) -> int:
    import pytest

    path = copy / "src" / "prefopt" / fault.file
    whole = path.read_text()
    mutated = fault.applied(whole) if fault.old else whole
    assert mutated is not None
    os.environ |= {"PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(copy), str(copy / "src")]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    os.chdir(copy)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    path.write_text(mutated)
    try:
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--basetemp",
            str(copy / "scratch"),
        ]
        return int(pytest.main([*options, *tests], plugins=[_Witness(copy / "noticed")]))
    finally:
        path.write_text(whole)


class _Witness:
    """Writes down the first test (or file) that fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


# --- what is known from the last time ---------------------------------------------------------------------------------


def _source(fault: Fault) -> str:
    return (ROOT / "src" / "prefopt" / fault.file).read_text()


def _key(fault: Fault) -> str:
    """What a kill depends on: the file as it is, and the change."""
    return hashlib.sha256(json.dumps([_source(fault), fault.where, fault.old, fault.new]).encode()).hexdigest()


def remembered(faults: Sequence[Fault]) -> list[Result]:
    """What an earlier run found and still stands."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known = [(fault, kept.get(_key(fault))) for fault in faults]
    return [Result(fault, found["noticed"], found["seconds"]) for fault, found in known if found]


def remember(results: Iterable[Result]) -> None:
    """Keep them for `--resume`."""
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept |= {_key(r.fault): {"noticed": r.noticed, "seconds": r.seconds} for r in results}
    KEPT.write_text(json.dumps(kept, indent=1))


# --- the account --------------------------------------------------------------------------------------------------------


def page(results: Sequence[Result], planned: Sequence[Fault]) -> str:
    """docs/mutation.md: of the planned faults those that were tried."""
    killed = [r for r in results if r.noticed]
    recorded = [r for r in killed if r.noticed.startswith("tests/golden")]
    left = len(planned) - len(results)
    lines = [
        "# Planted faults",
        "",
        "Written by `make mutate`, which changes one thing in the source (a sign, a denominator, a mask, a swapped pair, a reference left",
        "in the graph, ...), runs the part of the fast suite that concerns the file, and looks for a failure. A survivor is either a fault",
        "that changes nothing anyone could see, with the reason, or a test that is missing.",
        "",
        f"**{len(killed)} of {len(results)} planted faults are killed ({len(killed) / max(1, len(results)):.1%})**,",
        f"{len(recorded)} of them first by the golden trajectories.",
        *(
            [f"{left} of {len(planned)} have not been tried since their file last changed (`make mutate MUTATE_ARGS=--resume`)."]
            if left
            else []
        ),
        "",
        "| file | planted | tried | killed | first by golden trajectories |",
        "|---|---:|---:|---:|---:|",
    ]
    for file in dict.fromkeys(fault.file for fault in planned):
        tried = [r for r in results if r.fault.file == file]
        counts = (sum(f.file == file for f in planned), len(tried), sum(r in killed for r in tried), sum(r in recorded for r in tried))
        lines.append(f"| `{file}` | " + " | ".join(map(str, counts)) + " |")
    survivors = [r.fault for r in results if not r.noticed]
    lines += ["", "## Survivors", "", *(f"- `{fault.file}`, {fault.what}: {fault.survives or 'no test sees it'}" for fault in survivors)]
    return "\n".join(lines + ([] if survivors else ["None."])) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only faults whose names hold one of these")
    parser.add_argument("--resume", action="store_true", help="take kills of earlier runs as they are where the file has not changed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more after so many; --resume goes on from there")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if not options.words or any(word in fault.name for word in options.words)]
    if not faults:
        raise SystemExit("no fault has such a name")
    lost = [fault.name for fault in faults if fault.applied(_source(fault)) is None]
    for name in lost:
        print(f"no longer applies: {name}")
    faults = [fault for fault in faults if fault.name not in lost]
    earlier = {result.fault.name: result for result in remembered(faults)} if options.resume else {}
    settled = [result for result in earlier.values() if result.noticed or result.fault.survives]
    again = [fault for fault in faults if fault.name not in {result.fault.name for result in settled}]
    found = {}
    for result in mutants(again, options.jobs, minutes=options.minutes):
        found[result.fault.name] = result
        remember([result])
        print(f"{result.state:9}{result.seconds:6.1f} s  {result.fault.name}  {result.noticed or result.fault.survives}", flush=True)
    results = list((earlier | found).values())
    if broken := unharmed(sorted({result.noticed for result in results if "::" in result.noticed})):
        raise SystemExit(f"without any fault this fails too, so nothing is shown: {broken}")
    killed = sum(bool(result.noticed) for result in results)
    print(f"{killed} of {len(results)} killed ({killed / max(1, len(results)):.1%}), {len(faults) - len(results)} not tried")
    if not options.words:
        results.sort(key=lambda result: FAULTS.index(result.fault))
        PAGE.write_text(page(results, faults))
    unexplained = [result for result in results if not result.noticed and not result.fault.survives]
    return int(bool(lost or unexplained or len(results) < len(faults)) or killed < GOAL * len(results))


if __name__ == "__main__":
    raise SystemExit(main())
