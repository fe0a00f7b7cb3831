"""A trained team, over the comparison's own experts."""

from typing import ClassVar, Literal

from fusionroute.errors import SettingsError
from fusionroute.evaluation.compare.lineup.entry import Contestant, Entry
from fusionroute.evaluation.compare.lineup.shared import Shared
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.loading import ModelReference
from fusionroute.models.team import ROUTER_FOLDER, TeamModels, expert_references, read_team_file, team_folder
from fusionroute.models.vocabulary import ROUTER


class FusionRouteEntry(Entry):
    """A trained team."""

    is_joint: ClassVar[bool] = True

    method: Literal["fusion_route"] = "fusion_route"
    team: str
    complement: bool = True

    def models(self, shared: Shared) -> dict[str, ModelReference]:
        folder = team_folder(self.team)
        experts = {f"expert {name}": reference for name, reference in expert_references(folder).items()}
        return {ROUTER: ModelReference(model=str(folder / ROUTER_FOLDER)), **experts}

    def check(self, shared: Shared) -> None:
        """A fair comparison gives every method the same experts and the same prompts."""
        team = read_team_file(team_folder(self.team))
        names = [expert.name for expert in team.experts]
        if set(names) != set(shared.experts):
            raise SettingsError(
                f"team {self.team} has the experts {', '.join(names)} but the comparison {', '.join(shared.experts)}; "
                "a fair comparison gives every method the same ones"
            )
        for name, reference in expert_references(team_folder(self.team)).items():
            content, wanted = (
                model_fingerprint(each, shared.dtype)["content"] for each in (reference, shared.experts[name])
            )
            if content != wanted:
                raise SettingsError(
                    f"expert {name!r} of team {self.team} is another model than the comparison's ({reference.model}, "
                    f"not {shared.experts[name].model}); a fair comparison gives every method the same ones"
                )
        if team.prompt != shared.prompt:
            raise SettingsError(
                f"team {self.team} was trained with prompt {team.prompt!r} but the comparison uses {shared.prompt!r}; "
                "set prompt in the compare file to what the models were trained with"
            )

    def build(self, shared: Shared, seed: int) -> Contestant:
        self.check(shared)
        team = TeamModels.from_pretrained(self.team, dtype=shared.dtype, device=shared.device)
        return Contestant(FusionRoute(team, complement=self.complement), team.tokenizer, team.prompt_format)
