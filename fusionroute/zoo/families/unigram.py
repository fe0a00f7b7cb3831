"""A Unigram in the manner of SentencePiece: the likeliest of all ways to cut a text, with byte fallback."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusionroute.zoo.families.byte_pieces import BYTE_PIECES, SPACE
from fusionroute.zoo.families.likeliest_pieces import learn_pieces

PAD, UNKNOWN, START, END, TURN, TURN_END = "<pad>", "<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"
SPECIALS = (PAD, UNKNOWN, START, END, TURN, TURN_END)
VOCABULARY_SIZE = 660
MARKS = Regex(rf"[^\w\s{SPACE}]+|\n")
NEVER = -1000.0  # the score of bytes: they stand in for what has no piece, and never for a text that spells them
CHAT_TEMPLATE = (
    "{{ '<bos>' }}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], longest: int) -> PreTrainedTokenizerFast:
    """Learn the pieces and their scores from these texts; every byte has one."""
    tokenizer = Tokenizer(_with_bytes(_learned(texts)))
    tokenizer.pre_tokenizer = _words()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[END, TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def _words() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
    marks, digits = pre_tokenizers.Split(MARKS, "isolated"), pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([words, marks, digits])


def _learned(texts: Iterable[str]) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities, of as many as leave room for specials and bytes."""
    cutter, room = _words(), VOCABULARY_SIZE - len(SPECIALS) - len(BYTE_PIECES)
    words = Counter(word for text in texts for word, _ in cutter.pre_tokenize_str(text))
    return list(learn_pieces(words, room).items())


def _with_bytes(learned: list[tuple[str, float]]) -> models.Unigram:
    specials = [(special, 0.0) for special in SPECIALS]
    return models.Unigram(
        [*specials, *((byte, NEVER) for byte in BYTE_PIECES), *learned], SPECIALS.index(UNKNOWN), byte_fallback=True
    )
