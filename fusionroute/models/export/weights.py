"""The weights of each model into a folder of its own: linked or copied as they are, an adapter merged into its base."""

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedConfig

from fusionroute.models.export.files import weight_files
from fusionroute.models.export.format import HEAD_FILE, folder_of
from fusionroute.models.loading import ModelReference, adapter_at, load_model, save_model
from fusionroute.progress import Progress

MEGABYTE = 2**20
PIECE = 64 * MEGABYTE
# What keeps a file from being linked but not from being copied: another file system, one without links, or too many
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK)


@dataclass
class Exported:
    """What was done.

    Attributes:
        linked, copied, merged: names of the models whose weights share the disk with the original, were copied, and
            were merged from an adapter and its base.
        notes: what its user should know, a sentence each.
        dtype: the narrowest precision that holds the weights of all models.
    """

    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dtype: str = "float32"

    def serve(self, folder: str | Path) -> str:
        """The command that serves it. vLLM takes float32 for a mistake, and rounds it unless it is asked for."""
        return f"vllm serve {folder}" + (" --dtype float32" if self.dtype == "float32" else "")


def write_weights(
    target: Path,
    parts: Mapping[str, ModelReference],
    configs: Mapping[str, PreTrainedConfig],
    done: Exported,
    *,
    copy: bool,
    progress: Progress,
) -> list[str]:
    """Every model's weights in a folder of its own; returns the names of the files, relative to ``target``."""
    sources = {name: {} if adapter_at(each) else weight_files(each) for name, each in parts.items()}
    progress.start(
        "exporting, MB", max(1, sum(_megabytes(path) for each in sources.values() for path in each.values()))
    )
    for name, files in sources.items():
        place = target / folder_of(name)
        place.mkdir(parents=True)
        if not files:
            _write_merged(parts[name], configs[name], place, (target / HEAD_FILE).stat().st_mode)
            done.merged.append(name)
        else:
            links = [_link_or_copy(path, place / at, name, progress, copy=copy) for at, path in files.items()]
            (done.linked if all(links) else done.copied).append(name)
    folders = [target / folder_of(name) for name in parts]
    return [path.relative_to(target).as_posix() for at in folders for path in sorted(at.rglob("*")) if path.is_file()]


def _link_or_copy(source: Path, target: Path, note: str, progress: Progress, *, copy: bool) -> bool:
    """Is it a link? Between file systems, and on those that know none, it is a copy."""
    source = source.resolve()  # the hub's cache holds symbolic links
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or not _linked(source, target):
        _copy(source, target, note, progress)
        return False
    progress.advance(_megabytes(source), note)
    return True


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    return True


def _copy(source: Path, target: Path, note: str, progress: Progress) -> None:
    # "x": a file that is there may be a link to an original
    with source.open("rb") as reader, target.open("xb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            progress.advance(len(piece) // MEGABYTE, note)


def _megabytes(path: Path) -> int:
    return path.stat().st_size // MEGABYTE


def _write_merged(reference: ModelReference, config: PreTrainedConfig, place: Path, mode: int) -> None:
    """An adapter merged into its base, in memory alone; what is not weights is not kept."""
    merged = load_model(reference.model_copy(update={"device": "cpu"}), dtype=dtype_of(config), merge_adapter=True)
    save_model(merged, place)
    for path in place.iterdir():
        if not path.name.startswith("model"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.chmod(mode)


def dtype_of(config: PreTrainedConfig) -> torch.dtype:
    """Of the weights; float32 where the configuration does not say."""
    return cast(torch.dtype, config.dtype or torch.float32)
