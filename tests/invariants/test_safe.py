"""What must be equal for SAFE: itself, its host, its reference; and theorem 1 by brute force."""

import random
from collections import Counter

import pytest
import torch

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.engine.sequence import ENSEMBLED, Sequence
from fusionroute.engine.text_reader import Heard
from fusionroute.methods.averaging.every_token import AveragingAcross
from fusionroute.methods.safe import Safe
from fusionroute.methods.safe.drafting import Proposal
from fusionroute.methods.safe.verification import agreement, alignment
from fusionroute.models.member import Member
from tests.tiny_members import byte_level, hushed, with_fallback
from tests.tiny_safe import Always, Table, ensembles, renamed, scripted, write

PROMPTS = ["one two", "Was ist das?", "0", "αβγ, שלום and 你好 😀", "e\N{COMBINING ACUTE ACCENT}", "<eos></s>"]
WORDS = ([" the", " cat", "ing", "tion", " a"], [" the", " ca", "ti", "on", " an"], [" th", "at", "ion", "e "])


@pytest.fixture(scope="module")
def members() -> list[Member]:
    makers = (byte_level, with_fallback, byte_level)
    return [
        hushed(make(name, words, seed=at)).member
        for at, (make, name, words) in enumerate(zip(makers, "abc", WORDS, strict=True))
    ]


@pytest.fixture(scope="module")
def wild() -> list[Member]:
    """Models that write anything that their tokenizers have: halves of characters, control characters, specials."""
    makers = (byte_level, with_fallback, byte_level)
    return [
        hushed(make(name, words, seed=10 + at), lambda text: True).member
        for at, (make, name, words) in enumerate(zip(makers, "abc", WORDS, strict=True))
    ]


def alone(method: Safe, prompt: str, **options: object):
    settings = GenerationSettings(**{"max_new_tokens": 40, **options})
    ids = method.members[0].prompt.encode(prompt)
    sequence = Sequence(
        ids,
        settings,
        eos_ids=method.eos_ids,
        context_length=method.context_length,
        tokenizer=method.members[0].pieces.tokenizer,
    )
    sequence.prompt = prompt
    return reference(method, sequence)


OPTIONS = [
    {"host": "unite"},
    {"host": "gac"},
    {"host": "gac", "gate": None, "sharpening": "geometric"},
    {"host": "unite", "draft_length": 2, "weights": [3, 1, 2]},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["members", "wild"])
def test_cached_and_batched_is_uncached_and_one_at_a_time(kind: str, options: dict, request) -> None:
    members = request.getfixturevalue(kind)
    batched = write(Safe(members, **options), PROMPTS)
    single = [alone(Safe(members, make_runner=UncachedRunner, **options), prompt) for prompt in PROMPTS]
    for one, other in zip(batched, single, strict=True):
        assert one.token_ids == other.token_ids
        assert [record.verdict for record in one.trace] == [record.verdict for record in other.trace]
        assert one.finish_reason == other.finish_reason
    assert sum(map(ensembles, batched)) > 0


def test_sampled_answers_do_not_depend_on_cache_and_neighbours(members: list[Member]) -> None:
    drawing = {"do_sample": True, "temperature": 0.8, "seed": 7}
    batched = write(Safe(members), PROMPTS, **drawing)
    single = [alone(Safe(members, make_runner=UncachedRunner), prompt, **drawing) for prompt in PROMPTS]
    assert [each.token_ids for each in batched] == [each.token_ids for each in single]
    assert {record.verdict for each in batched for record in each.trace} >= {"accepted", "replaced"}


def test_joining_and_leaving_changes_nothing(members: list[Member]) -> None:
    expected = {prompt: each.token_ids for prompt, each in zip(PROMPTS, write(Safe(members), PROMPTS), strict=True)}
    engine = Engine(Safe(members), members[0].pieces.tokenizer, max_batch=3)
    settings, rng = GenerationSettings(max_new_tokens=40), random.Random(0)
    encode = members[0].prompt.encode
    sequences = {prompt: engine.submit(encode(prompt), settings, prompt) for prompt in PROMPTS}
    stray = engine.submit(encode("away"), settings, "away")
    for _ in range(4):
        engine.step()
    engine.cancel(stray)
    for sequence in list(engine.scheduler.running):
        if not sequence.is_finished:
            engine.rollback(sequence, sequence.prompt_length + rng.randrange(sequence.position + 1))
    engine.run(list(sequences.values()))
    assert {prompt: sequence.output_ids for prompt, sequence in sequences.items()} == expected
    assert not any(runner.cache.lengths for runner in engine.method.runners)


# a model with itself


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_a_model_with_itself_is_never_ensembled_on_canonical_drafts(host: str) -> None:
    """Every byte a token of its own and no merges: every draft is canonical."""
    a = hushed(byte_level("a", [], seed=3)).member
    method = Safe([a, renamed(a, "again"), renamed(a, "and again")], host=host)
    answers = write(method, PROMPTS)
    assert sum(map(ensembles, answers)) == 0
    assert {record.verdict for each in answers for record in each.trace if record.support} == {"consensus"}
    assert method.kept == method.drafted == sum(len(each.trace) for each in answers)


def test_a_model_with_itself_may_be_ensembled_where_its_draft_is_not_canonical() -> None:
    """It writes `ca` and `t`, but reads `cat` as one token, which it does not expect."""
    table: Table = {
        "?": {"ca": 0.5, "x": 0.4},
        "ca": {"t": 0.6, "<eos>": 0.3},
        "t": {"<eos>": 0.9},
        "x": {"<eos>": 0.9},
    }
    a = scripted(byte_level("a", ["cat"]), table)
    (answer,) = write(Safe([a, renamed(a, "again")], sharpening="none"), ["?"])
    assert a.pieces.encode(b"cat") != [a.pieces.id_of(b"ca"), a.pieces.id_of(b"t")]
    assert answer.trace[0].verdict == "ensembled"  # `cat` has next to no probability, and is not the first choice
    assert answer.text == "cat"


# always = the host at every token


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_always_is_the_host_at_every_token(host: str) -> None:
    """With one tokenizer, whose every draft is canonical, nothing is lost by looking at drafts only."""
    known = [hushed(byte_level(name, [], seed=seed)) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    members = [each.member for each in known]
    gate = {"gate": None} if host == "gac" else {}
    safe = write(Always(members, host=host, sharpening="prefix", **gate), PROMPTS)
    every = write(AveragingAcross(members, host=host, sharpening="prefix", **gate), PROMPTS)
    assert [each.token_ids for each in safe] == [each.token_ids for each in every]
    assert all(ensembles(each) == len(each.trace) for each in safe)
    assert any(record.verdict == "replaced" for each in safe for record in each.trace)


# theorem 1


def test_where_a_rule_skips_the_plain_average_would_have_changed_nothing() -> None:
    """Theorem 1 by brute force: one vocabulary, so that aligned tokens are the same string; a greedy drafter."""
    generator = torch.Generator().manual_seed(0)
    pieces = byte_level("a", []).member.pieces
    size, seen = pieces.vocabulary_size, {"consensus": 0, "majority": 0, "": 0}
    for _ in range(4000):
        count = int(torch.randint(2, 5, (1,), generator=generator))
        sharpness = 0.5 + 4 * torch.rand(count, 1, generator=generator)
        logits = torch.full((count, size), -20.0)
        logits[:, 40:46] = torch.randn(count, 6, generator=generator) * sharpness
        weights = torch.rand(count, generator=generator) + 0.05
        weights /= weights.sum()
        probabilities = logits.softmax(-1)
        token = int(logits[0].argmax())
        said = probabilities[:, token].tolist()
        heard = [
            Heard({0: 0}, logits[v : v + 1], [said[v]], [int(logits[v].argmax()) == token], [0.0], [False])
            for v in range(1, count)
        ]
        proposal = Proposal(token, logits[0], False, said[0], said[0])
        check = agreement(alignment(proposal, 0, heard, pieces), proposal, heard, weights.tolist(), None)
        average = (weights[:, None] * probabilities).sum(0)
        seen[check.verdict] += 1
        if check.verdict:
            assert int(average.argmax()) == token
    assert min(seen.values()) > 200


# no broken characters but the drafter's own


@pytest.mark.parametrize("host", ["unite", "gac"])
@pytest.mark.parametrize("make", [Safe, Always, AveragingAcross])
def test_an_ensemble_never_breaks_a_character(wild: list[Member], make: type, host: str) -> None:
    """Whatever an ensemble puts in the drafter's mouth is whole characters, or the drafter's own first choice."""
    drafter = wild[0].pieces
    gate = {"gate": None} if host == "gac" else {}
    answers = write(make(wild, host=host, **gate), [*PROMPTS, *"abcdefgh"])
    groups = 0
    for answer in answers:
        for at, record in enumerate(answer.trace):
            if record.verdict != "replaced":
                continue
            end = at + 1
            while end < len(answer.trace) and answer.trace[end].verdict == "continued":
                end += 1
            if end < len(answer.trace):  # a limit may cut anything
                drafter.text(answer.token_ids[at:end]).decode()
                groups += 1
    assert groups > 3


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_copies_of_a_model_that_writes_anything_are_that_model(wild: list[Member], host: str) -> None:
    """Half characters too: all copies want them, and so does the drafter."""
    gate = {"gate": None} if host == "gac" else {}
    a = byte_level("a", [], seed=9)
    a = hushed(a, lambda text: isinstance(text, bytes)).member
    copies = [a, renamed(a, "again"), renamed(a, "and again")]
    alone = write(Safe([a]), PROMPTS)
    for kind in ("none", "prefix", "geometric"):
        every = write(AveragingAcross(copies, host=host, sharpening=kind, **gate), PROMPTS)
        assert [each.token_ids for each in every] == [each.token_ids for each in alone]


def test_ensembled_places_have_a_boundary_in_every_model(members: list[Member]) -> None:
    """Found again from the finished answers: where a token was ensembled, every verifier begins one too."""
    found = 0
    for answer in write(Safe(members, draft_length=1), PROMPTS):
        ids, drafter = answer.token_ids, members[0].pieces
        for at, record in enumerate(answer.trace):
            if record.verdict not in ENSEMBLED:
                continue
            text = drafter.text(ids[:at])
            for verifier in members[1:]:
                # the text so far ends with a token of the verifier's, whatever comes behind it
                assert sum(len(verifier.pieces.text([id])) for id in verifier.pieces.encode(text)) == len(text)
            found += 1
    assert found


@pytest.mark.parametrize("host", ["unite", "gac"])
def test_sampling_follows_the_ensemble(host: str) -> None:
    """One token, drawn many times, against Σ w P by chi-square; the drafter and the verifier differ much."""
    one = scripted(byte_level("one", []), {"?": {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}})
    two = scripted(with_fallback("two", list("abcd")), {"?": {"a": 0.1, "b": 0.3, "c": 0.1, "d": 0.5}})
    gate = {"gate": None} if host == "gac" else {}
    expected = dict(zip("abcd", (0.35, 0.275, 0.1, 0.275), strict=True))
    draws = 600
    answers = write(
        Safe([one, two], host=host, **gate), ["?"] * draws, do_sample=True, temperature=1.0, max_new_tokens=1
    )
    counts = Counter(answer.text for answer in answers)
    assert sum(counts[text] for text in expected) == draws
    chi_square = sum((counts[text] - draws * p) ** 2 / (draws * p) for text, p in expected.items())
    assert chi_square < 16.3  # p = 0.001 at three degrees of freedom
    assert {answer.trace[0].verdict for answer in answers} == {"accepted", "replaced"}


def test_ensembled_places_and_their_share(members: list[Member]) -> None:
    method = Safe(members)
    answers = write(method, PROMPTS)
    records = [record for each in answers for record in each.trace]
    replaced = sum(record.verdict in ("replaced", "continued") for record in records)
    assert method.kept == len(records) - replaced
    assert method.drafted >= method.kept
    assert all(len(record.support) == 3 for record in records if record.verdict in ENSEMBLED)
