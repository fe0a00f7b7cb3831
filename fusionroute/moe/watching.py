"""What a training run hears and says: Ctrl-C keeps the work, and somebody is told of every step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl


class Progress(Protocol):
    """A stage is one ``start``, some ``advance`` and one ``finish``; a ``finish`` alone is a line worth showing."""

    def start(self, label: str, total: int) -> None: ...

    def advance(self, n: int, note: str = "") -> None: ...

    def finish(self, message: str) -> None: ...


class Silent:
    """The default: nobody is watching."""

    def start(self, label: str, total: int) -> None:
        pass

    def advance(self, n: int, note: str = "") -> None:
        pass

    def finish(self, message: str) -> None:
        pass


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C ends training after the current step, with a checkpoint; a second one stops at once."""

    def __init__(self) -> None:
        self.was_asked = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        control.should_save |= self.was_asked
        control.should_training_stop |= self.was_asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first SIGINT inside the block; signals reach the main thread only, elsewhere nothing changes."""
        self.was_asked = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: Any) -> None:
            self.was_asked = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class ReportSteps(TrainerCallback):
    """Trainer's steps, told to a `Progress`."""

    def __init__(self, label: str, progress: Progress):
        self.label, self.progress, self.note = label, progress, ""

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self.progress.start(self.label, state.max_steps)
        if state.global_step:
            self.progress.advance(state.global_step, "resumed")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self.progress.advance(1, self.note)

    def on_log(self, args: Any, state: Any, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            parts = {"loss": "loss", "task_loss": "answers", "manifold_loss": "manifold"}
            self.note = ", ".join(f"{name} {logs[key]:.3g}" for key, name in parts.items() if key in logs)

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        done = f"{state.global_step} of {state.max_steps} steps"
        self.progress.finish(f"{self.label}: {done}; {self.note or 'no loss logged'}")
