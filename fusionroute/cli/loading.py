"""What `generate` and `chat` need before the first token: checked settings, then the team."""

from typing import TYPE_CHECKING, Any

from fusionroute.cli.console import quiet
from fusionroute.config import GenerationSettings
from fusionroute.errors import SettingsError

if TYPE_CHECKING:
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
