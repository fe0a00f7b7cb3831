"""Scripted members of different families, with what they write together worked out by hand."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

import tiny_members
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.sequence import Completion
from fusionroute.errors import PromptError, SettingsError
from fusionroute.methods.averaging import AveragingAcross
from tiny_members import Known

WORDS = ["the", " is", " it", "In", "Inc"]
Table = Mapping[bytes, Mapping[bytes | str, float]]
ISNT: Table = {b"the": {b" is": 0.6, b" it": 0.4}}
IT: Table = {b"the": {b" is": 0.1, b" it": 0.9}}
LONG: Table = {b"the": {b" Correct": 1.0}}
FLAT: Table = {b"the": {b" is": 0.4, b" it": 0.3, b"In": 0.3}}


def drafter(table: Table, words: Sequence[str] = WORDS) -> Known:
    return tiny_members.scripted(tiny_members.byte_level("bytes", words), table)


def verifier(table: Table, words: Sequence[str] = (*WORDS, " Correct")) -> Known:
    return tiny_members.scripted(tiny_members.with_fallback("pieces", words), table)


def method(*known: Known, **options: object) -> AveragingAcross:
    return AveragingAcross([each.member for each in known], **options)


def engine_of(made: AveragingAcross) -> Engine:
    return Engine(made, made.members[0].pieces.tokenizer)


def write(made: AveragingAcross, *prompts: str, **settings: object) -> list[Completion]:
    ids = [made.members[0].prompt.encode(prompt) for prompt in prompts]
    return engine_of(made).generate(ids, GenerationSettings(**{"max_new_tokens": 8, **settings}), unrendered=prompts)


def verdicts(answer: Completion) -> list[str]:
    return [record.verdict for record in answer.trace]


@pytest.mark.parametrize(("host", "gate"), [("unite", "default"), ("gac", None)])
def test_what_the_average_prefers_is_written(host: str, gate: float | str | None) -> None:
    made = method(drafter(ISNT), verifier(IT), host=host, gate=gate)
    (answer,) = write(made, "the", logprobs=2)
    # " is" .35, " it" .65; then both end
    assert (answer.text, answer.finish_reason, verdicts(answer)) == (" it", "stop", ["replaced", "ensembled"])
    first, end = answer.trace
    assert (first.expert, first.weights, first.decided_by) == ("pieces", (0.5, 0.5), "expert")
    assert first.support == pytest.approx((0.4, 0.9), abs=1e-4)
    assert first.logprob == pytest.approx(math.log(0.65), abs=1e-4)
    assert [token for token, _ in first.top_logprobs] == [
        made.members[0].pieces.id_of(text) for text in (b" it", b" is")
    ]
    assert (end.token_id, end.expert) == (made.members[0].pieces.end_id, "bytes")
    assert (made.drafted, made.kept) == (2, 1)


def test_weights_decide() -> None:
    for weights in ({"pieces": 1, "bytes": 9}, [9, 1]):
        (answer,) = write(method(drafter(ISNT), verifier(IT), weights=weights), "the")
        assert (answer.text, answer.trace[0].verdict) == (" is", "ensembled")  # .9*.6 + .1*.1 = .55
        assert answer.trace[0].weights == pytest.approx((0.9, 0.1))


def test_another_drafter_writes_its_own_tokens() -> None:
    (answer,) = write(method(drafter(ISNT), verifier(LONG), drafter="pieces", weights=[1, 3]), "the")
    assert answer.text == " Correct"
    assert [record.expert for record in answer.trace] == ["pieces"] * 2
    assert answer.trace[0].support[0] == pytest.approx(1, abs=1e-4), "the drafter's comes first"


def test_gac_writes_a_string_in_as_many_tokens_as_the_drafter_needs() -> None:
    made = method(drafter(FLAT), verifier(LONG), host="gac")
    (answer,) = write(made, "the", logprobs=0)
    parts = made.members[0].pieces.encode(b" Correct")
    assert len(parts) == 8
    assert (answer.text, answer.token_ids, answer.finish_reason) == (" Correct", parts, "length")
    assert verdicts(answer) == ["replaced", *["continued"] * 7]
    assert [record.expert for record in answer.trace] == ["pieces"] * 8
    assert answer.trace[0].logprob == pytest.approx(math.log(0.5), abs=1e-4)
    assert [record.logprob for record in answer.trace[1:]] == [0.0] * 7
    (cut,) = write(made, "the", max_new_tokens=3)
    assert (cut.token_ids, cut.finish_reason) == (parts[:3], "length")


def test_unite_writes_one_token_of_it() -> None:
    (answer,) = write(method(drafter(FLAT), verifier(LONG)), "the", max_new_tokens=2)
    # the drafter scores " Correct" by its first sub-token behind the space, of which it thinks nothing: .5 against .2
    assert (answer.text, verdicts(answer)) == (" C", ["replaced", "continued"])


def test_prefix_sharpening_gives_the_mass_back() -> None:
    words = ["the", "Inc", "Incorrect", "Correct"]
    made = {
        kind: method(
            drafter({b"the": {b"Inc": 0.6, b"Correct": 0.4}}, words),
            verifier({b"the": {b"Incorrect": 0.6, b"Correct": 0.4}}, words),
            sharpening=kind,
        )
        for kind in ("none", "prefix")
    }
    # Correct .4; Inc .3, and Incorrect .3 of which Inc is a beginning
    assert {kind: write(each, "the")[0].text for kind, each in made.items()} == {"none": "Correct", "prefix": "Inc"}


def test_a_sure_drafter_writes_alone_and_nobody_reads() -> None:
    sure: Table = {b"the": {b" is": 0.6, b" it": 0.4}, b"In": {b" is": 0.4, b" it": 0.3, b"the": 0.3}}
    made = method(drafter(sure), verifier({b"In": {b" it": 1.0}, b"the": {b" it": 1.0}}), host="gac")
    first, second = write(made, "the", "In", max_new_tokens=1)
    assert (first.text, verdicts(first), first.trace[0].support) == (" is", ["gate"], ())
    assert (second.text, verdicts(second)) == (" it", ["replaced"])
    assert [runner.tokens_read for runner in made.runners] == [2, 1]
    (asked,) = write(method(drafter(sure), verifier({b"the": {b" it": 1.0}}), host="gac", gate=0.7), "the")
    assert (asked.text, asked.trace[0].verdict) == (" it", "replaced")


def test_the_inside_of_a_character_is_the_drafters_alone() -> None:
    korean: Table = {b"the": {b"\xed": 1.0}, b"\xed": {b"\x95": 1.0}, b"\x95": {b"\x9c": 1.0}}
    for options in ({"host": "unite"}, {"host": "gac", "gate": None}):
        made = method(drafter(korean), verifier({b"the": {b" it": 0.9, b" is": 0.1}}), **options)
        (answer,) = write(made, "the")
        # .5 for the half character against .45
        assert (answer.text, answer.finish_reason) == ("한", "stop")
        assert verdicts(answer) == ["ensembled", "alone", "alone", "ensembled"]


def test_a_character_that_the_drafter_spells_is_written_whole() -> None:
    (answer,) = write(method(drafter(FLAT), verifier({b"the": {"한".encode(): 1.0}}, [*WORDS, "한"])), "the")
    assert answer.text == "한"
    assert verdicts(answer)[:3] == ["replaced", "continued", "continued"]


def test_a_verifier_of_weight_0_is_never_asked() -> None:
    other = tiny_members.scripted(tiny_members.byte_level("other", [*WORDS, "x"]), LONG | {b"the": {b"x": 1.0}})
    pair = method(drafter(ISNT), verifier(IT))
    made = method(drafter(ISNT), verifier(IT), other, weights=[1, 1, 0])
    assert write(made, "the") == write(pair, "the")
    assert [member.name for member in made.members] == [runner.name for runner in made.runners] == ["bytes", "pieces"]


def test_all_weight_on_the_drafter_is_the_drafter_alone() -> None:
    (answer,) = write(method(drafter(ISNT), verifier(IT), weights=[1, 0]), "the")
    assert (answer.text, verdicts(answer)) == (" is", ["alone", "alone"])


def test_of_two_tokens_for_one_string_the_drafters_own_stays() -> None:
    letter = verifier({b"the": {b"t": 1.0}}, WORDS)
    own = letter.writes.index(b"t")
    assert letter.ids("t") != [own], "it is the byte token, which reading the text never gives"
    (answer,) = write(method(letter, drafter({b"the": {b"t": 1.0}})), "the", max_new_tokens=1)
    assert (answer.token_ids, verdicts(answer)) == ([own], ["ensembled"])


def test_each_member_reads_each_token_once() -> None:
    table: Table = {b"the": {b" is": 1.0}, b" is": {b" it": 1.0}, b" it": {b" is": 1.0}}
    made = method(drafter(table), verifier(table))
    write(made, "the the the", max_new_tokens=6)
    lengths = [len(member.prompt.encode("the the the")) for member in made.members]
    assert [runner.tokens_read for runner in made.runners] == [length + 5 for length in lengths]
    assert not any(runner.cache.lengths for runner in made.runners)


def test_a_model_that_fails_ends_its_sequence_alone() -> None:
    broken = verifier(IT)

    def fail(model: object, positional: object, named: dict, output: object) -> object:
        output.logits = output.logits.clone()
        output.logits[(named["input_ids"] == broken.ids("In")[0]).any(-1)] = float("nan")
        return output

    made = method(drafter(ISNT), broken)
    engine = engine_of(made)  # looks at the models first
    broken.member.model.register_forward_hook(fail, with_kwargs=True)
    prompts = ["In", "the"]
    ids = [made.members[0].prompt.encode(prompt) for prompt in prompts]
    first, second = engine.generate(ids, GenerationSettings(max_new_tokens=8), unrendered=prompts)
    assert (first.finish_reason, first.token_ids) == ("error", [])
    assert "model 'pieces' returned NaN logits" in first.error
    assert (second.text, second.finish_reason) == (" it", "stop")
    assert (made.drafted, made.kept) == (3, 1)


def test_a_drafter_that_fails_proposes_nothing() -> None:
    broken = drafter(ISNT)
    for host in ("unite", "gac"):
        made = method(broken, verifier(IT), host=host)
        engine = engine_of(made)
        hook = broken.member.model.register_forward_hook(
            lambda module, asked, output: output.__class__(output | {"logits": output.logits * float("nan")})
        )
        ids = made.members[0].prompt.encode("the")
        (answer,) = engine.generate([ids], GenerationSettings(max_new_tokens=8), unrendered=["the"])
        hook.remove()
        assert "model 'bytes' returned NaN logits" in answer.error
        assert (answer.token_ids, made.drafted, made.kept) == ([], 0, 0)


# Sampling


def shares(made: AveragingAcross, draws: int, **settings: object) -> Counter:
    engine = engine_of(made)
    ids = made.members[0].prompt.encode("the")
    one = GenerationSettings(max_new_tokens=1, do_sample=True, **settings)
    sequences = [engine.submit(ids, one.model_copy(update={"seed": seed}), "the") for seed in range(draws)]
    return Counter(answer.text for answer in engine.run(sequences))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("host", ["unite", "gac"])
def test_sampling_follows_the_average(host: str, temperature: float) -> None:
    each: list[Table] = [
        {b"the": {b" is": 0.5, b" it": 0.3, b"In": 0.2}},
        {b"the": {b" is": 0.1, b" it": 0.3, b"Inc": 0.6}},
    ]
    options = {"gate": None} if host == "gac" else {}
    made = method(drafter(each[0]), verifier(each[1]), host=host, weights=[2, 1], sharpening="prefix", **options)
    draws = 500
    counts = shares(made, draws, temperature=temperature)
    expected: Counter = Counter()
    for table, weight in zip(each, (2 / 3, 1 / 3), strict=True):
        total = sum(share ** (1 / temperature) for share in table[b"the"].values())
        for text, share in table[b"the"].items():
            expected[text.decode()] += weight * share ** (1 / temperature) / total
    if host == "unite":  # both score Inc by a token of their own, so the strings are the same
        assert len(expected) == 4
    statistic = sum((counts[text] - draws * share) ** 2 / (draws * share) for text, share in expected.items())
    assert counts.keys() == expected.keys()
    assert statistic < 16.3  # three degrees of freedom: passed once in a thousand draws, and the seeds are fixed


def test_filters_apply_to_the_average() -> None:
    made = method(drafter(ISNT), verifier(IT))
    assert shares(made, 40, top_k=1).keys() == {" it"}
    assert shares(made, 40, top_p=0.6).keys() == {" it"}
    assert shares(made, 40, min_p=0.9).keys() == {" it"}
    assert shares(made, 40).keys() == {" it", " is"}


def test_log_probabilities_are_before_temperature() -> None:
    made = method(drafter(ISNT), verifier(IT))
    (answer,) = write(made, "the", do_sample=True, temperature=0.05, seed=1, logprobs=1)
    share = {" is": 0.35, " it": 0.65}[answer.text]  # cold, each says its own, and it is one half each
    assert answer.trace[0].logprob == pytest.approx(math.log(share), abs=1e-4)


# Bad input


def test_what_cannot_be_averaged() -> None:
    pair = [drafter(ISNT), verifier(IT)]
    with pytest.raises(SettingsError, match="an average takes two members at least; got 1"):
        method(pair[0])
    with pytest.raises(SettingsError, match=r"host: unknown option 'gacc'; did you mean 'gac'\?"):
        method(*pair, host="gacc")
    with pytest.raises(SettingsError, match=r"sharpening: unknown option 'prefx'; did you mean 'prefix'\?"):
        method(*pair, sharpening="prefx")
    for threshold in (0, 1):
        with pytest.raises(SettingsError, match="threshold is a probability between 0 and 1"):
            method(*pair, threshold=threshold)
    with pytest.raises(SettingsError, match=r"gate=0\.5 is an option of host gac"):
        method(*pair, gate=0.5)
    with pytest.raises(SettingsError, match=r"drafter: unknown option 'byte'; did you mean 'bytes'\?"):
        method(*pair, drafter="byte")
    for weights, message in (
        ([1, 2, 3], "3 weights came for 2 models"),
        ([1, -1], "weights are 0 or more"),
        ([0, 0], "at least one of them above 0"),
        ({"bytes": 1, "piece": 1}, "did you mean 'pieces'"),
    ):
        with pytest.raises(SettingsError, match=message):
            method(*pair, weights=weights)


def test_a_prompt_of_ids_speaks_to_the_drafter_alone() -> None:
    engine = engine_of(method(drafter(ISNT), verifier(IT)))
    with pytest.raises(PromptError, match="a prompt of token ids speaks to one model only"):
        engine.generate([[7]], GenerationSettings())
