from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

import tiny
from fusionroute import Router
from fusionroute.errors import DataError, FusionRouteError, SettingsError
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.ops.agreement import informative
from fusionroute.training.data.examples import prepare
from fusionroute.training.run_folder import last_checkpoint
from fusionroute.training.scoring.scores import load_scores, score
from fusionroute.training.trainers.collator import Collator
from fusionroute.training.trainers.live import LiveExperts
from fusionroute.training.trainers.sft import SFTConfig, SFTTrainer
from tiny_training import NAMES, make_examples

COUNT = 24
collate = Collator(NAMES)


@pytest.fixture(scope="module")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Real scores; the experts are made to agree on every third token, so that S is neither empty nor everything."""
    folder = tmp_path_factory.mktemp("scores")
    dataset, _ = prepare(make_examples(COUNT), PromptFormat(tiny.tokenizer(), "chat_template"), 60)
    score(dataset, {n: ModelReference(model=str(world / n)) for n in NAMES}, tiny.tokenizer(), folder, device="cpu")
    return load_scores(folder, NAMES).map(agree_on_every_third, load_from_cache_file=False)


def agree_on_every_third(row: dict[str, Any]) -> dict[str, Any]:
    columns = [f"top_choice.{name}" for name in NAMES]
    return {name: [0 if at % 3 == 0 else top for at, top in enumerate(row[name])] for name in columns}


def new_router() -> Router:
    return tiny.router(seed=3, initializer_range=0.05)


def config(folder: Path, **options: Any) -> SFTConfig:
    common: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "optim": "sgd"}
    common |= {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True, "lr_scheduler_type": "constant"}
    return SFTConfig(output_dir=str(folder), **(common | options))


def trainer(folder: Path, data: Dataset, callbacks: Sequence[TrainerCallback] = (), **options: Any) -> SFTTrainer:
    return SFTTrainer(new_router(), config(folder, **options), data, callbacks=callbacks)


def gradients(trainer: SFTTrainer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trainer.model.named_parameters()
    }


def live_sft_loss(router: Router, experts: list[Any], rows: list[dict[str, Any]], weight: float) -> Tensor:
    """Eq. (2) from plain forward passes, one example at a time, with the experts in memory."""
    lm, routing, tokens, disputed = torch.tensor(0.0), torch.tensor(0.0), 0, 0
    for row in rows:
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        targets = ids[0, start:, None]
        own = router(ids)
        log_probs = torch.stack([e(ids).logits[0, start - 1 : -1].log_softmax(-1) for e in experts])
        weights = own.route_logits[0, start - 1 : -1].softmax(-1)
        aggregate = torch.einsum("te,etv->tv", weights, log_probs).gather(-1, targets)[:, 0]
        in_s = informative(log_probs.argmax(-1).T)
        lm = lm - own.logits[0, start - 1 : -1].log_softmax(-1).gather(-1, targets).sum()
        routing, tokens, disputed = routing - aggregate[in_s].sum(), tokens + len(targets), disputed + int(in_s.sum())
    return lm / tokens + weight * routing / disputed


def test_scored_loss_equals_live_loss(world: Path, tmp_path: Path) -> None:
    dataset, _ = prepare(make_examples(COUNT), PromptFormat(tiny.tokenizer(), "chat_template"), 60)
    references = {name: ModelReference(model=str(world / name)) for name in NAMES}
    score(dataset, references, tiny.tokenizer(), tmp_path / "scores", device="cpu")
    rows = list(load_scores(tmp_path / "scores", NAMES))
    made = trainer(tmp_path, load_scores(tmp_path / "scores", NAMES), routing_weight=0.7)
    loss = made.compute_loss(made.model, collate(rows))
    experts = [load_model(reference, device="cpu") for reference in references.values()]
    expected = live_sft_loss(made.model, experts, rows, weight=0.7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in gradients(made, collate(rows)).items():
        made.model.zero_grad()
        (live,) = torch.autograd.grad(expected, dict(made.model.named_parameters())[name], retain_graph=True)
        torch.testing.assert_close(gradient, live, rtol=1e-3, atol=1e-5)


def test_renormalised_loss_equals_live_loss(world: Path, scored: Dataset, tmp_path: Path) -> None:
    """The whole vocabulary of every expert, one example at a time, against the trainer's."""
    experts = [load_model(str(world / name), device="cpu") for name in NAMES]
    made = SFTTrainer(new_router(), config(tmp_path, aggregation="renormalised"), scored, live=LiveExperts(experts))
    rows, total, routed = list(scored), torch.tensor(0.0), 0
    for row in rows:
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        log_probs = torch.stack([e(ids).logits[0, start - 1 : -1].log_softmax(-1) for e in experts])
        weights = made.model(ids).route_logits[0, start - 1 : -1].softmax(-1)
        aggregate = torch.einsum("te,etv->tv", weights, log_probs).log_softmax(-1)
        in_s = informative(torch.tensor([row[f"top_choice.{name}"] for name in NAMES]).T)
        total = total - aggregate.gather(-1, ids[0, start:, None])[in_s].sum()
        routed += int(in_s.sum())
    batch = collate(rows)
    sums = made.sft_sums(made.model(batch["input_ids"], attention_mask=batch["attention_mask"]), batch)
    assert sums.routed == routed
    assert sums.routing.item() == pytest.approx(total.item(), rel=1e-5)
    head = made.model.route_head.weight
    (wanted,) = torch.autograd.grad(total / routed / 3, head, retain_graph=True)
    torch.testing.assert_close(gradients(made, batch)["route_head.weight"], wanted, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for expert in experts for p in expert.parameters())


def test_routing_may_be_taught_at_all_positions(scored: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, scored, positions="all")
    batch = collate(list(scored))
    tokens, routed = made.counts(batch)
    assert tokens == routed == batch["labels"].ne(-100).sum()
    assert trainer(tmp_path, scored).counts(batch)[1] == batch["informative"].sum() < tokens


def test_without_experts_it_is_plain_fine_tuning(scored: Dataset, tmp_path: Path) -> None:
    """Transformers' own loss of the same LM is the judge."""
    router = tiny.router(seed=3, initializer_range=0.05, num_experts=1)
    made = SFTTrainer(router, config(tmp_path), scored, experts=())
    batch = Collator(())(list(scored))
    loss = made.compute_loss(router, batch)
    labels = batch["labels"]
    plain = router.lm(batch["input_ids"], attention_mask=batch["attention_mask"], shift_labels=labels, labels=labels)
    assert loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert gradients(made, batch)["route_head.weight"].abs().sum() == 0


def test_the_head_learns_from_informative_positions_alone(scored: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, scored)
    batch = collate(list(scored.select(range(6))))
    before = gradients(made, batch)
    assert before["route_head.weight"].abs().sum() > 0
    elsewhere = torch.where(batch["informative"][..., None], batch["expert_nll"], torch.rand_like(batch["expert_nll"]))
    torch.testing.assert_close(gradients(made, batch | {"expert_nll": elsewhere}), before, rtol=0, atol=0)
    nowhere = gradients(made, batch | {"informative": torch.zeros_like(batch["informative"])})
    assert nowhere["route_head.weight"].abs().sum() == 0
    assert all(torch.isfinite(gradient).all() for gradient in nowhere.values())
    name = "lm.model.layers.0.mlp.up_proj.weight"
    assert (nowhere[name] - before[name]).abs().sum() > 0, "the routing loss must reach the LM: h is not detached"


def test_one_batch_of_eight_is_eight_of_one(scored: Dataset, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", scored, per_device_train_batch_size=8)
    parts = trainer(tmp_path / "b", scored, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    logs = []
    for made in (whole, parts):
        made.train()
        logs.append([log for log in made.state.log_history if "loss" in log])
    assert len(logs[0]) == COUNT / 8
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "lm_loss", "routing_loss", "informative", "routing_accuracy", "usage.math", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict(), rtol=1e-5, atol=1e-6)


def test_logs_add_up(scored: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, scored, routing_weight=0.5, max_steps=1)
    made.train()
    log = made.state.log_history[0]
    assert log["loss"] == pytest.approx(log["lm_loss"] + 0.5 * log["routing_loss"], rel=1e-5)
    assert 0 < log["informative"] < 1
    assert 0 <= log["routing_accuracy"] <= 1
    assert sum(log[f"usage.{name}"] for name in NAMES) == pytest.approx(1)
    assert made.model.config.use_cache, "training must not leave its mark in the router's config"


class SpoilWeights(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2:
            torch.nn.init.constant_(model.route_head.weight, float("nan"))


class SpoilGradients(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2:
            model.route_head.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("spoil", "message"), [(SpoilWeights(), "loss became nan"), (SpoilGradients(), "gradient became")]
)
def test_numbers_that_are_not_finite_stop_training(
    spoil: TrainerCallback, message: str, scored: Dataset, tmp_path: Path
) -> None:
    made = trainer(tmp_path, scored, [spoil], save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.raises(
        FusionRouteError,
        match=rf"{message}.*at step 3, in a batch of rows \d+, \d+.*before it are whole",
    ):
        made.train()
    kept = last_checkpoint(tmp_path)
    assert kept is not None
    assert kept.name == "checkpoint-2"
    assert torch.isfinite(Router.from_pretrained(kept).route_head.weight).all()


def test_checkpoints_hold_a_router_and_no_pickled_weights(scored: Dataset, tmp_path: Path) -> None:
    trainer(tmp_path, scored, save_strategy="steps", save_steps=2, max_steps=2).train()
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "route_head.safetensors", "config.json"} <= files
    assert not files & {"pytorch_model.bin", "training_args.bin"}
    (tmp_path / "checkpoint-3").mkdir()  # a half-written one: no trainer_state.json yet
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_unfit_input_is_refused(scored: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="routing_weight must be at least 0; got -1"):
        config(tmp_path, routing_weight=-1)
    with pytest.raises(SettingsError, match="aggregation is expected_nll or renormalised; got 'mean'"):
        config(tmp_path, aggregation="mean")
    with pytest.raises(SettingsError, match="'renormalised' needs the experts in memory"):
        trainer(tmp_path, scored, aggregation="renormalised")
    with pytest.raises(DataError, match="chooses among 2 experts; scored are math, code, chat"):
        SFTTrainer(tiny.router(num_experts=2), config(tmp_path), scored)
    with pytest.raises(DataError, match="carry no scores, only input_ids"):
        trainer(tmp_path, scored.select_columns(["input_ids", "prompt_length"]))
