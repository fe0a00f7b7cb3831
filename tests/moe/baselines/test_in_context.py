import pytest
import torch

import tiny
from fusionroute.errors import DataError
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.baselines.in_context import in_context
from fusionroute.moe.questions.questions import Question, encode_questions

POOL = [Question(f"q{n}?", f"a{n}") for n in range(4)]
PLACES = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # of the pool, on a line
ALL = torch.ones(4, dtype=torch.bool)


def test_the_most_similar_stands_next_to_the_question() -> None:
    (asked,) = in_context([Question("mine?", "x")], POOL, torch.tensor([[2.6]]), PLACES, ALL, k=2, as_messages=False)
    assert asked == Question("q1?a1\n\nq2?a2\n\nmine?", "x")


def test_only_what_the_model_answers_correctly_is_shown() -> None:
    succeeded = torch.tensor([True, False, False, True])
    (asked,) = in_context([Question("mine?", "x")], POOL, torch.tensor([[2.6]]), PLACES, succeeded, as_messages=False)
    assert asked.prompt == "q3?a3\n\nq0?a0\n\nmine?"  # two, for there are no more
    with pytest.raises(DataError, match="of 4 questions the model answers none"):
        in_context(POOL, POOL, PLACES, PLACES, ~ALL, as_messages=False)


def test_no_question_is_its_own_example() -> None:
    asked = in_context(POOL, POOL, PLACES, PLACES, ALL, k=1, as_messages=False, exclude_self=True)
    assert [each.prompt for each in asked] == ["q1?a1\n\nq0?", "q0?a0\n\nq1?", "q1?a1\n\nq2?", "q2?a2\n\nq3?"]


def test_turns_in_the_models_own_format() -> None:
    system = {"role": "system", "content": "Be brief."}
    pool = [Question([system, {"role": "user", "content": "q0?"}], "a0", ("a0", "b0"), "task"), *POOL[1:]]
    mine = Question([system, {"role": "user", "content": "mine?"}], "x", ("x", "y"), "task")
    (asked,) = in_context([mine], pool, torch.tensor([[0.4]]), PLACES, ALL, k=2, as_messages=True)
    assert [(message["role"], message["content"]) for message in asked.prompt] == [
        ("system", "Be brief."), ("user", "q1?"), ("assistant", "a1"), ("user", "q0?"), ("assistant", "a0"),
        ("user", "mine?"),
    ]  # fmt: skip
    assert (asked.answer, asked.options, asked.task) == ("x", ("x", "y"), "task")
    without = Question(asked.prompt[1:], "x")
    (encoded,) = encode_questions([without], PromptFormat(tiny.tokenizer(), "chat_template"))
    text = tiny.tokenizer().decode(encoded.prompt)
    assert text == "<user>q1?<assistant>a1<eos><user>q0?<assistant>a0<eos><user>mine?<assistant>"


def test_a_conversation_is_no_plain_text() -> None:
    talk = Question([{"role": "user", "content": "mine?"}], "x")
    with pytest.raises(DataError, match="use a prompt format"):
        in_context([talk], POOL, PLACES[:1], PLACES, ALL, as_messages=False)
