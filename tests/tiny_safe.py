"""Members that say what a table says, and SAFE with its checks forced, for tests of SAFE."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import ENSEMBLED, Completion
from fusionroute.methods.safe import Safe
from fusionroute.methods.safe.verification import Check
from fusionroute.models.member import Member
from tests.tiny_members import Known
from tests.tiny_scripted import bigram

Table = Mapping[str, Mapping[str, float]]  # after which token, which next ones have which probability


def scripted(known: Known, table: Table) -> Member:
    """The member with a model of these probabilities; what is left of a row goes to digits, the lower the more.

    Tokens are named by what they write, ends by their spelling.
    """
    names = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in known.writes]
    rest = [names.index(str(digit)) for digit in range(10)]  # else words would tie for a place among the likeliest
    size = len(names) + len(names) % 2
    rows = []
    for name in [*names, None][:size]:
        said = table.get(name or "", {})
        row = [1e-9] * size
        for at, junk in enumerate(rest):
            row[junk] += (1 - sum(said.values())) * 0.6**at * 0.4
        for next_, probability in said.items():
            row[names.index(next_)] = probability
        rows.append(row)
    model = bigram(rows, max_position_embeddings=128)
    model.generation_config.eos_token_id = sorted(known.ends)
    return Member.of(known.member.name, model, known.tokenizer)


def renamed(member: Member, name: str) -> Member:
    return replace(member, name=name)


def write(method: Any, prompts: Sequence[str], **options: Any) -> list[Completion]:
    """All answers, in one batch."""
    drafter = method.members[0]
    settings = GenerationSettings(**{"max_new_tokens": 40, **options})
    ids = [drafter.prompt.encode(prompt) for prompt in prompts]
    return Engine(method, drafter.pieces.tokenizer).generate(ids, settings, unrendered=list(prompts))


def ensembles(completion: Completion) -> int:
    return sum(record.verdict in ENSEMBLED for record in completion.trace)


class Always(Safe):
    """Every place with a shared boundary is ensembled."""

    def verify(self, *args: Any, **options: Any) -> Check:
        found = super().verify(*args, **options)
        return replace(found, verdict="" if found.support else found.verdict)


class Never(Safe):
    """No place is."""

    def verify(self, *args: Any, **options: Any) -> Check:
        found = super().verify(*args, **options)
        return replace(found, verdict=found.verdict or "consensus")
