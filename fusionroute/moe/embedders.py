"""What makes questions comparable: the MoE model's own hidden states, or a sentence-transformers model."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import Prompt, PromptFormat, as_text
from fusionroute.moe.identity import weights_hash
from fusionroute.moe.passes import sum_over

logger = logging.getLogger(__name__)

SELF = "self"
MISSING = (
    "the embedder {name!r} needs sentence-transformers; install fusionroute[moe], or use 'self', which needs nothing"
)


class Embedder(Protocol):
    """Prompts to vectors whose distances say how alike two tasks are; frozen.

    Attributes:
        name: as it was asked for.
    """

    name: str

    def embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """float32 ``[prompts, d]`` on the CPU."""
        ...

    def fingerprint(self) -> str:
        """Which weights it has."""
        ...


def embedder(
    name: str = SELF,
    gates: Gates | None = None,
    *,
    prompt_format: PromptFormat | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> Embedder:
    """The embedder of that name: ``"self"``, or the id or folder of a sentence-transformers model.

    Args:
        gates, prompt_format: whose hidden states ``"self"`` takes, and how it is asked; the model must not be trained
            meanwhile. Others do without.
        device: of a sentence-transformers model; None is the best there is.

    Raises:
        SettingsError: sentence-transformers is not installed, or ``"self"`` has no model or prompt format.
        CheckpointError: there is no such model, or it cannot be read.
    """
    if name != SELF:
        return SentenceEmbedder(name, batch_size=batch_size, device=device)
    if gates is None or prompt_format is None:
        raise SettingsError("the embedder 'self' is the model itself: give its gates and its prompt format")
    return SelfEmbedder(gates.model, prompt_format, batch_size=batch_size)


class SelfEmbedder:
    """The mean of a model's last hidden states over the tokens of the prompt: our choice, since it needs nothing else.

    Hidden states all lie to one side of the origin, so their distances mean something and their cosines do not, unless
    counted from their mean (`Pathways.centre`).
    """

    name = SELF

    def __init__(self, model: PreTrainedModel, prompt_format: PromptFormat, *, batch_size: int = 32):
        self.model = model
        self.prompt_format = prompt_format
        self.batch_size = batch_size

    def embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """float32 ``[prompts, hidden]`` on the CPU. Raises `PromptError` for a prompt that cannot be rendered."""
        ids = [torch.tensor(self.prompt_format.encode(prompt)) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))  # if a batch is too large, it shows at once
        pooled: list[Tensor] = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for row, mean in zip(rows, self._pool([ids[row] for row in rows]), strict=True):
                pooled[row] = mean
        return torch.stack(pooled) if pooled else torch.empty(0, self.model.config.get_text_config().hidden_size)

    @torch.inference_mode()
    def _pool(self, ids: list[Tensor]) -> Tensor:
        mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True).to(self.model.device)
        padded = pad_sequence(ids, batch_first=True).to(self.model.device)
        was_training = self.model.training
        self.model.eval()
        try:
            base: Any = self.model.base_model
            hidden = base(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
        finally:
            self.model.train(was_training)
        return (sum_over(hidden, mask) / mask.sum(1, keepdim=True)).cpu()

    def fingerprint(self) -> str:
        return weights_hash(self.model)


class SentenceEmbedder:
    """A sentence-transformers model by id or folder. It reads a prompt's text as it is, without a prompt format.

    Raises as `embedder` does.
    """

    def __init__(self, name: str, *, batch_size: int = 32, device: str | None = None):
        self.name = name
        self.batch_size = batch_size
        self.model = _load(name, device)

    def embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """float32 ``[prompts, d]`` on the CPU. Warns of prompts of which the model reads only the beginning."""
        texts = [as_text(prompt) for prompt in prompts]
        self._warn_of_long(texts)
        embedded = self.model.encode(texts, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
        return embedded.float().cpu().clone()  # out of inference mode

    def fingerprint(self) -> str:
        return weights_hash(self.model)

    def _warn_of_long(self, texts: list[str]) -> None:
        longest = self.model.max_seq_length
        if longest is None:
            return
        long = sum(len(self.model.tokenizer(text, verbose=False)["input_ids"]) > longest for text in texts)
        if long:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that the embedder %s reads; their ends do not count",
                long,
                len(texts),
                longest,
                self.name,
            )


def _load(name: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SettingsError(MISSING.format(name=name)) from error
    try:
        return SentenceTransformer(name, device=device, model_kwargs={"use_safetensors": True}).eval()
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name} cannot be read as a sentence-transformers model with safetensors weights ({first_line}); give its "
            "id or folder, or use 'self'"
        ) from error
