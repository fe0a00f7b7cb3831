"""In which prompt format ``fusionroute roma`` puts its questions, and how it says so."""

from dataclasses import dataclass
from pathlib import Path

from fusionroute.config import nearest, read_yaml
from fusionroute.errors import SettingsError

PLAIN = "text"  # on the command line: text as it is, also where a run of ours was tuned on another format


@dataclass(frozen=True)
class Chosen:
    """A format's name (None: text as it is), and what is to be said of how it came about, if anything."""

    name: str | None
    remark: str = ""


def choose_format(model: str, given: str | None) -> Chosen:
    """The format that was asked for; else that of the run of ours in which ``model`` lies; else text as it is.

    A model that was tuned on one format and is asked in another looks worse than it is.

    Args:
        given: as on the command line; None if nothing was said there.

    Raises:
        SettingsError: an unknown name.
        CheckpointError: nothing was said, and ``model`` has no tokenizer that can be read.
    """
    from fusionroute.models.prompt import CHAT_TEMPLATE, TEMPLATES

    allowed = (CHAT_TEMPLATE, *TEMPLATES, PLAIN)
    if given is not None and given not in allowed:
        raise SettingsError(f"--prompt: {nearest(given, allowed)}")
    if given is not None:
        return Chosen(None if given == PLAIN else given)
    tuned = _settings_of_run(model)
    if tuned is not None:
        name, source = tuned
        return Chosen(name, f"questions were put as {name or 'plain text'}, as {source} says; --prompt changes that")
    from fusionroute.models.loading import load_tokenizer

    if load_tokenizer(model).chat_template:
        return Chosen(None, "questions were put as plain text; the tokenizer has a chat template, see --prompt")
    return Chosen(None)


def _settings_of_run(model: str) -> tuple[str | None, Path] | None:
    """The prompt format of the run that wrote this model, and the file that says so; None: no run of ours did."""
    from fusionroute.moe.roma.folder import MODEL_FOLDER, SETTINGS_FILE
    from fusionroute.moe.roma.settings import RoMASettings

    folder = Path(model).expanduser().resolve()
    file = folder.parent / SETTINGS_FILE
    if folder.name != MODEL_FOLDER or not file.is_file():
        return None
    try:
        return RoMASettings.parse(read_yaml(file)).prompt, file
    except SettingsError:  # somebody else's file of that name
        return None
