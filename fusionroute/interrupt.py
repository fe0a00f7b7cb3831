"""Ctrl-C keeps the work: finish the step, save, stop. A second Ctrl-C stops at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl

logger = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once ``was_asked``."""

    def __init__(self) -> None:
        self.was_asked = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if self.was_asked:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first SIGINT inside the block. Signals reach the main thread only; elsewhere this does nothing."""
        self.was_asked = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: Any) -> None:
            self.was_asked = True
            signal.signal(signal.SIGINT, before)
            logger.warning("interrupted: finishing this step and saving; press Ctrl-C again to stop at once")

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
