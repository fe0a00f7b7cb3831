"""How many cached tokens fit: from the user's limit, or from what each device has free."""

import re
from collections import defaultdict
from collections.abc import Sequence as ListLike

import torch

from fusionroute.engine.probe import bytes_per_token
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.errors import SettingsError
from fusionroute.models.size import free_bytes

SHARE = 0.8  # of the free memory; the rest is for activations and for the layer that is being grown
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def token_limit(runners: ListLike[AnyRunner], cache_limit: int | str | None = None) -> int:
    """Rows times positions that each runner's cache may hold if all of them hold all sequences.

    Args:
        cache_limit: bytes of cache per device (``"8GiB"`` works too); None derives it from free memory.
    """
    limit = None if cache_limit is None else parse_bytes(cache_limit)
    per_token: dict[torch.device, int] = defaultdict(int)
    for runner in runners:
        if isinstance(runner, Runner):
            per_token[runner.device] += bytes_per_token(runner.model, runner.name)
    sizes = [(limit or int(SHARE * free_bytes(device))) // size for device, size in per_token.items()]
    return min(sizes, default=2**62)


def parse_bytes(size: int | str) -> int:
    """``8589934592``, ``"8GiB"`` and ``"8g"`` alike. Raises `SettingsError` for anything else, and for 0 or less."""
    match = re.fullmatch(r"([\d.]+)\s*([kmgt]?)(i?b)?", str(size).strip().lower())
    value = int(float(match[1]) * UNITS[match[2]]) if match and match[1].count(".") <= 1 and match[1] != "." else 0
    if value <= 0:
        raise SettingsError(f"cache_limit is a number of bytes such as 8589934592 or '8GiB'; got {size!r}")
    return value
