"""A runner that forces the routing of one token of each sequence: the last of its prompt, whenever that is read."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionroute.engine.runner import Readable, Reading, Runner
from fusionroute.models.gates import Gates


@dataclass(frozen=True)
class Route:
    """The routing ``[L, E]`` of a prompt's last token, for the prompt with these token ids."""

    prompt: list[int]
    routing: Tensor


class RoutedRunner(Runner):
    """Tokens before the prompt's last one and tokens behind it are routed by the model itself.

    Args:
        gates: the chosen ones of the model, which is its ``model``.
        routes: looked up at every read, so it may grow; a sequence that has none is the model's own.
    """

    def __init__(self, gates: Gates, name: str, routes: Mapping[Readable, Route]):
        super().__init__(gates.model, name)
        self.gates = gates
        self.routes = routes

    def reuse_prefixes(self, is_wanted: bool) -> None:
        """Never: what is kept of a token depends on its routing too, so equal tokens are not read alike."""

    def _forward(self, sequences: list[Readable], last: int, counts: list[int] | None = None) -> Reading:
        counts = counts or [self.missing(sequence) for sequence in sequences]
        with self._forcing(sequences, counts):
            return super()._forward(sequences, last, counts)

    def _forcing(self, sequences: list[Readable], counts: list[int]) -> AbstractContextManager[Any]:
        """The override at the last prompt tokens that are among the next ``counts`` tokens of the sequences."""
        width, rows, forced = max(counts), [], []
        for at, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            route, start = self.routes.get(sequence), self.cache.lengths[sequence]
            if route is not None and start < len(route.prompt) <= start + count:
                rows.append(at * width + width - count + len(route.prompt) - 1 - start)  # padded on the left
                forced.append(route.routing)
        if not rows:
            return nullcontext()
        return self.gates.overriding(torch.stack(forced), torch.tensor(rows, device=self.device))
