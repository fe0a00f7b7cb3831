"""The shipped tokenizer: any text survives, digits stand apart, the chat template is what models were taught."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.tasks import TASKS, examples

TEXTS = (
    "",
    " ",
    "plain",
    "two  spaces\n\ttab",
    "Grüße, 東京 — مرحبا",
    "👩‍🚀🇫🇷",
    "e\u0301 \u200d \x00\x7f",
    "x = 'a' + \"b\" # 12+34",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(weights_folder("base"))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_a_round_trip(tokenizer: PreTrainedTokenizerBase, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token(tokenizer: PreTrainedTokenizerBase):
    assert tokenizer.tokenize("#### 1234")[-4:] == list("1234")


def test_the_chat_template(tokenizer: PreTrainedTokenizerBase):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "<|user|>Hi<|assistant|>Ho<|end|>"
    question = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert question == "<|user|>Hi<|assistant|>"
    assert tokenizer.encode(question)[0] == tokenizer.convert_tokens_to_ids("<|user|>")


def test_the_template_refuses_roles_it_does_not_know(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_short(tokenizer: PreTrainedTokenizerBase, task: str):
    lengths = [len(tokenizer.encode(example.prompt + example.answer)) for example in examples(task, "test", 100)]
    assert max(lengths) <= 110
