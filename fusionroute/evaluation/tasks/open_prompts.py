"""What the task ``open_prompts`` counts: whether there is an answer at all. How good it is, a judge must say."""

from collections.abc import Sequence
from typing import Any


def process_results(_: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"answered": float(bool(results[0].strip()))}
