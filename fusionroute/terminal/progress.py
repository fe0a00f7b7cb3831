"""How far long work has come: bars, or a line for every tenth where nothing can be drawn."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Column
from rich.text import Text

DONE = Style(bold=True, color="#009e73")
PLAIN_SHARE = 10  # where there is no bar, a line for every tenth


class RichProgress:
    """One bar at a time: how far, how fast, how long still.

    Use it in a ``with`` block, so that an error or Ctrl-C gives the terminal back in order.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bar: Progress | None = None
        self._note, self._total, self._done = "", 0, 0
        self._began: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def start(self, label: str, total: int) -> None:
        """A new bar of ``total`` steps; one that still runs is taken away."""
        self._stop()
        self._note, self._total, self._done, self._began = "", total, 0, time.monotonic()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = _bar(self.console)
            self._bar.start()
            self._bar.add_task(label, total=total, note="")
        else:
            self.console.print(f"{label} ({total})", markup=False)

    def advance(self, n: int = 1, note: str = "") -> None:
        """``n`` more steps are done; an empty ``note`` keeps the last one."""
        before, self._done = self._done, self._done + n
        if self._bar is not None:
            self._note = note or self._note
            self._bar.update(self._bar.task_ids[0], advance=n, note=self._note)
        elif self._tenths(self._done) > self._tenths(before):
            self.console.print(f"  {self._tenths(self._done) * PLAIN_SHARE} %  {note}".rstrip(), markup=False)

    def finish(self, message: str) -> None:
        """Replace the bar by one line and the time it took; without a bar, just say so."""
        self._stop()
        took = "" if self._began is None else f" ({duration(time.monotonic() - self._began)})"
        self.console.print(Text.assemble(("✓ ", DONE), message, (took, "dim")))
        self._began = None

    def _tenths(self, done: int) -> int:
        return done * 100 // (max(self._total, 1) * PLAIN_SHARE)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    # the note takes what is left of the line, so that it never pushes the bar onto a second one
    note = TextColumn(
        "{task.fields[note]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    label = TextColumn("{task.description}")
    columns = (label, BarColumn(24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(compact=True), note)
    return Progress(*columns, console=console, transient=True, expand=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s", "dim")


def duration(seconds: float) -> str:
    """``8.2 s``, ``1 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
