"""What is wrong with an exported team or with how it is to be served, told before anything is loaded."""

from pathlib import Path
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from fusionroute.models.export.format import check_whole
from fusionroute.vllm_plugin.config import FusionRouteConfig

# Formats that are read by vLLM's default loader and from safetensors; dummy reads nothing
LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "dummy")


class TeamChecks(VerifyAndUpdateConfig):
    """vLLM calls it once, in the process that was started, when all options are known."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse a half-written folder and whatever the plugin cannot do. Raises `CheckpointError`, `ValueError`."""
        model = vllm_config.model_config
        config: FusionRouteConfig = model.hf_config
        _check_format(vllm_config.load_config.load_format)
        if vllm_config.load_config.load_format != "dummy" and Path(model.model).is_dir():
            check_whole(model.model, config.exported.weight_files)
        _check_stages(config, vllm_config.parallel_config.pipeline_parallel_size)
        _check_heads(config, vllm_config.parallel_config.tensor_parallel_size)
        if getattr(vllm_config, "lora_config", None) is not None:
            raise ValueError(
                "a team cannot take LoRA requests: an adapter would have to name the model it changes; merge it into "
                "that expert and export the team again"
            )
        speculative = getattr(vllm_config, "speculative_config", None)
        if speculative is not None and speculative.method not in ("ngram", "suffix"):
            raise ValueError(
                f"a team has no hidden states that {speculative.method!r} speculation could read; use "
                '--speculative-config \'{"method": "ngram", …}\' or none'
            )


def _check_format(load_format: str) -> None:
    if load_format not in LOAD_FORMATS:
        raise ValueError(
            f"a team cannot be loaded as {load_format!r}: its models lie in folders of their own, as safetensors; use "
            "--load-format auto or safetensors"
        )


def _check_stages(config: FusionRouteConfig, stages: int) -> None:
    """Every stage of a pipeline holds layers of every model."""
    for name, part in zip(config.exported.called, config.parts, strict=True):
        if part.num_hidden_layers < stages:
            raise ValueError(
                f"{name} has {part.num_hidden_layers} layers, too few for {stages} pipeline stages; give no more "
                "stages than that, or --tensor-parallel-size instead"
            )


def _check_heads(config: FusionRouteConfig, processes: int) -> None:
    """Asked by vLLM of the router alone; each process holds a share of every model's heads."""
    for name, part in zip(config.exported.called, config.parts, strict=True):
        heads = part.num_attention_heads
        shared = getattr(part, "num_key_value_heads", None) or heads
        if heads % processes or (shared % processes and processes % shared):
            raise ValueError(
                f"{name} has {heads} attention heads and {shared} of keys and values, which cannot be shared among "
                f"{processes} processes; choose a --tensor-parallel-size that divides the heads of every model"
            )
