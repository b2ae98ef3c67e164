"""Ctrl-C and SIGTERM ask a run to stop: it finishes the step, checkpoints and exits cleanly. A second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping after this step (Ctrl-C again stops at once)\n"


class StopRequest:
    """Inside the `with`, signals set `requested` instead of ending the process; outside, they do what they did before.

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

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == "SIGINT":
            raise KeyboardInterrupt
        if not self.requested:
            os.write(2, NOTICE)  # print() may be in the middle of its own work when a signal arrives
        self.requested = signal.Signals(number).name
