"""What the experts say of the data: two numbers per answer token and expert, on disk (spec, section 8, Caching).

A folder of scores holds ``data.parquet`` (token ids), one ``<expert>.parquet`` per expert and ``scores.json``, which
says what they belong to. Both losses need no more of an expert, so experts and router are never in memory together.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.errors import DataError, ModelOutputError
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.ops.losses import target_nll
from fusionroute.output import write_json
from fusionroute.training.data import list_column
from fusionroute.training.fingerprint import (
    data_fingerprint,
    expert_fingerprint,
    prompt_lengths,
    token_counts,
    vocabulary_fingerprint,
)
from fusionroute.training.progress import Progress, Silent

SCORES_FILE = "scores.json"
DATA_FILE = "data.parquet"
NLL, TOP = "nll.", "top_choice."  # columns of loaded scores are nll.<expert> and top_choice.<expert>


@torch.no_grad()
def score_batch(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a frozen expert says of each next token.

    Args:
        input_ids, attention_mask: ``[batch, positions]``, padded on the right.

    Returns:
        −log π(token t+1), float32, and the expert's own choice for t+1, int32; both ``[batch, positions − 1]``.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    # One row at a time: in float32 a whole batch of large-vocabulary logits would be the largest thing in memory
    nll = torch.stack([target_nll(row, targets) for row, targets in zip(logits, input_ids[:, 1:], strict=True)])
    return nll, logits.argmax(-1).int()


def score(
    dataset: Dataset,
    experts: Mapping[str, ModelReference],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    batch_size: int = 16,
    dtype: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Run each expert once over ``dataset``, one in memory at a time, and write what it says to ``folder``.

    Experts that this folder already has are skipped, so an interrupted scoring goes on where it stopped.

    Raises:
        DataError: the folder holds scores of other data, another vocabulary or another expert.
        ModelOutputError: an expert's numbers are not finite.
    """
    folder, progress = Path(folder), progress or Silent()
    wanted: dict[str, Any] = {
        "data": data_fingerprint(dataset),
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "experts": {name: expert_fingerprint(reference, dtype) for name, reference in experts.items()},
    }
    _refuse_other_scores(folder, wanted)
    if not (folder / SCORES_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_table(dataset.data.table, folder / DATA_FILE)
        write_json(folder / SCORES_FILE, {**wanted, "experts": {}})
    for name, reference in experts.items():
        if _is_scored(folder, name):
            progress.finish(f"{name}: scored before")
            continue
        model = load_model(reference, dtype=dtype, device=device)
        progress.start(f"score {name}", len(dataset))
        table = score_dataset(model, dataset, batch_size, progress, name)
        del model
        clear_device_cache(garbage_collection=True)
        _write_table(table, folder / f"{name}.parquet")
        _record(folder, name, wanted["experts"][name])  # last: an expert counts as scored from here on
        progress.finish(f"{name}: mean loss {np.mean(table['nll'].combine_chunks().values):.3f} per answer token")


def score_dataset(
    model: PreTrainedModel, dataset: Dataset, batch_size: int, progress: Progress, name: str = "the expert"
) -> pa.Table:
    """Columns ``nll`` and ``top_choice``: lists over the answer tokens of each example, in the dataset's order."""
    counts, starts = token_counts(dataset), prompt_lengths(dataset)
    offsets = np.concatenate([[0], np.cumsum(counts - starts)])
    nll, top = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.int32)
    # Longest first: if a batch does not fit in memory, it shows at once
    order = np.argsort(-counts, kind="stable")
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        batch_nll, batch_top = _score_rows(model, dataset[rows.tolist()]["input_ids"])
        for at, row in enumerate(rows):
            answer = slice(starts[row] - 1, counts[row] - 1)
            nll[offsets[row] : offsets[row + 1]] = batch_nll[at, answer]
            top[offsets[row] : offsets[row + 1]] = batch_top[at, answer]
            _refuse_infinite(nll[offsets[row] : offsets[row + 1]], name, row)
        progress.advance(len(rows))
    return pa.table({"nll": list_column(offsets, nll), "top_choice": list_column(offsets, top)})


def _score_rows(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    nll, top = score_batch(model, ids.to(model.device), mask.to(model.device))
    return nll.cpu().numpy(), top.cpu().numpy()


def _refuse_infinite(nll: np.ndarray, name: str, row: int) -> None:
    if not np.isfinite(nll).all():
        raise ModelOutputError(
            f"expert {name!r} gives a loss of {nll[~np.isfinite(nll)][0]} on example {row + 1}; "
            "its weights are broken or its dtype is too narrow (try bfloat16 or float32)"
        )


def load_scores(folder: str | Path, experts: Sequence[str] | None = None) -> Dataset:
    """Scored examples, ready for training.

    Args:
        experts: in the order of the route head; None takes all, in the order in which they were scored.

    Returns:
        columns ``input_ids``, ``prompt_length``, then for each expert ``nll.<name>`` and then for each
        ``top_choice.<name>``: lists over the answer tokens.

    Raises:
        DataError: there are no scores, an expert has none, or the files do not belong together.
    """
    folder = Path(folder)
    recorded = _read_record(folder)
    if recorded is None:
        raise DataError(f"{folder} holds no scores; make them with fusionroute score")
    names = list(experts) if experts is not None else list(recorded["experts"])
    missing = [name for name in names if not _is_scored(folder, name)]
    if missing or not names:
        raise DataError(f"{folder} has no scores of {', '.join(missing) or 'any expert'}; run fusionroute score again")
    data = _read_table(folder / DATA_FILE)
    tables = {name: _read_table(folder / f"{name}.parquet") for name in names}
    columns = {"input_ids": data["input_ids"], "prompt_length": data["prompt_length"]}
    columns |= {NLL + name: table["nll"] for name, table in tables.items()}
    columns |= {TOP + name: table["top_choice"] for name, table in tables.items()}
    if any(table.num_rows != data.num_rows for table in tables.values()):
        raise DataError(f"the files in {folder} have different numbers of examples; score anew")
    dataset = Dataset(pa.table(columns))
    if data_fingerprint(dataset)["hash"] != recorded["data"]["hash"]:
        raise DataError(f"{folder / DATA_FILE} was changed since it was scored; score anew")
    return dataset


def expert_names(scored: Dataset) -> list[str]:
    """Experts of loaded scores, in order. Raises `DataError` if these are not scores."""
    names = [column.removeprefix(NLL) for column in scored.column_names if column.startswith(NLL)]
    if not names:
        raise DataError(f"these examples carry no scores, only {', '.join(scored.column_names)}; see load_scores")
    return names


def _is_scored(folder: Path, name: str) -> bool:
    recorded = _read_record(folder)
    return recorded is not None and name in recorded["experts"] and (folder / f"{name}.parquet").is_file()


def _record(folder: Path, name: str, fingerprint: dict[str, Any]) -> None:
    recorded = _read_record(folder)
    assert recorded is not None
    recorded["experts"][name] = fingerprint
    write_json(folder / SCORES_FILE, recorded)


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {key: recorded[key] for key in ("data", "vocabulary", "experts")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the record of scores ({error!r}); score into another folder") from error


def _refuse_other_scores(folder: Path, wanted: dict[str, Any]) -> None:
    found = _read_record(folder)
    if found is None:
        return
    differences = [
        *_differences("data", found["data"], wanted["data"]),
        *_differences("tokenizer", {"vocabulary": found["vocabulary"]}, {"vocabulary": wanted["vocabulary"]}),
    ]
    for name in found["experts"].keys() & wanted["experts"].keys():
        differences += _differences(f"expert {name!r}", found["experts"][name], wanted["experts"][name])
    if differences:
        raise DataError(
            f"{folder} holds scores of something else ({'; '.join(differences)}); "
            "choose another output folder, or ask for it to be overwritten"
        )


def _differences(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}: {key} was {_short(found.get(key))}, is now {_short(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] + "…" if len(text) == 64 else text  # hashes only need to be seen to differ


def _write_table(table: pa.Table, path: Path) -> None:
    """Whole or not at all; the temporary name is the same each time, so a killed run leaves at most one behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); score anew") from error
