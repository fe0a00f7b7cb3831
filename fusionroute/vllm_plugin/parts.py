"""One model of a team as a model of vLLM, told nothing of the others."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.interfaces import has_inner_state, supports_multimodal
from vllm.transformers_utils.config import patch_rope_parameters


def build_part(vllm_config: Any, config: PreTrainedConfig, word: str, prefix: str) -> nn.Module:
    """The model that vLLM has for ``config``.

    Args:
        word: what it is called among the models of the team.
        prefix: of its layers' names; no two models may share one, and it holds no number.

    Raises:
        ValueError: an architecture that vLLM lacks, or one that keeps more than keys and values.
    """
    patch_rope_parameters(config)
    with set_model_tag(word):
        part = initialize_model(vllm_config=_own_config(vllm_config, config, word), prefix=prefix)
    if has_inner_state(part) or supports_multimodal(part):
        raise ValueError(
            f"{word} is a {type(part).__name__}, which keeps more than keys and values; a team is made of plain "
            "transformers"
        )
    return part


def _own_config(vllm_config: Any, config: PreTrainedConfig, word: str) -> Any:
    """The settings of vLLM as if this model alone were served, over the caches and the devices of all."""
    own = vllm_config.with_hf_config(config)
    own.model_config.hf_text_config = config.get_text_config()
    own.cache_config = copy.copy(vllm_config.cache_config)
    own.cache_config.sliding_window = _window_of_all_layers(config)
    # It goes into the name of what torch.compile keeps on disk. Two experts of one shape would share that otherwise,
    # and the names of the layers, which lead to the caches, may be part of it
    own.additional_config = {**vllm_config.additional_config, "fusionroute_part": word}
    return own


def _window_of_all_layers(config: PreTrainedConfig) -> int | None:
    """As vLLM reads it for a model alone: a window without layer types (Mistral) is that of every layer."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None or all(each == "sliding_attention" for each in layer_types):
        return getattr(config, "sliding_window", None)
    return None
