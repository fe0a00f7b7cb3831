"""Where commands print, how they end, and what must not print between."""

import warnings
from pathlib import Path

from rich.console import Console


def stdout() -> Console:
    return Console(highlight=False)


def say(console: Console, line: str) -> None:
    """A line that is not cut: it may hold a path, or a command to be copied."""
    console.print(line, soft_wrap=True, markup=False)


def conclude(console: Console, result: str | Path, then: str) -> None:
    """How every command ends that writes: where its result lies, and what to do next."""
    say(console, f"{result} is ready")
    say(console, f"next: {then}")


def quiet() -> None:
    """Silence the bars and warnings of libraries, whose readers are developers; errors still come through."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
