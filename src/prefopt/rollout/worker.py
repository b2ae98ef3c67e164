"""A Python process of its own for code that may hang, crash or call exit: one request in, one reply out, each within a time limit.

Requests and replies are JSON, one a line. What the code prints goes to stderr. A process that overruns its time is killed with its
children, and the next request starts a new one.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

START = 60.0
"""Seconds a process may take to start and to import what it needs."""


class WorkerError(Exception):
    """The code raised, or its process ended; the text says how. `setup` is true when it failed before the first request."""

    def __init__(self, text: str, *, setup: bool = False) -> None:
        self.setup = setup
        super().__init__(text)


class WorkerTimeout(WorkerError):
    """No reply in time."""


class Worker:
    """A process that runs `make(*arguments)` once and then calls what that returns with every request.

    Args:
        make: "module:name" of a function; it may also return (callable, greeting) with JSON for `greeting`.
        arguments: JSON-able arguments of `make`.
    """

    def __init__(self, make: str, arguments: Sequence[Any] = ()) -> None:
        self._command = [sys.executable, "-m", __name__, make, json.dumps(list(arguments))]
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Any] | None = None
        self._greeting: Any = None

    def greeting(self) -> Any:
        """What the process said of itself when it started; starts it where needed.

        Raises:
            WorkerError: it could not start (`setup` is true).
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            self._end = weakref.finalize(self, _kill, self._process)
            try:
                self._greeting = self._reply(START)
            except WorkerError as error:
                raise WorkerError(str(error), setup=True) from None
        return self._greeting

    def ask(self, request: Any, timeout: float) -> Any:
        """The reply to one request.

        Raises:
            WorkerTimeout: no reply within `timeout` seconds.
            WorkerError: the code raised, or its process ended.
        """
        self.greeting()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise WorkerError("the process ended") from None
        return self._reply(timeout)

    def close(self) -> None:
        """End the process and its children."""
        if self._end is not None:
            self._end()  # once: later its number may be another process's
        self._process = self._end = None

    def _reply(self, timeout: float) -> Any:
        assert self._process is not None
        line = _read_line(self._process, timeout)
        if line is None:
            self.close()
            raise WorkerTimeout(f"no reply within {timeout:g} s")
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self.close()
            raise WorkerError(f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["value"]


def _read_line(process: subprocess.Popen[bytes], timeout: float) -> bytes | None:
    """The next line; what came before the end of the file; or None when time is up."""
    assert process.stdout is not None
    until, found = time.monotonic() + timeout, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return None
            part = os.read(process.stdout.fileno(), 1 << 20)
            if not part:
                break
            found += part
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, which may outlive it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a request that was never read
                pipe.close()


def load_name(spec: str) -> Any:
    """What "module:name" or "file.py:name" names; a file's folder joins the import path, at its end."""
    place, _, name = spec.rpartition(":")
    return getattr(_load_file(place) if place.endswith(".py") else importlib.import_module(place), name)


def _load_file(path: str) -> ModuleType:
    """A file as a module of a name of its own: math.py is not the module math."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    folder, file = os.path.split(os.path.abspath(path))
    sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"_prefopt_{file.removesuffix('.py')}", os.path.join(folder, file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _serve(make: str, arguments: str) -> None:
    """The process's side."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the code prints must not look like a reply
    state: dict[str, Callable[[Any], Any]] = {}

    def start() -> Any:
        made = load_name(make)(*json.loads(arguments))
        state["call"], greeting = made if isinstance(made, tuple) else (made, None)
        return greeting

    _answer(out, start)
    if "call" not in state:
        return
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _answer(out, lambda request=request: state["call"](request))  # type: ignore[misc]


def _answer(out: Any, call: Callable[[], Any]) -> None:
    try:
        reply = json.dumps({"value": call()})
    except Exception as error:
        reply = json.dumps({"error": _told(error)})
    out.write(reply + "\n")
    out.flush()


def _told(error: Exception) -> str:
    """An exception in one line, with the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename != __file__ and "importlib" not in frame.filename), None)
    said = str(error).strip().split("\n")[0][:200]
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{text} ({os.path.basename(last.filename)}:{last.lineno})" if last else text


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
