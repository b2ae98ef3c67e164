"""The sandbox: hostile programs are contained, honest ones run, and without bubblewrap nothing runs at all."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prefopt.errors import RewardError
from prefopt.rollout.sandbox import Limits, Outcome, require, run
from prefopt.rollout.sandbox.run import _python_folders
from prefopt.rollout.sandbox.seccomp import DENIED, filter_program
from tests.sandbox.hostile import PROGRAMS, Hostile

HAVE = shutil.which("bwrap") is not None
sandboxed = pytest.mark.skipif(not HAVE, reason="bubblewrap (bwrap) is not installed, so nothing can be sandboxed")
LIMITS = Limits(seconds=1.0, memory=512 * 2**20, files=16 * 2**20)


class Host:
    """What a hostile program may be after: a file, a port where somebody listens, a process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "secret.txt"
        self.file.write_text("ESCAPED")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.name, self.threads = platform.node(), psutil.Process().num_threads()

    def fill(self, program: str) -> str:
        """A program with the places of this host."""
        port = str(self.listener.getsockname()[1])
        return program.replace("HOST", str(self.file)).replace("PORT", port).replace("PID", str(self.process.pid))

    def check(self) -> None:
        """Nothing happened to it, and nothing is left of the program."""
        assert self.file.read_text() == "ESCAPED"
        assert self.process.poll() is None
        assert platform.node() == self.name
        assert Path(os.__file__).read_text()[-1] == "\n"
        assert not Path("/usr/bin/mine").exists()
        left = [psutil.Process(pid).cmdline()[:3] for pid in self.children() if pid != self.process.pid]
        assert not left, left

    def children(self) -> list[int]:
        """Processes under this one that are alive, a moment's grace for those that are ending."""
        until = time.monotonic() + 5
        while True:
            alive = [child.pid for child in psutil.Process().children(recursive=True) if _alive(child)]
            if set(alive) <= {self.process.pid} or time.monotonic() > until:
                return alive


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("host"))
    yield found
    found.process.kill()
    found.process.wait()
    found.listener.close()


@sandboxed
@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda hostile: hostile.name)
def test_a_hostile_program_is_contained(hostile: Hostile, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    before = psutil.virtual_memory().available
    outcome = run(host.fill(hostile.program), limits=LIMITS)
    assert outcome.verdict in hostile.verdicts, (outcome.verdict, outcome.stdout[-300:], outcome.stderr[-300:])
    assert b"ESCAPED" not in outcome.stdout
    assert str(outcome)
    assert outcome.seconds < 2 * LIMITS.seconds + 5
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * LIMITS.output
    assert before - psutil.virtual_memory().available < 8 * 2**30
    host.check()


def test_there_are_forty_of_them() -> None:
    assert len({hostile.name for hostile in PROGRAMS}) == len(PROGRAMS) >= 40


@sandboxed
def test_honest_programs_run() -> None:
    program = "import sys, json, math, collections\nprint(json.dumps({'read': sys.stdin.read(), 'root': math.isqrt(49)}))"
    outcome = run(program, stdin="grüße".encode())
    assert (outcome.verdict, outcome.stdout) == ("finished", b'{"read": "gr\\u00fc\\u00dfe", "root": 7}\n')
    threads = (
        "import threading\nt = threading.Thread(target=print, args=('in a thread',))\nt.start()\nt.join()\nopen('/tmp/x', 'w').write('x')"
    )
    assert run(threads).stdout == b"in a thread\n"


@sandboxed
def test_outcomes_say_what_happened() -> None:
    told = {
        "print(1 / 0)": ("failed", "ZeroDivisionError: division by zero"),
        "raise SystemExit(7)": ("failed", "exit code 7"),
        "import os; os.kill(os.getpid(), 11)": ("killed", "ended by SIGSEGV"),
        "x = (": ("failed", "SyntaxError: '(' was never closed"),
        "pass": ("finished", "finished"),
    }
    for program, (verdict, said) in told.items():
        outcome = run(program)
        assert (outcome.verdict, str(outcome)) == (verdict, said)


@sandboxed
def test_the_environment_is_empty_and_the_host_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    outcome = run("import os; print(sorted(os.environ), os.getuid(), sorted(os.listdir('/')), os.listdir('/tmp'))")
    seen = outcome.stdout.decode()
    assert seen.startswith("['HOME', 'LANG', 'OMP_NUM_THREADS', 'PWD'] 65534 [")
    assert "'home'" not in seen
    assert "'work'" not in seen
    assert seen.rstrip().endswith("[]")


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    require.cache_clear()
    flag = tmp_path / "ran"
    with pytest.raises(RewardError, match=r"not installed \(bwrap\)\napt-get install bubblewrap"):
        run(f"open({str(flag)!r}, 'w')")
    assert not flag.exists()
    require.cache_clear()


@sandboxed
def test_a_sandbox_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    require.cache_clear()
    with pytest.raises(RewardError, match="cannot make a sandbox here: bwrap: No permissions"):
        run("print(1)")
    require.cache_clear()


def test_the_filter_is_made_for_known_machines_only() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(filter_program(machine)) % 8 == 0
    with pytest.raises(RewardError, match="no system calls of sparc"):
        filter_program("sparc")
    numbers = [x86 for x86, _ in DENIED.values()]
    assert len(set(numbers)) == len(numbers)


def test_only_python_is_mounted() -> None:
    folders = _python_folders()
    assert not {"/home", "/root", "/work", "/etc"} & set(folders)


def test_an_outcome_is_told_in_words() -> None:
    assert str(Outcome("timeout", 0, b"", b"", 2.5)) == "still running after 2.5 s"
