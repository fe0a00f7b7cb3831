import pytest

import tiny
from fusionroute import Team
from fusionroute.errors import VocabularyError
from fusionroute.models.vocabulary import check_tokenizers, eos_ids


def test_equal_tokenizers_pass() -> None:
    check_tokenizers(tiny.tokenizer(), {"math": tiny.tokenizer()})


def test_a_token_with_another_id_names_model_token_and_ids() -> None:
    other = tiny.tokenizer()
    other.add_tokens(["<extra>"])
    with pytest.raises(
        VocabularyError, match=r"expert 'math' differs .* in 1 of 261 .*'<extra>' \(id 261 instead of None\)"
    ):
        check_tokenizers(tiny.tokenizer(), {"math": other})


def test_another_end_of_sequence_token_names_model_and_ids() -> None:
    other = tiny.tokenizer()
    other.eos_token = "<user>"
    with pytest.raises(
        VocabularyError, match=r"expert 'code' uses '<user>' \(id 3\) as its eos_token, .*'<eos>' \(id 2\)"
    ):
        check_tokenizers(tiny.tokenizer(), {"code": other})


def team_with(**overrides) -> Team:
    experts = {"math": tiny.language_model(), "code": tiny.language_model(seed=1, **overrides)}
    return Team(router=tiny.router(num_experts=2), experts=experts, tokenizer=tiny.tokenizer())


def test_another_vocabulary_size_names_the_expert_and_the_ids() -> None:
    with pytest.raises(
        VocabularyError, match=r"expert 'code' has a vocabulary of 300 token ids .* 261 .*ids 261 to 299"
    ):
        team_with(vocab_size=300)


@pytest.mark.parametrize("role", ["bos_token_id", "eos_token_id"])
def test_other_special_ids_name_the_expert_and_the_ids(role: str) -> None:
    with pytest.raises(VocabularyError, match=rf"expert 'code' has {role} \[9\] but the router has \[[12]\]"):
        team_with(**{role: 9})


def test_lists_of_ends_may_overlap_and_all_of_them_end_an_answer() -> None:
    team = team_with(eos_token_id=[tiny.EOS, 9])
    assert team.eos_ids == {tiny.EOS, 9}
    assert eos_ids(team.experts["math"]) == {tiny.EOS}


def test_a_tokenizer_larger_than_the_models_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(VocabularyError, match="the tokenizer has 262 tokens but the router only 261"):
        Team(router=tiny.router(num_experts=1), experts={"math": tiny.language_model()}, tokenizer=tokenizer)
