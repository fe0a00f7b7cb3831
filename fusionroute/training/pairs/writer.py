"""Whose mistakes are wanted: the team that writes, or one of its experts alone."""

import hashlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

from torch import nn

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import MAX_BATCH, Engine
from fusionroute.engine.method import Method
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.errors import SettingsError
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.team import TeamModels

VALUES = 64  # of each weight, that its fingerprint reads

OnFinish = Callable[[Sequence], None]


@dataclass(frozen=True)
class Writer:
    """An engine, the format of its prompts, and what its answers depend on, for telling two writers apart."""

    engine: Engine
    prompt_format: PromptFormat
    identity: Mapping[str, str]

    @property
    def context_length(self) -> int:
        return self.engine.method.context_length

    def write(
        self,
        prompts: ListLike[list[int]],
        settings: ListLike[GenerationSettings],
        on_finish: OnFinish | None = None,
    ) -> list[Completion]:
        """Complete each prompt by its own settings, and so by its own seed; batched, in order."""
        sequences: list[Sequence] = []
        try:
            for ids, wanted in zip(prompts, settings, strict=True):
                sequences.append(self.engine.submit(ids, wanted))
            return self.engine.run(sequences, on_finish)
        finally:
            for sequence in sequences:
                self.engine.cancel(sequence)


def team_writer(team: TeamModels, *, max_batch: int = MAX_BATCH, cache_limit: int | str | None = None) -> Writer:
    """The whole team, as `Team.generate` writes; for the options see `Engine`."""
    return _writer(team, FusionRoute(team), team.models, max_batch, cache_limit)


def expert_writer(
    team: TeamModels, name: str, *, max_batch: int = MAX_BATCH, cache_limit: int | str | None = None
) -> Writer:
    """One model of the team alone. Raises `SettingsError` if the team has none of that name."""
    if name not in team.models:
        raise SettingsError(f"the team has no model {name!r}; it has {', '.join(team.models)}")
    model = team.models[name]
    return _writer(team, Single(model, name), {name: model}, max_batch, cache_limit)


def _writer(
    team: TeamModels, method: Method, models: Mapping[str, Any], max_batch: int, cache_limit: int | str | None
) -> Writer:
    if max_batch < 1:
        raise SettingsError(f"max_batch must be at least 1; got {max_batch}")
    weights = {name: _weights_fingerprint(model) for name, model in models.items()}
    return Writer(
        Engine(method, team.tokenizer, max_batch=max_batch, cache_limit=cache_limit),
        team.prompt_format,
        {"prompt": str(team.prompt), **weights},
    )


def _weights_fingerprint(model: nn.Module) -> str:
    """Evenly spread values of every weight: training moves nearly all of them, and a live model has no file."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        values = weight.flatten()[:: max(1, weight.numel() // VALUES)]
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
