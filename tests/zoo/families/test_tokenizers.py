"""The families' tokenizers: every byte has a token, words are cut differently, each has marks and turns of its own."""

import itertools
import re

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.families import FAMILIES
from fusionroute.zoo.tasks import FAMILY_TASKS, examples

TEXTS = (
    "",
    " ",
    " leading",
    "two  spaces\n\ttab\r\n",
    "Grüße, 東京 — مرحبا",
    "👩‍🚀🇫🇷",
    "e\u0301 \u200d \x00\x7f",
    "<0x41> is no byte",
    "1234 and 5.",
)
TURNS = {
    "byte_bpe": ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "piece_bpe": ("<s>[INST] Hi [/INST]\n", "</s>"),
    "unigram": ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {name: AutoTokenizer.from_pretrained(weights_folder(name)) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_a_round_trip(tokenizers: dict[str, PreTrainedTokenizerBase], name: str, text: str):
    ids = tokenizers[name].encode(text, add_special_tokens=False)
    assert tokenizers[name].decode(ids) == text
    assert tokenizers[name].unk_token_id is None or tokenizers[name].unk_token_id not in ids


def test_every_byte_has_a_token(tokenizers: dict[str, PreTrainedTokenizerBase]):
    for name in ("piece_bpe", "unigram"):
        vocabulary = tokenizers[name].get_vocab()
        assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(vocabulary)
        ids = tokenizers[name].encode("é", add_special_tokens=False)
        assert tokenizers[name].convert_ids_to_tokens(ids) == ["<0xC3>", "<0xA9>"]
    single = [token for token in tokenizers["byte_bpe"].get_vocab() if len(token) == 1]
    assert len(single) == 256


def test_vocabularies_differ_in_size_and_marks(tokenizers: dict[str, PreTrainedTokenizerBase]):
    sizes = [len(tokenizer) for tokenizer in tokenizers.values()]
    assert len(set(sizes)) == 3
    assert all(500 <= size <= 900 for size in sizes)
    specials = [set(tokenizer.all_special_tokens) for tokenizer in tokenizers.values()]
    shared = [one & other for one, other in itertools.combinations(specials, 2)]
    assert set().union(*shared) <= {"<unk>"}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_has_its_own_chat_template_and_end(tokenizers: dict[str, PreTrainedTokenizerBase], name: str):
    prompt, end = TURNS[name]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    tokenizer = tokenizers[name]
    assert tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True) == prompt
    assert f"Ho{end}" in tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer.eos_token == end


def test_digits(tokenizers: dict[str, PreTrainedTokenizerBase]):
    assert [tokenizers[name].tokenize("#### 1234")[-2:] for name in FAMILIES] == [["12", "34"], ["3", "4"], ["3", "4"]]


def test_words_are_cut_differently(tokenizers: dict[str, PreTrainedTokenizerBase]):
    """About half the words alike, as between the models of the paper (47 to 64 %)."""
    text = " ".join(f"{example.prompt} {example.answer}" for example in examples("ledger", "test", 100))
    words = sorted(set(re.findall("[A-Za-z]+", text)))
    for one, other in itertools.combinations(FAMILIES, 2):
        alike = sum(cuts(tokenizers[one], word) == cuts(tokenizers[other], word) for word in words)
        assert 0.35 < alike / len(words) < 0.7


def cuts(tokenizer: PreTrainedTokenizerBase, word: str) -> list[str]:
    """The pieces of a word behind a blank, without the mark for it."""
    return [piece for token in tokenizer.tokenize(f" {word}") if (piece := token.lstrip("Ġ▁"))]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", FAMILY_TASKS)
def test_examples_fit_the_context(tokenizers: dict[str, PreTrainedTokenizerBase], name: str, task: str):
    tokenizer = tokenizers[name]
    drawn = examples(task, "test", 200)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": each.prompt}], add_generation_prompt=True).input_ids
        for each in drawn
    ]
    answers = [tokenizer.encode(each.answer, add_special_tokens=False) for each in drawn]
    assert max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) < tokenizer.model_max_length == 512
    if task == "ledger":
        assert sum(len(answer) > 150 for answer in answers) >= 100
    else:
        assert max(map(len, answers)) < 150
