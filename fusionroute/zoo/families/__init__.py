"""Three models of like skill whose tokenizers have nothing in common: families to be ensembled by their text."""

FAMILIES = ("byte_bpe", "piece_bpe", "unigram")
