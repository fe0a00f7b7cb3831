from pathlib import Path
from typing import Any

import pytest

from fusionroute.errors import SettingsError
from fusionroute.models.loading import ModelReference
from fusionroute.moe.optimise import Descent
from fusionroute.moe.roma.settings import DescentSettings, RoMASettings, SourceSettings

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "paper").glob("roma-*.yaml"))
LEAST: dict[str, Any] = {"model": "some/model", "data": {"train": "train.jsonl"}}


def parse(**values: Any) -> RoMASettings:
    return RoMASettings.parse(LEAST | values)


def test_the_papers_values_are_the_defaults_where_it_gives_them() -> None:
    settings = parse()
    assert (settings.layers, settings.neighbours.k) == (5, 3)
    assert (settings.tokens.where, settings.tokens.count) == ("last", 1)
    assert settings.target == "manifold"
    assert settings.leakage.threshold == 0.95
    assert not settings.leakage.allow_overlap
    assert Descent(**DescentSettings().model_dump()) == Descent()


def test_short_forms() -> None:
    settings = parse(data={"train": ["a.jsonl", {"source": "b.jsonl", "limit": 3, "task": "b"}], "dev": "c.jsonl"})
    assert settings.model == ModelReference(model="some/model")
    assert settings.data.train == (
        SourceSettings(source="a.jsonl"),
        SourceSettings(source="b.jsonl", limit=3, task="b"),
    )
    assert settings.data.dev == (SourceSettings(source="c.jsonl"),)
    assert parse(model={"model": "some/model", "trust_remote_code": True}).model.trust_remote_code
    assert parse(layers=[0, -1]).layers == (0, -1)
    assert parse(layers="all").layers == "all"


def test_they_come_back_from_yaml(tmp_path: Path) -> None:
    settings = parse(layers=[1, 2], neighbours={"epsilon": 0.5, "sigma": 2}, sweep=[1, 2])
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    assert RoMASettings.from_yaml(tmp_path / "settings.yaml") == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lambda": 1}, "unknown option 'lambda'"),
        ({"weights": 1}, "did you mean 'weight'"),
        ({"optimiser": {"learning_rat": 1}}, "optimiser.*did you mean 'learning_rate'"),
        ({"weight": -1}, "weight: .*greater than or equal to 0"),
        ({"sweep": [1, -1]}, "a weight λ is at least 0"),
        ({"layers": 0}, "at least one layer"),
        ({"layers": []}, "at least one layer"),
        ({"layers": "last"}, "layers"),
        ({"dtype": "float8"}, "unknown option 'float8'"),
        ({"data": {"train": []}}, "data.train"),
        ({"neighbours": {"kind": "random", "epsilon": 0.5}}, "drop epsilon and sigma"),
        ({"neighbours": {"epsilon": 1.5}}, "less than or equal to 1"),
        ({"target": "oracle", "tokens": {"count": 3}}, "leave tokens at their default"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(**values)


def test_the_papers_configs_are_there() -> None:
    assert [path.stem for path in CONFIGS] == ["roma-deepseek", "roma-olmoe", "roma-qwen3"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_papers_values(path: Path) -> None:
    settings = RoMASettings.from_yaml(path)
    counts = {source.task: source.limit for source in settings.data.train}
    assert counts == {
        "BIG-Bench": 10_000, "SuperGLUE": 10_000, "CommonsenseQA": 8_000, "SocialIQA": 8_000, "OpenBookQA": 3_000,
        "SciQ": 3_000, "MultiRC": 4_000, "KnowRef": 3_000,
    }  # fmt: skip
    assert sum(count or 0 for count in counts.values()) == 49_000
    assert len(settings.data.evaluation) == 8
    assert (settings.layers, settings.neighbours.k, settings.tokens.count) == (5, 3, 1)
    assert not settings.leakage.allow_overlap
    assert settings.data.dev, "a sweep chooses on it"
