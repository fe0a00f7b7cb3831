"""GaC and UniTE as they were published: models with tokenizers of their own, averaged at every token."""

from collections.abc import Mapping
from collections.abc import Sequence as ListLike

from torch import Tensor

from fusionroute.engine.choice import choose_tokens, logprobs
from fusionroute.engine.members import OfMembers, Weights
from fusionroute.engine.method import MakeRunner
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.engine.text_reader import TextReader, is_inside_character
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.host import Blend, Choice, append_choice, choose, choose_by_chance, tempered
from fusionroute.methods.averaging.hosts import Gate, host_of
from fusionroute.models.member import Member
from fusionroute.ops.sampling import uniform
from fusionroute.ops.sharpening import check_sharpening


class AveragingAcross(OfMembers):
    """The host at every token: the members read the text so far, and the drafter writes what they choose.

    The drafter writes alone inside a character, where it is surer than the host's gate, and where no verifier has a
    weight. A sequence that is cut back between the tokens of one choice goes on with a new choice. Models of one
    vocabulary are averaged by `Averaging`, which needs no text.

    Args:
        members, drafter, weights: see `OfMembers`; two members at least.
        host: ``"unite"`` or ``"gac"``.
        sharpening: of a greedy choice, a name of `ops.sharpening.KINDS`; sampling is from the plain average.
        threshold: of ``"prefix"``, λ.
        gate: of GaC alone; None asks the verifiers everywhere.

    Raises:
        SettingsError: as `OfMembers`; fewer than two members; another host or sharpening; a threshold outside (0, 1);
            a gate outside (0, 1], or for UniTE.
    """

    draws_from_one = False

    def __init__(
        self,
        members: ListLike[Member],
        *,
        drafter: str | None = None,
        host: str = "unite",
        weights: Weights = None,
        sharpening: str = "none",
        threshold: float = 0.1,
        gate: Gate = "default",
        make_runner: MakeRunner = Runner,
    ):
        if len(members) < 2:
            raise SettingsError(f"an average takes two members at least; got {len(members)}")
        check_sharpening(sharpening, threshold)
        super().__init__(members, drafter=drafter, weights=weights, make_runner=make_runner)
        self.host = host_of(host, self.members, self.weights, gate)
        self.sharpening = sharpening
        self.threshold = threshold

    def step(self, sequences: ListLike[Sequence]) -> None:
        logits = self.drafter.read(sequences).logits[:, -1].float()
        own = choose_tokens(logits, sequences).tolist()
        texts = [self.text(sequence) for sequence in sequences]
        asking: list[int] = []
        for row, sequence in enumerate(sequences):
            self.drafted += not sequence.is_finished
            if verdict := self._reason_not_to_ask(sequence, texts[row], logits[row]):
                self._write_own(sequence, own[row], logits[row], verdict)
            else:
                asking.append(row)
        each = {row: [logits[row]] for row in asking}
        for reader in self.readers:
            self._hear(reader, {row: sequences[row] for row in asking}, texts, each)
        for row in asking:
            if not sequences[row].is_finished:
                self._write_chosen(sequences[row], own[row], each[row])

    def _hear(
        self,
        reader: TextReader,
        asking: Mapping[int, Sequence],
        texts: ListLike[bytes],
        each: Mapping[int, list[Tensor]],
    ) -> None:
        """Add what one verifier says after each text, ``[V_v]``, to ``each``; nothing for a sequence that has ended."""
        rows = [row for row, sequence in asking.items() if not sequence.is_finished]
        ends = [len(texts[row]) for row in rows]
        said = reader.read([asking[row] for row in rows], [texts[row] for row in rows], ends)
        for row, end, heard in zip(rows, ends, said, strict=True):
            if heard is not None:
                each[row].append(heard.logits[heard.rows[end]])
            elif not asking[row].is_finished:  # the text fills this verifier's context
                asking[row].finish("length")

    def _reason_not_to_ask(self, sequence: Sequence, text: bytes, logits: Tensor) -> str:
        """The verdict on a token that the drafter writes alone; "" where the others are asked."""
        if not self.readers or self.is_behind_lead(sequence, len(text)) or is_inside_character(text, len(text)):
            return "alone"
        gate = self.host.gate
        if gate is not None and float(tempered(logits, sequence.settings).softmax(-1).amax()) >= gate:
            return "gate"
        return ""

    def _write_own(self, sequence: Sequence, token: int, logits: Tensor, verdict: str) -> None:
        logprob, top = logprobs(sequence.settings.logprobs, logits, token)
        self.kept += not sequence.is_finished
        sequence.append(
            TraceRecord(token, self.drafter.name, self.weights, logprob=logprob, top_logprobs=top, verdict=verdict)
        )

    def _write_chosen(self, sequence: Sequence, own: int, each: list[Tensor]) -> None:
        blend = self.host.blend([tempered(logits, sequence.settings) for logits in each])
        choice = self._choose(blend, sequence)
        # what the drafter would write itself stands as it is, though other tokens may write the same
        ids = [own] if self.host.union.symbol_of_id(0, own) == choice.symbol else choice.ids
        self.kept += ids[0] == own
        append_choice(
            sequence,
            self.host,
            choice,
            ids,
            expert=self.members[choice.member].name,
            verdict="ensembled" if ids[0] == own else "replaced",
            support=choice.support,
            logits=each,
        )

    def _choose(self, blend: Blend, sequence: Sequence) -> Choice:
        if sequence.settings.is_greedy:
            return choose(blend, self.host, self.sharpening, self.threshold)
        number = uniform(sequence.seed, sequence.position)
        return choose_by_chance(blend, self.host, sequence.settings, number)
