"""Recordings of made-up questions before and after a training that never was: routing that follows the questions."""

from typing import Any

import torch

from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Question

WIDTH = 12


def pathways(
    n: int = 60,
    tasks: tuple[str, ...] = ("sums", "words", "odd_one_out"),
    *,
    layers: int = 2,
    experts: int = 8,
    follow: tuple[float, float] = (0.6, 2.0),
    noise: float = 1.5,
    seed: int = 0,
) -> tuple[Pathways, Pathways]:
    """Before and after.

    Args:
        follow: how much routing depends on the embedding, before and after; 0 leaves noise alone.
    """
    draw = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(1)  # the same for all seeds: what is drawn are questions
    centres = 1.5 * torch.randn(len(tasks), WIDTH, generator=world)
    matrix = torch.randn(WIDTH, layers * experts, generator=world) / WIDTH**0.5
    task = torch.randint(len(tasks), (n,), generator=draw)
    embeddings = centres[task] + 0.7 * torch.randn(n, WIDTH, generator=draw)
    questions = [Question(f"question {at}", f"answer {at}", (), tasks[int(each)]) for at, each in enumerate(task)]
    own = noise * torch.randn(n, layers * experts, generator=draw)
    luck = torch.rand(n, generator=draw)
    before, after = (
        recorded(
            (share * embeddings @ matrix + own).view(n, layers, experts).softmax(-1),
            embeddings,
            questions,
            luck < chance,
            model=model,
        )
        for share, chance, model in zip(follow, (0.5, 0.8), ("made-up", "made-up-roma"), strict=True)
    )
    return before, after


def recorded(
    routing: torch.Tensor,
    embeddings: torch.Tensor,
    questions: list[Question],
    correct: torch.Tensor | None = None,
    **settings: Any,
) -> Pathways:
    n, layers, experts = routing.shape
    told: dict[str, Any] = {
        "model": "made-up",
        "weights": "0123456789abcdef" * 4,
        "dtype": "float32",
        "layers": [f"model.layers.{at + 3}.mlp.gate" for at in range(layers)],
        "experts": experts,
        "top_k": 2,
        "embedder": "self",
        "prompt": "chat_template",
        "tokens": "the same",
    }
    right = torch.zeros(n, dtype=torch.bool) if correct is None else correct
    return Pathways(routing, right, torch.zeros(n), embeddings, questions, told | settings)
