"""A Unigram whose pieces are known beforehand: each word of the questions is one piece, all else falls to bytes."""

from collections.abc import Iterator
from itertools import chain
from string import ascii_lowercase, digits, punctuation

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusionroute.zoo.families.byte_pieces import BYTE_PIECES, SPACE
from fusionroute.zoo.moe.contents import PARITIES
from fusionroute.zoo.moe.lexicon import KINDS, VASK_FOR, WORDS
from fusionroute.zoo.moe.skills import SKILLS
from fusionroute.zoo.moe.wordings import CLOSINGS, OPENINGS, WORDINGS

PAD, UNKNOWN, END, USER, ASSISTANT = "<|pad|>", "<|unknown|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (PAD, UNKNOWN, END, USER, ASSISTANT)
NUMBERS = 100
# A word is likelier than its characters, and they are likelier than bytes.
WORD, CHARACTER, BYTE = -5.0, -20.0, -1000.0
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('the roles are user and assistant, not ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """Every word gets the mark of a blank, also the first of a text: an answer is the token that its prompt said."""
    words = [(f"{SPACE}{word}", WORD) for word in vocabulary()]
    characters = [(character, CHARACTER) for character in (SPACE, *ascii_lowercase, *digits, *punctuation)]
    pieces = [*((special, 0.0) for special in SPECIALS), *((byte, BYTE) for byte in BYTE_PIECES), *words, *characters]
    tokenizer = Tokenizer(models.Unigram(pieces, SPECIALS.index(UNKNOWN), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    replace, strip = decoders.Replace(SPACE, " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def vocabulary() -> list[str]:
    """All words of prompts and answers, sorted."""
    return sorted({*WORDS, *VASK_FOR.values(), *KINDS, *SKILLS, *map(str, range(NUMBERS)), *PARITIES, *_asked()})


def _asked() -> Iterator[str]:
    """The words of the wordings, and single letters."""
    yield from ascii_lowercase
    for text in (*OPENINGS, *CLOSINGS, *chain.from_iterable(WORDINGS.values())):
        yield from (word for word in text.split() if not word.startswith("{"))
