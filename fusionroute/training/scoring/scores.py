"""What the experts say of the data: two numbers per answer token and expert, on disk (spec, section 8, Caching).

Both losses need no more of an expert, so experts and router are never in memory together. Files are written one by
one and never changed (see `score_folder`), so that scoring can be killed at any time, shared by several processes, and
continued by any number of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.errors import DataError, ModelOutputError
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.ops.losses import target_nll
from fusionroute.progress import Progress, Silent
from fusionroute.training.data.examples import list_column
from fusionroute.training.processes import join_processes, own_device
from fusionroute.training.scoring.fingerprint import (
    data_fingerprint,
    prompt_lengths,
    token_counts,
    vocabulary_fingerprint,
)
from fusionroute.training.scoring.folder import (
    DATA_FILE,
    SCORES_FILE,
    ExpertFiles,
    Layout,
    changed,
    checksum,
    read_record,
    read_table,
    refuse_other_scores,
    whole_file,
    write_record,
)

__all__ = ["NLL", "SCORES_FILE", "TOP", "expert_names", "load_scores", "score", "score_batch", "score_dataset"]

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
    examples_per_file: int = 512,
    dtype: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Run each expert once over ``dataset``, one in memory at a time, and write what it says to ``folder``.

    Files that are there already are kept, so an interrupted scoring goes on where it stopped. The processes of a launch
    share the files among them, and each returns when all are written.

    Args:
        dataset: as `prepare` or `prepare_pairs` makes it.
        examples_per_file: what a killed run loses at most; fixed by the first scoring of a folder.
        device: of every process; None gives each one its own accelerator.
        progress: hears of the main process's share.

    Raises:
        DataError: the folder holds scores of other data, another vocabulary or another expert; or the disk is full.
        ModelOutputError: an expert's numbers are not finite.
    """
    processes, folder = join_processes(device), Path(folder)
    progress = progress if progress and processes.is_main_process else Silent()
    dataset = Dataset(dataset.with_format("arrow")[:])  # what follows reads columns, past an index of selected rows
    wanted: dict[str, Any] = {
        "data": data_fingerprint(dataset),
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "examples_per_file": examples_per_file,
        "experts": {name: model_fingerprint(reference, dtype) for name, reference in experts.items()},
    }
    layout = _open_folder(folder, dataset, wanted, processes)
    scored = [name for name in experts if _is_scored(folder, name, layout)]
    processes.wait_for_everyone()  # from here on files appear, and all must have decided alike
    for name, reference in experts.items():
        if name in scored:
            progress.finish(f"{name}: scored before")
            continue
        files = ExpertFiles(folder, name, layout, wanted)
        share = range(processes.process_index, len(layout), processes.num_processes)
        missing = [number for number in share if not files.has(number)]
        _start(progress, name, layout, share, missing, processes)
        if missing:
            model = load_model(reference, dtype=dtype, device=own_device(processes, device))
            _score_files(model, dataset, files, missing, batch_size, progress, name)
            del model
            clear_device_cache(garbage_collection=True)
        processes.wait_for_everyone()
        if processes.is_main_process:
            mean = _record(folder, name, files, wanted["experts"][name])
            progress.finish(f"{name}: mean loss {mean:.3f} per answer token")
    processes.wait_for_everyone()


def _open_folder(folder: Path, dataset: Dataset, wanted: dict[str, Any], processes: PartialState) -> Layout:
    refuse_other_scores(folder, wanted)
    processes.wait_for_everyone()  # nobody writes before everybody has looked
    is_new = read_record(folder) is None
    if processes.is_main_process and (is_new or not (folder / DATA_FILE).is_file()):
        with whole_file(folder / DATA_FILE) as temporary:
            pq.write_table(dataset.data.table, temporary)
    if processes.is_main_process and is_new:
        write_record(folder, {**wanted, "experts": {}, "checksums": {}})
    processes.wait_for_everyone()
    recorded = read_record(folder)
    assert recorded is not None
    return Layout.of(dataset, recorded["examples_per_file"])


def _start(
    progress: Progress, name: str, layout: Layout, share: Sequence[int], missing: Sequence[int], processes: PartialState
) -> None:
    """Counts the examples of this process alone: what the others have done meanwhile is not known here."""
    others = f" (process 1 of {processes.num_processes})" if processes.num_processes > 1 else ""
    progress.start(f"score {name}{others}", sum(len(layout.rows(number)) for number in share))
    if len(missing) < len(share):
        progress.advance(sum(len(layout.rows(number)) for number in share if number not in missing), "resumed")


def _score_files(
    model: PreTrainedModel,
    dataset: Dataset,
    files: ExpertFiles,
    numbers: Sequence[int],
    batch_size: int,
    progress: Progress,
    name: str,
) -> None:
    for number in numbers:
        examples = Dataset(dataset.data.table.take(files.layout.rows(number)))
        files.write(number, score_dataset(model, examples, batch_size, progress, name))


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
            answer, place = slice(starts[row] - 1, counts[row] - 1), slice(offsets[row], offsets[row + 1])
            nll[place], top[place] = batch_nll[at, answer], batch_top[at, answer]
            if not np.isfinite(nll[place]).all():
                raise _not_finite(name, nll[place], dataset[int(row)]["row"])
        progress.advance(len(rows))
    return pa.table({"nll": list_column(offsets, nll), "top_choice": list_column(offsets, top)})


def _score_rows(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    nll, top = score_batch(model, ids.to(model.device), mask.to(model.device))
    return nll.cpu().numpy(), top.cpu().numpy()


def _not_finite(name: str, nll: np.ndarray, row: int) -> ModelOutputError:
    return ModelOutputError(
        f"expert {name!r} gives a loss of {nll[~np.isfinite(nll)][0]} on row {row} of the data; "
        "its weights are broken or its dtype is too narrow (try bfloat16 or float32)"
    )


def load_scores(folder: str | Path, experts: Sequence[str] | None = None) -> Dataset:
    """Scored examples, ready for training.

    Args:
        experts: in the order of the route head; None takes all, in the order in which they were scored;
            none at all gives the examples alone.

    Returns:
        the examples in their own order: columns ``input_ids``, ``prompt_length``, ``row``, then for each expert
        ``nll.<name>`` and then for each ``top_choice.<name>``: lists over the answer tokens.

    Raises:
        DataError: there are no scores, an expert has none, or a file is not as it was written.
    """
    folder = Path(folder)
    recorded = read_record(folder)
    if recorded is None:
        raise DataError(f"{folder} holds no scores; make them with fusionroute score")
    dataset = _load_data(folder, recorded)
    layout = Layout.of(dataset, recorded["examples_per_file"])
    names = list(experts) if experts is not None else list(recorded["experts"])
    missing = [name for name in names if not _is_scored(folder, name, layout)]
    if missing or (experts is None and not names):
        raise DataError(f"{folder} has no scores of {', '.join(missing) or 'any expert'}; run fusionroute score again")
    tables = {name: _load_expert(folder, name, layout, recorded) for name in names}
    columns = {name: dataset.data.column(name) for name in dataset.column_names}
    columns |= {NLL + name: table["nll"] for name, table in tables.items()}
    columns |= {TOP + name: table["top_choice"] for name, table in tables.items()}
    return Dataset(pa.table(columns))


def _load_data(folder: Path, recorded: Mapping[str, Any]) -> Dataset:
    dataset = Dataset(read_table(folder / DATA_FILE)).select_columns(["input_ids", "prompt_length", "row"])
    if data_fingerprint(dataset)["hash"] != recorded["data"]["hash"]:
        raise changed(folder / DATA_FILE)
    return dataset


def _load_expert(folder: Path, name: str, layout: Layout, recorded: Mapping[str, Any]) -> pa.Table:
    table = ExpertFiles(folder, name, layout, recorded).read_all()
    if checksum(table) != recorded["checksums"][name]:
        raise changed(folder / name)
    return table


def expert_names(scored: Dataset) -> list[str]:
    """Experts of loaded scores, in order. Raises `DataError` if these are not scores."""
    names = [column.removeprefix(NLL) for column in scored.column_names if column.startswith(NLL)]
    if not names:
        raise DataError(f"these examples carry no scores, only {', '.join(scored.column_names)}; see load_scores")
    return names


def _is_scored(folder: Path, name: str, layout: Layout) -> bool:
    recorded = read_record(folder)
    if recorded is None or name not in recorded["experts"]:
        return False
    return ExpertFiles(folder, name, layout, recorded).are_complete()


def _record(folder: Path, name: str, files: ExpertFiles, fingerprint: dict[str, Any]) -> float:
    """From here on the expert counts as scored. Returns its mean loss."""
    table, recorded = files.read_all(), read_record(folder)
    assert recorded is not None
    recorded["experts"][name], recorded["checksums"][name] = fingerprint, checksum(table)
    write_record(folder, recorded)
    return pc.mean(pc.list_flatten(table["nll"])).as_py()
