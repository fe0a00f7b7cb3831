"""What a checkpoint asks of `generate` beside sampling, and our engine does not do: said, not passed over."""

import logging
from typing import Any

from lm_eval.utils import warning_once

from fusionroute.engine.method import Method

logger = logging.getLogger(__name__)

# What `generate` of transformers takes from a checkpoint's generation_config even if it decodes greedily, with the
# values that change nothing.
PROCESSORS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "num_beams": (1,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
}


def warn_of_processors(method: Method) -> None:
    """Once a process for each model and its settings, so a comparison does not say it in every cell."""
    for runner in method.runners:
        if found := _processors(getattr(runner, "model", None)):
            warning_once(
                logger,
                f"the generation_config of model {runner.name!r} sets {', '.join(found)}, which is not applied "
                "here; lm-eval's own hf model applies it and may answer otherwise",
            )


def _processors(model: Any) -> list[str]:
    """The settings of a model's ``generation_config`` that would change greedy answers, as ``name=value``."""
    config = getattr(model, "generation_config", None)
    values = {name: getattr(config, name, None) for name in PROCESSORS}
    return [
        f"{name}={value!r}" for name, value in values.items() if value is not None and value not in PROCESSORS[name]
    ]
