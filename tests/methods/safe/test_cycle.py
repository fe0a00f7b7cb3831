"""SAFE's cycle: what is kept, what is drafted again, and where it ends."""

from itertools import pairwise

import pytest

from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import ENSEMBLED
from fusionroute.errors import PromptError, SettingsError
from fusionroute.methods.averaging.every_token import AveragingAcross
from fusionroute.methods.safe import Safe
from fusionroute.methods.single import Single
from fusionroute.models.member import Member
from tests.tiny_members import byte_level, hushed, with_fallback
from tests.tiny_safe import Always, Never, ensembles, renamed, scripted, write

PROMPTS = ["one two", "Was ist das?", "0", "αβγ, שלום and 你好 😀"]
HOSTS = ["unite", "gac"]


@pytest.fixture(scope="module")
def members() -> list[Member]:
    made = [
        byte_level("a", [" the", " cat", "ing", "tion", " a"], seed=1),
        with_fallback("b", [" the", " ca", "ti", "on", " an"], seed=2),
        byte_level("c", [" th", "at", "ion", " ", "e "], seed=3),
    ]
    return [hushed(known).member for known in made]


def alone(member: Member, prompts: list[str], **options: object) -> list[list[int]]:
    method = Single(member.model, member.name)
    method.members = [member]  # what `write` asks
    return [each.token_ids for each in write(method, prompts, **options)]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_never_is_the_drafter_alone(members: list[Member], length: int) -> None:
    method = Never(members, draft_length=length)
    assert [each.token_ids for each in write(method, PROMPTS)] == alone(members[0], PROMPTS)
    assert method.kept == sum(len(each.token_ids) for each in write(Never(members, draft_length=length), PROMPTS))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("limit", [1, 2, 4, 7, 13])
def test_the_length_limit_is_exact(members: list[Member], host: str, limit: int) -> None:
    for answer in write(
        Safe(members, host=host, gate=None if host == "gac" else "default"), PROMPTS, max_new_tokens=limit
    ):
        assert len(answer.token_ids) == len(answer.trace) == limit or answer.finish_reason == "stop"
        assert len(answer.token_ids) <= limit


def test_ensembled_places_are_eligible_ones(members: list[Member]) -> None:
    answers = write(Safe(members), PROMPTS)
    records = [record for answer in answers for record in answer.trace]
    assert {"ensembled", "boundary"} & {record.verdict for record in records}
    assert all(record.support for record in records if record.verdict in ENSEMBLED)


def test_under_gac_the_drafter_was_unsure_wherever_it_was_ensembled(members: list[Member]) -> None:
    answers = write(Safe(members, host="gac"), PROMPTS)
    records = [record for answer in answers for record in answer.trace if record.verdict in ENSEMBLED]
    assert records
    assert all(record.support[0] < 0.5 for record in records)


@pytest.mark.parametrize("host", HOSTS)
def test_all_weight_on_the_drafter_is_the_drafter(members: list[Member], host: str) -> None:
    method = Safe(members, host=host, sharpening="none", weights={"a": 1, "b": 0, "c": 0})
    assert [each.token_ids for each in write(method, PROMPTS)] == alone(members[0], PROMPTS)
    nearly = Always(members, host=host, sharpening="none", weights=[1, 1e-9, 1e-9])
    answers = write(nearly, PROMPTS)
    assert [each.token_ids for each in answers] == alone(members[0], PROMPTS)
    assert sum(map(ensembles, answers)) > 0


@pytest.mark.parametrize("host", HOSTS)
def test_log_probabilities_of_kept_and_of_ensembled_tokens(members: list[Member], host: str) -> None:
    answers = write(Safe(members, host=host, sharpening="none"), PROMPTS, logprobs=2, max_new_tokens=20)
    for record in (record for answer in answers for record in answer.trace if record.verdict != "continued"):
        assert record.logprob is not None
        assert len(record.top_logprobs) == 2
        best = record.top_logprobs[0]
        assert record.logprob <= best[1] + 1e-6 <= 1e-5
        if record.verdict == "replaced":  # by the likeliest of all candidates
            assert (record.token_id, record.logprob) == pytest.approx(best)


@pytest.mark.parametrize("host", HOSTS)
def test_a_third_model_of_weight_0_is_not_there(members: list[Member], host: str) -> None:
    three = Safe(members, host=host, weights={"a": 2, "b": 1, "c": 0})
    two = Safe(members[:2], host=host, weights={"a": 2, "b": 1})
    assert write(three, PROMPTS) == write(two, PROMPTS)
    assert [runner.name for runner in three.runners] == ["a", "b"]


def test_equal_weights_are_no_weights(members: list[Member]) -> None:
    assert write(Safe(members, weights=[3, 3, 3]), PROMPTS) == write(Safe(members), PROMPTS)


def test_the_drafter_may_stand_anywhere(members: list[Member]) -> None:
    a, b, c = members
    assert write(Safe([b, c, a], drafter="a", weights={"b": 1, "c": 2, "a": 3}), PROMPTS) == write(
        Safe([a, b, c], weights=[3, 1, 2]), PROMPTS
    )


def test_what_a_confirmed_token_leaves_behind_is_not_drafted_again(members: list[Member]) -> None:
    """A model with itself, forced to ensemble everywhere, confirms every token."""
    a = members[0]
    method = Always([a, renamed(a, "again")], sharpening="none")
    answers = write(method, PROMPTS)
    assert {record.verdict for answer in answers for record in answer.trace} == {"ensembled"}
    written = sum(len(answer.token_ids) for answer in answers)
    assert method.kept == written
    assert method.drafted <= written + 5 * len(PROMPTS)


END = {"<eos>": 0.9}


@pytest.mark.parametrize("at", range(5))
def test_an_end_anywhere_in_a_draft_ends_the_answer(at: int) -> None:
    letters = "abcdefgh"
    table = {"?": {"a": 0.9}} | {x: {y: 0.9} for x, y in pairwise(letters)} | {letters[at]: END}
    one, two = (scripted(byte_level(name, []), table) for name in ("one", "two"))
    (answer,) = write(Safe([one, two]), ["?"])
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == (letters[: at + 1], "stop", at + 2)
    assert answer.trace[-1].verdict == "consensus"


def test_the_end_of_a_verifier_ends_the_answer_by_the_drafters_own() -> None:
    """The verifier's family has two ways to end, which only together outweigh the drafter's next word."""
    drafter = scripted(byte_level("d", []), {"?": {"a": 0.9}, "a": {"b": 0.55, "<eos>": 0.2}})
    known = with_fallback("v", ["a", "b"], ends=("</s>", "<|im_end|>"))
    verifier = scripted(known, {"?": {"a": 0.9}, "a": {"b": 0.2, "</s>": 0.39, "<|im_end|>": 0.39}})
    method = Safe([drafter, verifier], host="gac", gate=None, sharpening="none")
    (answer,) = write(method, ["?"])
    assert (answer.text, answer.finish_reason) == ("a", "stop")
    assert answer.token_ids[-1] == drafter.pieces.end_id
    assert answer.trace[-1].verdict == "replaced"
    assert answer.trace[-1].expert == "v"


def test_a_drafted_end_is_checked_like_any_token() -> None:
    drafter = scripted(byte_level("d", []), {"?": {"<eos>": 0.5, "a": 0.4}, "a": {"<eos>": 0.9}})
    verifier = scripted(byte_level("v", []), {"?": {"a": 0.9}, "a": {"<eos>": 0.9}})
    (answer,) = write(Safe([drafter, verifier], sharpening="none"), ["?"])
    assert answer.text == "a"
    assert [record.verdict for record in answer.trace] == ["replaced", "consensus"]
    assert answer.trace[0].support[1] < 0.01


def test_special_spellings_in_an_answer_stay_text() -> None:
    """What spells another family's end is ordinary characters to its tokenizer, and ends nothing."""
    spelled = "</s>!"
    table = {"?": {spelled[0]: 0.9}} | {x: {y: 0.9} for x, y in pairwise(spelled)}
    drafter = scripted(byte_level("d", []), table | {"!": END})
    verifier = with_fallback("v", list(spelled)).member
    (answer,) = write(Never([drafter, verifier]), ["?"])
    assert answer.text == spelled
    method = Safe([drafter, verifier])
    write(method, ["?"], max_new_tokens=5)
    assert verifier.pieces.text(verifier.pieces.encode(b"</s>!")) == b"</s>!"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_length": 0}, "draft_length is at least 1"),
        ({"sharpening": "prefixes"}, "prefix"),
        ({"threshold": 1.5}, "threshold"),
        ({"host": "unit"}, "unite"),
        ({"gate": 0.5}, "gate"),
        ({"drafter": "d"}, "drafter"),
        ({"weights": [0, 0, 0]}, "above 0"),
        ({"weights": [1, -1, 1]}, "0 or more"),
        ({"weights": [1, 1]}, "2 weights came for 3"),
        ({"weights": {"a": 1, "b": 1}}, "'c' has none"),
    ],
)
def test_bad_options(members: list[Member], options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Safe(members, **options)


def test_a_prompt_of_token_ids_speaks_to_one_model_only(members: list[Member]) -> None:
    engine = Engine(Safe(members), members[0].pieces.tokenizer)
    with pytest.raises(PromptError, match="speaks to one model only"):
        engine.submit([5, 6], GenerationSettings(max_new_tokens=3))


def test_a_prompt_too_long_for_a_verifier_is_refused_before_it_is_queued(members: list[Member]) -> None:
    tall = byte_level("tall", [" the"], seed=4, max_position_embeddings=16).member
    with pytest.raises(PromptError, match="17 tokens for model 'tall'"):
        write(Safe([members[0], tall]), ["x" * 17])


@pytest.mark.parametrize("make", [Safe, AveragingAcross])
@pytest.mark.parametrize("prompt", range(8, 14))
def test_an_answer_fills_the_smallest_context(make: type, prompt: int) -> None:
    """Not a token less, wherever in a draft that is."""
    drafter = hushed(byte_level("d", [], seed=5)).member
    tall = byte_level("tall", [], seed=4, max_position_embeddings=32).member
    (answer,) = write(make([drafter, tall]), ["x" * prompt])
    if answer.finish_reason == "length":
        # at every token, the last one that is written need not be read
        assert len(drafter.pieces.text(answer.token_ids)) - (make is AveragingAcross) == 32 - prompt


LEAD = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("make", [Safe, AveragingAcross])
def test_nothing_is_compared_where_a_template_puts_a_space_before_answers(make: type, host: str) -> None:
    """As Mistral's does: ` The` of the one and `The` of the other are the same beginning, and no strings to average."""
    known = with_fallback("d", [" The", " It"])
    known.tokenizer.chat_template = LEAD
    table = {"?": {" The": 0.45, " It": 0.4}, " The": {"</s>": 0.9}, " It": {"</s>": 0.9}}
    drafter = scripted(known, table)
    drafter = Member.of("d", drafter.model, known.tokenizer, "chat_template")
    verifier = scripted(byte_level("v", ["The", "It"]), {"?": {"It": 0.9}, "It": {"<eos>": 0.9}, "The": {"<eos>": 0.9}})
    (answer,) = write(make([drafter, verifier], host=host, **({"gate": None} if host == "gac" else {})), ["?"])
    assert drafter.pieces.text(answer.token_ids) == b" The"
    assert answer.trace[0].verdict in ("boundary", "alone")
