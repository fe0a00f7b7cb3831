"""A part of an answer that needs one domain's skill, and the words that ask for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """`request` is what the prompt says, `lines` what a skilled answer says, `requirement` what a checker needs."""

    request: str
    lines: tuple[str, ...]
    requirement: dict[str, object]
