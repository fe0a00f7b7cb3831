"""Everything a user may name: options of commands, of files and of requests, and what Python offers. One line each.

python tests/surface.py           # print it
python tests/surface.py --write   # accept a change, which the changelog is to mention

`test_surface.py` compares it with `data/surface.txt`, so that nothing users rely on changes unnoticed.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

import fusionroute
from fusionroute.cli import app
from fusionroute.config import GenerationSettings
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.evaluation.compare.lineup import ENTRIES
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.harness.model import ModelArguments
from fusionroute.evaluation.tasks import TaskSettings
from fusionroute.models.ensemble import EnsembleSettings
from fusionroute.models.loading import ModelReference
from fusionroute.models.team import TeamFile
from fusionroute.moe.baselines.soft_prompts import SoftPromptSettings
from fusionroute.moe.roma.settings import RoMASettings
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest
from fusionroute.server.settings import ServerSettings
from fusionroute.training.settings import TrainSettings

FILE = Path(__file__).parent / "data" / "surface.txt"
MODELS: tuple[type[BaseModel], ...] = (
    GenerationSettings, SpeculationSettings, ModelReference, TeamFile, EnsembleSettings, TrainSettings, RoMASettings,
    SoftPromptSettings, CompareSettings, TaskSettings, *dict.fromkeys(ENTRIES.values()), ModelArguments, ServerSettings,
    ChatRequest, CompletionRequest,
)  # fmt: skip


def commands() -> dict[str, Any]:
    """By its words, each command of `fusionroute`."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield " ".join(words), command
        for name, each in sorted((inner or {}).items()):
            yield from walk(each, (*words, name))

    return dict(walk(get_command(app), ("fusionroute",)))


def options(command: Any) -> dict[str, Any]:
    """By its flag, the default of each option of a command."""
    return {"/".join(each.opts): each.default for each in command.params if each.opts[0].startswith("-")}


def _command_lines() -> Iterator[str]:
    for words, command in commands().items():
        for each in command.params:
            default = "required" if each.required else repr(each.default)
            yield f"{words} {'/'.join(each.opts)} = {default}"


def _model_lines(model: type[BaseModel], name: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _model_lines(inner, f"{name}.{key}")
        else:
            default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
            yield f"{name}.{key} = {default}"


def _python_lines() -> Iterator[str]:
    for name in fusionroute.__all__:
        offered = getattr(fusionroute, name)
        if not inspect.isclass(offered):
            yield f"{name}({_parameters(offered)})"
            continue
        if "__init__" in vars(offered):  # errors have none of their own, and the fields of settings follow
            yield f"{name}({_parameters(offered)})"
        yield from (f"{name}.{field}" for field in getattr(offered, "__dataclass_fields__", ()))
        for method in _own_names(offered):
            live = getattr(offered, method)
            yield f"{name}.{method}" + (f"({_parameters(live)})" if callable(live) else "")


def _own_names(offered: type) -> list[str]:
    """Public names of a class that are ours, not those of PyTorch or pydantic."""
    ours = [each for each in offered.__mro__ if each.__module__.startswith("fusionroute")]
    fields = {*getattr(offered, "__dataclass_fields__", ()), *getattr(offered, "model_fields", ())}
    names = {name for each in ours for name in vars(each) if not name.startswith(("_", "model_"))}
    return sorted(name for name in names - fields if hasattr(offered, name))


def _parameters(live: Any) -> str:
    return ", ".join(map(str, inspect.signature(live).parameters))


def surface() -> str:
    """Lines of Python, of the command line, then of files and requests."""
    lines = [*_python_lines(), *_command_lines()]
    lines += [line for model in MODELS for line in _model_lines(model, model.__name__)]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(surface(), encoding="utf-8")
    else:
        print(surface(), end="")
