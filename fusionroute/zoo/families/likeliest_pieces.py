"""Learning a Unigram: of all substrings keep those with which a text is cut most likely.

The library's own trainer counts every different word once, so rare names would crowd out "and"; here words weigh by
how often they occur. Expectations are those of the likeliest cut alone (Viterbi training; Kudo 2018, section 3.2, sums
over all cuts).
"""

from collections import Counter
from collections.abc import Mapping
from math import log

from tokenizers import models

LONGEST_PIECE, FIRST_PIECES = 12, 4000
ROUNDS_BETWEEN, SHARE_KEPT = 2, 0.8
UNKNOWN = "<unk>"
UNSEEN = 0.1  # what a piece counts that no cut uses any more; single characters stay for texts to come


def learn_pieces(words: Mapping[str, int], size: int) -> dict[str, float]:
    """``size`` pieces with their log-probabilities, from words and how often each occurs; all characters are in."""
    characters = {character for word in words for character in word}
    if len(characters) > size:
        raise ValueError(
            f"the words have {len(characters)} different characters, more than {size} pieces; ask for more"
        )
    counts = _substrings(words, characters)
    while True:
        for _ in range(ROUNDS_BETWEEN):
            counts = _used(words, counts)
        if len(counts) <= size:
            return _log_probabilities(counts)
        counts = _best(counts, characters, max(size, round(len(counts) * SHARE_KEPT)))


def _substrings(words: Mapping[str, int], characters: set[str]) -> dict[str, float]:
    """Single characters, and the longer substrings that cover most of the text."""
    found: Counter[str] = Counter()
    for word, often in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                found[word[start:end]] += often
    covering = sorted(found, key=lambda piece: (-found[piece] * len(piece), piece))
    return {piece: float(found[piece]) for piece in dict.fromkeys([*sorted(characters), *covering[:FIRST_PIECES]])}


def _used(words: Mapping[str, int], counts: Mapping[str, float]) -> dict[str, float]:
    """How often each piece stands in the likeliest cuts under these counts."""
    model = models.Unigram([(UNKNOWN, 0.0), *_log_probabilities(counts).items()], 0)
    used = dict.fromkeys(counts, UNSEEN)
    for word, often in words.items():
        for token in model.tokenize(word):
            used[token.value] += often
    return used


def _best(counts: Mapping[str, float], characters: set[str], size: int) -> dict[str, float]:
    """All characters, and as many of the pieces that spare most tokens."""
    longer = [piece for piece in counts if piece not in characters]
    longer.sort(key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
    kept = {*characters, *longer[: size - len(characters)]}
    return {piece: count for piece, count in counts.items() if piece in kept}


def _log_probabilities(counts: Mapping[str, float]) -> dict[str, float]:
    total = sum(counts.values())
    return {piece: log(count / total) for piece, count in counts.items()}
