"""What `generate` and `chat` need before the first token: checked settings, then a team or an ensemble."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionroute.cli.console import quiet
from fusionroute.cli.overrides import as_changes
from fusionroute.config import GenerationSettings
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.ensemble import Ensemble
    from fusionroute.team import Team


def generation_settings(**options: Any) -> GenerationSettings:
    """Checked before any model is loaded, since that may take minutes."""
    try:
        return GenerationSettings.parse(options)
    except SettingsError as error:
        raise SettingsError(str(error).replace("do_sample=True", "--sample")) from None  # as it is called here


def load_team(folder: str, device: str | None, dtype: str | None) -> "Team":
    quiet()
    from fusionroute.team import Team

    return Team.from_pretrained(folder, device=device, dtype=dtype)


def load_writers(
    location: str, device: str | None, dtype: str | None, overrides: Sequence[str] | None = None, *, complement: bool
) -> "Team | Ensemble":
    """Whoever answers: an ensemble if ``location`` is a YAML file, else a team.

    Raises:
        SettingsError: an option that means nothing to them, before anything is loaded.
    """
    quiet()
    from fusionroute.models.ensemble import is_ensemble_file

    if not is_ensemble_file(location):
        if overrides:
            raise SettingsError(f"--set {overrides[0]}: it sets an option of an ensemble file, and {location} is none")
        return load_team(location, device, dtype)
    if not complement:
        raise SettingsError("--no-complement leaves out a router's own say, and an ensemble has no router; drop it")
    from fusionroute.ensemble import Ensemble

    return Ensemble.from_file(location, changes=as_changes(overrides or ()), device=device, dtype=dtype)


def batching(*, complement: bool, **options: Any) -> dict[str, Any]:
    """What a team's or an ensemble's `generate` and `engine` take beside prompts; an ensemble knows no complement."""
    return options if complement else {"complement": False, **options}
