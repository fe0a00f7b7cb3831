"""Where commands print, and what must not print between."""

import warnings

from rich.console import Console


def stdout() -> Console:
    return Console(highlight=False)


def quiet() -> None:
    """Silence the bars and warnings of libraries, whose readers are developers; errors still come through."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
