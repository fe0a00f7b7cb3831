"""Spellings of control tokens inside what somebody said: they are text, while a template's own are control tokens."""

import re
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from fusionroute.models.vocabulary.backend import rebuild, respell, respelled, settings_of
from fusionroute.models.vocabulary.ends import control_tokens
from fusionroute.models.vocabulary.segmenter import reader_behind_anchor

MARKS = range(0xF0000, 0xFFFFE)  # private use: what a quoted spelling is rendered as
OPENINGS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters: they begin the spelling of a real control


class Quoting:
    """Encodes rendered texts of one tokenizer in which some spellings of control tokens are quoted."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.controls = control_tokens(tokenizer)
        longest_first = sorted(set(self.controls.values()), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._backends: dict[str, Tokenizer] = {}

    def marks_for(self, texts: Iterable[str]) -> dict[str, str]:
        """A character that none of these texts holds for each control spelling in them, spelling to character."""
        texts = list(texts)
        found = dict.fromkeys(spelling for text in texts for spelling in self._spelled.findall(text))
        held = set().union(*texts)
        free = (chr(code) for code in MARKS if chr(code) not in held)
        return dict(zip(found, free, strict=False))

    def quote(self, text: str, marks: Mapping[str, str]) -> str:
        """``text`` with every control spelling as its mark."""
        return self._spelled.sub(lambda found: marks[found[0]], text)

    def encode(self, text: str, marks: Mapping[str, str], *, add_special_tokens: bool) -> list[int]:
        """Token ids of a rendered text: marks are read as the spellings they stand for, spellings as control tokens."""
        if self.tokenizer.is_fast:
            return self._encode_respelled(text, marks, add_special_tokens)
        return self._encode_in_parts(text, marks, add_special_tokens)

    def _encode_respelled(self, text: str, marks: Mapping[str, str], add_special_tokens: bool) -> list[int]:
        """Give the controls other spellings; then one pass reads the text with the quoted ones as they stand."""
        opening = next((character for character in OPENINGS if character not in text), OPENINGS[0])
        new = {spelling: respelled(id, opening) for id, spelling in self.controls.items()}
        text = self._spelled.sub(lambda found: new[found[0]], text)
        for spelling, mark in marks.items():
            text = text.replace(mark, spelling)
        if opening not in self._backends:
            self._backends[opening] = rebuild(respell(settings_of(self.tokenizer), self.controls, opening))
        return list(self._backends[opening].encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_in_parts(self, text: str, marks: Mapping[str, str], add_special_tokens: bool) -> list[int]:
        """A tokenizer that is a program: what stands between the quoted spellings is read apart from them."""
        as_text = reader_behind_anchor(self.tokenizer)
        as_rendered = reader_behind_anchor(self.tokenizer, controls=True)
        spellings = {mark: spelling for spelling, mark in marks.items()}
        first, *others = re.split(f"([{''.join(spellings)}])", text)
        ids: list[int] = list(self.tokenizer(first, add_special_tokens=add_special_tokens).input_ids)
        for part in filter(None, others):
            ids += as_text(spellings[part]) if part in spellings else as_rendered(part)
        return ids
