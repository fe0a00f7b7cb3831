"""What somebody who watches the gates being tuned is told."""

from typing import Any

from transformers import TrainerCallback, TrainerControl

from fusionroute.progress import Progress


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
