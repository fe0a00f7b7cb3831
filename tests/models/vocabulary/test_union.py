import pytest
import torch

import tiny
import tiny_tokenizers
from fusionroute.models.vocabulary import Pieces, UnionVocabulary
from fusionroute.models.vocabulary.union import is_complete

# Byte-level with padding rows, SentencePiece with a letter in two tokens, Unigram with two control tokens: all differ
MEMBERS = (
    Pieces(tiny_tokenizers.byte_level(), vocabulary_size=430),
    Pieces(tiny_tokenizers.llama2()),
    Pieces(tiny_tokenizers.unigram()),
)


@pytest.fixture(scope="module", params=[(0, 1, 2), (1, 0), (2, 0, 1), (0,)], ids=str)
def union(request: pytest.FixtureRequest) -> UnionVocabulary:
    return UnionVocabulary([MEMBERS[at] for at in request.param])


def test_strings_are_sorted_complete_and_all_that_some_member_has(union: UnionVocabulary) -> None:
    expected = {piece for member in union.members for piece in member.bytes_of if piece and is_complete(piece)}
    assert list(union.strings) == sorted(expected)
    assert union.end == len(union.strings)
    assert not any(b"\xff" in string for string in union.strings)


def test_every_token_maps_to_what_it_writes_or_is_dropped(union: UnionVocabulary) -> None:
    for at, member in enumerate(union.members):
        for id, piece in enumerate(member.bytes_of):
            symbol = union.symbol_of_id(at, id)
            if id in member.end_ids:
                assert symbol == union.end
            elif piece is not None and (at == 0 or is_complete(piece) or piece in union.drafter.bytes_of):
                assert union.bytes_of(symbol) == piece
            elif at == 0 and id in member.control_ids:
                assert union.drafter_ids(symbol) == [id]
            else:
                assert symbol == union.size


def test_own_symbols_are_the_drafters_and_come_behind_the_end(union: UnionVocabulary) -> None:
    drafter = union.members[0]
    incomplete = {piece for piece in drafter.bytes_of if piece is not None and not is_complete(piece)}
    own = range(union.end + 1, union.size)
    assert len(own) == len(incomplete) + len(drafter.control_ids)
    assert {union.bytes_of(symbol) for symbol in own} - {b""} == incomplete
    for at, verifier in enumerate(union.members[1:], 1):
        shared = {union.bytes_of(symbol) for symbol in set(own) & set(union.maps[at].tolist())}
        assert shared == incomplete & set(verifier.bytes_of)  # the very same bytes; of its specials none


def test_the_drafters_tokens_for_a_symbol_write_exactly_it(union: UnionVocabulary) -> None:
    drafter = union.members[0]
    for symbol in range(union.size):
        ids = union.drafter_ids(symbol)
        assert drafter.text(ids) == union.bytes_of(symbol)
        assert bool(union.is_drafters[symbol]) == (len(ids) == 1)
        first = union.drafter_ids(symbol, whole=False)
        assert ids[: len(first)] == first
        if symbol < union.end:
            assert is_complete(drafter.text(first))
            shorter = [drafter.text(first[:count]) for count in range(1, len(first))]
            assert not any(is_complete(text) and text != b" " for text in shorter)
    assert union.drafter_ids(union.end) == [drafter.end_id]
    assert union.bytes_of(union.end) == b""


def test_prefix_ends_are_what_startswith_says(union: UnionVocabulary) -> None:
    ends = union.prefix_end.tolist()
    assert len(ends) == union.size
    for symbol, string in enumerate(union.strings):
        starting = {other for other, text in enumerate(union.strings) if text.startswith(string)}
        assert set(range(symbol, ends[symbol])) == starting
    assert ends[union.end :] == list(range(union.end + 1, union.size + 1))


def test_no_mass_is_lost_but_what_is_dropped(union: UnionVocabulary) -> None:
    for at, member in enumerate(union.members):
        p = torch.rand(member.vocabulary_size, dtype=torch.float64)
        p /= p.sum()
        mapped = torch.zeros(union.size + 1, dtype=torch.float64).index_add_(0, union.maps[at], p)
        assert mapped.sum().item() == pytest.approx(1)
        assert mapped[union.end].item() == pytest.approx(p[sorted(member.end_ids)].sum().item())
        dropped = [id for id in range(member.vocabulary_size) if union.symbol_of_id(at, id) == union.size]
        assert mapped[-1].item() == pytest.approx(p[dropped].sum().item())


def test_one_vocabulary_alone_keeps_every_token_apart() -> None:
    """So that the path over symbols says the same as the direct one, as far as tokens write different things."""
    alone = UnionVocabulary([Pieces(tiny.tokenizer())])
    assert alone.size == tiny.VOCABULARY
    assert sorted(alone.maps[0].tolist()) == list(range(alone.size))
    assert bool(alone.is_drafters.all())


def test_a_word_of_another_member_is_read_in_the_drafters_tokens() -> None:
    union = UnionVocabulary([Pieces(tiny.tokenizer()), MEMBERS[1]])
    symbol = list(union.strings).index(b" the")
    assert [union.members[0].bytes_of[id] for id in union.drafter_ids(symbol)] == [b" ", b"t", b"h", b"e"]
    assert union.drafter_ids(symbol, whole=False) == union.members[0].encode(b" t")  # a lone space says nothing
    emoji = next(symbol for symbol in range(union.end) if union.bytes_of(symbol) == "ё".encode())
    assert len(union.drafter_ids(emoji, whole=False)) == 2  # half a character would be no text
