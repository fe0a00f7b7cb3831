"""The whole recipe, through `fusionroute.training.run`: what it leaves, and which ways lead to the same weights."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import fusionroute as fr
import tiny
from fusionroute.config import read_yaml
from fusionroute.errors import DataError, OutputExistsError, SettingsError
from fusionroute.models.loading import load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.training import stages
from fusionroute.training.data.examples import prepare
from fusionroute.training.run import cdpo, score, sft, train
from fusionroute.training.settings import TrainSettings
from tiny_training import NAMES, Recorder, logged, make_examples, router_weights, two_stages

OPTIONS = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Scoring collects garbage after every expert: slow through all that the libraries hold, unless that is frozen."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> OPTIONS:
    return two_stages(tmp_path_factory.mktemp("world"))


@pytest.fixture
def options(written: OPTIONS) -> OPTIONS:
    return dict(written)


@pytest.fixture(scope="module")
def finished(written: OPTIONS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that makes its pairs itself; copied where a test changes it."""
    return train(TrainSettings.parse(written), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def given(options: OPTIONS, finished: Path, **changes: Any) -> TrainSettings:
    """The same recipe on the pairs that ``finished`` made, given as a file."""
    data = options["data"] | {"pairs": str(finished / "pairs.jsonl")}
    return TrainSettings.parse({key: options[key] for key in options if key != "pairs"} | {"data": data} | changes)


def one_stage(options: OPTIONS) -> TrainSettings:
    return TrainSettings.parse({key: options[key] for key in options if key not in ("pairs", "cdpo")})


def assert_equal(one: Path, other: Path) -> None:
    torch.testing.assert_close(router_weights(one), router_weights(other), rtol=0, atol=0)


def assert_all_moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if torch.equal(one[name], other[name])] == []


def test_what_lies_where_at_the_end(finished: Path, options: OPTIONS) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("settings.yaml", "scores", "checkpoints", "sft", "pairs.jsonl", "pair_scores"),
        *("router", "README.md", "team.json"),
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"sft", "cdpo"}
    assert {path.name for path in (finished / "pair_scores").iterdir() if path.is_dir()} == {*NAMES, "router"}
    pairs = [json.loads(line) for line in (finished / "pairs.jsonl").read_text().splitlines()]
    assert all(pair["judged"]["chosen"] > pair["judged"]["rejected"] for pair in pairs)
    assert {pair["chosen_from"] for pair in pairs} == {"reference", "sample"}
    assert len(logged(finished, "cdpo")) == -(-(len(pairs) + min(12, len(pairs))) // 4), "every pair is learned once"
    for folder in (finished, finished / "sft"):
        team = fr.Team.from_pretrained(folder, device="cpu")
        assert (team.expert_names, team.prompt) == (NAMES, "chat_template")
        (completion,) = team.generate(["1+1="], max_new_tokens=4, ignore_eos=True)
        assert len(completion.token_ids) == 4
    assert_all_moved(router_weights(finished), router_weights(finished / "sft"))


def test_the_rejected_answer_is_what_the_team_of_stage_1_writes(finished: Path) -> None:
    team = fr.Team.from_pretrained(finished / "sft", device="cpu")
    for line in (finished / "pairs.jsonl").read_text().splitlines()[:5]:
        pair = json.loads(line)
        (completion,) = team.generate([pair["prompt"]], max_new_tokens=8)
        assert completion.text == pair["rejected"]


def test_score_then_sft_then_cdpo_is_train(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    settings, run, recorder = TrainSettings.parse(options), tmp_path / "run", Recorder()
    assert score(settings, run, progress=recorder) == run / "scores"
    with pytest.raises(DataError, match="holds no router of stage 1; train it with fusionroute sft"):
        cdpo(settings, run)
    assert sft(settings, run, progress=recorder) == run / "sft"
    assert not (run / "team.json").exists(), "a team at the top says that the run is finished"
    assert cdpo(settings, run, progress=recorder) == run
    assert_equal(run, finished)
    labels = ["score math", "score code", "score chat"]
    pairs = [label for label, _ in recorder.started[4:]]
    assert [label for label, _ in recorder.started[:4]] == [*labels, "train router"]
    assert pairs == ["make pairs", *labels, "score router", "preferences"]
    with pytest.raises(SettingsError, match="no section cdpo, so there is no second stage"):
        cdpo(one_stage(options), run)


def test_a_second_stage_may_follow_a_finished_run(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    run, recorder = train(one_stage(options), tmp_path / "run"), Recorder()
    assert not (run / "sft").exists()
    train(given(options, finished), run, progress=recorder)
    assert "train router" not in [label for label, _ in recorder.started]
    assert not (run / "pairs.jsonl").exists(), "these pairs were given"
    assert_equal(run / "sft", finished / "sft")
    assert_equal(run, finished)


def test_references_alone_make_pairs(finished: Path, options: OPTIONS, copy: Path) -> None:
    for part in ("pair_scores", "checkpoints/cdpo", "router"):
        shutil.rmtree(copy / part)
    for part in ("team.json", "pairs.jsonl"):
        (copy / part).unlink()
    alone = options | {"pairs": options["pairs"] | {"samples": 0}}
    train(TrainSettings.parse(alone), copy)
    pairs = [json.loads(line) for line in (copy / "pairs.jsonl").read_text().splitlines()]
    assert {pair["chosen_from"] for pair in pairs} == {"reference"}
    assert_equal(copy / "sft", finished / "sft")


def test_settings_of_stage_2_may_change_until_it_has_begun(options: OPTIONS, tmp_path: Path) -> None:
    run = tmp_path / "run"
    brief = TrainSettings.parse(options | {"cdpo": options["cdpo"] | {"max_steps": 1}})
    other = TrainSettings.parse(options | {"cdpo": options["cdpo"] | {"max_steps": 1, "beta": 0.5}})
    sampled = TrainSettings.parse(options | {"pairs": options["pairs"] | {"samples": 2}})
    score(other, run)
    sft(sampled, run)
    train(brief, run)  # until now nothing of stage 2 was there, so all of it could change
    refused(other, run, r"cdpo\.beta was 0\.1, is now 0\.5")
    refused(sampled, run, r"pairs\.samples was 1, is now 2")
    (run / "team.json").unlink()  # no longer finished, but begun
    refused(other, run, r"cdpo\.beta was 0\.1, is now 0\.5")
    train(TrainSettings.parse(options | {"cdpo": options["cdpo"] | {"max_steps": 1, "save_steps": 1}}), run)
    (run / "team.json").unlink()
    for part in ("pair_scores", "checkpoints/cdpo"):
        shutil.rmtree(run / part)
    refused(sampled, run, r"pairs\.samples was 1, is now 2")  # the pairs are made already
    train(other, run)
    assert read_yaml(run / "settings.yaml")["cdpo"]["beta"] == 0.5


def refused(settings: TrainSettings, run: Path, message: str) -> None:
    with pytest.raises(OutputExistsError, match=message):
        train(settings, run)


def test_stage_2_may_be_done_anew(finished: Path, copy: Path, options: OPTIONS) -> None:
    other = TrainSettings.parse(options | {"cdpo": options["cdpo"] | {"beta": 0.5}})
    recorder = Recorder()
    cdpo(other, copy, overwrite=True, progress=recorder)
    assert "make pairs" not in [label for label, _ in recorder.started]
    assert logged(copy, "cdpo")[0]["bias"] == pytest.approx(5 * logged(finished, "cdpo")[0]["bias"], rel=1e-5)
    assert_equal(copy / "sft", finished / "sft")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_reference_is_the_router_as_stage_1_left_it(
    precision: str, finished: Path, options: OPTIONS, tmp_path: Path
) -> None:
    """Before its first step, stage 2 has gained nothing, whatever the precision of the experts and of the result."""
    settings = given(options, finished, dtype=precision, cdpo=options["cdpo"] | {"max_steps": 3})
    run = train(settings, tmp_path / "run")
    margins = [log["margin"] for log in logged(run, "cdpo")]
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert abs(margins[2]) > 1e-4, "the first step only warms up"
    assert fr.Router.from_pretrained(run / "sft" / "router", device="cpu").dtype == torch.float32
    assert fr.Router.from_pretrained(run / "router", device="cpu").dtype == getattr(torch, precision)


def first_step(options: OPTIONS, finished: Path, folder: Path, stage: str, **changes: Any) -> dict[str, float]:
    stopped = {key: options[key] | {"max_steps": 1} for key in ("sft", "cdpo")}
    for key, values in changes.items():
        stopped[key] = stopped.get(key, {}) | values
    return logged(train(given(options, finished, **stopped), folder), stage)[0]


def test_renormalising_is_a_choice_of_the_settings(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    """The printed loss lacks log Σ_v Π_i π_i(v)^w_i, which is never positive; nothing else differs."""
    renormalised = {"routing": {"aggregation": "renormalised"}, "cdpo": {"form": "normalised"}}
    for stage, changed, kept in (("sft", "routing_loss", "lm_loss"), ("cdpo", "cdpo_loss", "bias")):
        plain = first_step(options, finished, tmp_path / stage / "plain", stage)
        other = first_step(options, finished, tmp_path / stage / "other", stage, **renormalised)
        assert other[changed] != pytest.approx(plain[changed], rel=1e-3)
        if stage == "sft":
            assert other[changed] < plain[changed]
            assert other[kept] == pytest.approx(plain[kept], rel=1e-6)


def test_like_lengths_together_leave_no_example_out(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    grouped = {key: options[key] | {"group_by_length": True} for key in ("sft", "cdpo")}
    run = train(given(options, finished, **grouped), tmp_path / "run")
    for stage in ("sft", "cdpo"):
        assert len(logged(run, stage)) == len(logged(finished, stage))
        assert logged(run, stage)[-1]["epoch"] == 1
    (weights, other) = (router_weights(folder / "sft") for folder in (run, finished))
    assert_all_moved(weights, other)  # the same examples in another order


def test_a_router_may_be_an_adapter(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    adapter = options["router"] | {"lora": {"rank": 2, "alpha": 4}}
    run = train(given(options, finished, router=adapter), tmp_path / "run")
    base = load_model(options["router"]["init"], device="cpu").state_dict()
    first, last = (router_weights(folder) for folder in (run / "sft", run))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert {name for name in moved if "lora" not in name} == {"route_head.weight"}
    assert {name for name in first if "lora" in name} == moved - {"route_head.weight"}
    embedding = next(name for name in last if name.endswith("embed_tokens.weight"))
    assert torch.equal(last[embedding], base["model.embed_tokens.weight"])
    assert not (run / "router" / "model.safetensors").exists()
    assert logged(run, "cdpo")[0]["margin"] == pytest.approx(0, abs=1e-6)
    (completion,) = fr.Team.from_pretrained(run, device="cpu").generate(["1+1="], max_new_tokens=3, ignore_eos=True)
    assert len(completion.token_ids) == 3


def test_the_fine_tuned_baseline_is_plain_fine_tuning(options: OPTIONS, tmp_path: Path) -> None:
    """Transformers' own Trainer is the judge: the same examples, order and optimizer, and its own loss."""
    settings = TrainSettings.parse(one_stage(options).model_dump() | {"method": "fine_tuned"})
    recorder = Recorder()
    run = train(settings, tmp_path / "run", progress=recorder)
    assert recorder.started == [("train router", 3)], "no expert is asked"
    assert {path.name for path in run.iterdir()} == {"settings.yaml", "scores", "checkpoints", "model"}
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    assert tiny.EOS in trained.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(run / "model").eos_token == "<eos>"
    expected = fine_tuned(settings, tmp_path / "plain")
    torch.testing.assert_close(trained.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(trained.lm_head.weight, load_model(options["router"]["init"]).lm_head.weight)


def fine_tuned(settings: TrainSettings, folder: Path) -> Any:
    model = load_model(settings.router.reference, device="cpu")
    torch.manual_seed(settings.seed)
    dataset, _ = prepare(make_examples(12), PromptFormat(tiny.tokenizer(), "chat_template"), tiny.CONTEXT)
    rows = [
        {"input_ids": row["input_ids"], "labels": [-100] * (at := row["prompt_length"]) + row["input_ids"][at:]}
        for row in dataset
    ]
    wanted = stages.sft_config(settings, folder)
    names = ("learning_rate", "per_device_train_batch_size", "warmup_steps", "num_train_epochs", "seed", "use_cpu")
    arguments = TrainingArguments(
        str(folder), **{name: getattr(wanted, name) for name in names}, save_strategy="no", dataloader_pin_memory=False
    )
    collator = DataCollatorForSeq2Seq(tiny.tokenizer(), padding=True)
    Trainer(model, arguments, data_collator=collator, train_dataset=rows, processing_class=None).train()
    return model


def test_the_fine_tuned_baseline_learns_from_given_pairs(finished: Path, options: OPTIONS, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="learns from given pairs: name those of the team as"):
        TrainSettings.parse(options | {"method": "fine_tuned"})
    recorder = Recorder()
    run = train(given(options, finished, method="fine_tuned"), tmp_path / "run", progress=recorder)
    assert [label for label, _ in recorder.started] == ["train router", "score router", "preferences"]
    assert {path.name for path in (run / "sft").iterdir()} == {"router"}
    first = logged(run, "cdpo")[0]
    assert (first["bias"], first["margin"]) == (0, pytest.approx(0, abs=1e-6))
    before, after = (
        load_model(folder, device="cpu").state_dict() for folder in (run / "sft" / "router", run / "model")
    )
    assert_all_moved(before, after)
    assert not (run / "team.json").exists()
    recorder = Recorder()
    train(given(options, finished, method="fine_tuned"), run, progress=recorder)
    assert recorder.started == []


def test_a_run_goes_on_after_its_folder_was_moved(
    options: OPTIONS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings.parse(options)
    score(settings, tmp_path / "here")
    sft(settings, tmp_path / "here")
    stages.make_team_pairs(settings, tmp_path / "here", Recorder())
    stages.score_pairs(settings, tmp_path / "here", Recorder())
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert cdpo(settings, "there") == Path("there")
    assert (tmp_path / "there" / "team.json").is_file()
