"""What `generate` and `chat` need before the first token: checked settings, then a team or an ensemble."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionroute.cli.console import quiet
from fusionroute.cli.overrides import as_changes
from fusionroute.config import GenerationSettings
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
    from fusionroute.engine.speculation import SpeculationSettings
    from fusionroute.ensemble import Ensemble
    from fusionroute.team import Team


def generation_settings(**options: Any) -> GenerationSettings:
    """Checked before any model is loaded, since that may take minutes."""
    try:
        return GenerationSettings.parse(options)
    except SettingsError as error:
        raise SettingsError(str(error).replace("do_sample=True", "--do-sample")) from None  # as it is called here


def load_team(folder: str, device: str | None, dtype: str | None) -> "Team":
    quiet()
    from fusionroute.team import Team

    return Team.from_pretrained(folder, device=device, dtype=dtype)


def load_writers(
    location: str,
    device: str | None,
    dtype: str | None,
    overrides: Sequence[str] | None = None,
    *,
    complement: bool,
    is_speculating: bool = False,
) -> "Team | Ensemble":
    """Whoever answers: an ensemble if ``location`` is a YAML file, else a team.

    Raises:
        SettingsError: an option that means nothing to them, before anything is loaded.
    """
    quiet()
    from fusionroute.models.ensemble import is_ensemble_file

    if not is_ensemble_file(location):
        if overrides:
            raise SettingsError(
                f"--set {overrides[0]}: it sets an option of an ensemble file, and {location} is none; leave it out"
            )
        return load_team(location, device, dtype)
    if not complement:
        raise SettingsError("--no-complement leaves out a router's own say, and an ensemble has no router; drop it")
    if is_speculating:
        raise SettingsError("--speculation is for teams, and an ensemble's drafter is its own; drop it")
    from fusionroute.ensemble import Ensemble

    return Ensemble.from_file(location, changes=as_changes(overrides or ()), device=device, dtype=dtype)


def speculation_options(drafter: str | None, max_draft: int | None) -> "SpeculationSettings | None":
    """Checked before any model is loaded.

    Args:
        drafter: ``router``, ``ngram``, or a small model's folder or hub id; None = no speculation.
    """
    if drafter is None:
        if max_draft is not None:
            raise SettingsError(
                f"--max-draft {max_draft} does nothing without --speculation; add it or drop --max-draft"
            )
        return None
    quiet()
    from fusionroute.engine.speculation import SpeculationSettings

    settings = SpeculationSettings.named(drafter, **({} if max_draft is None else {"max_draft": max_draft}))
    settings.require_model()
    return settings


def batching(*, complement: bool, speculation: "SpeculationSettings | None" = None, **options: Any) -> dict[str, Any]:
    """What a team's or an ensemble's `generate` and `engine` take beside prompts.

    An ensemble knows neither complement nor speculation.
    """
    routed = {} if complement else {"complement": False}
    return {**routed, **({} if speculation is None else {"speculation": speculation}), **options}
