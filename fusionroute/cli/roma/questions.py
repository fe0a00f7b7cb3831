"""Questions and the model that is asked, as the command line names them."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fusionroute.cli.console import say
from fusionroute.cli.roma.question_format import Chosen

if TYPE_CHECKING:
    from fusionroute.models.gates import Gates
    from fusionroute.models.prompt import PromptFormat
    from fusionroute.moe.questions.questions import Encoded, Question


def layers_of(text: str) -> int | str | tuple[int, ...]:
    """A number, a list of them if there is a comma, or a word, which `choose_gates` judges."""
    places = [place.strip() for place in text.split(",") if place.strip()]
    if not places or not all(place.removeprefix("-").isdecimal() for place in places):
        return text
    return tuple(map(int, places)) if "," in text else int(text)


def load(
    model: str,
    questions: Path,
    prompt: Chosen,
    limit: int | None,
    device: str | None,
    dtype: str | None,
    *,
    layers: int | str | tuple[int, ...],
) -> "tuple[list[Question], PromptFormat, list[Encoded], Gates]":
    """Questions as text, how they are put, as token ids; and the gates of the model."""
    from fusionroute.models.gates import Gates
    from fusionroute.models.loading import load_model, load_tokenizer
    from fusionroute.models.prompt import PromptFormat
    from fusionroute.models.team import context_length
    from fusionroute.moe.questions.questions import encode_questions, read_questions

    asked = read_questions(questions, limit)
    prompt_format = PromptFormat(load_tokenizer(model), prompt.name)
    live = load_model(model, device=device, dtype=dtype)
    return asked, prompt_format, encode_questions(asked, prompt_format, context_length(live)), Gates(live, layers)


def say_format(console: Console, chosen: Chosen) -> None:
    if chosen.remark:
        say(console, chosen.remark)
