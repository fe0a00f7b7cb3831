"""What somebody who watches a training run sees: one progress, no other bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from fusionroute.progress import Progress

NOTES = {  # what is told of a log, where it has it
    "loss": "loss {:.3f}",
    "routing_accuracy": "right expert {:.0%}",
    "preferred": "preferred {:.0%}",
    "saturated": "saturated {:.0%}",
}


class ReportSteps(TrainerCallback):
    """Trainer's steps, told to a `Progress` by the main process."""

    def __init__(self, label: str, progress: Progress) -> None:
        self.label = label
        self.progress = progress
        self.note = ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.start(self.label, state.max_steps)
            if state.global_step:
                self.progress.advance(state.global_step, "resumed")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.advance(1, self.note)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.note = ", ".join(text.format(logs[name]) for name, text in NOTES.items() if name in logs)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            done = f"{state.global_step} of {state.max_steps} steps"
            self.progress.finish(f"{self.label}: {done}; {self.note or 'no loss logged'}")


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers draws a bar whenever it reads or writes weights; ours is the only one here."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
