"""Every shipped config: parsed, and the paper's ones planned on stand-ins for the models and data of the hub."""

import json
import re
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import tiny
from fusionroute.cli import app
from fusionroute.models.ensemble import EnsembleSettings
from fusionroute.training.settings import TrainSettings
from tiny_training import make_examples, make_pairs, write_rows

CONFIGS = Path(__file__).parents[1] / "configs"
ENSEMBLES = sorted((CONFIGS / "paper").glob("safe-*.yaml"))
ROMA = sorted((CONFIGS / "paper").glob("roma-*.yaml"))
PAPER = sorted({*(CONFIGS / "paper").glob("*.yaml")} - {*ENSEMBLES, *ROMA})
ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
FAMILIES = {"llama3": "llama", "gemma2": "gemma2"}


def test_the_configs_are_there() -> None:
    assert [path.stem for path in PAPER] == ["gemma2", "llama3"]
    assert [path.stem for path in ENSEMBLES] == [
        f"safe-{name}" for name in ("32b", "internlm-exaone", "internlm-qwen", "qwen-exaone", "similar", "three")
    ]
    assert [path.stem for path in ROMA] == ["roma-deepseek", "roma-olmoe", "roma-qwen3"]
    assert [path.stem for path in ACCELERATE] == ["cpu_2_processes", "deepspeed_zero3", "fsdp2", "multi_gpu"]
    said = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert {f"{path.parent.name}/{path.name}" for path in [*PAPER, *ENSEMBLES, *ROMA, *ACCELERATE]} <= set(
        re.findall(r"`([^`]+)`", said)
    )


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_values(path: Path) -> None:
    settings = TrainSettings.from_yaml(path)
    assert settings.router.init == settings.experts["instruct"].model
    assert settings.prompt == "alpaca"
    assert (settings.data.limit, settings.data.pairs_limit) == (200_000, 100_000)
    assert settings.routing.weight == pytest.approx(1 / 3)
    assert settings.cdpo is not None
    assert (settings.cdpo.beta, settings.cdpo.form, settings.cdpo.sft_examples) == (0.1, "printed", 100_000)
    for stage in (settings.sft, settings.cdpo):
        assert (stage.learning_rate, stage.epochs) == (1e-5, 1)
        assert stage.batch_size * stage.accumulation * 8 == 128


@pytest.mark.parametrize("path", ENSEMBLES, ids=lambda path: path.stem)
def test_the_papers_ensembles(path: Path) -> None:
    settings = EnsembleSettings.read(path)
    assert settings.drafter == next(iter(settings.models))
    assert settings.keywords() == {
        "drafter": settings.drafter, "host": settings.host, "weights": None, "sharpening": "prefix", "threshold": 0.1,
        "draft_length": 5, **({"gate": 0.5} if settings.host == "gac" else {}),
    }  # fmt: skip
    assert (settings.prompt, settings.dtype) == ("chat_template", "float16")
    remote = {reference.model.split("/")[0] for reference in settings.models.values() if reference.trust_remote_code}
    assert remote <= {"internlm", "LGAI-EXAONE"}, "nobody else brings code of their own"
    assert EnsembleSettings.read(path, {"host": "gac"}).keywords()["gate"] == 0.5
    assert EnsembleSettings.read(path, {"host": "unite"}).host == "unite"


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path: Path) -> None:
    config: Any = load_config_from_file(str(path))
    kinds = {"fsdp2": DistributedType.FSDP, "deepspeed_zero3": DistributedType.DEEPSPEED}
    assert config.distributed_type == kinds.get(path.stem, DistributedType.MULTI_GPU)
    assert config.mixed_precision == "no"  # the team file says it, per stage
    assert config.num_processes == (2 if path.stem == "cpu_2_processes" else 8)


# --- stand-ins --------------------------------------------------------------------------------------------------------


def save_stand_in(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast, **overrides: Any) -> str:
    tiny.language_model(family, max_position_embeddings=4096, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def swapped() -> PreTrainedTokenizerFast:
    """The same tokens, of which two have each other's id."""
    tokenizer: Any = tiny.tokenizer()
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(raw)), bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture(scope="module", params=PAPER, ids=lambda path: path.stem)
def paper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A config, and local stand-ins for every name of the hub in it."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    family = FAMILIES[request.param.stem]
    names = ("math", "code", "instruct")
    stand_ins = {f"experts.{name}": save_stand_in(folder / name, family, tiny.tokenizer()) for name in names}
    return request.param, {
        **stand_ins,
        "router.init": stand_ins["experts.instruct"],
        "data.train": write_rows(folder / "train.jsonl", make_examples(9)),
        "data.pairs": write_rows(folder / "pairs.jsonl", make_pairs(4)),
        "cdpo.sft_examples": "4",
    }


def dry_run(path: Path, values: dict[str, str], *options: str) -> Any:
    overrides = [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]
    return CliRunner().invoke(app, ["train", str(path), "--dry-run", "--set", "device=cpu", *overrides, *options])


def test_the_papers_runs_can_be_planned(paper: tuple[Path, dict[str, str]]) -> None:
    path, values = paper
    result = dry_run(path, values, "--json", "--processes", "2")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [stage["name"] for stage in plan["stages"]] == ["score", "sft", "score pairs", "cdpo"]
    assert [stage["items"] for stage in plan["stages"]] == [9, 9, 4, 4 + 4]
    assert [stage["steps"] for stage in plan["stages"]][1::2] == [1, 1]  # all of it is less than one effective batch
    assert {model["dtype"] for model in plan["models"]} == {"float32", "bfloat16"}
    assert plan["max_length"] == 2048
    assert all(stage["seconds"] > 0 for stage in plan["stages"])


@pytest.mark.parametrize("flaw", ["size", "ids"])
def test_a_planted_mismatch_is_found_in_seconds(paper: tuple[Path, dict[str, str]], flaw: str, tmp_path: Path) -> None:
    path, values = paper
    family = FAMILIES[path.stem]
    if flaw == "size":
        planted = save_stand_in(tmp_path / "planted", family, tiny.tokenizer(), vocab_size=tiny.VOCABULARY + 8)
    else:
        planted = save_stand_in(tmp_path / "planted", family, swapped())
    began = perf_counter()
    result = dry_run(path, values | {"experts.code": planted, "data.train": "no/such-data"})
    assert perf_counter() - began < 10  # it takes a fraction of a second on a machine that has nothing else to do
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "expert 'code'" in line
    assert ("vocabulary of 269" if flaw == "size" else "differs from the team's in 2 of 261") in line
