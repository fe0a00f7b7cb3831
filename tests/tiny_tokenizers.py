"""Small tokenizers of every real manner, trained or built in code on a few lines of many scripts."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
EOS = SPECIAL.index("</s>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind; it is 7 o'clock.",
    "def add(first, second):\n    return first + second  # the sum of two numbers\n\n\tprint(add(12, 345))",
    "Incorrect position is correct; the ensemble assembles semble orrect emble",
    "1234567890 12 + 30 = 42, 3.1415926535, 100000 200 2000",
    "café naïve Übergröße señor déjà vu",
    "你好世界。再见世界。你好你好",
    "Привет, мир! Привет ещё раз, мир.",
    "مرحبا بالعالم مرحبا",
    "fine 🙂👍 🙂🙂 👨‍👩‍👧",
] * 3
RARE = "🙂👍ح👧"  # left out of SentencePiece-like vocabularies, so that byte tokens are needed
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}</s>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def wrap(raw: Tokenizer, **options: Any) -> PreTrainedTokenizerBase:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **(names | options))


def special(raw: Tokenizer) -> Tokenizer:
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return raw


@cache
def byte_level(size: int = 420, digits: bool = False, seed: int = 0) -> PreTrainedTokenizerBase:
    """As GPT-2 and Qwen: NFC, byte-level BPE; ``seed`` leaves out some of the texts, so that merges differ."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    raw.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXTS[seed:] if seed < 9 else TEXTS, trainer)
    return wrap(raw)


@cache
def llama3(size: int = 380) -> PreTrainedTokenizerBase:
    """As Llama-3: a regular expression, then bytes; merges are ignored for whole words; BOS in front; many ends."""
    raw = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(GPT4), behavior="isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(TEXTS, trainer)
    special(raw)
    raw.add_special_tokens(["<|eot_id|>", "<|eom_id|>"])
    raw.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return wrap(raw)


def sentencepiece_bpe(size: int, texts: Sequence[str], rare: Collection[str] = ()) -> Tokenizer:
    """Pieces and merges learnt over whole texts, then put behind the special and the byte tokens, as Llama-2's are."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    kept = [piece for piece in pieces if not set(rare) & set(piece) and piece not in (*SPECIAL, *BYTES)]
    vocabulary = {token: id for id, token in enumerate([*SPECIAL[:3], *BYTES, *kept, *SPECIAL[3:]])}
    merges = [(left, right) for left, right in learnt["merges"] if {left, right, left + right} <= vocabulary.keys()]
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


@cache
def llama2(size: int = 300, seed: int = 0) -> PreTrainedTokenizerBase:
    """As Llama-2: no pre-tokeniser; a normaliser puts a space in front of every text and marks all spaces."""
    raw = sentencepiece_bpe(size, TEXTS[seed:], RARE)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = _decoder(strip=True)
    return wrap(special(raw))


@cache
def mistral(size: int = 300, seed: int = 1) -> PreTrainedTokenizerBase:
    """As Mistral v0.3: Metaspace, which puts a space in front of the first part alone, and splits nothing."""
    raw = sentencepiece_bpe(size, TEXTS[seed:], RARE)
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = _decoder(strip=True)
    return wrap(special(raw))


@cache
def gemma(size: int = 320) -> PreTrainedTokenizerBase:
    """As Gemma: spaces are marked, nothing is put in front, and runs of line breaks are added tokens."""
    raw = sentencepiece_bpe(size, TEXTS[2:], RARE)
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    raw.decoder = _decoder(strip=False)
    raw.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("\n\n", "▁▁", "<table>")])
    return wrap(special(raw))


@cache
def unigram(size: int = 500) -> PreTrainedTokenizerBase:
    """Unigram with byte tokens: in such a vocabulary special and byte tokens have the best score of all, 0."""
    return wrap(unigram_of(size, [text for text in TEXTS if "🙂" not in text]))


def unigram_of(size: int, texts: Sequence[str]) -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[*SPECIAL[:3], *BYTES], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    settings = json.loads(raw.to_str())
    settings["model"]["byte_fallback"] = True
    raw = Tokenizer.from_str(json.dumps(settings | {"added_tokens": []}))
    raw.decoder = _decoder(strip=True)
    return special(raw)


def sentencepiece_of(size: int, texts: Sequence[str]) -> Tokenizer:
    """As Llama-2's, of any texts."""
    raw = sentencepiece_bpe(size, texts)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = _decoder(strip=True)
    return special(raw)


def byte_level_of(size: int, texts: Sequence[str]) -> Tokenizer:
    """Byte-level, of any texts; the size also decides what is split before merging."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=size % 2 == 0, use_regex=size % 3 > 0)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return raw


def _decoder(*, strip: bool) -> decoders.Decoder:
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


class Program(PreTrainedTokenizer):
    """A tokenizer that is a Python program: the longest piece first, byte tokens for the rest."""

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, pieces: list[str], **options: Any):
        self._ids = {token: id for id, token in enumerate([*SPECIAL[:3], *BYTES, *pieces])}
        self._tokens = {id: token for token, id in self._ids.items()}
        longest_first = sorted(pieces, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) + "|.", re.DOTALL)
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        marked = "▁" + text.replace(" ", "▁")
        return [
            token
            for piece in self._pattern.findall(marked)
            for token in ([piece] if piece in self._ids else [f"<0x{byte:02X}>" for byte in piece.encode()])
        ]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").removeprefix(" ")


@cache
def program() -> PreTrainedTokenizerBase:
    letters = sorted({character for text in TEXTS[:4] for character in text.replace(" ", "▁")})
    words = ["▁the", "▁quick", "the", "▁Ens", "semble", "▁position", "▁is", "Inc", "orrect", "ect", "▁▁"]
    made = Program([*letters, *words], chat_template=TEMPLATE)
    made.add_tokens([AddedToken(token, special=True) for token in SPECIAL[3:]], special_tokens=True)
    return made


ALL: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte_level": byte_level,
    "byte_level_digits": lambda: byte_level(500, digits=True, seed=2),
    "llama3": llama3,
    "llama2": llama2,
    "mistral": mistral,
    "gemma": gemma,
    "unigram": unigram,
    "program": program,
}
