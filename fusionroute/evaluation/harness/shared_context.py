"""One question for several models, each in its own format: refused where they would not all read the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusionroute.errors import PromptError, SettingsError
from fusionroute.models.member import Member
from fusionroute.models.opening import is_opened
from fusionroute.models.prompt import Prompt


@dataclass(frozen=True)
class Asked:
    """A context of lm-eval.

    Attributes:
        messages: of which it was rendered; None for text as it is.
        ids: as the drafter reads it.
        new_tokens: that are to be written behind it, at most.
    """

    context: str
    messages: Prompt | None
    ids: list[int]
    new_tokens: int


def check_context(members: Sequence[Member], asked: Asked, max_length: int) -> None:
    """Several models are to read the same question, each in its own format, and none of them half of it.

    Args:
        members: the drafter first.
        max_length: tokens that the drafter reads, at most.

    Raises:
        SettingsError: text as it is for models with formats; or an answer that the task begins and a template too.
        PromptError: some model has no room for it beside its answer.
    """
    formats = {member.name: member.prompt for member in members}
    named = [name for name, each in formats.items() if each.name is not None]
    if asked.messages is None and named:
        raise SettingsError(
            f"{named[0]!r} reads prompts in the format {formats[named[0]].name!r}, but text came as it is; let "
            "each model of the ensemble apply its own (apply_chat_template=True), or set prompt to null in its file"
        )
    leading = [name for name, each in formats.items() if each.lead]
    if is_opened(asked.messages) and leading:
        raise SettingsError(
            f"the task begins the answer itself (gen_prefix), and the chat template of {leading[0]!r} writes "
            f"{formats[leading[0]].lead!r} before every answer, so its models would not go on from the same text; "
            "choose a task that leaves the answer to the models, or a named prompt format such as alpaca"
        )
    _check_room(members, asked, max_length)


def _check_room(members: Sequence[Member], asked: Asked, max_length: int) -> None:
    drafter, *verifiers = members
    prompt = asked.context if asked.messages is None else asked.messages
    lengths = {drafter.name: (len(asked.ids), max_length)} | {
        member.name: (len(member.prompt.encode(prompt)), member.context_length) for member in verifiers
    }
    for name, (length, limit) in lengths.items():
        if length > limit - asked.new_tokens:
            raise PromptError(
                f"the context {asked.context[-40:]!r} has {length} tokens for {name!r} where "
                f"{limit - asked.new_tokens} fit beside {asked.new_tokens} new ones; what one model of an ensemble "
                "loses the others would still read: ask for fewer new tokens or shots"
            )
