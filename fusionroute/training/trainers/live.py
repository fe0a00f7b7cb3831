"""The experts in memory, for the two losses that need what they say of the whole vocabulary."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


class LiveExperts:
    """Frozen experts beside the router, in the order of its head; the scores on disk hold only their target's part.

    Args:
        models: all on the device of the router.
    """

    def __init__(self, models: Sequence[PreTrainedModel]):
        self.models = [model.eval().requires_grad_(False) for model in models]

    def log_probs(self, batch: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """What each says, log π_i, at the marked positions of a batch: ``[marked, experts, vocabulary]``."""
        said = [self._logits(model, batch, positions).float().log_softmax(-1) for model in self.models]
        return torch.stack(said, dim=1)

    def picked_logits(self, batch: Mapping[str, Tensor], positions: Tensor, picked: Tensor) -> Tensor:
        """Logits of the expert that was picked for each marked position: ``[marked]`` to ``[marked, vocabulary]``."""
        by_expert = {number: self._logits(self.models[number], batch, positions) for number in picked.unique().tolist()}
        first = next(iter(by_expert.values()), None)
        if first is None:  # a batch without pairs
            return torch.empty(0, self.models[0].config.get_text_config().vocab_size, device=picked.device)
        chosen = torch.empty_like(first)
        for number, logits in by_expert.items():
            chosen[picked == number] = logits[picked == number]
        return chosen

    @torch.no_grad()
    def _logits(self, model: PreTrainedModel, batch: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        asked = positions.any(1)  # sequences without a marked position need not be read
        outputs = model(
            input_ids=batch["input_ids"][asked], attention_mask=batch["attention_mask"][asked], use_cache=False
        )
        return outputs.logits[positions[asked]]
