"""The zoo's tasks for lm-eval: ``zoo`` is all of them, ``zoo_sums`` is one. ``FOLDER`` is for its ``include``."""

from pathlib import Path

FOLDER = Path(__file__).parent
