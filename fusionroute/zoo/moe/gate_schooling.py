"""Teaching the gates of an assembled model: to which experts a token goes, learned from few questions in few wordings.

What a gate sees does not depend on what it says, for the routing is still given. So each learns for itself, as if its
model were right everywhere else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fusionroute.models.gates import Gates
from fusionroute.zoo.moe.batches import Batch, Row, batch_of
from fusionroute.zoo.moe.recipe import GateSchooling
from fusionroute.zoo.moe.roster import READERS
from fusionroute.zoo.moe.schooling import Told


def teach_gates(model: PreTrainedModel, routed: Gates, rows: Sequence[Row], recipe: GateSchooling, told: Told) -> None:
    """Train the gates of ``routed`` in place, all rows a step; nothing else changes."""
    batch = batch_of(rows, model.config.pad_token_id)
    right = batch.routing(torch.full((len(batch.experts),), 0.5))
    optimizer = torch.optim.Adam(routed.parameters(), lr=recipe.learning_rate)
    for step in range(recipe.steps):
        with routed.overriding([right] * routed.count) as tap:
            model.model(batch.ids)
        loss = torch.stack([gate_loss(logits, right, batch) for logits in tap.logits]).sum()
        optimizer.zero_grad()
        loss.backward(inputs=routed.parameters())
        optimizer.step()
        told(step + 1, recipe.steps)


def gate_loss(logits: Tensor, right: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy between a gate's softmax ``[B S, E]`` and the right one.

    Tokens that are read and tokens that are answered weigh the same together, though ten times as many are read.
    """
    losses = -(right * logits.log_softmax(-1)).sum(-1)
    is_read = batch.experts[:, 0] == READERS[0]
    return (losses[batch.is_token & is_read].mean() + losses[batch.is_token & ~is_read].mean()) / 2
