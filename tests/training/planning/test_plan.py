"""The plan of a run against what the run does, and numbers worked out by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from fusionroute.errors import DataError, SettingsError, VocabularyError
from fusionroute.models.adapters import add_lora
from fusionroute.models.router import Router
from fusionroute.training.planning import clock, memory, probe
from fusionroute.training.planning import plan as planning
from fusionroute.training.planning.memory import ModelSize, expert_size, router_size, scoring_need, training_need
from fusionroute.training.planning.plan import Plan, StagePlan, plan
from fusionroute.training.planning.workload import optimizer_steps, scoring_work, training_work
from fusionroute.training.run import train
from fusionroute.training.settings import RouterSettings, SFTSettings, TrainSettings
from tiny_training import NAMES, Recorder, make_examples, make_pairs, save_model, write_rows

CONFIG = tiny.language_model().config


def planned(options: dict[str, Any], **how: Any) -> Plan:
    return plan(TrainSettings.parse(options), **({"probe": False} | how))


def stage(made: Plan, name: str) -> StagePlan:
    return next(stage for stage in made.stages if stage.name == name)


# --- what is planned --------------------------------------------------------------------------------------------------


def test_a_plan_says_what_the_run_does(options: dict[str, Any], tmp_path: Path, recorder: Recorder) -> None:
    made = planned(options, progress=recorder)
    assert recorder.started == [("read data.train", 12)]
    assert sum(n for n, _ in recorder.advanced) == 12
    ran = Recorder()
    train(TrainSettings.parse(options), tmp_path / "run", progress=ran)
    examples, steps = ran.started[0][1], ran.started[-1][1]
    assert [(each.name, each.items, each.steps) for each in made.stages] == [
        ("score", examples, 1),
        ("sft", examples, steps),
    ]
    recorded = json.loads((tmp_path / "run" / "scores" / "scores.json").read_text())
    assert stage(made, "sft").tokens == recorded["data"]["tokens"]
    assert made.data == (f"data.train: {ran.finished[0]}",)
    assert [model.name for model in made.models] == ["router", *NAMES]
    assert (made.warnings, made.skipped_probe) == ((), "not asked for")


def test_nothing_is_written(options: dict[str, Any], world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(world.rglob("*"))
    planned(options, probe=True)
    assert sorted(world.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_models_are_asked_before_data(options: dict[str, Any], tmp_path: Path) -> None:
    options["data"] = {"train": "no/such-data"}
    with pytest.raises(DataError, match="no/such-data"):
        planned(options)
    options["experts"]["code"] = save_model(tmp_path / "other", 5, vocab_size=300)
    with pytest.raises(VocabularyError, match="expert 'code' has a vocabulary of 300"):
        planned(options)


def test_length_and_judge_are_checked_before_data(options: dict[str, Any]) -> None:
    options["data"] = {"train": "no/such-data", "max_length": tiny.CONTEXT + 1}
    with pytest.raises(SettingsError, match="max_length is 161"):
        planned(options)
    del options["data"]["max_length"]
    pairs = {"prompts": "no/such-data", "checker": "no_such_module:right"}
    with pytest.raises(SettingsError, match="no_such_module"):
        planned(options | {"cdpo": {}, "pairs": pairs})


def test_given_pairs(options: dict[str, Any], tmp_path: Path) -> None:
    options["data"]["pairs"] = write_rows(tmp_path / "pairs.jsonl", make_pairs(6))
    options["cdpo"] = {"batch_size": 4, "sft_examples": 3}
    made = planned(options)
    assert [each.name for each in made.stages] == ["score", "sft", "score pairs", "cdpo"]
    assert stage(made, "score pairs").items == 6
    cdpo = stage(made, "cdpo")
    assert (cdpo.items, cdpo.steps) == (9, 3)
    assert cdpo.memory.moments == 2 * cdpo.memory.gradients == 2 * cdpo.memory.weights
    options["cdpo"]["sft_examples"] = 13
    with pytest.raises(DataError, match=r"sft_examples is 13, but .*train.jsonl gives only 12"):
        planned(options)


def test_pairs_to_be_made_are_bounded_by_their_prompts(options: dict[str, Any], tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", make_examples(5))
    options["pairs"] = {"prompts": prompts, "checker": "operator:add", "max_new_tokens": 7, "limit": 3}
    options["cdpo"] = {}
    made = planned(options)
    assert [each.name for each in made.stages] == ["score", "sft", "pairs", "score pairs", "cdpo"]
    prompt_tokens = sum(len(f"{n}+{n * n}=") + 2 for n in (1, 2, 3))  # <user> and <assistant> around each
    assert (stage(made, "score pairs").items, stage(made, "score pairs").tokens) == (3, 2 * (prompt_tokens + 3 * 7))
    assert stage(made, "cdpo").items == 3 + 3
    total = sum(model.parameters for model in made.models)
    assert stage(made, "pairs").memory.total == 4 * total


def test_the_fine_tuned_baseline_asks_no_expert(options: dict[str, Any]) -> None:
    made = planned(options | {"method": "fine_tuned"}, probe=True)
    assert (stage(made, "score").memory.total, stage(made, "score").seconds) == (0, 0)
    assert made.models[0].parameters == sum(p.numel() for p in tiny.router(num_experts=1).parameters())


def test_processes_share_the_work(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    two = planned(options, processes=2)
    assert (stage(two, "sft").steps, stage(two, "sft").items_per_step) == (4, 8)
    alone = stage(planned(options), "sft").memory
    assert stage(two, "sft").memory == alone
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "4")
    sharded = planned(options)
    assert sharded.processes == 4
    assert stage(sharded, "sft").memory.moments == alone.moments // 4


# --- memory -----------------------------------------------------------------------------------------------------------


def test_weights_gradients_and_moments_are_what_torch_holds() -> None:
    router = tiny.router()
    router(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    for weight in router.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(router.parameters())
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    need = training_need(_router_size(), 2, 8, bf16=False, checkpointing=False)
    assert need.weights == sum(weight.nbytes for weight in router.parameters())
    assert need.gradients == sum(weight.grad.nbytes for weight in router.parameters() if weight.grad is not None)
    assert need.moments == sum(moment.nbytes for moment in moments)


def _router_size(**options: Any) -> ModelSize:
    return router_size(CONFIG, torch.float32, RouterSettings(init="x", **options), 3)


def test_a_lora_has_gradients_of_its_own_weights_alone() -> None:
    size = _router_size(lora={"rank": 2})
    real = Router(add_lora(tiny.language_model(), rank=2, alpha=32), 3)
    assert size.trainable == sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    assert size.parameters == sum(weight.numel() for weight in real.parameters())
    need = training_need(size, 2, 8, bf16=False, checkpointing=False)
    assert (need.gradients, need.moments) == (4 * size.trainable, 8 * size.trainable)


def test_activations_are_about_what_autograd_keeps() -> None:
    """Rows of the batch cancel what does not grow with it; every layer is like the next."""
    size = replace(_router_size(), vocabulary=0)
    kept = {rows: _saved_bytes(rows, 96) for rows in (1, 3)}
    formula = training_need(size, 2, 96, bf16=False, checkpointing=False).activations
    assert formula == pytest.approx(kept[3] - kept[1], rel=0.3)


def _saved_bytes(rows: int, length: int) -> int:
    model, seen = tiny.language_model().train(), dict[int, int]()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _alive = model.get_decoder()(torch.ones(rows, length, dtype=torch.long), use_cache=False)
    return sum(nbytes for place, nbytes in seen.items() if place not in own)


def test_what_makes_a_run_smaller() -> None:
    def total(size: ModelSize | None = None, **how: Any) -> int:
        return training_need(size or _router_size(), 4, 64, **({"bf16": False, "checkpointing": False} | how)).total

    usual = total()
    assert total(checkpointing=True) < usual
    assert total(shards=2) < usual
    assert total(_router_size(lora={"rank": 2, "targets": ["q_proj"]})) < usual
    half = router_size(CONFIG, torch.bfloat16, RouterSettings(init="x"), 3)
    assert total(half) < usual
    expert = expert_size(CONFIG, torch.float32)
    assert total(live=[expert, expert]) > usual + 2 * expert.nbytes
    assert scoring_need(expert, 4, 64).total < usual


def test_what_does_not_fit_is_said_with_what_helps(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda device: 2**10)
    monkeypatch.setattr(clock, "free_bytes", lambda device: 2**10)
    options["sft"]["gradient_checkpointing"] = True
    made = planned(options, probe=True)
    score, sft = made.warnings
    assert score.startswith("score needs about")
    assert "on cpu, which has 0.0 GiB free" in score
    assert "a smaller sft.batch_size" in sft
    assert "router.lora" in sft
    assert "gradient_checkpointing" not in sft
    assert "a probe of router with two layers needs about" in made.skipped_probe
    assert all(each.seconds is None for each in made.stages)


# --- steps and padding ------------------------------------------------------------------------------------------------


def test_scoring_reads_the_longest_together() -> None:
    work = scoring_work(np.array([1, 5, 2, 3]), 2)  # 5 with 3, then 2 with 1
    assert (work.items, work.tokens, work.batches, work.rows, work.longest) == (4, 11, 2, 2, 5)
    assert work.padded == (2 * 5 + 2 * 2) / 2
    assert work.length == round(14 / 4)


def test_a_pair_is_two_rows_of_its_longer_answer() -> None:
    work = training_work(np.array([4, 6]), np.array([1, 2]), 4 + 6 + 5, SFTSettings(batch_size=2), seed=0)
    assert (work.items, work.tokens, work.batches, work.rows) == (2, 15, 1, 4)
    assert (work.padded, work.length) == (3 * 6, 6)


@pytest.mark.parametrize(
    ("options", "processes", "steps"),
    [
        ({"batch_size": 4}, 1, 3),  # 4 + 4 + 2
        ({"batch_size": 4}, 2, 2),
        ({"batch_size": 2, "accumulation": 2}, 1, 3),
        ({"batch_size": 2, "accumulation": 2, "epochs": 1.5}, 1, 5),
        ({"batch_size": 2, "max_steps": 7}, 4, 7),
    ],
)
def test_steps_of_ten_items(options: dict[str, Any], processes: int, steps: int) -> None:
    assert optimizer_steps(10, SFTSettings.parse(options), processes) == steps


# --- time -------------------------------------------------------------------------------------------------------------


def test_time_is_drawn_on_from_two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([1.0, 1.5])
    monkeypatch.setattr(probe, "_seconds", lambda work, device: next(taken))
    config = tiny.language_model(num_hidden_layers=7).config
    assert probe.scoring_seconds(config, torch.float32, torch.device("cpu"), 2, 8) == 1.0 + 6 * 0.5


def test_a_probe_has_the_architecture_of_the_model() -> None:
    config = tiny.language_model("gemma2", num_hidden_layers=6).config
    short = memory.build(probe.shortened(config, 2), torch.float32, "cpu")
    assert len(short.model.layers) == 2
    assert short.config.layer_types == config.layer_types[:2]
    assert config.num_hidden_layers == 6
    assert short.state_dict().keys() < tiny.language_model("gemma2", num_hidden_layers=6).state_dict().keys()


@pytest.mark.parametrize("change", [{}, {"bf16": True, "gradient_checkpointing": True}])
def test_every_stage_has_a_time(options: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    options["data"]["pairs"] = write_rows(tmp_path / "pairs.jsonl", make_pairs(6))
    options["sft"] |= change
    options["cdpo"] = change | {"form": "normalised"}
    options["router"] |= {"lora": {"rank": 2}} if change else {}
    made = planned(options, probe=True)
    assert made.skipped_probe == ""
    assert all(each.seconds is not None and each.seconds > 0 for each in made.stages)
    json.dumps(asdict(made))


class _Times(Recorder):
    """Seconds between the start and the end of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.began = perf_counter()
        self.taken: dict[str, float] = {}

    def start(self, label: str, total: int) -> None:
        super().start(label, total)
        self.began = perf_counter()

    def finish(self, message: str) -> None:
        super().finish(message)
        if self.started:
            self.taken.setdefault(self.started[-1][0], perf_counter() - self.began)


@pytest.mark.slow
def test_predicted_times_are_about_those_of_a_real_run(tmp_path: Path) -> None:
    size = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "initializer_range": 0.02}
    folder = save_model(tmp_path / "model", 0, **size)
    rows = [{"prompt": f"{n}=", "completion": "x" * (40 + 7 * n % 90)} for n in range(32)]
    options = {
        "experts": {"one": folder, "two": folder},
        "router": folder,
        "data": {"train": write_rows(tmp_path / "train.jsonl", rows)},
        "sft": {"batch_size": 4, "save_steps": 1000},
        "device": "cpu",
    }
    made, ran = planned(options, probe=True), _Times()
    train(TrainSettings.parse(options), tmp_path / "run", progress=ran)
    scored = ran.taken["score one"] + ran.taken["score two"]
    for name, taken in (("score", scored), ("sft", ran.taken["train router"])):
        said = stage(made, name).seconds
        print(f"{name}: predicted {said:.2f} s, measured {taken:.2f} s")
        assert taken / 3 < said < taken * 3
