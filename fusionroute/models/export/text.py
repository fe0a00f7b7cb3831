"""The tokenizer of an exported team, its prompt format as a chat template, and what ends an answer."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from fusionroute.models.loading import ModelReference, full_model, require_location
from fusionroute.models.prompt import CHAT_TEMPLATE, TEMPLATES, PromptFormat
from fusionroute.models.vocabulary import eos_ids


def write_tokenizer(target: Path, tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> list[str]:
    """The tokenizer with the team's prompt format as its chat template; returns what the user should know."""
    notes = []
    expected = PromptFormat(tokenizer, prompt)
    if prompt is None:
        tokenizer.chat_template = None
        notes.append("the team has no prompt format, so it answers completions only, not chats")
    elif prompt != CHAT_TEMPLATE:
        tokenizer.chat_template = _as_chat_template(tokenizer, TEMPLATES[prompt])
    if prompt is not None and not _renders_alike(tokenizer, expected):
        notes.append(
            f"vLLM encodes chats in the format {prompt!r} slightly differently than fusionroute does (white space at "
            "their beginning); give token ids where that matters"
        )
    tokenizer.save_pretrained(target)
    return notes


def _as_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """With the tokens that the tokenizer puts around a text, which vLLM expects of the template."""
    inner, outer = (tokenizer("a", add_special_tokens=add).input_ids for add in (False, True))
    at = next((at for at in range(len(outer)) if outer[at : at + len(inner)] == inner), 0)
    before, after = outer[:at], outer[at + len(inner) :]
    return _literal(tokenizer, before) + template + _literal(tokenizer, after)


def _literal(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return f"{{{{ {json.dumps(''.join(tokenizer.convert_ids_to_tokens(ids)))} }}}}" if ids else ""


def _renders_alike(tokenizer: PreTrainedTokenizerBase, expected: PromptFormat) -> bool:
    """Does the chat template give what the team's own format does?"""
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids) == expected.encode(messages)


def special_ids(tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> dict[str, Any]:
    """Token ids that vLLM looks for in a configuration, without those that there are none of."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends or None, "pad_token_id": tokenizer.pad_token_id}
    return {name: value for name, value in ids.items() if value is not None}


def end_ids(reference: ModelReference, config: PreTrainedConfig) -> set[int]:
    """What ends an answer of this model, as when it is loaded: an adapter's own say comes before its base's."""
    for each in (reference, full_model(reference)):
        try:
            found = GenerationConfig.from_pretrained(require_location(each.model), revision=each.revision or "main")
        except OSError:
            continue
        return eos_ids(cast(Any, SimpleNamespace(generation_config=found)))
    return eos_ids(cast(Any, SimpleNamespace(generation_config=GenerationConfig.from_model_config(config))))
