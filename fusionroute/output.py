"""Where results are written: under a temporary name first, then renamed, and never over another run unasked."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionroute.errors import OutputExistsError, SettingsError

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the temporary names below


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well, and is removed when it does not.

    Of a symbolic link, what it leads to is written; the link stays.

    Raises:
        OutputExistsError: ``path`` exists, is not an empty folder, and ``overwrite`` is False.
        SettingsError: nothing can be written there, or it is, or holds, the current folder.
    """
    with _told_as_setting(path):
        refuse_existing(path, overwrite=overwrite)
        target = Path(path).resolve()
        _refuse_current(path, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.mkdir()
    try:
        yield temporary
        with _told_as_setting(path):
            _replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _told_as_setting(path: str | Path) -> Iterator[None]:
    """What the system says of a place that cannot be written, as one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is pathlib's for links that lead in a circle
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path} cannot be written ({reason}); choose another output folder") from error


def _refuse_current(path: str | Path, target: Path) -> None:
    """The folder is swapped for a new one, which would leave whoever stands in it nowhere."""
    current = Path.cwd()
    if current == target or target in current.parents:
        raise SettingsError(f"{path} is, or holds, the current folder, which would be replaced; give a folder below it")


def refuse_existing(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise `OutputExistsError` if writing to ``path`` would touch what somebody else wrote."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputExistsError(f"{path} is a file; give a folder")
    if path.is_dir() and not is_empty(path) and not overwrite:
        raise OutputExistsError(
            f"{path} already holds {_glimpse(path)}; choose another output folder, or ask for it to be overwritten"
        )


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a killed write of ours has left under a temporary name."""
    return all(LEFTOVER.fullmatch(item.name) for item in folder.iterdir())


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writes of ours have left; a whole model may lie under a temporary name."""
    for item in folder.iterdir() if folder.is_dir() else ():
        if LEFTOVER.fullmatch(item.name):
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def _glimpse(path: Path) -> str:
    names = sorted(item.name for item in path.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _replace_folder(source: Path, target: Path) -> None:
    """Swap by renames; the old folder is deleted only once the new one stands in its place."""
    old = None
    if target.exists():
        old = source.with_suffix(".old")
        os.replace(target, old)
    os.replace(source, target)
    if old is not None:
        shutil.rmtree(old)


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON so that a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
