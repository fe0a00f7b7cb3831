"""Learning a Unigram: frequent substrings become pieces, characters stay, likelihood decides the cut."""

from collections import Counter
from math import exp

import pytest
from tokenizers import models

from fusionroute.zoo.families.likeliest_pieces import learn_pieces

WORDS = Counter({"singing": 50, "sing": 40, "ring": 40, "ringing": 30, "zax": 1})


def test_frequent_substrings_become_pieces():
    pieces = learn_pieces(WORDS, 12)
    assert len(pieces) == 12
    assert {"sing", "ring", "ing"} & set(pieces)
    assert set("singraxz") <= set(pieces)  # every character, however rare


def test_scores_are_log_probabilities():
    assert sum(map(exp, learn_pieces(WORDS, 12).values())) == pytest.approx(1)


def test_words_weigh_by_how_often_they_occur():
    """The library's trainer counts each different word once: there ten rare names beat one frequent word."""
    rare = {f"mu{vowel}{consonant}": 1 for vowel in "aeiou" for consonant in "bd"}
    pieces = learn_pieces(Counter({**rare, "and": 1000}), 15)
    assert "and" in pieces


def test_a_text_is_cut_into_its_frequent_pieces():
    pieces = learn_pieces(WORDS, 12)
    model = models.Unigram([("<unk>", 0.0), *pieces.items()], 0)
    lengths = {word: len(model.tokenize(word)) for word in WORDS}
    assert lengths["zax"] == 3
    assert lengths["sing"] == 1 or lengths["ring"] == 1


def test_fewer_pieces_than_characters_are_refused():
    with pytest.raises(ValueError, match="8 different characters, more than 5 pieces"):
        learn_pieces(WORDS, 5)
