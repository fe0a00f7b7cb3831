"""What ways of writing with different tokenizers have in common: one drafter writes, the others read its text."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike

from fusionroute.config import nearest
from fusionroute.engine.method import MakeRunner, Method
from fusionroute.engine.prefill import Asked
from fusionroute.engine.runner import AnyRunner, Runner
from fusionroute.engine.sequence import Sequence
from fusionroute.engine.text_reader import STRETCH, TextReader, lead_of
from fusionroute.errors import SettingsError
from fusionroute.models.member import Member
from fusionroute.models.vocabulary import eos_ids
from fusionroute.ops.averaging import normalised_weights

Weights = Mapping[str, float] | ListLike[float] | None


class OfMembers(Method):
    """A method over models with tokenizers and prompts of their own. The answer consists of the drafter's tokens.

    Args:
        members: any number, of different names.
        drafter: the name of the one whose tokens are the answer; None = the first.
        weights: of each member's say, by name or in the order of ``members``, scaled to sum 1; None = equal ones. A
            verifier of weight 0 is never asked.

    Attributes:
        members, weights: the drafter's first, without verifiers of weight 0.
        drafted, kept: tokens that the drafter has proposed, and how many of them stand in answers.

    Raises:
        SettingsError: no members, twins, an unknown drafter or name, or weights that are negative or all 0.
    """

    def __init__(
        self,
        members: ListLike[Member],
        *,
        drafter: str | None = None,
        weights: Weights = None,
        make_runner: MakeRunner = Runner,
    ):
        weight_of = _weights(members, weights)
        first = _drafter(members, drafter)
        self.members = (first, *(each for each in members if each is not first and weight_of[each.name] > 0))
        self.weights = tuple(weight_of[member.name] for member in self.members)
        self.drafter = make_runner(first.model, first.name)
        self.readers = [TextReader(member, make_runner) for member in self.members[1:]]
        self.runners: ListLike[AnyRunner] = (self.drafter, *(reader.runner for reader in self.readers))
        # as alone; a drafter that names no ends stops at whatever is spelled like one
        self.eos_ids = frozenset(eos_ids(first.model)) or first.pieces.end_ids
        self.context_length = first.context_length
        self.rows = STRETCH
        self.drafted = self.kept = 0

    def admit(self, sequence: Sequence) -> None:
        for reader in self.readers:
            reader.prompt_ids(sequence)

    def asked(self, sequence: Sequence) -> Asked:
        """All of them, each with what it reads; a verifier reads its prompt ahead even if it should never be asked."""
        return [(self.drafter, sequence), *((reader.runner, reader.view(sequence)) for reader in self.readers)]

    def release(self, sequence: Sequence) -> None:
        self.drafter.release(sequence)
        for reader in self.readers:
            reader.release(sequence)

    def rollback(self, sequence: Sequence, length: int) -> None:
        self.drafter.rollback(sequence, length)

    def text(self, sequence: Sequence) -> bytes:
        """What the others read of the answer so far."""
        first = self.members[0]
        return first.pieces.text(sequence.output_ids).removeprefix(lead_of(first, sequence))

    def is_behind_lead(self, sequence: Sequence, start: int) -> bool:
        """Whether a place is the beginning of an answer before which some template puts something, such as a space.

        That may be part of a model's first token, so what the models would write there cannot be compared.
        """
        return start == 0 and any(lead_of(member, sequence) for member in self.members)


def _drafter(members: ListLike[Member], name: str | None) -> Member:
    names = [member.name for member in members]
    if not names:
        raise SettingsError("an ensemble needs models; got none")
    for each in names:
        if names.count(each) > 1:
            raise SettingsError(f"model {each!r} stands twice; give each a name of its own")
    if name is not None and name not in names:
        raise SettingsError(f"drafter: {nearest(name, names)}")
    return members[0 if name is None else names.index(name)]


def _weights(members: ListLike[Member], weights: Weights) -> dict[str, float]:
    names = [member.name for member in members]
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise SettingsError(f"weights: {nearest(str(name), names)}")
        if missing := [name for name in names if name not in weights]:
            raise SettingsError(f"weights: {missing[0]!r} has none; give every model one, 0 where it is to be left out")
        weights = [weights[name] for name in names]
    if weights is not None and len(weights) != len(names):
        raise SettingsError(
            f"{len(weights)} weights came for {len(names)} models ({', '.join(names)}); give one for each"
        )
    return dict(zip(names, normalised_weights([1.0] * len(names) if weights is None else [*weights]), strict=True))
