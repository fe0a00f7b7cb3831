"""Finding lm-eval's tasks by name, and your own; knows nothing of data or models.

lm-eval's own index of its 14,000 files takes some twenty seconds to build. A task is found here by its line
``task: name`` in about one; only groups and tags of lm-eval need the whole index.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from fusionroute.errors import SettingsError

OWN = Path(lm_eval.tasks.__file__).parent
OURS = Path(__file__).with_name("own")  # what lm-eval lacks
LINE = re.compile(rb"""^["']?(task|group)["']?[ \t]*:[ \t]*["']?([^"'\s#]+)["']?[ \t]*(?:#.*)?\r?$""", re.MULTILINE)
TASKS = (Kind.TASK, Kind.PY_TASK)

Registry = dict[str, Entry]


class TaskNames:
    """Every task, group and tag by name.

    Args:
        include: folders with YAML tasks of your own, which come before lm-eval's of the same name.

    Raises:
        SettingsError: a folder is not there.
    """

    def __init__(self, include: Sequence[str | Path] = ()) -> None:
        self.include = [Path(folder) for folder in include]
        for folder in self.include:
            if not folder.is_dir():
                raise SettingsError(f"no folder of tasks at {folder}; `include` takes folders with lm-eval YAML files")
        self.include.append(OURS)
        self.local: Registry = TaskIndex.build(self.include)

    def find(self, name: str) -> tuple[Entry, Registry]:
        """The entry of that name, and the entries that it may refer to.

        Raises:
            SettingsError: there is none; the nearest names are given.
        """
        entry = self.local.get(name)
        if entry is not None and entry.kind is not Kind.TAG and self._missing <= self._lent.keys():
            return entry, self.local | self._lent
        if entry is None and name in own_tasks():
            return TaskIndex.entry_from_path(own_tasks()[name]), {}
        if entry is None and not self._occurs(name):
            raise SettingsError(self._unknown(name))
        if name not in self.everything:
            raise SettingsError(self._unknown(name))
        return self.everything[name], self.everything

    @cached_property
    def everything(self) -> Registry:
        """lm-eval's whole index with the included folders: slow."""
        return TaskIndex.build([OWN, *self.include])

    @cached_property
    def _missing(self) -> set[str]:
        """What your groups refer to beyond your own tasks."""
        groups = (entry.cfg or {} for entry in self.local.values() if entry.kind is Kind.GROUP)
        return {member for group in groups for member in _members(group)} - self.local.keys()

    @cached_property
    def _lent(self) -> Registry:
        """Of these, the ones that are tasks of lm-eval."""
        found = self._missing and self._missing & own_tasks().keys()
        return {name: TaskIndex.entry_from_path(own_tasks()[name]) for name in found}

    def _occurs(self, name: str) -> bool:
        """Whether any file of lm-eval mentions the name, as it would if it were a group or a tag."""
        return any(name.encode() in path.read_bytes() for path in OWN.glob("**/*.yaml"))

    def _unknown(self, name: str) -> str:
        known = [*self.local, *(own for _, own in own_names())]
        close = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "`lm-eval ls tasks` lists lm-eval's own"
        broken = "".join(f"; {problem}" for problem in self._broken_files())
        return f"unknown task {name!r}; {hint}{broken}"

    def _broken_files(self) -> Iterator[str]:
        """Files of your own that the index has left out without a word."""
        for path in (path for folder in self.include for path in sorted(folder.glob("**/*.yaml"))):
            try:
                TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, {})
            except (yaml.YAMLError, ValueError, OSError) as error:
                yield f"{path} cannot be read as a task: {' '.join(str(error).split())}"


@cache
def own_names() -> dict[tuple[str, str], Path]:
    """("task" or "group", name) to lm-eval's file that says so, the first one in lm-eval's own order."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(OWN.glob("**/*.yaml"), key=lambda path: path.as_posix()):
        for kind, name in LINE.findall(path.read_bytes()):
            found.setdefault((kind.decode(), name.decode()), path)
    return found


@cache
def own_tasks() -> dict[str, Path]:
    return {name: path for (kind, name), path in own_names().items() if kind == "task"}


def raw_config(entry: Entry) -> dict[str, Any]:
    """A task's YAML with its includes; functions stay names, so nothing is imported."""
    return load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else dict(entry.cfg or {})


def first_task(entry: Entry, registry: Registry) -> Entry:
    """The task itself, or the first one of a group or tag; a group that defines all of its tasks itself has none."""
    while entry.kind not in TASKS:
        members = sorted(entry.tags) if entry.kind is Kind.TAG else list(_members(entry.cfg or {}))
        known = [registry[name] for name in members if name in registry]
        if not known:
            return entry
        entry = known[0]
    return entry


def _members(config: Mapping[str, Any]) -> Iterator[str]:
    """The names that a group refers to, also from groups defined inside it."""
    listed = config.get("task")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item)
        else:
            yield item.get("group") or item["task"]
