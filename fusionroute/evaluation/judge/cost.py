"""What judging will cost, before it is begun."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

CHARACTERS_PER_TOKEN = 4  # of English text; the judge's tokenizer is not known here
REPLY_TOKENS = 120  # two scores and a short explanation; a judge that thinks aloud writes many times more


@dataclass(frozen=True)
class Cost:
    """A rough estimate: tokens are characters / 4, and a reply is taken to have 120 of them.

    Attributes:
        calls: requests, if none has to be made again.
        characters: of all that is sent.
    """

    calls: int
    characters: int

    @property
    def prompt_tokens(self) -> int:
        return ceil(self.characters / CHARACTERS_PER_TOKEN)

    @property
    def completion_tokens(self) -> int:
        return self.calls * REPLY_TOKENS

    def money(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are for a million tokens read and written."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls that send {self.characters:,} characters, about {self.prompt_tokens:,} tokens "
            f"(characters / {CHARACTERS_PER_TOKEN}), for about {self.completion_tokens:,} tokens of reply "
            f"({REPLY_TOKENS} each)"
        )


def estimate_cost(conversations: Iterable[Sequence[Mapping[str, str]]]) -> Cost:
    """The cost of sending these."""
    sizes = [sum(len(message["content"]) for message in conversation) for conversation in conversations]
    return Cost(len(sizes), sum(sizes))
