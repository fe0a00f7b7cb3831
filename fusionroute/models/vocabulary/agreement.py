"""Do models speak of the same tokens by the same ids? Adding their logits is meaningless otherwise."""

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.errors import VocabularyError

ROUTER = "router"


def check_tokenizers(team: PreTrainedTokenizerBase, others: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Insist that every tokenizer maps every token to the team's id and gives BOS and EOS to the same ids.

    Raises:
        VocabularyError: naming the model, the tokens and the ids that differ.
    """
    expected = team.get_vocab()
    for name, tokenizer in others.items():
        found = tokenizer.get_vocab()
        different = [token for token in expected.keys() | found.keys() if expected.get(token) != found.get(token)]
        if different:
            raise VocabularyError(
                f"the tokenizer of {_model(name)} differs from the team's in {len(different)} of {len(expected)} "
                f"tokens, e.g. {_examples(different, expected, found)}; use models fine-tuned from one base, "
                "or a method for different tokenizers"
            )
        for role in ("bos_token", "eos_token"):
            mine, theirs = getattr(team, f"{role}_id"), getattr(tokenizer, f"{role}_id")
            if mine is not None and theirs is not None and mine != theirs:
                raise VocabularyError(
                    f"{_model(name)} uses {getattr(tokenizer, role)!r} (id {theirs}) as its {role}, the team "
                    f"{getattr(team, role)!r} (id {mine}); use the model's variant that matches the team's"
                )


def check_models(
    first: PreTrainedModel, others: Mapping[str, PreTrainedModel], tokenizer_size: int = 0, *, name: str = ROUTER
) -> int:
    """Insist on equal vocabulary sizes and special ids in the configs; return the vocabulary size.

    EOS may differ as long as the sets overlap (base and instruct models list different ends); BOS must be equal.

    Args:
        first: the model that the others are held against, called ``name``.

    Raises:
        VocabularyError: naming the model and the ids that differ.
    """
    size = first.config.get_text_config().vocab_size
    if tokenizer_size > size:
        raise VocabularyError(
            f"the tokenizer has {tokenizer_size} tokens but {_model(name)} only {size}; use {_model(name)}'s own"
        )
    for other_name, other in others.items():
        found = other.config.get_text_config().vocab_size
        if found != size:
            raise VocabularyError(
                f"{_model(other_name)} has a vocabulary of {found} token ids but {_model(name)} has {size} "
                f"(ids {min(found, size)} to {max(found, size) - 1} exist in one alone); use models of one base"
            )
        _check_special_ids(name, first, other_name, other)
    return size


def _check_special_ids(name: str, first: PreTrainedModel, other_name: str, other: PreTrainedModel) -> None:
    for role, must_be_equal in (("bos_token_id", True), ("eos_token_id", False)):
        mine, theirs = _ids(first, role), _ids(other, role)
        clash = mine != theirs if must_be_equal else not mine & theirs
        if mine and theirs and clash:
            raise VocabularyError(
                f"{_model(other_name)} has {role} {sorted(theirs)} but {_model(name)} has {sorted(mine)}; "
                "use models fine-tuned from one base"
            )


def _ids(model: PreTrainedModel, role: str) -> set[int]:
    value = getattr(model.config.get_text_config(), role, None)
    return set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}


def eos_ids(model: PreTrainedModel) -> set[int]:
    """The ids that end an answer according to the model's generation config (one, several or none)."""
    value = model.generation_config.eos_token_id if model.generation_config is not None else None
    return set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}


def _model(name: str) -> str:
    return "the router" if name == ROUTER else f"expert {name!r}"


def _examples(tokens: list[str], expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    tokens = sorted(tokens, key=lambda token: (expected.get(token, len(expected)), token))[:3]
    return ", ".join(f"{token!r} (id {found.get(token)} instead of {expected.get(token)})" for token in tokens)
