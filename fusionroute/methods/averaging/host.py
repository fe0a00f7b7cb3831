"""What a host ensemble is: from the next-token distributions of several vocabularies at one place to one choice."""

from bisect import bisect_left
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fusionroute.config import GenerationSettings
from fusionroute.engine.choice import logprobs
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.errors import SettingsError
from fusionroute.models.member import Member
from fusionroute.models.vocabulary import UnionVocabulary
from fusionroute.ops.averaging import normalised_weights
from fusionroute.ops.sampling import NEVER, draw, filter_logits
from fusionroute.ops.sharpening import sharpen


@dataclass(frozen=True)
class Blend:
    """What the members say of one place, over the candidates that a host compares.

    Attributes:
        symbols: of the union vocabulary, ascending, int64 ``[candidates]``.
        each: P_v, float32 ``[members, candidates]``, the drafter's first.
        weights: w, ``[members]``, with sum 1.
        ends: int64 ``[candidates]``; those whose strings start with that of candidate i are i + 1 to ends[i] - 1.
        targets: bool ``[candidates]``, those that prefix sharpening may raise.
        allowed: bool ``[candidates]``; see `may_be_written`.
    """

    symbols: Tensor
    each: Tensor
    weights: Tensor
    ends: Tensor
    targets: Tensor
    allowed: Tensor

    @cached_property
    def average(self) -> Tensor:
        """Σ_v w_v P_v, ``[candidates]``; its sum is below 1 by what the verifiers have no say in."""
        return (self.weights[:, None] * self.each).sum(0)

    def place_of(self, symbol: int) -> int | None:
        """Where it stands among the candidates, if it does."""
        place = int(torch.searchsorted(self.symbols, symbol))
        return place if place < len(self.symbols) and int(self.symbols[place]) == symbol else None


@dataclass(frozen=True)
class Choice:
    """What an ensemble writes at one place.

    Attributes:
        symbol: of the union vocabulary.
        ids: the drafter's tokens for it, one or several.
        member: who gives most to it, the first of equals: the largest w_v P_v(symbol).
        support: P_v(symbol) of each member.
    """

    symbol: int
    ids: list[int]
    member: int
    support: tuple[float, ...]


class Host(Protocol):
    """An ensemble over different vocabularies, at one place at a time. The drafter is the first member.

    Attributes:
        union: one numbering for what all members write.
        weights: w in the order of the members, with sum 1.
        gate: where the drafter gives this much to one token, nobody else is asked; None: everywhere all are.
    """

    union: UnionVocabulary
    weights: tuple[float, ...]
    gate: float | None

    def blend(self, logits: ListLike[Tensor]) -> Blend:
        """One place: the logits of each member in its own vocabulary, ``[V_v]``, any temperature already applied."""
        ...

    def drafter_ids(self, symbol: int) -> list[int]:
        """The drafter's tokens that the host writes for a symbol."""
        ...


def choose(blend: Blend, host: Host, sharpening: str = "none", threshold: float = 0.1) -> Choice:
    """Greedily: the argmax of the average, sharpened if it is flat; of equals the lowest symbol.

    Args:
        sharpening: a name of `ops.sharpening.KINDS`.
        threshold: λ, what a string needs before longer ones give it their mass.
    """
    sharpened = sharpen(sharpening, blend.average, blend.each, blend.weights, blend.ends, blend.targets, threshold)
    return choice_at(blend, host, int(sharpened.masked_fill(~blend.allowed, NEVER).argmax()))


def choose_by_chance(blend: Blend, host: Host, settings: GenerationSettings, number: float) -> Choice:
    """Drawn from the average, renormalised over the candidates, after the filters of ``settings``.

    Temperature belongs to the members' own logits, before they are blended.

    Args:
        number: uniform in [0, 1).
    """
    average = blend.average.log().masked_fill(~blend.allowed, NEVER)
    filtered = filter_logits(average, None, settings.top_k, settings.top_p, settings.min_p)
    return choice_at(blend, host, int(draw(filtered[None], torch.tensor([number]))))


def choice_at(blend: Blend, host: Host, place: int) -> Choice:
    """The candidate at ``place`` among ``blend.symbols`` as a `Choice`."""
    symbol = int(blend.symbols[place])
    support = blend.each[:, place]
    return Choice(
        symbol,
        host.drafter_ids(symbol),
        member=int((blend.weights * support).argmax()),
        support=tuple(support.tolist()),
    )


def tempered(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """A member's logits as it would sample from them; for greedy decoding as they are."""
    return logits if temperature(settings) == 1 else logits / temperature(settings)


def temperature(settings: GenerationSettings) -> float:
    return 1.0 if settings.is_greedy or settings.temperature is None else settings.temperature


def ensemble_logprobs(
    host: Host, wanted: int | None, symbol: int, logits: ListLike[Tensor]
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Log-probability of a symbol in the average, renormalised over the candidates, and of the ``wanted`` likeliest.

    A string of several drafter tokens goes by its first.

    Args:
        wanted: None: nothing is asked for, so nothing is computed.
        logits: of each member, before temperature.
    """
    if wanted is None:
        return None, ()
    blend = host.blend(logits)
    if (place := blend.place_of(symbol)) is None:  # temperature keeps the order, but rounding makes ties
        return None, ()
    logprob, top = logprobs(wanted, blend.average.log(), place)
    return logprob, tuple((host.drafter_ids(int(blend.symbols[at]))[0], value) for at, value in top)


def append_choice(
    sequence: Sequence,
    host: Host,
    choice: Choice,
    ids: ListLike[int],
    *,
    expert: str,
    verdict: str,
    support: tuple[float, ...],
    logits: ListLike[Tensor],
) -> None:
    """Append the tokens of a choice; what they come to stands at the first of them, the others are certain.

    Args:
        ids: the drafter's tokens for it.
        logits: of each member, before temperature.
    """
    logprob, top = ensemble_logprobs(host, sequence.settings.logprobs, choice.symbol, logits)
    sequence.append(
        TraceRecord(ids[0], expert, host.weights, logprob=logprob, top_logprobs=top, verdict=verdict, support=support)
    )
    certain = None if logprob is None else 0.0
    for token in ids[1:]:
        sequence.append(TraceRecord(token, expert, host.weights, logprob=certain, verdict="continued"))


def may_be_written(symbols: Tensor, union: UnionVocabulary, drafter: Tensor) -> Tensor:
    """Whole characters and the end always; half a character or a special token where it is the drafter's first choice.

    For then nothing is put into the drafter's mouth that it would not go on from.

    Args:
        symbols: candidates, ``[candidates]``.
        drafter: its logits, ``[vocabulary]``.

    Returns:
        bool ``[candidates]``.
    """
    return (symbols <= union.end) | (symbols == union.symbol_of_id(0, int(drafter.argmax())))


def shares(members: ListLike[Member], weights: ListLike[float] | None) -> tuple[float, ...]:
    """The weight of each member, scaled to sum 1; None = equal ones.

    Raises:
        SettingsError: weights that are negative, all 0, or not one for each member.
    """
    if weights is not None and len(weights) != len(members):
        names = ", ".join(member.name for member in members)
        raise SettingsError(f"{len(weights)} weights came for {len(members)} models ({names}); give one for each")
    return tuple(normalised_weights([1.0] * len(members) if weights is None else [*weights]))


def symbol_of_space(union: UnionVocabulary) -> int | None:
    """Of ``" "``, the beginning of nearly every word, which sharpening leaves alone."""
    place = bisect_left(union.strings, b" ")
    return place if place < len(union.strings) and union.strings[place] == b" " else None
