import pytest

import tiny
import tiny_tokenizers
from fusionroute.errors import VocabularyError
from fusionroute.models.vocabulary import END_STRINGS, Pieces, control_tokens, end_ids


def test_ends_are_the_models_the_tokenizers_and_those_spelled_like_one() -> None:
    tokenizer = tiny_tokenizers.llama3()
    spelled = {tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|eot_id|>", "<|eom_id|>")}
    assert end_ids(tokenizer) == spelled
    assert end_ids(tokenizer, [7]) == spelled | {7}


def test_the_spelling_of_an_end_that_is_no_added_token_is_text() -> None:
    plain = tiny_tokenizers.byte_level()
    assert end_ids(plain) == {tiny_tokenizers.EOS}
    assert not {plain.convert_tokens_to_ids(t) for t in ("<", "eos", ">")} & end_ids(plain)


def test_an_end_listed_as_ordinary_text_is_a_control_all_the_same() -> None:
    """As in Phi-3, whose </s> is an added token that is not special."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|im_end|>", "<think>"])
    controls = control_tokens(tokenizer)
    assert "<|im_end|>" in controls.values()
    assert "<think>" not in controls.values()
    pieces = Pieces(tokenizer)
    assert pieces.text(pieces.encode(b"a<|im_end|>b")) == b"a<|im_end|>b"
    assert pieces.end_ids == {tiny.EOS, tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize(("model", "expected"), [((), 382), ([382, 385], 382), ([386, 385], 385)])
def test_the_end_to_write_is_the_tokenizers_if_the_model_knows_it_else_the_models_first(model, expected: int) -> None:
    assert tiny_tokenizers.llama3().eos_token_id == 382
    assert Pieces(tiny_tokenizers.llama3(), eos_ids=model).end_id == expected


def test_a_model_without_an_end_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    backend = tokenizer.backend_tokenizer.to_str().replace("<eos>", "<stop>")
    bare = tiny_tokenizers.wrap(type(tokenizer.backend_tokenizer).from_str(backend), eos_token=None, bos_token="<bos>")
    with pytest.raises(VocabularyError, match=r"'math' has no end-of-sequence token.*set eos_token_id in"):
        Pieces(bare, name="math")
    assert Pieces(bare, eos_ids=[3]).end_ids == {3}


def test_known_ends_are_of_every_family_and_no_ordinary_text() -> None:
    assert {"</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "[|endofturn|]", "<end_of_turn>"} <= END_STRINGS
    assert all(end[0] in "<[" and end[-1] in ">]~[" for end in END_STRINGS)
