"""One voice: what users name changes only on purpose, and the same thing has the same name and default everywhere."""

from typing import Any

import pytest

import surface
from fusionroute.config import GenerationSettings
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.evaluation.compare.settings import CompareSettings, Decoding
from fusionroute.evaluation.harness.model import ModelArguments
from fusionroute.moe.roma.settings import DescentSettings, RoMASettings
from fusionroute.ops.merging import MergeSettings
from fusionroute.server.api.schemas import ChatRequest, CompletionRequest
from fusionroute.server.settings import ServerSettings
from fusionroute.training.settings import PairSettings

COMMANDS = surface.commands()
DECODING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "logprobs")


def default_of(model: Any, name: str) -> Any:
    return model.model_fields[name].get_default(call_default_factory=True)


def test_nothing_users_name_changed_unnoticed() -> None:
    assert surface.surface().splitlines() == surface.FILE.read_text(encoding="utf-8").splitlines(), (
        "users name these: if the change is meant, run `python tests/surface.py --write` and tell it in CHANGELOG.md"
    )


@pytest.mark.parametrize("command", ["fusionroute generate", "fusionroute chat"])
def test_decoding_has_the_same_names_and_defaults_on_the_command_line(command: str) -> None:
    flags = surface.options(COMMANDS[command])
    for name in {*DECODING, "max_new_tokens"} - ({"logprobs"} if command.endswith("chat") else set()):
        default = default_of(GenerationSettings, name)
        assert flags[f"--{name.replace('_', '-')}"] == (default or None if name == "stop" else default)


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_decoding_has_the_same_names_in_requests(request_type: Any) -> None:
    shared = {name for name in GenerationSettings.model_fields if name in request_type.model_fields}
    assert {"temperature", "top_k", "top_p", "min_p", "seed", "stop", "candidates", "presence_penalty"} <= shared
    unsaid = {name for name in shared if default_of(request_type, name) is not None}
    assert not unsaid, "what a request leaves out is decided in one place"


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("fusionroute pairs", PairSettings),
        ("fusionroute merge", MergeSettings),
        ("fusionroute serve", ServerSettings),
        ("fusionroute roma oracle", DescentSettings),
        ("fusionroute generate", SpeculationSettings),
        ("fusionroute roma evaluate", RoMASettings),
        ("fusionroute roma record", RoMASettings),
    ],
)
def test_an_option_of_a_file_is_the_same_flag(command: str, model: Any) -> None:
    flags = surface.options(COMMANDS[command])
    shared = [name for name in model.model_fields if f"--{name.replace('_', '-')}" in flags]
    assert shared
    for name in shared:
        flag = f"--{name.replace('_', '-')}"
        given = flags[flag]
        if given is not None:  # None: the settings' own default
            assert type(default_of(model, name))(given) == default_of(model, name), flag


def test_the_same_setting_of_two_files_has_one_default() -> None:
    at_once = surface.options(COMMANDS["fusionroute generate"])["--max-batch"]
    assert default_of(CompareSettings, "max_batch") == default_of(ServerSettings, "max_batch") == at_once
    assert default_of(ModelArguments, "max_new_tokens") == default_of(GenerationSettings, "max_new_tokens")
    assert set(Decoding.model_fields) <= set(GenerationSettings.model_fields)


# What they write is never replaced: replies that were paid for, and a build that goes on where it stopped.
ONLY_ADDED_TO = {"fusionroute judge", "fusionroute zoo build"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_results_are_named_by_output_and_replaced_by_overwrite(name: str) -> None:
    arguments = [each.name for each in COMMANDS[name].params if not each.opts[0].startswith("-")]
    assert "output" not in arguments, "a result is named by --output"
    flags = surface.options(COMMANDS[name])
    assert not {"--force", "--fresh", "--out", "-o"} & flags.keys()
    assert ("--overwrite" in flags) == ("--output" in flags and name not in ONLY_ADDED_TO)
