"""Tuned routers on disk: the base's checkpoint with nothing but its gates changed, or those gates alone.

A tuned checkpoint is a copy of the base's files in which the bytes of a few tensors are written over. So names, dtypes
and shards stay the base's, and every other tensor is bit-identical by construction.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fusionroute.environment import versions
from fusionroute.errors import CheckpointError, UnsupportedModelError
from fusionroute.models.fingerprint import model_fingerprint
from fusionroute.models.gates import Gate
from fusionroute.models.loading import ModelReference, adapter_at, as_reference, require_location
from fusionroute.output import new_folder, write_text

DELTA_FILE = "router_delta.safetensors"
MARK = "fusionroute.router_delta"  # the one key of its metadata: of several, safetensors shuffles the order
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")  # config, tokenizer, remote code
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CARD = """---
library_name: transformers
base_model: {base}
---
# {title}

{base} with its mixture-of-experts routers tuned by fusionroute {version} (RoMA, arXiv 2511.07419). These tensors differ
from the base's; all others are bit-identical, and it runs wherever the base does.

{rows}
"""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    start: int
    length: int
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


class BaseFiles:
    """The checkpoint that routers were tuned in: where its tensors lie, and what tells it from any other.

    Args:
        reference: folder or hub id of a model with weights of its own in safetensors.

    Raises:
        CheckpointError: it is an adapter, or has no readable safetensors weights.
    """

    def __init__(self, reference: str | Path | ModelReference):
        self.reference = as_reference(reference)
        self.folder = _folder(self.reference)
        self.files = _weight_files(self.folder)
        self.places = {name: place for file in self.files for name, place in _read_header(file).items()}

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises `CheckpointError` or `UnsupportedModelError` unless each of them can be written over."""
        for name, tensor in tensors.items():
            place = self.places.get(name)
            if place is None:
                raise CheckpointError(
                    f"{self.reference.model} has no tensor {name}, under which transformers writes this router; save "
                    "the base with its save_pretrained and tune that"
                )
            if place.shape != tuple(tensor.shape):
                raise CheckpointError(
                    f"{name} is {list(place.shape)} in {self.reference.model}, and {list(tensor.shape)} was tuned; use "
                    "the base that it was tuned from"
                )
            if place.dtype not in DTYPES:
                raise UnsupportedModelError(
                    f"{name} of {self.reference.model} is stored as {place.dtype}; tune an unquantised checkpoint "
                    f"({', '.join(DTYPES)})"
                )

    def rounded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in the dtypes that the base stores them in, on the CPU."""
        self.require(tensors)
        return {name: each.detach().cpu().to(DTYPES[self.places[name].dtype]) for name, each in tensors.items()}

    def identity(self, names: Iterable[str]) -> dict[str, str]:
        """What the base is known by: its files, sampled, and the tensors ``names`` in full."""
        digest = hashlib.sha256()
        for name in sorted(names):
            place = self.places.get(name)
            digest.update(f"{name} {place and (place.dtype, place.shape)}".encode())
            digest.update(place.read() if place else b"")
        content = model_fingerprint(ModelReference(model=str(self.folder)), None)["content"]
        return {"base_content": str(content), "base_routers": digest.hexdigest()}


def tensors_on_disk(model: PreTrainedModel, gates: Iterable[Gate]) -> dict[str, Tensor]:
    """The gates' live weights under the names that the model's checkpoint has for them."""
    named = {id(weight): name for name, weight in model.named_parameters()}
    live = {named[id(gate.weight)]: gate.weight.detach() for gate in gates}
    return dict(revert_weight_conversion(model, live))


def save_delta(base: BaseFiles, tensors: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write the routers alone, with a note of the base they belong to.

    Args:
        tensors: by their names on disk; see `tensors_on_disk`.
        path: of the file; a folder gets `DELTA_FILE`.
    """
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / DELTA_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "version": versions()["fusionroute"],
        "base_model": base.reference.model,
        "base_revision": base.reference.revision,
        **base.identity(tensors),
    }
    temporary = file.with_name(f".{file.name}.tmp")
    save_file(
        {name: each.contiguous() for name, each in base.rounded(tensors).items()},
        temporary,
        metadata={MARK: json.dumps(described)},
    )
    temporary.replace(file)
    return file


def load_delta(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A delta, named by its file or its folder: the tensors, and what is said of their base.

    Raises:
        CheckpointError: there is none, or the file is something else.
    """
    path = Path(path).expanduser()
    file = path / DELTA_FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no router delta at {file}; give the file or its folder")
    try:
        with safe_open(file, framework="pt") as opened:
            marked = (opened.metadata() or {}).get(MARK)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read as safetensors ({error}); save it again") from error
    if marked is None:
        raise CheckpointError(f"{file} is no router delta of fusionroute; give one that `roma train` wrote")
    return load_file(file), json.loads(marked)


def apply_delta(
    base: str | Path | ModelReference, delta: str | Path, output: str | Path, *, overwrite: bool = False
) -> Path:
    """Write the checkpoint that a delta and its base make: what `roma train` writes without ``--delta``.

    Raises:
        CheckpointError: the delta is unreadable or was made for another base.
        OutputExistsError: ``output`` holds something already.
    """
    tensors, described = load_delta(delta)
    files = BaseFiles(base)
    files.require(tensors)
    refuse_other_base(files, delta, tensors, described)
    return write_tuned(files, tensors, output, overwrite=overwrite)


def refuse_other_base(
    files: BaseFiles, delta: str | Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]
) -> None:
    """Raise `CheckpointError` unless what `load_delta` gave was made for these very files."""
    found = files.identity(tensors)
    if different := [name for name, value in found.items() if described.get(name) != value]:
        what = "the same routers but other weights" if different == ["base_content"] else "other routers"
        raise CheckpointError(
            f"{delta} was made for {described.get('base_model')}, and {files.reference.model} has {what}; apply it to "
            "that very base"
        )


def write_tuned(base: BaseFiles, tensors: Mapping[str, Tensor], output: str | Path, *, overwrite: bool = False) -> Path:
    """Write the base with ``tensors`` in place of its own: a normal checkpoint with the base's tokenizer and dtypes.

    Raises:
        OutputExistsError: ``output`` holds something already.
    """
    output, rounded = Path(output), base.rounded(tensors)
    with new_folder(output, overwrite=overwrite) as folder:
        beside = {path for pattern in BESIDE_WEIGHTS for path in base.folder.glob(pattern) if path.is_file()}
        for path in sorted(beside | set(base.files)):
            shutil.copyfile(path, folder / path.name)
        for name, tensor in rounded.items():
            place = base.places[name]
            with (folder / place.file.name).open("r+b") as file:
                file.seek(place.start)
                file.write(_bytes(tensor, place))
        write_text(folder / "README.md", _card(output.name, base, rounded))
    return output


def _bytes(tensor: Tensor, place: Place) -> bytes:
    written = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert len(written) == place.length
    return written


def _card(title: str, base: BaseFiles, tensors: Iterable[str]) -> str:
    rows = "\n".join(f"* `{name}`" for name in tensors)
    return CARD.format(title=title, base=base.reference.model, version=versions()["fusionroute"], rows=rows)


def _folder(reference: ModelReference) -> Path:
    location = require_location(reference.model)
    if adapter_at(reference) is not None:
        raise CheckpointError(
            f"{location} is an adapter, and routers are tuned in a checkpoint of their own; merge it into its base and "
            "save the result first"
        )
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted, foreign = ["*.safetensors", *BESIDE_WEIGHTS], ["*/*", "consolidated*"]  # copies in another format
        return Path(
            snapshot_download(location, revision=reference.revision, allow_patterns=wanted, ignore_patterns=foreign)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{location} cannot be fetched ({error}); fetch it into a folder and name that"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, and no others that lie beside them."""
    index = folder / INDEX
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else None
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index} is not readable ({error}); fetch or save the model again") from error
    files = [folder / name for name in sorted(names or {WEIGHTS})]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {file.name}; routers are tuned in safetensors weights: save it as such"
            )
    return files


def _read_header(file: Path) -> dict[str, Place]:
    """Safetensors: the header's length in eight bytes, the header as JSON, then the tensors one after another."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        return {name: _place(file, 8 + size, each) for name, each in header.items()}
    except (ValueError, KeyError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors ({error}); fetch or save it again") from error


def _place(file: Path, origin: int, entry: Mapping) -> Place:
    start, end = entry["data_offsets"]
    return Place(file, origin + start, end - start, entry["dtype"], tuple(entry["shape"]))
