from pathlib import Path
from typing import Any

import pytest
import torch

from fusionroute.errors import SettingsError
from fusionroute.training.arguments import cdpo_config, sft_config
from fusionroute.training.settings import TrainSettings

TEAM = """
experts:
  math: owner/math
  code: {model: ./code, revision: v2, dtype: bfloat16}
router: {init: owner/chat, head_bias: true}
prompt: alpaca
data: {train: data.jsonl, limit: 10}
sft: {learning_rate: 3e-5, epochs: 2, accumulation: 4}
seed: 5
"""


PAIRS = {"prompts": "p.jsonl", "checker": "m:f"}


def write(folder: Path, text: str) -> Path:
    (folder / "team.yaml").write_text(text)
    return folder / "team.yaml"


def test_a_team_file(tmp_path: Path) -> None:
    settings = TrainSettings.from_yaml(write(tmp_path, TEAM))
    assert [(name, reference.model) for name, reference in settings.experts.items()] == [
        ("math", "owner/math"),
        ("code", "./code"),
    ]
    assert settings.experts["code"].revision == "v2"
    assert settings.router.head_bias
    assert settings.sft.learning_rate == 3e-5
    assert TrainSettings.from_yaml(write(tmp_path, settings.to_yaml())) == settings


def test_the_paper_values_are_the_defaults_and_reach_the_trainer(tmp_path: Path) -> None:
    text = "{experts: {a: o/a}, router: o/a, data: {train: d.jsonl}, device: cpu}"
    config = sft_config(TrainSettings.from_yaml(write(tmp_path, text)), tmp_path)
    assert (config.learning_rate, config.num_train_epochs, config.routing_weight) == (1e-5, 1.0, 1 / 3)
    assert (config.report_to, config.disable_tqdm, config.device) == ([], True, torch.device("cpu"))
    assert (config.aggregation, config.positions) == ("expected_nll", "informative")
    staged = TrainSettings.from_yaml(
        write(tmp_path, text.replace("d.jsonl", "d.jsonl, pairs: p.jsonl")[:-1] + ", cdpo: {}}")
    )
    assert staged.cdpo is not None
    config = cdpo_config(staged, staged.cdpo, tmp_path)
    assert (config.learning_rate, config.num_train_epochs, config.routing_weight) == (1e-5, 1.0, 1 / 3)
    assert (config.beta, config.form) == (0.1, "printed")
    settings = TrainSettings.from_yaml(write(tmp_path, TEAM))
    config = sft_config(settings, tmp_path)
    assert (config.learning_rate, config.num_train_epochs, config.gradient_accumulation_steps) == (3e-5, 2, 4)
    assert (config.seed, config.warmup_steps, config.max_steps) == (5, 0.03, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routr": {}}, "unknown option 'routr'; did you mean 'router'"),
        ({"routing": {"wieght": 1}}, "unknown option 'wieght'; did you mean 'weight'"),
        ({"data": {"train": "d", "max_lenght": 1}}, "did you mean 'max_length'"),
        ({"experts": {"a": {"modle": "x"}}}, "did you mean 'model'"),
        ({"routing": {"weight": -0.1}}, "routing.weight: .*greater than or equal to 0"),
        ({"cdpo": {"beta": -0.1}}, "cdpo.beta: .*greater than or equal to 0"),
        ({"cdpo": {}}, "cdpo needs preference pairs: .* got neither"),
        ({"pairs": PAIRS}, "pairs is of use in stage 2 only; add a section cdpo"),
        ({"cdpo": {}, "pairs": PAIRS, "data": {"train": "d", "pairs": "p"}}, r"got data\.pairs and pairs"),
        ({"cdpo": {}, "pairs": PAIRS, "method": "fine_tuned"}, "the fine-tuned baseline learns from given pairs"),
        ({"cdpo": {}, "pairs": {"prompts": "p"}}, "name one of checker, reward_model, judge_url; got none"),
        ({"cdpo": {}, "pairs": PAIRS | {"judge_url": "u"}}, "name one of .*; got checker, judge_url"),
        ({"cdpo": {}, "pairs": {"prompts": "p", "judge_url": "u"}}, "judge_url and judge_model belong together"),
        ({"prompt": "alpacca"}, "did you mean 'alpaca'"),
        ({"dtype": "floa32"}, "did you mean 'float32'"),
        ({"experts": {}}, "at least one expert"),
        ({"experts": ["a"]}, "experts map names to models"),
        ({"experts": {"router": "a"}}, "'router' is the router's name"),
        ({"experts": {"a b": "x"}}, "letters, digits"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings.parse(options | change)


def test_an_expert_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'math' stands twice"):
        TrainSettings.from_yaml(write(tmp_path, TEAM.replace("code:", "math:")))
