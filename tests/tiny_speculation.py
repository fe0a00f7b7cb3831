"""Teams of scripted models in which the last token says what follows, who is asked, and so how drafts fare."""

from types import SimpleNamespace
from typing import Any

import torch

import tiny_scripted
from fusionroute import Router

A, B, C, END = 0, 1, 2, 3
SURE, UNSURE = 0.97, 0.4


def follows(*table: int, certainty: float = SURE) -> list[list[float]]:
    """Probabilities of the next token by the last one: nearly always the one that ``table`` names."""
    rest = (1 - certainty) / (len(table) - 1)
    return [[certainty if token == following else rest for token in range(len(table))] for following in table]


CYCLE = (B, C, A, A)  # a b c a b c …


def long(table: list[list[float]], length: int = 8192) -> Any:
    """A model of such a context."""
    return tiny_scripted.bigram(table, max_position_embeddings=length)


def team(
    router: list[list[float]],
    *experts: list[list[float]],
    eos: frozenset[int] = frozenset(),
    context_length: int = 64,
) -> Any:
    """The last token picks the expert: the first for `A`, the second for `B`, and so on, round about."""
    lm = long(router, context_length)
    routing = Router(lm, len(experts)).eval()
    with torch.no_grad():
        routing.route_head.weight.zero_()
        for token in range(len(router)):
            routing.route_head.weight[token % len(experts), token] = 9.0
    models = {f"expert{at}": long(table, context_length) for at, table in enumerate(experts)}
    return SimpleNamespace(router=routing, experts=models, eos_ids=eos, context_length=context_length)
