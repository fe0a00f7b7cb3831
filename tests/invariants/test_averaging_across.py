"""Design, section 10, for GaC and UniTE at every token: 1 and 2 (reference, batches), 5 and 6 (names, weights, copies).

Most models here are held to printable ASCII, so that an answer reads the same in every vocabulary.
"""

import random
from collections.abc import Sequence as ListLike
from functools import cache

import pytest
import torch

import tiny_members
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import Method
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.sequence import Completion, Sequence
from fusionroute.methods.averaging import Averaging, AveragingAcross, Gac, Unite
from fusionroute.methods.single import Single
from tiny_members import Known

WORDS = ["th", "the", " t", " a", "an", "in", "ing", " in"]
GREEDY = GenerationSettings(max_new_tokens=12)
SAMPLED = GenerationSettings(max_new_tokens=12, do_sample=True, temperature=0.8, top_p=0.9, seed=3)
HOSTS = {
    "unite": {},
    "unite_prefix": {"sharpening": "prefix"},
    "gac": {"gate": 0.3},  # random models are seldom surer
    "gac_everywhere": {"gate": None},
}


@cache
def families() -> tuple[Known, ...]:
    return (
        tiny_members.hushed(tiny_members.byte_level("bytes", WORDS, seed=1)),
        tiny_members.hushed(tiny_members.with_fallback("pieces", [*WORDS[::-1], "abc", " "], seed=2)),
        tiny_members.hushed(tiny_members.byte_level("others", ["he", "ng", "tt"], ends=("<|im_end|>", "</s>"), seed=3)),
    )


@cache
def loud() -> tuple[Known, ...]:
    """They write half characters, broken ones and special tokens too."""
    return (
        tiny_members.byte_level("bytes", [*WORDS, "é", "한국"], seed=4),
        tiny_members.with_fallback("pieces", [*WORDS, "한", "é"], seed=5),
    )


@cache
def one_vocabulary() -> tuple[Known, ...]:
    """Every text reads in one way alone: a token is a byte."""
    return tuple(tiny_members.hushed(tiny_members.byte_level(name, [], seed=at)) for at, name in enumerate("abc"))


def across(known: ListLike[Known], host: str = "unite", **options: object) -> AveragingAcross:
    return AveragingAcross([each.member for each in known], host=host.split("_")[0], **HOSTS[host], **options)


def prompts(count: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choices("then again in", k=dice.randint(1, 20))) for _ in range(count)]


def write(
    method: Method, known: Known, asked: ListLike[str], settings: GenerationSettings = GREEDY
) -> list[Completion]:
    ids = [known.member.prompt.encode(prompt) for prompt in asked]
    return Engine(method, known.tokenizer).generate(ids, settings, unrendered=asked)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def expected(known: ListLike[Known], host: str, prompt: str, settings: GenerationSettings) -> Completion:
    slow = across(known, host, make_runner=UncachedRunner)
    engine = Engine(slow, known[0].tokenizer)
    return reference(slow, engine.sequence(known[0].member.prompt.encode(prompt), settings, prompt))


def run_with_traffic(engine: Engine, known: Known, asked: ListLike[str], seed: int) -> list[Completion]:
    """Requests join a few at a time while others run; each is cut back once on its way, never inside one choice."""
    dice, sequences, uncut = random.Random(seed), [], set()
    while len(sequences) < len(asked) or not engine.is_idle:
        for prompt in asked[len(sequences) :][: dice.randint(0, 4)]:
            sequences.append(engine.submit(known.member.prompt.encode(prompt), GREEDY, prompt))
            uncut.add(sequences[-1])
        engine.step()
        for sequence in [
            each for each in engine.scheduler.running if each in uncut and each.trace and dice.random() < 0.3
        ]:
            engine.rollback(sequence, sequence.prompt_length + dice.choice(beginnings(sequence)))
            uncut.remove(sequence)
    return [sequence.completion() for sequence in sequences]


def beginnings(sequence: Sequence) -> list[int]:
    """Numbers of tokens after which the ensemble chose anew: what is cut off in between belongs to a choice."""
    return [at for at, record in enumerate(sequence.trace) if record.verdict != "continued"]


def facts(completion: Completion) -> tuple:
    records = [(record.token_id, record.expert, record.verdict) for record in completion.trace]
    return completion.text, completion.finish_reason, records


@pytest.mark.parametrize(
    ("make", "host"), [(families, "unite_prefix"), (families, "gac"), (loud, "unite"), (loud, "gac_everywhere")]
)
def test_engine_equals_reference_under_traffic(make, host: str) -> None:
    known, asked = make(), prompts(8, seed=7)
    found = run_with_traffic(Engine(across(known, host), known[0].tokenizer, max_batch=6), known[0], asked, seed=3)
    assert [facts(completion) for completion in found] == [
        facts(expected(known, host, prompt, GREEDY)) for prompt in asked
    ]
    records = [record for completion in found for record in completion.trace]
    assert {"ensembled", "replaced"} <= {record.verdict for record in records}
    assert len({record.expert for record in records}) == len(known)
    if host == "gac":
        assert "gate" in {record.verdict for record in records}
    if make is loud:
        assert "alone" in {record.verdict for record in records}, "nobody wrote half a character"


@pytest.mark.parametrize(("host", "settings"), [("unite", SAMPLED), ("unite_prefix", GREEDY), ("gac", SAMPLED)])
def test_a_ragged_batch_equals_one_at_a_time(host: str, settings: GenerationSettings) -> None:
    known, asked = families(), prompts(6, seed=1)
    together = write(across(known, host), known[0], asked, settings)
    for prompt, completion in zip(asked, together, strict=True):
        (alone,) = write(across(known, host), known[0], [prompt], settings)
        assert facts(completion) == facts(alone)


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2)])
def test_gac_at_one_vocabulary_is_plain_averaging(weights: tuple[float, ...]) -> None:
    known, asked = one_vocabulary(), prompts(8, seed=2)
    plain = Averaging({each.member.name: each.member.model for each in known}, weights)
    found = write(across(known, "gac_everywhere", weights=weights), known[0], asked)
    wanted = write(plain, known[0], asked)
    assert tokens(found) == tokens(wanted)
    authors = [[record.expert for record in answer.trace] for answer in found]
    assert authors == [[record.expert for record in answer.trace] for answer in wanted]
    assert len(set().union(*authors)) == 3


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2)])
def test_at_one_vocabulary_both_hosts_have_the_average_of_all_distributions(weights: tuple[float, ...]) -> None:
    known = one_vocabulary()
    members = [each.member for each in known]
    size = len(known[0].writes)
    for seed in range(5):
        said = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 3
        said[:, -tiny_members.PADDING_ROWS :] = float("-inf")
        said[
            1:, [at for at, text in enumerate(known[0].writes) if at not in known[0].ends and not is_ascii(text)]
        ] = -99
        average = (torch.tensor(weights)[:, None] / sum(weights) * said.softmax(-1)).sum(0)
        for host in (Gac(members, weights), Unite(members, weights, top=size)):
            blend = host.blend(list(said))
            ids = [host.drafter_ids(symbol)[0] for symbol in blend.symbols.tolist()]
            torch.testing.assert_close(blend.average, average[ids], atol=1e-6, rtol=1e-4)
            assert float(blend.average.sum()) == pytest.approx(1, abs=1e-5)


def is_ascii(text: bytes | str | None) -> bool:
    return isinstance(text, bytes) and text.isascii()


@pytest.mark.parametrize("host", ["unite", "gac", "gac_everywhere"])
def test_all_weight_on_the_drafter_is_the_drafter_alone(host: str) -> None:
    known, asked = families(), prompts(6, seed=3)
    alone = Single(known[0].member.model, "bytes")
    for settings in (GREEDY, SAMPLED):
        found = write(across(known, host, weights=[1, 0, 0]), known[0], asked, settings)
        assert tokens(found) == tokens(write(alone, known[0], asked, settings))


@pytest.mark.parametrize("host", ["unite", "gac", "gac_everywhere"])
def test_a_model_with_copies_of_itself_is_that_model(host: str) -> None:
    """Over one byte a token its texts read as they were written, so the copies say what it says."""
    known, asked = one_vocabulary()[0], prompts(6, seed=4)
    copy = tiny_members.hushed(tiny_members.byte_level("copy", [], seed=0))
    found = write(across([known, copy], host, weights=[1, 3]), known, asked)
    assert tokens(found) == tokens(write(Single(known.member.model, "a"), known, asked))


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_three_with_one_of_weight_0_are_two(host: str) -> None:
    known, asked = families(), prompts(6, seed=5)
    three = write(across(known, host, weights=[2, 0, 1]), known[0], asked)
    two = write(across([known[0], known[2]], host, weights=[2, 1]), known[0], asked)
    assert [facts(completion) for completion in three] == [facts(completion) for completion in two]


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_relabelling_changes_names_alone(host: str) -> None:
    """The order of the verifiers says nothing, nor does the place of the drafter."""
    known, asked = families(), prompts(6, seed=6)
    first = write(across(known, host, weights=[5, 3, 2]), known[0], asked)
    turned = [known[2], known[0], known[1]]
    other = write(across(turned, host, weights=[2, 5, 3], drafter="bytes"), known[0], asked)
    assert [facts(completion) for completion in first] == [facts(completion) for completion in other]
