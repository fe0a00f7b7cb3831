import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

import tiny
import tiny_tokenizers
from fusionroute.errors import VocabularyError
from fusionroute.models.vocabulary import Pieces

AWKWARD = {
    "no text": b"",
    "spaces": b"  a   b    ",
    "lines": b"\n\n\na\r\n\t\tb\n",
    "special spellings": b"a</s>b<s> <unk><|user|> <|assistant|>",
    "byte spellings": b"<0x41><0x0A> x<0xE2><0x96>",
    "marks of spaces": "▁a▁▁b ▁ Ġ Ċ".encode(),
    "unknown characters": "☃☃ ☃a☃ ⠿ 🙂🙂x👨‍👩‍👧".encode(),
    "decomposed accents": "e\u0301 A\u030a n\u0303".encode(),
    "compatibility characters": "ﬁ ½ ＡＢ ™ …".encode(),
    "right to left": "مرحبا \u202bעולם\u202c".encode(),
    "controls": "\x00\x01\x7f\u200b\ufeff\ufdef5\ufdef".encode(),
    "lone bytes": b"\xff\xfea\x80\xe2\x82b\xf0\x9f\x99",
    "surrogates and overlong": b"\xed\xa0\x80 \xc0\x80 \xf5",
}


@pytest.fixture(scope="module", params=tiny_tokenizers.ALL)
def pieces(request: pytest.FixtureRequest) -> Pieces:
    return Pieces(tiny_tokenizers.ALL[request.param](), name=request.param)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_any_bytes_come_back_exactly_and_no_control_token_is_among_them(pieces: Pieces, text: bytes) -> None:
    ids = pieces.encode(text)
    assert pieces.text(ids) == text
    assert not any(pieces.is_special(id) for id in ids)


@pytest.mark.parametrize("text", ["The quick fox\n  is 12345", "Привет, мир", "a  b", "你好。"])
def test_tokens_are_those_that_the_tokenizer_gives_inside_a_text(pieces: Pieces, text: str) -> None:
    native = pieces.tokenizer("x\n" + text, add_special_tokens=False).input_ids
    ids = pieces.encode(text.encode())
    assert native[-len(ids) :] == ids


def test_nothing_is_put_before_or_behind(pieces: Pieces) -> None:
    assert pieces.text(pieces.encode(b"the")) == b"the"
    assert pieces.encode(b"the") != pieces.encode(b" the")
    assert len(pieces.encode(b"t")) == 1


def test_starts_are_the_offsets_of_the_tokens(pieces: Pieces) -> None:
    ids = pieces.encode("The 🙂 мир\xff".encode("latin-1", errors="ignore") + "Привет".encode())
    lengths = [len(pieces.bytes_of[id] or b"") for id in ids]
    assert pieces.starts(ids) == [sum(lengths[:at]) for at in range(len(ids))]
    assert pieces.starts([]) == []
    assert pieces.starts([pieces.end_id, *ids])[:2] == [0, 0]


def test_special_tokens_ends_and_padding_rows_write_nothing() -> None:
    pieces = Pieces(tiny_tokenizers.llama3(), vocabulary_size=400, eos_ids=[300])
    assert pieces.vocabulary_size == len(pieces.bytes_of) == 400
    assert pieces.bytes_of[399] is None
    assert pieces.bytes_of[300] is None  # the model says so, whatever it is called
    assert pieces.text([399, pieces.end_id, *pieces.encode(b"a"), 300]) == b"a"
    assert pieces.control_ids == {380, 381, 383, 384}


def test_added_tokens_that_are_text_are_used_and_write_their_spelling() -> None:
    pieces, tokenizer = Pieces(tiny_tokenizers.llama3()), tiny_tokenizers.llama3()
    (id,) = tokenizer("<think>", add_special_tokens=False).input_ids
    assert id in pieces.encode(b"a<think>b")
    assert pieces.bytes_of[id] == b"<think>"


def test_what_an_added_token_would_swallow_around_it_is_kept() -> None:
    """As in Phi-3, whose added tokens take the spaces behind them."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken("<note>", special=False, rstrip=True, lstrip=True, normalized=False)])
    pieces = Pieces(tokenizer)
    assert pieces.text(pieces.encode(b"a  <note>  b")) == b"a  <note>  b"
    assert tokenizer.convert_tokens_to_ids("<note>") in pieces.encode(b"a  <note>  b")


def test_the_token_of_a_piece_is_the_one_that_reading_gives() -> None:
    """Llama-2 has two tokens for a letter and for a space: itself, and its byte."""
    pieces = Pieces(tiny_tokenizers.llama2())
    tokens = pieces.tokenizer.get_vocab()
    assert pieces.bytes_of[tokens["<0x20>"]] == pieces.bytes_of[tokens["▁"]] == b" "
    assert pieces.id_of(b" ") == tokens["▁"]
    assert pieces.id_of(b"e") == tokens["e"]
    assert pieces.id_of(b"\xe2") == tokens["<0xE2>"]
    assert pieces.id_of(b"no such token") is None
    assert pieces.first_id(b" the") == tokens["▁the"]
    assert pieces.first_id(b" the quick") == tokens["▁the"]
    assert pieces.first_id("🙂".encode()) == tokens["<0xF0>"]


def test_fingerprints_tell_tokenizers_apart_and_nothing_else() -> None:
    def made(**options: Any) -> str:
        return Pieces(tiny_tokenizers.llama2(), **options).fingerprint

    assert made() == made(name="other")
    others = {
        made(vocabulary_size=600),
        made(eos_ids=[300]),
        Pieces(tiny_tokenizers.llama2(seed=1)).fingerprint,
        Pieces(tiny_tokenizers.program()).fingerprint,
    }
    assert len(others | {made()}) == 5


def test_the_tokenizer_itself_is_left_as_it_was() -> None:
    tokenizer = tiny_tokenizers.mistral()
    before = tokenizer("a <s> b").input_ids, tokenizer.backend_tokenizer.to_str()
    Pieces(tokenizer).encode(b"a <s> b")
    assert (tokenizer("a <s> b").input_ids, tokenizer.backend_tokenizer.to_str()) == before


def changed(**parts: Any) -> PreTrainedTokenizerBase:
    settings = json.loads(tiny_tokenizers.byte_level().backend_tokenizer.to_str())
    return tiny_tokenizers.wrap(Tokenizer.from_str(json.dumps(settings | parts)))


def lower_casing() -> PreTrainedTokenizerBase:
    return changed(normalizer={"type": "Lowercase"})


def without_accents() -> PreTrainedTokenizerBase:
    steps = [{"type": "NFD"}, {"type": "StripAccents"}]
    made = tiny.tokenizer()
    settings = json.loads(made.backend_tokenizer.to_str())
    # in small pieces, since a decomposed accent alone is what it drops
    return tiny_tokenizers.wrap(
        Tokenizer.from_str(json.dumps(settings | {"normalizer": {"type": "Sequence", "normalizers": steps}})),
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token=None,
    )


def merging_spaces() -> PreTrainedTokenizerBase:
    return changed(normalizer={"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})


def dropping_spaces() -> PreTrainedTokenizerBase:
    split = {"type": "WhitespaceSplit"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})


def word_piece() -> PreTrainedTokenizerBase:
    raw = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1, "##b": 2}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tiny_tokenizers.wrap(raw)


def lacking_a_byte() -> PreTrainedTokenizerBase:
    settings = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    settings["model"]["vocab"]["<none>"] = settings["model"]["vocab"].pop("A")
    return tiny_tokenizers.wrap(
        Tokenizer.from_str(json.dumps(settings)), eos_token="<eos>", bos_token="<bos>", unk_token=None
    )


def without_bytes() -> PreTrainedTokenizerBase:
    made = tiny_tokenizers.unigram()
    settings = json.loads(made.backend_tokenizer.to_str())
    settings["model"]["byte_fallback"] = False
    settings["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return tiny_tokenizers.wrap(Tokenizer.from_str(json.dumps(settings)))


def with_line_breaks_as_spaces() -> PreTrainedTokenizerBase:
    return changed(normalizer={"type": "Replace", "pattern": {"String": "\n"}, "content": " "})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lower_casing, r"'m' makes capital letters small: it reads .The quick.*\(English\) as .the quick"),
        (merging_spaces, r"'m' drops or merges spaces and line breaks: it reads .def f.*1} # two"),
        (with_line_breaks_as_spaces, r"'m' drops or merges spaces and line breaks: it reads .def f.*\(code\) as"),
        (dropping_spaces, r"'m' drops or merges spaces and line breaks: .*as .Thequick"),
        (without_accents, "'m' drops accents: it reads 'café.* as 'cafe"),
        (word_piece, "'m' is a WordPiece model without byte tokens.*need byte-level ones"),
        (without_bytes, "'m' is a Unigram model without byte tokens"),
        (lacking_a_byte, "'m' has no token for 1 of the 256 bytes, the first is 0x41"),
    ],
)
def test_a_tokenizer_that_cannot_be_aligned_is_refused_with_the_reason(
    make: Callable[[], PreTrainedTokenizerBase], message: str
) -> None:
    with pytest.raises(VocabularyError, match=message):
        Pieces(make(), name="m")


def test_a_tokenizer_larger_than_its_model_is_refused() -> None:
    with pytest.raises(VocabularyError, match="ids up to 260 but the model only 200 tokens"):
        Pieces(tiny.tokenizer(), vocabulary_size=200)


def test_a_program_that_changes_text_is_refused() -> None:
    class Shouting(tiny_tokenizers.Program):
        def _tokenize(self, text: str, **options: Any) -> list[str]:
            return super()._tokenize(text.lower(), **options)

    letters = [chr(code) for code in range(32, 127)]
    with pytest.raises(VocabularyError, match="'m' makes capital letters small"):
        Pieces(Shouting(["▁", *letters]), name="m")


def test_pieces_can_be_copied_with_the_model_that_they_belong_to() -> None:
    pieces = Pieces(tiny_tokenizers.unigram())
    assert copy.deepcopy(pieces).encode(b"a <0x41> b") == pieces.encode(b"a <0x41> b")
