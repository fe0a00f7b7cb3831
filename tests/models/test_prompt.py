import pytest

import tiny
from fusionroute.errors import PromptError, SettingsError
from fusionroute.models.prompt import PromptFormat

TOKENIZER = tiny.tokenizer()


def text(name: str | None, prompt) -> str:
    return TOKENIZER.decode(PromptFormat(TOKENIZER, name).encode(prompt))


def test_no_format_takes_text_and_token_ids_as_they_are() -> None:
    assert PromptFormat(TOKENIZER).encode("hi") == TOKENIZER("hi").input_ids
    assert PromptFormat(TOKENIZER, "alpaca").encode([5, 6]) == [5, 6]


def test_a_chat_template_is_the_tokenizers_own() -> None:
    assert text("chat_template", "hi") == "<user>hi<assistant>"
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert text("chat_template", messages) == "<user>a<assistant>b<eos><user>c<assistant>"


def test_alpaca_is_the_usual_frame() -> None:
    assert text("alpaca", "Add 2 and 3.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:\n"
    )
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert text("alpaca", system) == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"


def test_answers_end_with_the_end_of_sequence() -> None:
    assert PromptFormat(TOKENIZER).encode_answer("ok") == [*TOKENIZER("ok").input_ids, tiny.EOS]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([1, 2.5], "got 2.5"),
        ([1, -1], "integers from 0 to 260; got -1"),
        ([261], "got 261"),
        ([True], "got True"),
        (7, "got int"),
        (None, "got NoneType"),
        ([{"role": "user"}], "has 'role' and 'content'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "end with the one to be answered"),
    ],
)
def test_bad_prompts_say_what_came(prompt, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        PromptFormat(TOKENIZER, "chat_template").encode(prompt)


def test_messages_need_a_format() -> None:
    with pytest.raises(PromptError, match="prompt='chat_template'"):
        PromptFormat(TOKENIZER).encode([{"role": "user", "content": "hi"}])


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'alpaca'"):
        PromptFormat(TOKENIZER, "alpacca")


def test_a_tokenizer_without_a_template_cannot_use_it() -> None:
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(SettingsError, match="the tokenizer has none"):
        PromptFormat(bare, "chat_template")
