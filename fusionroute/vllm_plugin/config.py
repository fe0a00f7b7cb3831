"""The config of an exported team, as vLLM and transformers ask for it."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from fusionroute.models.export_format import MODEL_TYPE, ExportedTeam


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
        """The config of each model, the router's first."""
        return [CONFIG_MAPPING[each["model_type"]].from_dict(each) for each in self.exported.configs]

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """What vLLM takes sizes from: the router's config, with the smallest context of all.

        Without its sliding window: vLLM would give one that stands here to every layer of every model.
        """
        if self.team is None:
            return self
        parts = self.parts
        text = copy.deepcopy(parts[0])
        contexts = [limit for part in parts if (limit := getattr(part, "max_position_embeddings", None))]
        if contexts:
            text.max_position_embeddings = min(contexts)
        text.sliding_window = None
        text.layer_types = None
        return text
