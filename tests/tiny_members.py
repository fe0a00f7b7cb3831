"""Members of different families with vocabularies spelled out, so that a test knows what each token writes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fusionroute.models.member import Member

# GPT-2's letters for bytes: printable ones stand for themselves, the others for 256 and on
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
LETTER_OF = {byte: chr(byte if byte in PRINTABLE else 256 + OTHERS.index(byte)) for byte in range(256)}
PADDING_ROWS = 3  # ids that the model has and the tokenizer has not


@dataclass
class Known:
    """What a test knows of one member without asking it.

    Attributes:
        writes: by id: bytes, the name of a special token, or None for a padding row.
        ends: ids that end an answer.
    """

    member: Member
    writes: list[bytes | str | None]
    ends: frozenset[int]
    tokenizer: PreTrainedTokenizerFast = field(repr=False)

    def ids(self, text: str) -> list[int]:
        """The tokenizer's own, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids


def byte_level(
    name: str, words: Sequence[str], *, seed: int = 0, ends: Sequence[str] = ("<eos>",), **options: object
) -> Known:
    """GPT-2's kind: 256 bytes and the words, each merged from the left; every word is one token."""
    specials = ["<pad>", *ends, "<user>"]
    alphabet = sorted(LETTER_OF.values())
    spelled = ["".join(LETTER_OF[byte] for byte in word.encode()) for word in words]
    pieces, merges = _merged_from_the_left(spelled)
    tokens = list(dict.fromkeys([*specials, *alphabet, *pieces]))
    raw = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    byte_of = {letter: byte for byte, letter in LETTER_OF.items()}
    writes = [token if token in specials else bytes(byte_of[letter] for letter in token) for token in tokens]
    return _known(name, raw, writes, specials, ends, seed, **options)


def with_fallback(
    name: str, words: Sequence[str], *, seed: int = 0, ends: Sequence[str] = ("</s>",), **options: object
) -> Known:
    """Llama-2's kind: characters, words and 256 byte tokens, so that each letter has two tokens that write it."""
    specials = ["<pad>", *ends, "<unk>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    spelled = [word.replace(" ", "▁") for word in words]
    pieces, merges = _merged_from_the_left(spelled)
    tokens = list(dict.fromkeys([*specials, *bytes_, *sorted(set("".join(spelled)) | {"▁"}), *pieces]))
    raw = Tokenizer(
        models.BPE(
            vocab={token: at for at, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    writes = [
        token if token in specials
        else bytes([bytes_.index(token)]) if token in bytes_
        else token.replace("▁", " ").encode()
        for token in tokens
    ]  # fmt: skip
    return _known(name, raw, writes, specials, ends, seed, **options)


def hushed(known: Known, may_say: Callable[[bytes | str], bool] | None = None) -> Known:
    """The same member, whose model says only what it may: an end, and what ``may_say`` allows.

    Args:
        may_say: by default neither halves of characters nor control characters nor specials that end nothing.
    """
    allows = may_say or (lambda text: isinstance(text, bytes) and _is_printable(text))
    never = [at not in known.ends and (text is None or not allows(text)) for at, text in enumerate(known.writes)]
    mask = torch.tensor(never)
    known.member.model.lm_head.register_forward_hook(lambda module, asked, logits: logits.masked_fill(mask, -1e4))
    return known


def scripted(known: Known, table: Mapping[bytes, Mapping[bytes | str, float]]) -> Known:
    """The same member, whose model says what a table says: P(next | last token), by what tokens write.

    After what the table does not know the answer ends. What a row leaves over is next to nothing for every other token.
    """
    logits = torch.full((len(known.writes), len(known.writes)), -25.0)
    logits[:, min(known.ends)] = 0.0
    for last, row in table.items():
        for at in [at for at, text in enumerate(known.writes) if text == last]:
            logits[at] = -25.0
            for text, share in row.items():
                logits[at, known.writes.index(text)] = math.log(share)

    def say(model: Any, positional: Any, named: dict[str, Any], output: Any) -> Any:
        ids = named["input_ids"] if "input_ids" in named else positional[0]
        output.logits = logits[ids][:, -output.logits.shape[1] :]
        return output

    known.member.model.register_forward_hook(say, with_kwargs=True)
    return known


def _is_printable(text: bytes) -> bool:
    try:
        return text.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _merged_from_the_left(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Every beginning of every word as a token, with the merges that make it."""
    merges = dict.fromkeys((word[:at], word[at]) for word in words for at in range(1, len(word)))
    return [left + right for left, right in merges], list(merges)


def _known(
    name: str,
    raw: Tokenizer,
    writes: list[bytes | str | None],
    specials: Sequence[str],
    ends: Sequence[str],
    seed: int,
    **options: object,
) -> Known:
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token=ends[0])
    writes = [*writes, *[None] * PADDING_ROWS]
    end_ids = frozenset(writes.index(end) for end in ends)
    model = _model(len(writes), seed, sorted(end_ids), **options)
    return Known(Member.of(name, model, tokenizer), writes, end_ids, tokenizer)


def _model(size: int, seed: int, ends: list[int], **options: object) -> PreTrainedModel:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,  # decisive: with near-ties equality is chance
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, eos_token_id=ends, **{**values, **options})).eval()
