"""From a task's generation options, in lm-eval's words, to `GenerationSettings`. Nothing is ignored silently."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import PreTrainedTokenizerBase

from fusionroute.config import GenerationSettings, nearest
from fusionroute.errors import SettingsError

logger = logging.getLogger(__name__)

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
FILTERS = ("top_p", "top_k", "min_p")
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what transformers' generate also knows, where it changes nothing
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
}
ALLOWED = ("until", *LENGTHS, "do_sample", "temperature", *FILTERS, *NEUTRAL)


@dataclass(frozen=True)
class Decoding:
    """How a task wants its answers written.

    Attributes:
        settings: with the stop strings; the seed is the caller's.
        end_ids: special tokens that end an answer beside the models' own: the tokenizer's end of sequence, and stop
            strings that are special tokens, which never appear in a text.
    """

    settings: GenerationSettings
    end_ids: frozenset[int]

    def text(self, tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
        """What lm-eval's own models make of these tokens: decoded by the tokenizer's rules, cut at stop strings."""
        written = str(tokenizer.decode(token_ids, skip_special_tokens=True))
        return str(postprocess_generated_text(written, list(self.settings.stop), think_end_token=None))


def parse_decoding(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, default_max_new_tokens: int
) -> Decoding:
    """Read ``generation_kwargs`` of a task, normalised as lm-eval's own ``hf`` model does.

    Greedy unless ``do_sample`` or a temperature above 0 says otherwise; options that only sampling uses are then
    dropped, as they are there. Sampling takes only what the task gives, nothing from a checkpoint's own defaults.

    Raises:
        SettingsError: an option that is unknown, out of range, or asks for what is not possible here.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse(given)
    normal: dict[str, Any] = dict(normalize_gen_kwargs(given, default_max_new_tokens))
    end = str(tokenizer.decode([tokenizer.eos_token_id]))
    until = [text for text in handle_stop_sequences(normal["until"], eos=end) if text is not None]
    settings = {"max_new_tokens": normal["max_gen_toks"], "stop": until, **_sampling(normal)}
    return Decoding(GenerationSettings.parse(settings, source="generation_kwargs"), _end_ids(until, tokenizer))


def _refuse(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in ALLOWED:
            raise SettingsError(f"generation_kwargs: {nearest(name, ALLOWED)}")
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise SettingsError(
                f"generation_kwargs: {name}={value} is not possible here; only {NEUTRAL[name][0]} is, so leave it out"
            )
    if options.get("do_sample") and "temperature" not in options:
        raise SettingsError(
            "generation_kwargs: do_sample without a temperature means different things in different models of lm-eval; "
            "give one, such as temperature=1.0"
        )


def _sampling(normal: Mapping[str, Any]) -> dict[str, Any]:
    if not normal["do_sample"] or float(normal["temperature"]) == 0:
        return {}
    filters = {name: normal[name] for name in FILTERS if name in normal}
    if filters.get("top_k") in (0, -1):  # how transformers and vLLM write that it is off
        del filters["top_k"]
    return {"do_sample": True, "temperature": normal["temperature"], **filters}


def _end_ids(until: list[str], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    special = {token.content: at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text in until:
        if text not in special and any(token in text for token in special):
            logger.warning("the stop string %r holds a special token, which is no text; it will never be met", text)
    return frozenset({tokenizer.eos_token_id, *(special[text] for text in until if text in special)})
