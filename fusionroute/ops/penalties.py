"""What is taken off the logits of tokens that an answer already has, as OpenAI's interface defines it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def penalise(
    logits: Tensor, written: Sequence[Sequence[int]], presence: Sequence[float], frequency: Sequence[float]
) -> Tensor:
    """``logits - presence * [count > 0] - frequency * count``; the count is of a token in what its row has written.

    Args:
        logits: ``[rows, vocabulary]``.
        written: tokens of each row's answer so far, the prompt's not among them.
        presence, frequency: of each row; negative ones encourage.

    Returns:
        a new tensor, or ``logits`` itself where nothing is taken off.
    """
    rows, vocabulary = logits.shape
    counted = [row for row in range(rows) if written[row] and (presence[row] or frequency[row])]
    if not counted:
        return logits
    places = torch.tensor([row * vocabulary + token for row in counted for token in written[row]], device=logits.device)
    places, counts = places.unique(return_counts=True)
    rows_of = places // vocabulary
    off = logits.new_tensor(presence)[rows_of] + logits.new_tensor(frequency)[rows_of] * counts
    penalised = logits.clone(memory_format=torch.contiguous_format)
    penalised.view(-1)[places] -= off
    return penalised
