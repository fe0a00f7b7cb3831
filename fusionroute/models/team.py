"""What a team is: a router, ordered named experts, one tokenizer, one prompt format; and how it is saved and loaded."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.config import Settings
from fusionroute.errors import CheckpointError, SettingsError
from fusionroute.models.adapters import base_of, location_of, revision_of
from fusionroute.models.card import model_card
from fusionroute.models.loading import Dtype, Loaded, ModelReference, load_model, load_tokenizer, save_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.models.router import Router
from fusionroute.models.size import check_fit
from fusionroute.models.vocabulary import ROUTER, check_models, check_tokenizers, eos_ids
from fusionroute.output import new_folder, write_json, write_text

TEAM_FILE = "team.json"
ROUTER_FOLDER = "router"
EXPERTS_FOLDER = "experts"


class ExpertEntry(Settings):
    """One expert of ``team.json``: by reference, so a team folder holds only what was trained."""

    name: str
    model: str
    revision: str | None = None


class TeamFile(Settings):
    """``team.json``. Experts are a list because their order is the route head's."""

    format: Literal["fusionroute.team"] = "fusionroute.team"
    version: Literal[1] = 1
    router: str = ROUTER_FOLDER
    experts: tuple[ExpertEntry, ...] = Field(min_length=1)
    prompt: str | None = None

    @field_validator("experts")
    @classmethod
    def _names_are_unique(cls, experts: tuple[ExpertEntry, ...]) -> tuple[ExpertEntry, ...]:
        check_names([expert.name for expert in experts])
        return experts


class TeamModels:
    """The models of a team, loaded, checked and saved; what they do together is `fusionroute.Team`, which see."""

    def __init__(
        self,
        router: Router,
        experts: Mapping[str, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | None = None,
        *,
        references: Mapping[str, ModelReference] | None = None,
    ):
        _check_parts(router, experts)
        self.router = router.eval()
        self.experts = {name: expert.eval() for name, expert in experts.items()}
        self.tokenizer = tokenizer
        self.prompt_format = PromptFormat(tokenizer, prompt)
        self.references = dict(references or {})
        self.vocabulary_size = check_models(router.lm, self.experts, len(tokenizer))

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(self.experts)

    @property
    def models(self) -> dict[str, Any]:
        """Every model by name, the router first."""
        return {ROUTER: self.router, **self.experts}

    @property
    def prompt(self) -> str | None:
        return self.prompt_format.name

    @property
    def context_length(self) -> int:
        """Positions that every model of the team can hold: the smallest context."""
        return min(context_length(model) for model in self.models.values())

    @property
    def eos_ids(self) -> frozenset[int]:
        """Whatever ends an answer for any model of the team."""
        return frozenset().union(*(eos_ids(model) for model in self.models.values()))

    def save_pretrained(self, folder: str | Path, *, save_experts: bool = False, overwrite: bool = False) -> None:
        """Write ``team.json``, the router as a normal checkpoint, the tokenizer and a model card.

        ``save_experts`` also writes the experts beside them; by default they are referred to by hub id or folder, as
        the base of an adapter always is.

        Raises:
            SettingsError: an expert that was built in code has neither, so it must be saved too.
            OutputExistsError: ``folder`` holds something and ``overwrite`` is False.
        """
        team_file = self._team_file(save_experts)
        with new_folder(folder, overwrite=overwrite) as target:
            for name, expert in self.experts.items() if save_experts else ():
                save_model(expert, target / EXPERTS_FOLDER / name)
                self.tokenizer.save_pretrained(target / EXPERTS_FOLDER / name)
            write_team(target, self.router, self.tokenizer, team_file, name=Path(folder).name)

    def _team_file(self, save_experts: bool) -> TeamFile:
        entries = []
        for name in self.experts:
            reference = ModelReference(model=f"{EXPERTS_FOLDER}/{name}") if save_experts else self._reference(name)
            entries.append(ExpertEntry(name=name, model=reference.model, revision=reference.revision))
        return TeamFile(experts=tuple(entries), prompt=self.prompt)

    def _reference(self, name: str) -> ModelReference:
        if name in self.references:
            return self.references[name]
        location = location_of(self.experts[name])
        if not location:
            raise SettingsError(
                f"expert {name!r} was built in code and has no hub id or folder; pass save_experts=True"
            )
        where = str(Path(location).resolve()) if Path(location).is_dir() else location
        return ModelReference(model=where, revision=revision_of(self.experts[name]))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, save_experts: bool = False) -> str:
        """Upload what `save_pretrained` writes; returns the commit's address.

        Raises `SettingsError` for an expert, or the base of an adapter, that is known only by a local folder.
        """
        from huggingface_hub import HfApi

        bases = {name: base_of(model) for name, model in {ROUTER: self.router.lm, **self.experts}.items()}
        for name, base in bases.items():
            if base and Path(base).exists():
                raise SettingsError(
                    f"{name!r} is an adapter over the local folder {base}, which others cannot reach; upload that and "
                    "name its hub id in adapter_config.json, or merge the adapter into it"
                )
        local = [] if save_experts else [name for name in self.experts if Path(self._reference(name).model).exists()]
        if local:
            raise SettingsError(
                f"expert {local[0]!r} is a local folder that others cannot reach; upload it and refer to its hub id, "
                "or pass save_experts=True"
            )
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.split("/")[-1]
            self.save_pretrained(folder, save_experts=save_experts)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: Dtype = None,
        device: str | None = None,
        devices: Mapping[str, str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load a team from a folder or hub id. Adapters over one base, the router's too, share its weights.

        Args:
            dtype: for every model; see `load_model`.
            device: for every model.
            devices: per model name (``"router"`` or an expert's), overriding ``device``.
            revision: of the team's own repository.

        Raises:
            ModelsTooLargeError: the models do not fit into what their devices have free.
            CheckpointError, VocabularyError: as the parts do, naming the part.
        """
        folder = team_folder(folder, revision)
        team_file = read_team_file(folder)
        devices = dict(devices or {})
        unknown = set(devices) - {ROUTER, *(expert.name for expert in team_file.experts)}
        if unknown:
            known = ", ".join([*(expert.name for expert in team_file.experts), ROUTER])
            raise SettingsError(f"devices names {sorted(unknown)}, which the team does not have; it has {known}")
        loaded: Loaded = {}
        references = expert_references(folder)
        routers = {ROUTER: ModelReference(model=str(folder / team_file.router))}
        check_fit({**routers, **references}, dtype=dtype, device=device, devices=devices)
        router = Router.from_pretrained(
            folder / team_file.router, dtype=dtype, device=devices.get(ROUTER, device), loaded=loaded
        )
        tokenizer = load_tokenizer(folder / team_file.router)
        experts = {
            name: load_model(
                reference,
                dtype=dtype,
                device=devices.get(name, device),
                trust_remote_code=trust_remote_code,
                loaded=loaded,
            )
            for name, reference in references.items()
        }
        check_tokenizers(tokenizer, {name: load_tokenizer(reference) for name, reference in references.items()})
        return cls(router, experts, tokenizer, team_file.prompt, references=references)


def write_team(
    folder: str | Path,
    router: Router,
    tokenizer: PreTrainedTokenizerBase,
    team_file: TeamFile,
    *,
    name: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a team beside whatever ``folder`` holds. Experts are known by reference, so they need not be loaded.

    Each part is whole or absent, and ``team.json`` comes last: a folder that has it is complete.

    Args:
        name: of the team, for its model card; None takes the folder's.
        state_dict: the router's weights, if they are not in the live one; see `Router.save_pretrained`.
    """
    folder = Path(folder)
    with new_folder(folder / ROUTER_FOLDER, overwrite=True) as target:
        router.save_pretrained(target, state_dict=state_dict)
        tokenizer.save_pretrained(target)
    write_text(folder / "README.md", model_card(name or folder.name, team_file.experts, team_file.prompt))
    write_json(folder / TEAM_FILE, team_file.model_dump())


def context_length(model: Any) -> int:
    """Positions the model was built for; unlimited (a very large number) if its config does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 2**62


def check_names(names: list[str]) -> None:
    """Insist on expert names that are unique, readable and not the router's. Raises `SettingsError`."""
    if not names:
        raise SettingsError("a team needs at least one expert; got none")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise SettingsError(f"an expert's name is letters, digits, '_', '-' and, inside, '.'; got {name!r}")
        if name == ROUTER:
            raise SettingsError(f"{ROUTER!r} is the router's name; call the expert something else")
        if names.count(name) > 1:
            raise SettingsError(f"expert {name!r} stands twice; give each a name of its own")


def _named(experts: Any) -> Any:
    if not isinstance(experts, dict):
        raise ValueError("experts map names to models, such as {math: owner/name}")
    check_names(list(experts))
    return {name: {"model": value} if isinstance(value, str) else value for name, value in experts.items()}


Experts = Annotated[dict[str, ModelReference], BeforeValidator(_named)]  # as they stand in settings, in their order


def _check_parts(router: Router, experts: Mapping[str, PreTrainedModel]) -> None:
    if not isinstance(router, Router):
        raise SettingsError(f"router must be a Router(lm, num_experts); got {type(router).__name__}")
    if not isinstance(experts, Mapping):
        raise SettingsError(f"experts must map names to models; got {type(experts).__name__}")
    check_names(list(experts))
    if router.num_experts != len(experts):
        raise SettingsError(
            f"the router was made for {router.num_experts} experts but {len(experts)} came ({', '.join(experts)}); "
            "give the experts it was trained with, in that order"
        )


def team_folder(folder: str | Path, revision: str | None = None) -> Path:
    """The local folder of a team; a hub id is downloaded first. Raises `CheckpointError` if there is none."""
    local = Path(folder).expanduser()
    if local.is_dir():
        return local
    if local.exists() or str(folder).count("/") != 1 or str(folder).startswith((".", "/", "~")):
        raise CheckpointError(f"no team folder at {folder}; give the output folder of fusionroute train, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder), revision=revision))
    except Exception as error:  # the hub client has many kinds; each means the same to the user
        raise CheckpointError(
            f"no folder and no reachable hub repository at {str(folder)!r} ({type(error).__name__}); give the "
            "output folder of fusionroute train, or a hub id"
        ) from error


def read_team_file(folder: Path) -> TeamFile:
    """Parse ``team.json``. Raises `CheckpointError` if it is missing or not JSON, `SettingsError` for bad fields."""
    path = folder / TEAM_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TEAM_FILE}, so it is no team (or one half-written); train it again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); save the team again") from error
    return TeamFile.parse(values, source=str(path))


def expert_references(folder: Path) -> dict[str, ModelReference]:
    """The experts of a local team folder, in its order. Raises as `read_team_file` does."""
    return {entry.name: _resolve(folder, entry) for entry in read_team_file(folder).experts}


def _resolve(folder: Path, entry: ExpertEntry) -> ModelReference:
    """An expert saved inside the team is written relative to it, so a moved folder still loads."""
    beside = folder / entry.model
    return ModelReference(model=str(beside) if beside.is_dir() else entry.model, revision=entry.revision)
