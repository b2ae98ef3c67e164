"""How far a run is: a bar and a line of metrics on a terminal, at most twenty plain lines elsewhere, nothing on ranks above 0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINES = 20
SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.4f}".format),
    "reward": ("reward", "{:.3f}".format),
    "rewards/margins": ("margin", "{:.3f}".format),
    "margin": ("margin", "{:.3f}".format),
    "rewards/accuracies": ("accuracy", "{:.0%}".format),
    "accuracy": ("accuracy", "{:.0%}".format),
    "kl": ("kl", "{:.3f}".format),
    "tokens_per_second": ("tokens/s", "{:,.0f}".format),
}


class _Bar(Bar):
    """The metrics stand on a line of their own: beside the bar they would push it out of a terminal of 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the metrics of its task."""
        yield from super().get_renderables()
        yield from (Text(task.fields["shown"], no_wrap=True, overflow="ellipsis") for task in self.tasks)


class Progress:
    """Shows a run of `total` steps on standard error.

    Args:
        total: steps of the whole run.
        title: what is trained ("dpo").
        rank: this process's number; all but 0 are silent.
        console: where to, for tests.
    """

    def __init__(self, total: int, *, title: str = "", rank: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=rank > 0, highlight=False)
        self._total, self._title, self._first = total, title, 0
        self._every = math.ceil(total / LINES)
        self._started = time.perf_counter()
        self._bar: Bar | None = None
        if self._console.is_terminal and rank == 0:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
            self._bar = _Bar(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(title, total=total, left="", shown="")

    def begin(self, done: int) -> None:
        """From here on time counts; the steps done before this start do not count towards the speed."""
        self._first, self._started = done, time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, left=self._left(step), shown=describe(metrics))
        elif step % self._every == 0 or step == self._total:
            self.say(f"{self._title} {step}/{self._total}  {describe(metrics)}  {self._left(step)}".strip())

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int) -> str:
        seconds = round((time.perf_counter() - self._started) / max(1, step - self._first) * (self._total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left" if hours else f"{minutes}:{seconds % 60:02d} left"

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics worth a glance, in words.

    >>> describe({"loss": 0.5, "rewards/accuracies": 0.75, "lr": 1e-5})
    'loss 0.5000  accuracy 75%'
    """
    return "  ".join(f"{label} {form(metrics[name])}" for name, (label, form) in SHOWN.items() if name in metrics)
