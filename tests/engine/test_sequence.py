import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import Sequence, TraceRecord

TOKENIZER = tiny.tokenizer()


def sequence(eos: frozenset[int] = frozenset({tiny.EOS}), context: int = 100, **settings) -> Sequence:
    return Sequence([10, 11], GenerationSettings(**settings), eos_ids=eos, context_length=context, tokenizer=TOKENIZER)


def write(target: Sequence, text: str) -> None:
    for token in TOKENIZER(text).input_ids:
        target.append(TraceRecord(token, "math"))


def test_exactly_max_new_tokens_are_written() -> None:
    made = sequence(max_new_tokens=3)
    write(made, "abcdef")
    assert (made.text, made.finish_reason, len(made.trace), made.output_ids) == ("abc", "length", 3, made.token_ids[2:])


def test_the_context_ends_an_answer() -> None:
    made = sequence(max_new_tokens=50, context=6)
    write(made, "abcdef")
    assert (made.text, made.finish_reason, len(made)) == ("abcd", "length", 6)


def test_any_eos_id_ends_an_answer_unless_ignored() -> None:
    for ignore, reason in ((False, "stop"), (True, None)):
        made = sequence(eos=frozenset({7, 9}), ignore_eos=ignore)
        made.append(TraceRecord(9, "math"))
        assert made.finish_reason == reason


def test_a_stop_string_on_the_last_allowed_token_is_a_stop() -> None:
    made = sequence(max_new_tokens=4, stop="cd")
    write(made, "abcdef")
    assert (made.text, made.finish_reason) == ("ab", "stop")


def test_rollback_forgets_tokens_trace_text_and_the_end() -> None:
    made = sequence(max_new_tokens=4, stop="cd")
    write(made, "abcd")
    made.rollback(made.prompt_length + 3)
    assert (made.text, made.finish_reason, len(made.trace)) == ("abc", None, 3)
    write(made, "x")
    assert (made.text, made.finish_reason) == ("abcx", "length")


def test_a_failed_sequence_takes_no_more_tokens_and_says_why() -> None:
    made = sequence()
    write(made, "ab")
    made.fail("model 'math' returned NaN logits")
    write(made, "cd")
    completion = made.completion()
    assert (completion.text, completion.finish_reason) == ("ab", "error")
    assert completion.error == "model 'math' returned NaN logits"


def test_unseeded_sequences_draw_different_numbers() -> None:
    assert sequence().seed != sequence().seed
    assert sequence(seed=3).seed == 3
