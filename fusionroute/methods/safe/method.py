"""The cycle of SAFE: generate, verify, ensemble."""

from collections.abc import Sequence as ListLike

from torch import Tensor

from fusionroute.engine.choice import logprobs
from fusionroute.engine.members import OfMembers, Weights
from fusionroute.engine.method import MakeRunner
from fusionroute.engine.prefill import Asked
from fusionroute.engine.runner import Runner
from fusionroute.engine.sequence import Sequence, TraceRecord
from fusionroute.engine.text_reader import Heard, lead_of
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging.host import Choice, append_choice, choose, tempered
from fusionroute.methods.averaging.hosts import Gate, host_of
from fusionroute.methods.safe.drafting import Draft, Drafting, Proposal
from fusionroute.methods.safe.sampling import accept_or_draw
from fusionroute.methods.safe.verification import Check, agreement, alignment
from fusionroute.models.member import Member
from fusionroute.ops.sampling import uniform
from fusionroute.ops.sharpening import check_sharpening

ACCEPT, REDRAW = 1, 2  # streams of random numbers; 0 is what tokens are drafted with


class Safe(OfMembers):
    """One drafter writes a few tokens; the others read them, and the earliest safe and useful place is ensembled.

    Greedily an ensemble is called for where every verifier has a token boundary, some verifier prefers another token,
    and Σ_v w_v P_v of the models' own tokens is at most ½. What was drafted behind a replaced token is written again;
    behind one that the ensemble has confirmed it would come out the same, so it stays as the beginning of the next
    draft.

    Args:
        members, drafter, weights: see `OfMembers`.
        host: ``"unite"`` or ``"gac"``, which ensembles at the chosen places.
        draft_length: n, the paper's 5.
        sharpening, threshold: see `ops.sharpening.sharpen`; when sampling, nothing is sharpened.
        gate: GaC's: where the drafter gives a token this much, nobody else is asked; None = everywhere all are.

    Raises:
        SettingsError: as `OfMembers` and the hosts do, or a draft length below 1.
        VocabularyError: a drafter that cannot end an answer, as each `Member` says.
    """

    draws_from_one = False

    def __init__(
        self,
        members: ListLike[Member],
        *,
        drafter: str | None = None,
        host: str = "unite",
        draft_length: int = 5,
        sharpening: str = "prefix",
        threshold: float = 0.1,
        weights: Weights = None,
        gate: Gate = "default",
        make_runner: MakeRunner = Runner,
    ):
        if draft_length < 1:
            raise SettingsError(f"draft_length is at least 1, 5 in the paper; got {draft_length}")
        check_sharpening(sharpening, threshold)
        super().__init__(members, drafter=drafter, weights=weights, make_runner=make_runner)
        self.host = host_of(host, self.members, self.weights, gate)
        self.sharpening = sharpening
        self.threshold = threshold
        self._drafting = Drafting(self.drafter, self.members[0].pieces, draft_length)

    def step(self, sequences: ListLike[Sequence]) -> None:
        drafts = [draft for draft in self._drafting.draft(sequences) if not draft.sequence.is_finished]
        self.drafted = self._drafting.drafted
        running = [draft.sequence for draft in drafts]
        texts, starts = [], []
        for draft in drafts:
            text, places = self._drafting.text(draft, lead_of(self.members[0], draft.sequence))
            texts.append(text)
            starts.append(places)
        since = [places[0] for places in starts]
        said = [reader.read(running, texts, since) if drafts else [] for reader in self.readers]
        for at, draft in enumerate(drafts):
            heard = [each for reader in said if (each := reader[at]) is not None]
            if draft.sequence.is_finished:  # a model has failed on it
                continue
            if len(heard) < len(self.readers):
                self._drafting.shorten(draft)
            else:
                self._settle(draft, starts[at], heard)

    def asked(self, sequence: Sequence) -> Asked:
        return [(self.drafter, self._drafting.view(sequence)), *super().asked(sequence)[1:]]

    def rollback(self, sequence: Sequence, length: int) -> None:
        self._drafting.drop(sequence)

    def release(self, sequence: Sequence) -> None:
        self._drafting.release(sequence)
        for reader in self.readers:
            reader.release(sequence)

    def verify(self, sequence: Sequence, proposal: Proposal, start: int, heard: ListLike[Heard]) -> Check:
        """Whether a drafted token that starts at byte ``start`` of the answer is kept, and why."""
        found = alignment(proposal, start, heard, self.members[0].pieces)
        if found.verdict:
            return found
        if self.is_behind_lead(sequence, start):
            return Check("boundary")
        if sequence.settings.is_greedy:
            return agreement(found, proposal, heard, self.weights, self.host.gate)
        largest = float(tempered(proposal.logits, sequence.settings).softmax(-1).amax())
        is_sure = self.host.gate is not None and largest >= self.host.gate
        return Check("gate", found.support, found.rows) if is_sure else found

    def _settle(self, draft: Draft, starts: list[int], heard: list[Heard]) -> None:
        """Append what is kept of the draft and, at the earliest place that calls for it, what the ensemble chooses."""
        sequence, proposals = draft.sequence, draft.proposals
        draft.proposals = []
        for at, (proposal, start) in enumerate(zip(proposals, starts, strict=True)):
            check = self.verify(sequence, proposal, start, heard)
            logits = [proposal.logits, *(each.logits[row] for each, row in zip(heard, check.rows, strict=False))]
            choice = self._ensemble(sequence, proposal, logits) if not check.verdict else None
            if choice is None:
                self._keep(sequence, proposal, check)
            elif choice.ids == [proposal.id] or choice.symbol == self.host.union.symbol_of_id(0, proposal.id):
                draft.proposals = proposals[at + 1 :]
                self._write(sequence, choice, [proposal.id], "ensembled", check, logits)
                self.kept += 1
            else:
                self._write(sequence, choice, choice.ids, "replaced", check, logits)
            if choice is not None or sequence.is_finished:
                return

    def _ensemble(self, sequence: Sequence, proposal: Proposal, logits: ListLike[Tensor]) -> Choice | None:
        """What the host writes at this place; None if, when sampling, the drafted token is accepted."""
        settings = sequence.settings
        if settings.is_greedy:
            return choose(self.host.blend(logits), self.host, self.sharpening, self.threshold)
        blend = self.host.blend([tempered(each, settings) for each in logits])
        accept, redraw = (uniform(sequence.seed, sequence.position, stream) for stream in (ACCEPT, REDRAW))
        return accept_or_draw(proposal, blend, self.host, settings, accept, redraw)

    def _keep(self, sequence: Sequence, proposal: Proposal, check: Check) -> None:
        logprob, top = logprobs(sequence.settings.logprobs, proposal.logits, proposal.id)
        sequence.append(
            TraceRecord(
                proposal.id,
                self.members[0].name,
                logprob=logprob,
                top_logprobs=top,
                verdict=check.verdict or "accepted",
                support=check.support,
            )
        )
        self.kept += 1

    def _write(
        self,
        sequence: Sequence,
        choice: Choice,
        ids: list[int],
        verdict: str,
        check: Check,
        logits: ListLike[Tensor],
    ) -> None:
        append_choice(
            sequence,
            self.host,
            choice,
            ids,
            expert=self.members[choice.member].name,
            verdict=verdict,
            support=check.support,
            logits=logits,
        )
