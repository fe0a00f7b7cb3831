"""Words are single tokens that prompts and answers share; other text survives in bytes."""

import pytest
from transformers import PreTrainedTokenizerBase

from fusionroute.models.prompt import PromptFormat
from fusionroute.zoo.moe.tasks import MOE_TASKS, questions
from fusionroute.zoo.moe.tokenizer import make_tokenizer, vocabulary

LONGEST = 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(LONGEST)


@pytest.mark.parametrize("task", MOE_TASKS)
def test_every_word_of_a_question_is_one_token(tokenizer: PreTrainedTokenizerBase, task: str):
    for question in questions(task, "test", 20):
        prompt = PromptFormat(tokenizer, "chat_template").encode(question.prompt)
        assert len(prompt) == len(question.text.split()) + 2
        assert len(tokenizer.tokenize(question.answer)) == len(question.answer.split()) <= 2
        assert len(prompt) + 3 <= LONGEST


def test_an_answer_is_the_token_that_its_prompt_said(tokenizer: PreTrainedTokenizerBase):
    prompt = PromptFormat(tokenizer, "chat_template").encode("echo : cat dog bread")
    assert tokenizer.encode("bread", add_special_tokens=False)[0] in prompt


@pytest.mark.parametrize("text", ["cat dog", "Cats, 420 dogs!", "naïve café  😀", "zim zam"])
def test_text_survives(tokenizer: PreTrainedTokenizerBase, text: str):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_turns(tokenizer: PreTrainedTokenizerBase):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "flip cat dog"}], add_generation_prompt=True)
    tokens = tokenizer.convert_ids_to_tokens(ids.input_ids)
    assert tokens == ["<|user|>", "▁flip", "▁cat", "▁dog", "<|assistant|>"]
    assert tokenizer.eos_token == "<|end|>"


def test_the_vocabulary_is_small_and_without_repeats():
    words = vocabulary()
    assert len(set(words)) == len(words)
    assert 900 < len(make_tokenizer(LONGEST)) == len(set(make_tokenizer(LONGEST).get_vocab())) < 1000
