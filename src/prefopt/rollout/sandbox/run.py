"""One Python program in a sandbox of bubblewrap: no network, no files of the host but Python's own (read-only), no environment, process
ids of its own, no new processes, limits on time, memory, files and output.

Where bubblewrap is missing or cannot make its namespaces that is an error: there is no other way to run such programs.
"""

from __future__ import annotations

import functools
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Literal

from prefopt.errors import RewardError
from prefopt.rollout.sandbox.seccomp import filter_program

MB = 2**20
GRACE = 2.0
"""Wall-clock seconds a program may wait, for the sandbox to start and for its turn on a busy machine: as long as its limit and these."""
PROGRAM = "/program.py"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: processor time, rounded up; and twice as much wall-clock time (see GRACE).
        memory: address space in bytes. files: bytes in one file, and in all of them together.
        output: bytes it may write to stdout and stderr. descriptors, threads: open files and threads.
    """

    seconds: float = 10.0
    memory: int = 1024 * MB
    files: int = 64 * MB
    output: int = MB
    descriptors: int = 64
    threads: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        verdict: finished (exit code 0), failed (another exit code), killed (a signal), timeout, or output (it wrote more than it may).
        code: exit code, or the signal's number.
        stdout, stderr: what it wrote, up to the limit.
        seconds: wall-clock time.
    """

    verdict: Literal["finished", "failed", "killed", "timeout", "output"]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    def __str__(self) -> str:
        last = self.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
        if self.verdict == "failed":
            return last or f"exit code {self.code}"
        if self.verdict == "killed":
            return f"ended by {signal.Signals(self.code).name}"
        told = {"finished": "finished", "timeout": f"still running after {self.seconds:.1f} s", "output": "more output than allowed"}
        return told[self.verdict]


# Runs inside, before the program: hard limits, which it cannot raise again.
_PRELUDE = """
import resource as r, sys
memory, files, descriptors, threads, seconds = map(int, sys.argv[1:6])
for what, most in ((r.RLIMIT_AS, memory), (r.RLIMIT_FSIZE, files), (r.RLIMIT_NOFILE, descriptors), (r.RLIMIT_NPROC, threads),
                   (r.RLIMIT_CPU, seconds), (r.RLIMIT_CORE, 0), (r.RLIMIT_MEMLOCK, 0), (r.RLIMIT_MSGQUEUE, 0)):
    r.setrlimit(what, (most, most))
sys.argv[:] = [sys.argv[6]]
scope = sys.modules["__main__"].__dict__
source = open(sys.argv[0], "rb").read()
for name in ("r", "memory", "files", "descriptors", "threads", "seconds", "what", "most"):
    del scope[name]
exec(compile(source, sys.argv[0], "exec"), scope)
"""


def run(program: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Run a Python program in the sandbox.

    Args:
        program: its source.
        stdin: what it can read.
        limits: what it may use.

    Raises:
        RewardError: there is no bubblewrap, or it cannot make its namespaces here.
    """
    require()
    limits = limits or Limits()
    with _holding(program.encode()) as source, _holding(filter_program()) as rules, _holding(stdin) as given:
        command = _command(limits, source.fileno(), rules.fileno())
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(source.fileno(), rules.fileno()),
            env={},
            start_new_session=True,
        )
        try:
            stopped, out, err = _watch(process, started + 2 * limits.seconds + GRACE, limits.output)
        finally:
            _end(process)
    seconds = time.monotonic() - started
    if stopped is not None:
        return Outcome(stopped, 0, out, err, seconds)
    code = process.returncode
    if code > 128:  # the way bubblewrap tells of a signal
        killed = code - 128
        late = killed == signal.SIGXCPU or (killed == signal.SIGKILL and seconds > limits.seconds)
        return Outcome("timeout" if late else "killed", killed, out, err, seconds)
    return Outcome("failed" if code else "finished", code, out, err, seconds)


@functools.cache
def require() -> None:
    """Check, once, that programs can be sandboxed here.

    Raises:
        RewardError: they cannot; the message says what to install or allow.
    """
    if shutil.which("bwrap") is None:
        what = "programs are run in a sandbox of bubblewrap, which is not installed (bwrap)"
        raise RewardError(what, where="reward.verifier: code", fix="apt-get install bubblewrap, or your system's equal")
    with _holding(b"") as source, _holding(filter_program()) as rules:
        command = _command(Limits(), source.fileno(), rules.fileno())
        done = subprocess.run(command, capture_output=True, pass_fds=(source.fileno(), rules.fileno()), env={}, check=False, timeout=60)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
        fix = "allow user namespaces (kernel.unprivileged_userns_clone=1, or the container's seccomp and AppArmor profiles)"
        raise RewardError(f"bubblewrap cannot make a sandbox here: {said}", where="reward.verifier: code", fix=fix)


def _command(limits: Limits, source: int, rules: int) -> list[str]:
    """bwrap and the program."""
    _, memory, files, _, descriptors, threads = astuple(limits)
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "65534",
        "--gid",
        "65534",
        "--hostname",
        "sandbox",
    ]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--seccomp", str(rules)]
    command += [
        "--proc",
        "/proc",
        "--remount-ro",
        "/proc",
        "--dev",
        "/dev",
        "--remount-ro",
        "/dev",
        "--size",
        str(files),
        "--tmpfs",
        "/tmp",
        *_python_folders(),
    ]
    command += ["--perms", "0444", "--ro-bind-data", str(source), PROGRAM, "--remount-ro", "/", "--chdir", "/tmp"]
    command += ["--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8", "--setenv", "OMP_NUM_THREADS", "1", "--"]
    numbers = (memory, files, descriptors, threads, math.ceil(limits.seconds))
    return [*command, _interpreter(), "-I", "-B", "-X", "utf8", "-c", _PRELUDE, *map(str, numbers), PROGRAM]


def _interpreter() -> str:
    """The real path of this Python, outside any virtual environment."""
    return str(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]


@functools.cache
def _python_folders() -> tuple[str, ...]:
    """The folders Python needs, read-only, at their own places: /usr, and its own where that is elsewhere."""
    found = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/", name)
        if path.is_symlink():
            found += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    for file in ("/etc/ld.so.cache",):
        found += ["--ro-bind-try", file, file]
    home = Path(sys.base_prefix).resolve()
    if not home.is_relative_to("/usr"):
        found += ["--ro-bind", str(home), str(home)]
    return tuple(found)


def _holding(content: bytes) -> IO[bytes]:
    """A nameless file with this content, to be read from its start."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _watch(process: subprocess.Popen[bytes], until: float, most: int) -> tuple[Literal["timeout", "output"] | None, bytes, bytes]:
    """Read what it writes until it ends; or why it has to be stopped before."""
    assert process.stdout is not None
    assert process.stderr is not None
    found = {process.stdout: bytearray(), process.stderr: bytearray()}

    def result(stopped: Literal["timeout", "output"] | None) -> tuple[Literal["timeout", "output"] | None, bytes, bytes]:
        out, err = found.values()
        return stopped, bytes(out[:most]), bytes(err[:most])

    with selectors.DefaultSelector() as selector:
        for pipe in found:
            selector.register(pipe, selectors.EVENT_READ, pipe)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                return result("timeout")
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                found[key.data] += part
                if not part:
                    selector.unregister(key.data)
                if sum(map(len, found.values())) > most:
                    return result("output")
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its output and goes on
        return result("timeout")
    return result(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill bubblewrap, and with it everything in its process namespace; a program that has ended is only waited for."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
