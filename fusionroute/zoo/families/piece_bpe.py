"""A BPE in the manner of SentencePiece and Llama-2: pieces with a mark for the blank before them, single digits.

As in converted Llama-2 tokenizers nothing cuts the text into words beforehand; the merges alone keep to them.
"""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fusionroute.zoo.families.byte_pieces import BYTE_PIECES, SPACE

UNKNOWN, START, END, ASK, ASKED = "<unk>", "<s>", "</s>", "[INST]", "[/INST]"
SPECIALS = (UNKNOWN, START, END, ASK, ASKED)
VOCABULARY_SIZE = 720
WORDS = Regex(rf"{SPACE}?\p{{L}}+|\p{{N}}|{SPACE}|[^\p{{L}}\p{{N}}{SPACE}]")
CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('the roles are user and assistant, not ' + message['role']) }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], longest: int) -> PreTrainedTokenizerFast:
    """Learn the merges from these texts; what has no piece falls apart into bytes, which all have one."""
    tokenizer = Tokenizer(_with_bytes(_learned(texts)))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=UNKNOWN,
        additional_special_tokens=[ASK, ASKED],
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def _learned(texts: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges, in their order, of as many as leave room for specials and bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    room = VOCABULARY_SIZE - len(SPECIALS) - len(BYTE_PIECES)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=room, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def _with_bytes(learned: tuple[list[str], list[tuple[str, str]]]) -> models.BPE:
    pieces, merges = learned
    ids = {piece: at for at, piece in enumerate([*SPECIALS, *BYTE_PIECES, *pieces])}
    return models.BPE(ids, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
