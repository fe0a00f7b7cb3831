"""Teaching experts: everything but the gates learns, while each token is sent to the experts that are to know it.

An expert learns from the answers of its own skill or domain alone, so it can seldom stand in for another; attention and
the first layers learn from all answers, and fit every expert. The gates of these layers learn nothing here.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from fusionroute.models.gates import Gates
from fusionroute.zoo.moe.batches import Batch, Row, batch_of
from fusionroute.zoo.moe.recipe import Schooling
from fusionroute.zoo.schooling import UNSCORED

LARGEST_GRADIENT = 1.0
BATCHES_PER_GROUP = 8
Told = Callable[[int, int], None]


def teach(model: PreTrainedModel, routed: Gates, rows: Sequence[Row], recipe: Schooling, seed: int, told: Told) -> None:
    """Train in place on the rows in their order, as many batches as they fill.

    Args:
        routed: the gates whose routing is given; those of other layers route as they like, and learn.
        seed: of how the two experts of a token share it.
        told: ``told(step, steps)`` after each batch.
    """
    model.train()
    steps, shares = len(rows) // recipe.batch_size, torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, recipe)
    schedules = [get_cosine_schedule_with_warmup(each, round(steps * recipe.warmup), steps) for each in optimizers]
    for step in range(steps):
        some = rows[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch = batch_of(some, model.config.pad_token_id)
        answer_loss(model, routed, batch, _shares(len(batch.experts), recipe.evenness, shares)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()
        told(step + 1, steps)
    model.eval()


def answer_loss(model: PreTrainedModel, routed: Gates, batch: Batch, first_share: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens under the given routing."""
    is_scored = batch.labels[:, 1:] != UNSCORED
    with routed.overriding([batch.routing(first_share)] * routed.count):
        hidden = model.model(batch.ids).last_hidden_state[:, :-1]
    return cross_entropy(model.lm_head(hidden[is_scored]), batch.labels[:, 1:][is_scored])


def grouped_by_length(rows: Sequence[Row], batch_size: int, rng: random.Random) -> list[Row]:
    """Rows of like length share a batch, which saves padding. Only a few batches at once are sorted, to stay mixed."""
    batches: list[list[Row]] = []
    for start in range(0, len(rows), batch_size * BATCHES_PER_GROUP):
        group = sorted(rows[start : start + batch_size * BATCHES_PER_GROUP], key=len)
        batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    rng.shuffle(batches)
    return [row for batch in batches for row in batch]


def _shares(rows: int, least: float, generator: torch.Generator) -> Tensor:
    return least + (1 - 2 * least) * torch.rand(rows, generator=generator)


def _optimizers(model: PreTrainedModel, recipe: Schooling) -> list[Optimizer]:
    """Muon for the matrices of attention, AdamW for the rest: Muon takes no stacks of matrices, as experts are."""
    matrices = [
        weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2 and "self_attn" in name
    ]
    are_matrices = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in are_matrices]
    decay = recipe.weight_decay
    return [
        Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=decay),
        AdamW(others, lr=recipe.learning_rate, weight_decay=decay, betas=(0.9, 0.98)),
    ]
