"""Who says which answer is better: the user's own function, a reward model, or a language model behind an endpoint.

A row is a prompt's row as it was read, with ``prompt`` in every one of them.
"""

import importlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.errors import CheckpointError, ModelOutputError, SettingsError
from fusionroute.models.loading import ModelReference, default_device, load_tokenizer, require_location
from fusionroute.models.prompt import Prompt
from fusionroute.models.team import context_length
from fusionroute.training.data.rows import Row
from fusionroute.training.pairs.endpoint import Endpoint, as_text
from fusionroute.training.planning.precheck import load_config
from fusionroute.training.settings import PairSettings


class Judge(Protocol):
    """One score per answer, higher is better; None where there is no saying."""

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]: ...


def make_judge(settings: PairSettings, *, device: str | None = None) -> Judge:
    """The judge that the settings name; ``device`` is a reward model's.

    Raises:
        SettingsError: no such function, an address that is none, or a reward model of another kind.
        CheckpointError: the reward model is missing, half-written or corrupt.
    """
    if settings.checker is not None:
        return Checker(settings.checker)
    if settings.reward_model is not None:
        return RewardModel(*load_reward_model(settings.reward_model, device=device))
    assert settings.judge_url is not None
    assert settings.judge_model is not None
    return Endpoint(settings.judge_url, settings.judge_model)


class Checker:
    """A function of (rows, answers) that returns a score per answer, such as 1.0 for right and 0.0 for wrong.

    Args:
        name: ``"package.module:function"``, installed or in the working folder.
    """

    def __init__(self, name: str):
        self.name = name
        self.function = _function(name)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]:
        scores = self.function(rows, answers)
        try:
            checked = [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"checker {self.name} must return a number per answer ({error})") from error
        if len(checked) != len(answers):
            raise SettingsError(f"checker {self.name} returned {len(checked)} scores for {len(answers)} answers")
        for score, answer in zip(checked, answers, strict=True):
            if not math.isfinite(score):
                raise SettingsError(
                    f"checker {self.name} gives {answer[:80]!r} the score {score}; scores are finite numbers"
                )
        return list(checked)


def _function(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise SettingsError(f"checker is package.module:function; got {name!r}")
    with _working_folder_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # it is the user's code: whatever it raises, it is not there for us
            raise SettingsError(f"checker: {module_name} cannot be imported ({error}); mend it or its name") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        what = f"{function_name!r}, which is no function" if hasattr(module, function_name) else f"no {function_name!r}"
        raise SettingsError(f"checker: {module_name} has {what}; name a function of (rows, answers)")
    return function


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """A console script does not look for modules where it was started; people expect it to."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


class RewardModel:
    """The one output of a sequence classifier that has read prompt and answer; None if they do not fit its context.

    With a chat template it reads them as a conversation, without one as a pair of texts.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.longest = min(context_length(model), tokenizer.model_max_length)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float | None]:
        encoded = [self._encode(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)]
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
    location = require_location(location)
    outputs = load_config(ModelReference(model=location)).num_labels
    if outputs != 1:
        raise SettingsError(f"reward model {location} has {outputs} outputs; give one with a single output, the reward")
    tokenizer = load_tokenizer(location)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise SettingsError(f"reward model {location} has neither a padding nor an end-of-sequence token; set one")
    device = device or default_device()
    model = _classifier(location)
    if model.dtype == torch.float16 and torch.device(device).type == "cpu":
        model = model.float()  # as for every other model: half precision is slower and coarser there
    model = model.to(device).eval()
    # The score is read at the last token that is no padding, by this id and not by the attention mask
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _classifier(location: str) -> Any:
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            location, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{location} cannot be read as a reward model with safetensors ({error})") from error
    missing = sorted([*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])])
    if missing:
        raise CheckpointError(f"{location} lacks {missing[0]}, so it is no reward model or one half-written")
    return model
