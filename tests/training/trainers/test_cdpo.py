import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tiny
from fusionroute import Router
from fusionroute.errors import DataError, SettingsError
from fusionroute.models.loading import ModelReference, load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.training.data.examples import prepare
from fusionroute.training.data.preferences import prepare_pairs
from fusionroute.training.scoring.scores import load_scores, score
from fusionroute.training.trainers.cdpo import CDPOConfig, CDPOTrainer, Mixture
from fusionroute.training.trainers.collator import Collator
from fusionroute.training.trainers.live import LiveExperts
from tiny_training import NAMES, make_examples, make_pairs

PAIRS = 12
FORMS = ("printed", "normalised")


def references(world: Path) -> dict[str, ModelReference]:
    return {name: ModelReference(model=str(world / name)) for name in NAMES}


@pytest.fixture(scope="module")
def examples(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("scores")
    dataset, _ = prepare(make_examples(16), PromptFormat(tiny.tokenizer(), "chat_template"), 60)
    score(dataset, references(world), tiny.tokenizer(), folder, device="cpu")
    return load_scores(folder, NAMES)


@pytest.fixture(scope="module")
def pairs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The reference is another model than the router that is trained, so that no difference vanishes by chance."""
    folder = tmp_path_factory.mktemp("pair_scores")
    dataset, _ = prepare_pairs(make_pairs(PAIRS), PromptFormat(tiny.tokenizer(), "chat_template"), 60)
    models = {**references(world), "router": ModelReference(model=str(world / "base"))}
    score(dataset, models, tiny.tokenizer(), folder, device="cpu")
    return load_scores(folder, [*NAMES, "router"])


@pytest.fixture(scope="module")
def live(world: Path) -> LiveExperts:
    return LiveExperts([load_model(reference, device="cpu") for reference in references(world).values()])


def new_router() -> Router:
    return tiny.router(seed=3, initializer_range=0.05)


def trainer(folder: Path, mixture: Mixture, live: LiveExperts | None = None, **options: Any) -> CDPOTrainer:
    common: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "optim": "sgd"}
    common |= {"use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True, "lr_scheduler_type": "constant"}
    config = CDPOConfig(output_dir=str(folder), **(common | options))
    return CDPOTrainer(new_router(), config, mixture, experts=NAMES, live=live)


def as_items(pairs: Dataset) -> list[Any]:
    rows = list(pairs)
    return list(zip(rows[::2], rows[1::2], strict=True))


def answer_log_probs(model: Any, row: dict[str, Any]) -> Tensor:
    """What a model says of the answer, token by token and over the whole vocabulary, in a plain pass."""
    ids = torch.tensor([row["input_ids"]])
    return model(ids).logits[0, row["prompt_length"] - 1 : -1].log_softmax(-1)


def at_targets(log_probs: Tensor, row: dict[str, Any]) -> Tensor:
    return log_probs.gather(-1, torch.tensor(row["input_ids"])[row["prompt_length"] :, None])[:, 0]


def live_pair_loss(router: Router, experts: list[Any], base: Any, pair: Any, beta: float, form: str) -> Tensor:
    """Eq. (3) of one pair, every model asked anew, the fused distribution made by softmax where it is normalised."""
    total = torch.tensor(0.0)
    for sign, row in zip((1, -1), pair, strict=True):
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        picked = router(ids).route_logits[0, start - 1 : -1].argmax(-1)
        said = torch.stack([answer_log_probs(expert, row) for expert in experts])
        expert = said[picked, torch.arange(len(picked))].detach()
        fused = answer_log_probs(router, row) + expert
        if form == "normalised":
            fused = fused.log_softmax(-1)
        total = total + sign * (at_targets(fused, row) - at_targets(answer_log_probs(base, row), row).detach()).sum()
    return -torch.nn.functional.logsigmoid(beta * total)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_of_pairs_is_eq_3_live(
    form: str, world: Path, examples: Dataset, pairs: Dataset, live: LiveExperts, tmp_path: Path
) -> None:
    made = trainer(tmp_path, Mixture(examples, pairs, 0, seed=0), live, form=form, beta=0.02)
    base = load_model(str(world / "base"), device="cpu")
    items = as_items(pairs)
    loss = made.compute_loss(made.model, Collator(NAMES)(items))
    expected = [live_pair_loss(made.model, live.models, base, pair, 0.02, form) for pair in items]
    assert len({round(each.item(), 4) for each in expected}) > 3, "pairs that all weigh the same would prove little"
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    made.model.zero_grad()
    loss.backward()
    for name, parameter in made.model.lm.named_parameters():
        (wanted,) = torch.autograd.grad(torch.stack(expected).mean(), parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_leave_no_gradient_in_the_route_head_nor_in_experts(
    form: str, examples: Dataset, pairs: Dataset, live: LiveExperts, tmp_path: Path
) -> None:
    made = trainer(tmp_path, Mixture(examples, pairs, 16, seed=0), live, form=form)
    made.compute_loss(made.model, Collator(NAMES)(as_items(pairs))).backward()
    head = made.model.route_head.weight
    assert head.grad is None or not head.grad.any()
    assert made.model.lm.get_input_embeddings().weight.grad.any()
    assert all(p.grad is None for model in live.models for p in model.parameters())
    # with one example beside them the head learns, and from that example alone
    disputed = max(examples, key=lambda row: len(row["input_ids"]))
    mixed = Collator(NAMES)([*as_items(pairs), disputed])
    made.model.zero_grad()
    made.compute_loss(made.model, mixed).backward()
    alone = Collator(NAMES)([disputed])
    sums = made.sft_sums(made.model(alone["input_ids"], attention_mask=alone["attention_mask"]), alone)
    (wanted,) = torch.autograd.grad(sums.loss(1 / 3) / (PAIRS + 1), head)
    assert wanted.any()
    torch.testing.assert_close(head.grad, wanted, rtol=1e-4, atol=1e-7)


def test_a_mixed_batch_is_the_mean_over_its_items(examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, Mixture(examples, pairs, 16, seed=0))
    some_pairs, some_examples = as_items(pairs)[:3], list(examples)[:5]
    parts = [made.compute_loss(made.model, Collator(NAMES)(part)).item() for part in (some_pairs, some_examples)]
    together = made.compute_loss(made.model, Collator(NAMES)([*some_examples[:2], *some_pairs, *some_examples[2:]]))
    assert together.item() == pytest.approx((3 * parts[0] + 5 * parts[1]) / 8, rel=1e-5)


def test_beta_zero_teaches_nothing(examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, Mixture(examples, pairs, 0, seed=0), beta=0.0)
    loss = made.compute_loss(made.model, Collator(NAMES)(as_items(pairs)))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert not any(p.grad.any() for p in made.model.parameters() if p.grad is not None)


def test_without_experts_it_is_dpo(world: Path, examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    router, base = tiny.router(seed=3, initializer_range=0.05, num_experts=1), load_model(str(world / "base"))
    config = CDPOConfig(output_dir=str(tmp_path), use_cpu=True, dataloader_pin_memory=False, beta=0.3)
    made = CDPOTrainer(router, config, Mixture(examples, pairs, 0, seed=0), experts=())
    losses = []
    for chosen, rejected in as_items(pairs):
        gains = [
            (at_targets(answer_log_probs(router, row), row) - at_targets(answer_log_probs(base, row), row)).sum()
            for row in (chosen, rejected)
        ]
        losses.append(-torch.nn.functional.logsigmoid(0.3 * (gains[0] - gains[1])))
    loss = made.compute_loss(router, Collator(())(as_items(pairs)))
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_one_batch_of_eight_is_eight_of_one(examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    mixture = Mixture(examples, pairs, 12, seed=0)
    whole = trainer(tmp_path / "a", mixture, per_device_train_batch_size=8)
    parts = trainer(tmp_path / "b", mixture, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    logs = []
    for made in (whole, parts):
        made.train()
        logs.append([log for log in made.state.log_history if "loss" in log])
    assert len(logs[0]) == (12 + PAIRS) / 8
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "lm_loss", "routing_loss", "cdpo_loss", "bias", "margin", "preferred", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict(), rtol=1e-5, atol=1e-6)


def test_logs_say_how_saturated_the_pairs_are(examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path, Mixture(examples, pairs, 0, seed=0), max_steps=1, per_device_train_batch_size=PAIRS)
    made.train()
    log = made.state.log_history[0]
    batch = Collator(NAMES)(as_items(pairs))
    router = new_router()
    picked = router(batch["input_ids"], attention_mask=batch["attention_mask"]).route_logits.argmax(-1)
    nll = batch["expert_nll"].gather(-1, picked[..., None])[..., 0].sum(1).view(-1, 2)
    bias = 0.1 * (nll[:, 1] - nll[:, 0])
    assert log["bias"] == pytest.approx(bias.mean().item(), rel=1e-4)
    assert 0 <= log["saturated"] <= 1
    assert log["loss"] == pytest.approx(log["cdpo_loss"], rel=1e-5)
    assert log["lm_loss"] == log["routing_loss"] == 0, "no example was in the batch"


def test_the_mixture_draws_examples_and_keeps_every_pair(examples: Dataset, pairs: Dataset) -> None:
    mixture = Mixture(examples, pairs, 5, seed=1)
    items = [mixture[at] for at in range(len(mixture))]
    assert len(mixture) == 5 + PAIRS
    assert [isinstance(item, tuple) for item in items] == [False] * 5 + [True] * PAIRS
    assert items[5] == (pairs[0], pairs[1])
    assert items[-1] == (pairs[2 * PAIRS - 2], pairs[2 * PAIRS - 1])
    assert len({tuple(item["input_ids"]) for item in items[:5]}) == 5
    assert mixture.drawn == Mixture(examples, pairs, 5, seed=1).drawn != Mixture(examples, pairs, 5, seed=2).drawn
    longest = [max(len(row["input_ids"]) for row in (item if isinstance(item, tuple) else (item,))) for item in items]
    assert mixture.lengths == longest


def test_unfit_input_is_refused(examples: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20 examples are wanted beside the pairs, but there are only 16"):
        Mixture(examples, pairs, 20, seed=0)
    mixture = Mixture(examples, pairs, 4, seed=0)
    with pytest.raises(SettingsError, match="beta must be at least 0; got -1"):
        trainer(tmp_path, mixture, beta=-1)
    with pytest.raises(SettingsError, match="form is printed or normalised; got 'both'"):
        trainer(tmp_path, mixture, form="both")
    with pytest.raises(SettingsError, match="'normalised' needs the experts in memory"):
        trainer(tmp_path, mixture, form="normalised")
