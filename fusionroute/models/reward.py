"""A model that says how good an answer is: a sequence classifier with one output, the reward. It reads text."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.errors import CheckpointError, ModelOutputError, SettingsError
from fusionroute.models.loading import ModelReference, default_device, load_config, load_tokenizer, require_location
from fusionroute.models.prompt import Prompt, as_text
from fusionroute.models.team import context_length


class RewardModel:
    """The one output of a sequence classifier that has read prompt and answer; None if they do not fit its context.

    With a chat template it reads them as a conversation, without one as a pair of texts. A prompt is a string or a
    list of messages; calling it raises `ModelOutputError` if a score is no number.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.longest = min(context_length(model), tokenizer.model_max_length)
        self.tokens_read = 0

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        encoded = [self._encode(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        lengths = [len(inputs["input_ids"]) for inputs in encoded]
        # Longest first: if a batch does not fit in memory, it shows at once
        order = sorted((at for at in range(len(encoded)) if lengths[at] <= self.longest), key=lambda at: -lengths[at])
        scores: list[float | None] = [None] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for at, score in zip(batch, self._score([encoded[at] for at in batch]), strict=True):
                scores[at] = score
        return scores

    def _encode(self, prompt: Prompt, answer: str) -> dict[str, list[int]]:
        if not self.tokenizer.chat_template:
            return dict(self.tokenizer(as_text(prompt), answer))
        asked: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        conversation = [*asked, {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        return dict(self.tokenizer(text, add_special_tokens=False))  # the template writes them itself

    @torch.inference_mode()
    def _score(self, encoded: list[dict[str, list[int]]]) -> list[float]:
        self.tokens_read += sum(len(each["input_ids"]) for each in encoded)
        inputs = self.tokenizer.pad(encoded, padding=True, padding_side="right", return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits[:, 0].float()
        if not logits.isfinite().all():
            raise ModelOutputError(
                f"reward model {self.model.name_or_path} gives a score that is no number; "
                "its weights are broken or its dtype is too narrow"
            )
        return [float(score) for score in logits]


def load_reward_model(location: str, *, device: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one output, and its tokenizer; safetensors only, no remote code.

    Raises:
        CheckpointError: missing, half-written or corrupt, or not trained to judge (its output layer is missing).
        SettingsError: it has another number of outputs, or no token to pad with.
    """
    tokenizer = check_reward_model(location)
    location = require_location(location)
    device = device or default_device()
    model = _classifier(location)
    if model.dtype == torch.float16 and torch.device(device).type == "cpu":
        model = model.float()  # as for every other model: half precision is slower and coarser there
    model = model.to(device).eval()
    # The score is read at the last token that is no padding, by this id and not by the attention mask
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def check_reward_model(location: str) -> PreTrainedTokenizerBase:
    """Whatever can be told without loading weights; raises as `load_reward_model` does. Returns the tokenizer."""
    location = require_location(location)
    outputs = load_config(ModelReference(model=location)).num_labels
    if outputs != 1:
        raise SettingsError(f"reward model {location} has {outputs} outputs; give one with a single output, the reward")
    tokenizer = load_tokenizer(location)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise SettingsError(f"reward model {location} has neither a padding nor an end-of-sequence token; set one")
    return tokenizer


def _classifier(location: str) -> Any:
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            location, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{location} cannot be read as a reward model with safetensors ({error}); give a classifier with one output"
        ) from error
    missing = sorted([*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])])
    if missing:
        raise CheckpointError(
            f"{location} lacks {missing[0]}, so it is no reward model or one half-written; give another"
        )
    return model
