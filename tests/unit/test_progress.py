"""What a user sees while a run goes on, and how a run is asked to stop."""

from __future__ import annotations

import io
import os
import signal
import threading
from contextlib import suppress

import pytest
from rich.console import Console

from prefopt.training.progress import Progress, describe
from prefopt.training.signals import StopRequest, unserved

METRICS = {
    "loss": 0.69314,
    "rewards/margins": 0.25,
    "rewards/accuracies": 0.625,
    "kl": 0.0123,
    "tokens_per_second": 5400.0,
    "lr": 1e-5,
    "logps/chosen": -20.0,
}


def run(total: int, *, terminal: bool, done: int = 0, rank: int = 0, width: int = 120) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, quiet=rank > 0, color_system=None, legacy_windows=False)
    with Progress(total, title="dpo", rank=rank, console=console) as progress:
        progress.begin(done)
        for step in range(done + 1, total + 1):
            progress.update(step, METRICS)
        progress.say("saved [model]")
    return file.getvalue()


@pytest.mark.parametrize("total", [1, 7, 20, 21, 500, 1001])
def test_plain_lines_are_few_and_end_with_the_last_step(total: int) -> None:
    lines = run(total, terminal=False).splitlines()
    assert lines[-1] == "saved [model]"
    assert lines[-2].startswith(f"dpo {total}/{total}  loss 0.6931")
    assert min(total, 10) <= len(lines) - 1 <= 21


def test_a_line_says_what_matters() -> None:
    line = run(1, terminal=False).splitlines()[0]
    assert line == "dpo 1/1  loss 0.6931  margin 0.250  accuracy 62%  kl 0.012  tokens/s 5,400  0:00 left"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_bar(width: int) -> None:
    shown = run(5, terminal=True, width=width)
    assert "tokens/s 5,400" in shown
    assert "0:00 left" in shown
    assert "━" in shown
    assert "5/5" in shown
    assert "accuracy 62%" in shown
    assert "saved [model]" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_are_silent(terminal: bool) -> None:
    assert run(5, terminal=terminal, rank=1) == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_by_default_rank_0_writes_to_standard_error(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(1, title="dpo", rank=rank).update(1, METRICS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("dpo 1/1" in shown.err) == (rank == 0)


def test_time_left_counts_from_this_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([-60.0, 0.0, 10.0])  # a minute of preparing and of reading the checkpoint
    monkeypatch.setattr("prefopt.training.progress.time.perf_counter", lambda: next(clock))
    file = io.StringIO()
    progress = Progress(1000, console=Console(file=file, width=200))
    progress.begin(899)
    progress.update(900, {"loss": 1.0})  # one step took 10 s and 100 are left
    assert "16:40 left" in file.getvalue()


def test_only_what_is_there_is_shown() -> None:
    assert describe({"lr": 1.0}) == ""
    assert describe({"accuracy": 0.5, "loss": float("nan")}) == "loss nan  accuracy 50%"


# --- signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_came_too_late_is_told_once() -> None:
    unserved()
    with StopRequest():
        pass
    assert unserved() == ""
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [unserved(), unserved()] == ["SIGTERM", ""]
    with suppress(ValueError), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError
    assert unserved() == ""


def test_a_second_sigterm_still_waits() -> None:
    """Schedulers send several."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_interrupt_after_sigterm_waits_once_more() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_another_thread_changes_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, ""]
