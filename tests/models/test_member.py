import pytest

import tiny
from fusionroute.errors import SettingsError, VocabularyError
from fusionroute.models.member import Member


def test_a_member_knows_its_rows_its_ends_and_its_context() -> None:
    model = tiny.language_model(vocab_size=300, eos_token_id=[tiny.EOS, 299])
    member = Member.of("math", model, tiny.tokenizer(), "chat_template")
    assert member.pieces.name == member.name == "math"
    assert member.pieces.vocabulary_size == 300
    assert member.pieces.end_ids == {tiny.EOS, 299}
    assert member.context_length == tiny.CONTEXT
    assert member.prompt.encode("hi") == tiny.tokenizer()("<user>hi<assistant>").input_ids


def test_a_member_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(VocabularyError, match="'math' has ids up to 260 but the model only 200"):
        Member.of("math", tiny.language_model(vocab_size=200), tiny.tokenizer())
    with pytest.raises(SettingsError, match="did you mean 'alpaca'"):
        Member.of("math", tiny.language_model(), tiny.tokenizer(), "alpacca")
