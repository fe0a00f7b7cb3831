"""Training examples as token ids with the answer's place. Knows nothing of experts."""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from fusionroute.errors import DataError, PromptError
from fusionroute.models.prompt import PromptFormat
from fusionroute.rows import Row, Source, name_of
from fusionroute.training.data.rows import draw_rows, read_example, read_prompt, read_rows

Reader = Callable[[Row], tuple[Any, ...]]  # a row to its prompt and then its answers: one, or a pair


@dataclass(frozen=True)
class DataReport:
    """What became of the rows that were read. ``str()`` of it is one line for people."""

    kept: int
    cut: int
    too_long: int
    empty: int
    answer_tokens: int
    max_length: int
    excluded: int = 0
    exclude: str = ""  # the name of the source whose prompts were excluded

    @property
    def dropped(self) -> int:
        return self.too_long + self.empty + self.excluded

    def __str__(self) -> str:
        return "; ".join([f"{self.kept:,} examples with {self.answer_tokens:,} tokens to learn", *self._losses()])

    def _losses(self) -> list[str]:
        said = {
            f"{self.cut:,} answers cut at {self.max_length:,} tokens": self.cut,
            f"{self.too_long:,} dropped because the prompt alone fills {self.max_length:,} tokens": self.too_long,
            f"{self.empty:,} dropped because the answer is empty": self.empty,
            f"{self.excluded:,} dropped because their prompts are in {self.exclude}": self.excluded,
        }
        return [text for text, count in said.items() if count]


def prepare(
    source: Source,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    all_tokens: bool = False,
    limit: int | None = None,
    draw_seed: int | None = None,
    exclude: Source | None = None,
) -> tuple[Dataset, DataReport]:
    """Tokenise training examples with the team's one prompt format.

    Args:
        source: a JSONL or parquet file, a hub id (its train split), or live rows; each row has ``prompt`` and
            ``completion``, or ``messages``. Of several turns only the assistant's last one is learned; the turns
            before it are the prompt.
        max_length: longer examples lose the end of their answer; without room for one answer token they are dropped.
        all_tokens: learn the prompt too (every token but the first).
        limit: only so many rows: the first ones, or with ``draw_seed`` a random draw.
        exclude: rows with prompts that must not be learned, such as a test set; answers there are not read. Prompts
            are the same if their token ids are: a conversation that only begins like one of them is kept.

    Returns:
        columns ``input_ids`` (list of int32), ``prompt_length`` (tokens ``[prompt_length:]`` are to be learned) and
        ``row`` (int64, the row's number in the source, from 1).

    Raises:
        DataError: no file, no rows, a row of another form (named), or nothing left after dropping.
    """
    examples, counts = encode_rows(
        source,
        read_example,
        prompt_format,
        max_length,
        all_tokens=all_tokens,
        limit=limit,
        draw_seed=draw_seed,
        exclude=exclude,
    )
    report = DataReport(kept=len(examples), **counted(examples, counts, max_length, exclude))
    refuse_empty(source, report)
    return examples.dataset(), report


class Examples:
    """Token ids one after another: as Python lists, 200,000 examples would take several gigabytes."""

    def __init__(self) -> None:
        self.ids, self.prompt_lengths = array("i"), array("i")
        self.offsets, self.rows = array("q", [0]), array("q")

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - sum(self.prompt_lengths)

    def add(self, ids: list[int], prompt_length: int, row: int) -> None:
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))
        self.prompt_lengths.append(prompt_length)
        self.rows.append(row)

    def dataset(self) -> Dataset:
        columns = {
            "input_ids": list_column(np.array(self.offsets), np.array(self.ids, dtype=np.int32)),
            "prompt_length": pa.array(np.array(self.prompt_lengths)),
            "row": pa.array(np.array(self.rows)),
        }
        return Dataset(pa.table(columns))


def list_column(offsets: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    """Row i is ``values[offsets[i]:offsets[i + 1]]``; 64-bit, for two billion tokens are not much."""
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def encode_rows(
    source: Source,
    read: Reader,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    all_tokens: bool = False,
    limit: int | None = None,
    draw_seed: int | None = None,
    exclude: Source | None = None,
) -> tuple[Examples, Counter[str]]:
    """Every row that can be learned from, one sequence per answer; and how many rows could not, and why.

    Raises `DataError` for a source without rows, and for a row that ``read`` does not take.
    """
    if prompt_format.tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token, so a router could not learn to stop; set one")
    excluded = set() if exclude is None else _prompts_of(exclude, prompt_format)
    examples, counts = Examples(), Counter[str]()
    for number, row in draw_rows(source, limit, draw_seed):
        prompt, answers = _encode(row, read, prompt_format, f"{name_of(source)}, row {number}")
        fitting = [answer[: max(max_length - len(prompt), 0)] for answer in answers]
        fate = "excluded" if _key(prompt) in excluded else _fate(answers, fitting)
        counts[fate] += 1
        if fate == "kept":
            counts["cut"] += sum(len(cut) < len(answer) for cut, answer in zip(fitting, answers, strict=True))
            for answer in fitting:
                examples.add(prompt + answer, prompt_length=1 if all_tokens else len(prompt), row=number)
    if not counts:
        raise DataError(f"{name_of(source)} holds no rows; give at least one example")
    return examples, counts


def _fate(answers: list[list[int]], fitting: list[list[int]]) -> str:
    """What becomes of a row with these answers, of which so much fits beside the prompt."""
    if not all(answers):
        return "empty"
    if not all(fitting):
        return "too_long"
    return "identical" if len(fitting) == 2 and fitting[0] == fitting[1] else "kept"


def counted(examples: Examples, counts: Mapping[str, int], max_length: int, exclude: Source | None) -> dict[str, Any]:
    """What every report says, by name."""
    return {
        **{key: counts[key] for key in ("cut", "too_long", "empty", "excluded")},
        "answer_tokens": examples.answer_tokens,
        "max_length": max_length,
        "exclude": "" if exclude is None else name_of(exclude),
    }


def refuse_empty(source: Source, report: DataReport) -> None:
    """Raises `DataError` if no row was kept."""
    if not report.kept:
        raise DataError(f"nothing is left of the {report.dropped:,} rows of {name_of(source)}: {report}")


def _encode(row: Row, read: Reader, prompt_format: PromptFormat, place: str) -> tuple[list[int], list[list[int]]]:
    """Ids of prompt and answers; those of an empty answer are none at all, not a lone end of sequence."""
    try:
        prompt, *answers = read(row)
        return prompt_format.encode(prompt), [prompt_format.encode_answer(a) if a.strip() else [] for a in answers]
    except (DataError, PromptError) as error:
        raise DataError(f"{place}: {error}") from error


def _prompts_of(source: Source, prompt_format: PromptFormat) -> set[bytes]:
    places = ((f"{name_of(source)}, row {number}", row) for number, row in enumerate(read_rows(source), start=1))
    return {_key(_encode(row, lambda row: (read_prompt(row),), prompt_format, place)[0]) for place, row in places}


def _key(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()  # tuples would take several times the memory
