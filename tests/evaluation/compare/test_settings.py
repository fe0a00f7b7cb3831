"""What a compare file may say, and how it is told what it may not."""

from typing import Any

import pytest

from fusionroute.errors import SettingsError
from fusionroute.evaluation.compare.cells import cells
from fusionroute.evaluation.compare.settings import CompareSettings, slug

FILE: dict[str, Any] = {
    "experts": {"math": "owner/math", "code": "owner/code"},
    "base": "owner/base",
    "seeds": [0, 1],
    "methods": {
        "math": {"method": "single", "expert": "math"},
        "averaging": "averaging",
        "DARE": {"method": "dare"},
        "team": {"method": "fusion_route", "team": "runs/team-{seed}"},
    },
    "tasks": ["gsm8k", {"task": "ifeval", "limit": 5}],
}


def parsed(**changes: Any) -> CompareSettings:
    return CompareSettings.parse(FILE | changes)


def complaint(**changes: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        parsed(**changes)
    return str(caught.value)


def test_names_stand_for_models_methods_and_tasks() -> None:
    settings = parsed()
    assert settings.experts["math"].model == "owner/math"
    assert settings.methods["averaging"].method == "averaging"
    assert settings.task_names == ["gsm8k", "ifeval"]
    assert settings.held_against == "team"


def test_only_what_depends_on_the_seed_is_measured_for_each() -> None:
    seeds = {(cell.method, cell.seed) for cell in cells(parsed())}
    assert seeds == {
        ("math", None), ("averaging", None), ("DARE", 0), ("DARE", 1), ("team", 0), ("team", 1),
    }  # fmt: skip
    sampled = {(cell.task.task, cell.seed) for cell in cells(parsed(), drawn=["gsm8k"]) if cell.method == "math"}
    assert sampled == {("gsm8k", 0), ("gsm8k", 1), ("ifeval", None)}


def test_a_seed_is_filled_in_wherever_it_stands() -> None:
    teams = [cell.entry.team for cell in cells(parsed()) if cell.method == "team"]  # type: ignore[attr-defined]
    assert teams == ["runs/team-0", "runs/team-0", "runs/team-1", "runs/team-1"]
    plain = {"tuned": {"method": "single", "model": "runs/tuned-{seed}"}}
    assert [cell.entry.model.model for cell in cells(parsed(methods=plain, tasks=["gsm8k"]))] == [  # type: ignore[attr-defined]
        "runs/tuned-0",
        "runs/tuned-1",
    ]


def test_other_experts_for_every_seed_make_every_method_another() -> None:
    settings = parsed(experts={"math": "runs/math-{seed}", "code": {"model": "owner/code", "dtype": "float16"}})
    assert {cell.seed for cell in cells(settings)} == {0, 1}
    experts = settings.shared(1).experts
    assert (experts["math"].model, experts["code"].model, experts["code"].dtype) == (
        "runs/math-1", "owner/code", "float16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"a": {"method": "averagin"}}}, ("a: method", "did you mean 'averaging'", "fusion_route")),
        ({"methods": {"a": {"method": "single", "expert": "maths"}}}, ("methods.a", "expert", "did you mean 'math'")),
        ({"methods": {"a": {"method": "single"}}}, ("name an expert of this file, or a model",)),
        ({"methods": {"a": {"expert": "math"}}}, ("a: say which method",)),
        ({"methods": {"a": {"method": "collab", "rollouts": 3}}}, ("a", "did you mean 'rollout'")),
        ({"methods": {}}, ("methods map names",)),
        ({"methods": {"a": {"method": "ties"}}, "base": None}, ("methods.a", "needs the base")),
        ({"methods": {"a": {"method": "ties", "drop_rate": 0.5}}}, ("methods.a", "drop_rate", "dare")),
        ({"methods": {"a": {"method": "averaging", "weights": {"math": 1}}}}, ("weights: 'code' has none",)),
        ({"methods": {"a": {"method": "averaging", "weights": {"mth": 1}}}}, ("did you mean 'math'",)),
        ({"methods": {"A b": "averaging", "a-b": "averaging"}}, ("'A b' and 'a-b'", "rename one")),
        ({"experts": {"math": "owner/math"}, "methods": {"a": "averaging"}}, ("name at least two",)),
        ({"reference": "tema"}, ("reference", "did you mean 'team'")),
        ({"seeds": [1, 1]}, ("seeds",)),
        ({"seeds": []}, ("seeds",)),
        ({"prompt": "alpca"}, ("prompt", "did you mean 'alpaca'")),
        ({"tasks": "gsm8k"}, ("tasks are a list",)),
        ({"tasks": ["gsm8k", {"task": "gsm8k", "limit": 3}]}, ("'gsm8k' and 'gsm8k'", "rename one")),
        ({"generation": {"temperature": 0.7}}, ("generation", "add do_sample: true")),
        ({"generation": {"do_sample": True}}, ("generation", "needs a temperature")),
        ({"taks": ["gsm8k"]}, ("did you mean 'tasks'",)),
        ({"scorer": {"model": "a/b", "reward_model": "c/d"}}, ("not both",)),
    ],
)
def test_bad_files_are_told_what_is_allowed(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    message = complaint(**changes)
    for word in words:
        assert word in message, message


def test_a_slug_is_a_safe_file_name() -> None:
    assert slug("FusionRoute, no logits/../x") == "fusionroute-no-logits-..-x"
    assert slug("…") == "-"
