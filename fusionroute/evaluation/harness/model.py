"""Our teams as the model ``fusionroute`` of lm-eval, which importing this module registers.

In Python ``lm_eval.simple_evaluate(model="fusionroute", model_args={"team": …})``, in a shell ``fusionroute lm-eval``.
"""

import logging
from typing import Any

try:
    import lm_eval.models  # noqa: F401  # its own models are registered only while no other is
except ImportError as error:
    raise ImportError("benchmarks need lm-eval: pip install 'fusionroute[eval]'") from error
import torch
from lm_eval.api.registry import model_registry, register_model

from fusionroute.config import Settings, nearest
from fusionroute.engine.engine import MAX_BATCH
from fusionroute.engine.method import Method
from fusionroute.errors import SettingsError
from fusionroute.evaluation.harness.method_lm import MAX_NEW_TOKENS, MethodLM
from fusionroute.methods import ensemble_method
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.single import Single
from fusionroute.models.ensemble import EnsembleSettings, in_order, is_ensemble_file, load_members, load_voices
from fusionroute.models.loading import ModelReference, load_model, load_tokenizer
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.team import TeamModels, expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER

__all__ = ["FusionRouteLM", "MethodLM", "ModelArguments"]

NAME = "fusionroute"

logger = logging.getLogger(__name__)


class ModelArguments(Settings):
    """What stands behind ``--model_args``, and what lm-eval's command adds itself (the last four)."""

    team: str
    expert: str | None = None
    complement: bool = True
    prompt: str | None = None
    revision: str | None = None
    dtype: str | None = None
    max_batch: int | None = None
    cache_limit: int | str | None = None
    seed: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    max_length: int | None = None
    device: str | None = None
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    trust_remote_code: bool = False


class FusionRouteLM(MethodLM):
    """A trained team, or the models of an ensemble file, as lm-eval's model ``fusionroute``.

    Args:
        arguments: `ModelArguments`. ``team`` is a folder, a hub id or an ensemble file (``*.yaml``). ``expert`` lets
            one of its models write alone, ``router`` among them; ``complement=false`` is routing only; ``prompt``
            replaces the team's own format.
            ``max_batch`` comes before lm-eval's ``batch_size``, which is 1 unless given; "auto" is our default.

    Raises:
        SettingsError: an unknown argument or expert. CheckpointError: no team there.
    """

    def __init__(self, **arguments: Any):
        given = ModelArguments.parse(arguments, source="model_args")
        max_batch = _max_batch(given)
        if is_ensemble_file(given.team):
            method, own = _of_ensemble(given)
        else:
            method, own = _whole_team(given) if given.expert is None else _one_model(given, given.expert)
            own = PromptFormat(own.tokenizer, given.prompt) if given.prompt else own
        super().__init__(
            method,
            own.tokenizer,
            prompt=own,
            max_batch=max_batch,
            cache_limit=given.cache_limit,
            seed=given.seed,
            max_new_tokens=given.max_new_tokens,
            max_length=given.max_length,
        )


def _whole_team(given: ModelArguments) -> tuple[Method, PromptFormat]:
    team = TeamModels.from_pretrained(given.team, revision=given.revision, **_loading(given))
    return FusionRoute(team, complement=given.complement), team.prompt_format


def _one_model(given: ModelArguments, name: str) -> tuple[Method, PromptFormat]:
    """One model of the team, and none of the others in memory."""
    folder = team_folder(given.team, given.revision)
    team_file = read_team_file(folder)
    router = ModelReference(model=str(folder / team_file.router))
    references = {ROUTER: router, **expert_references(folder)}
    if name not in references:
        raise SettingsError(f"model_args: the team has no expert {name!r}; it has {', '.join(references)}")
    if not given.complement:
        raise SettingsError(f"model_args: complement=false says nothing of {name!r} alone; leave it out")
    prompt = PromptFormat(load_tokenizer(router), team_file.prompt)
    return Single(load_model(references[name], **_loading(given)), name), prompt


def _of_ensemble(given: ModelArguments) -> tuple[Method, PromptFormat]:
    """All models of an ensemble file, or one of them alone under its own tokenizer."""
    for name in ("complement", "revision"):
        if name in given.model_fields_set:
            raise SettingsError(f"model_args: {name} is of teams, and {given.team} is an ensemble file; leave it out")
    settings = EnsembleSettings.read(given.team, {"prompt": given.prompt} if given.prompt else None)
    names = [given.expert] if given.expert is not None else list(settings.models)
    if names[0] not in settings.models:
        raise SettingsError(f"model_args: expert: {nearest(names[0], settings.models)}")
    if given.expert is None:
        names = in_order(names, settings.require_drafter(names))
    trusted = {"trust_remote_code": True} if given.trust_remote_code else {}
    models = {name: settings.models[name].model_copy(update=trusted) for name in names}
    options = _loading(given)
    dtype, device = options["dtype"] or settings.dtype, options["device"] or settings.device
    members = load_members(models, load_voices(models, settings.prompt), dtype=dtype, device=device)
    first = members[0]
    method = ensemble_method(members, settings) if given.expert is None else Single(first.model, first.name)
    return method, first.prompt


def _loading(given: ModelArguments) -> dict[str, Any]:
    options = given.model_dump(include={"dtype", "device", "trust_remote_code"})
    if (given.device or "").startswith("cuda") and not torch.cuda.is_available():
        # lm-eval's command asks for cuda:0 where the user asks for nothing, and so cannot mean it
        logger.warning("there is no %s here; the best device that there is will do", given.device)
        options["device"] = None
    return options


def _max_batch(given: ModelArguments) -> int:
    if given.max_batch is not None:
        return given.max_batch
    size = str(MAX_BATCH if given.batch_size is None else given.batch_size)
    if size.split(":")[0] == "auto":
        return given.max_batch_size or MAX_BATCH
    if not size.isdigit():
        raise SettingsError(f"batch_size is a number or auto; got {given.batch_size!r}")
    if size == "1":
        logger.warning("answers are written one at a time; --batch_size auto writes up to %d at once", MAX_BATCH)
    return int(size)


if NAME not in model_registry:  # a later lm-eval finds the class through the entry point, and so has it already
    register_model(NAME)(FusionRouteLM)
