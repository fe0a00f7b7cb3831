"""The config of an exported team, as vLLM and transformers ask for it."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from fusionroute.errors import SettingsError
from fusionroute.models.export.format import MODEL_TYPE, ExportedTeam

# Kinds of RoPE whose factor vLLM does not multiply the context by
UNSCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


class FusionRouteConfig(PreTrainedConfig):
    """``config.json`` of an exported team.

    Args:
        team: see `ExportedTeam`; None only for transformers, which makes empty configs to compare with.
        complement: does the router add its own log-probabilities? ``vllm serve --hf-overrides '{"complement": false}'``
            serves the routing-only team.
    """

    model_type = MODEL_TYPE

    def __init__(self, team: dict[str, Any] | None = None, complement: bool = True, **values: Any):
        self.team = team  # first: what follows checks values against `get_text_config`
        self.complement = complement
        super().__init__(**values)

    @property
    def exported(self) -> ExportedTeam:
        """What `export_team` wrote, checked. Raises `SettingsError`."""
        return ExportedTeam.parse(self.team or {}, source="config.json of the exported team")

    @property
    def parts(self) -> list[PreTrainedConfig]:
        """The config of each model, the router's first. Raises `SettingsError`."""
        team = self.exported
        return [_config(called, each) for called, each in zip(team.called, team.configs, strict=True)]

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """What vLLM takes sizes from: the router's config, with the smallest context of all.

        Without its sliding window: vLLM would give one that stands here to every layer of every model. And without a
        scaling of its RoPE that vLLM would multiply this context by, although the others may not reach as far.
        """
        if self.team is None:
            return self
        parts = self.parts
        text = copy.deepcopy(parts[0])
        contexts = [limit for part in parts if (limit := getattr(part, "max_position_embeddings", None))]
        if contexts:
            text.max_position_embeddings = min(contexts)
            _limit_original(text, min(contexts))
        text.rope_parameters = _unscaled(getattr(text, "rope_parameters", None))
        text.sliding_window = None
        text.layer_types = None
        return text


def _config(called: str, values: dict[str, Any]) -> PreTrainedConfig:
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise SettingsError(
            f"{called} is of model_type {kind!r}, which this transformers does not know; install the version that it "
            "was made with, or leave it out of the team"
        )
    return CONFIG_MAPPING[kind].from_dict(values)


def _limit_original(text: PreTrainedConfig, limit: int) -> None:
    """For LongRoPE vLLM begins with the context before scaling, whatever else stands here."""
    if original := getattr(text, "original_max_position_embeddings", None):
        text.original_max_position_embeddings = min(original, limit)


def _unscaled(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    """RoPE parameters, of all layers or by kind of layer, as vLLM is to read a context from them."""
    if not rope:
        return rope
    if all(isinstance(each, dict) for each in rope.values()):
        return {kind: _unscaled(each) for kind, each in rope.items()}
    if rope.get("rope_type", rope.get("type", "default")) in UNSCALED:
        return rope
    return {name: value for name, value in rope.items() if name not in ("factor", "type")} | {"rope_type": "default"}
