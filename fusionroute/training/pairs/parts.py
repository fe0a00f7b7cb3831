"""What a killed making of pairs has left: one file per chunk of prompts, each whole or absent."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from fusionroute.errors import OutputExistsError
from fusionroute.output import is_empty, write_json

RECORD = "made_of.json"
Identity = Mapping[str, Mapping[str, Any]]  # a kind ("settings", "models") to names and values


class Parts:
    """Numbered parts in ``folder``, all made with the same settings, of the same prompts, by the same models."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, identity: Identity, *, overwrite: bool = False) -> Self:
        """Continue what ``folder`` holds, or begin there; ``overwrite`` removes parts of something else.

        Raises:
            OutputExistsError: the parts are of something else (named), or the folder holds what nobody may remove.
        """
        _refuse_foreign(folder)
        differences = list(_changes(_made_of(folder) or identity, json.loads(json.dumps(identity))))
        if differences and not overwrite:
            raise OutputExistsError(
                f"{folder} holds parts of something else ({'; '.join(differences)}); "
                "choose another output, or ask for it to be overwritten"
            )
        if differences:
            shutil.rmtree(folder)
        write_json(folder / RECORD, identity)
        return cls(folder)

    def __contains__(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, pairs: list[dict[str, Any]], counts: Mapping[str, int]) -> None:
        write_json(self._path(number), {"counts": dict(counts), "pairs": pairs})

    def read(self) -> tuple[list[dict[str, Any]], Counter[str]]:
        """The pairs of all parts in their order, and the sums of the counts."""
        pairs: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        for path in sorted(self.folder.glob("part-*.json")):
            part = json.loads(path.read_text(encoding="utf-8"))
            pairs += part["pairs"]
            counts.update(part["counts"])
        return pairs, counts

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.json"


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and (_made_of(folder) or is_empty(folder))):
        raise OutputExistsError(f"{folder} is no folder of parts and is left alone; choose another output")


def _made_of(folder: Path) -> Any:
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _changes(found: Identity, wanted: Identity) -> Iterator[str]:
    for kind, values in wanted.items():
        before = found.get(kind, {})
        for name in dict.fromkeys([*before, *values]):
            if before.get(name) != values.get(name):
                yield f"{kind}: {name} was {_short(before.get(name))}, is now {_short(values.get(name))}"


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] + "…" if len(text) == 64 else text  # hashes only need to be seen to differ
