"""Ctrl-C and SIGTERM ask a run to stop: it finishes the step, checkpoints and exits cleanly. A second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from prefopt.errors import PrefoptError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping after this step (Ctrl-C again stops at once)\n"


class Interrupted(PrefoptError):
    """A signal ended the work after a step or a stage; the exit code is the shell's for that signal."""

    def __init__(self, signal: str, after: str) -> None:
        super().__init__(f"stopped by {signal} after {after}", fix="the same command goes on from there")
        self.exit_code = {"SIGINT": 130, "SIGTERM": 143}[signal]


_late: list[str] = []


def unserved() -> str:
    """The signal that came while a run was about to end anyway, once; empty where none did."""
    found = _late[-1] if _late else ""
    _late.clear()
    return found


class StopRequest:
    """Inside the `with`, signals set `requested` instead of ending the process; outside, they do what they did before.

    A request that came too late to be granted inside is told once by `unserved`: who has further work to do asks there.

    Python delivers signals to the main thread only; in another thread nothing is changed and `requested` stays empty.

    >>> with StopRequest() as stop:
    ...     stop.requested
    ''
    """

    def __init__(self) -> None:
        self.requested = ""
        """The name of the signal that came ("SIGINT", "SIGTERM"), empty while none has."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.requested and error is None:
            _late.append(self.requested)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == "SIGINT":
            raise KeyboardInterrupt
        if not self.requested:
            os.write(2, NOTICE)  # print() may be in the middle of its own work when a signal arrives
        self.requested = signal.Signals(number).name
