"""A tiny random sentence-transformers model on disk, with the parts of a MiniLM: BERT, mean pooling, length 1."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 16  # tokens; what stands behind is not read
WIDTH = 24


def save_embedder(folder: Path, seed: int = 0) -> Path:
    """Letters are tokens, so that every text differs."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: at for at, token in enumerate([*SPECIAL, *letters, *(f"##{each}" for each in letters)])}
    raw = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    bert = folder.with_name(f"{folder.name}-bert")
    BertModel(config).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    words = Transformer(str(bert), max_seq_length=LONGEST)
    SentenceTransformer(modules=[words, Pooling(WIDTH, "mean"), Normalize()], device="cpu").save(str(folder))
    return folder
