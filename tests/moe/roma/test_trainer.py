from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

import tiny
import tiny_moe
from fusionroute.errors import DataError, FusionRouteError, ModelOutputError
from fusionroute.models.gates import Gates
from fusionroute.moe.questions.questions import Encoded
from fusionroute.moe.roma.batches import Collator, Targets, answer_loss, chosen_tokens
from fusionroute.moe.roma.folder import last_checkpoint
from fusionroute.moe.roma.master_weights import MasterAdamW
from fusionroute.moe.roma.trainer import RoMAArguments, RoMATrainer, alignment
from tiny_roma import Interrupt

COUNT, LAYERS = 12, 2


def questions(count: int = COUNT) -> list[Encoded]:
    """Prompts of 3 tokens and more with one to four answers; the right one is not always the first."""
    prompts, answers = tiny.prompts(count, seed=1, longest=9), tiny.prompts(3 * count, seed=2, longest=4)
    return [
        Encoded([7, 8, *prompt], tuple([*each, tiny.EOS] for each in answers[3 * row : 3 * row + 1 + row % 3]), row % 3)
        for row, prompt in enumerate(prompts)
    ]


def targets(seed: int = 0, count: int = COUNT, k: int = 3, tokens: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    table = tiny_moe.routing(count * tokens, LAYERS, seed).flatten(1).unflatten(0, (count, tokens))
    index = torch.randint(0, count, (count, k), generator=generator)
    weight = torch.rand(count, k, generator=generator)
    return Targets(table, index, weight / weight.sum(1, keepdim=True))


def model(family: str = "olmoe", **overrides: Any) -> PreTrainedModel:
    return tiny_moe.mixture(family, seed=3, **overrides)


def trainer(
    folder: Path,
    *,
    of: PreTrainedModel | None = None,
    towards: Targets | None = None,
    where: Any = "last",
    count: int = 1,
    callbacks: tuple[TrainerCallback, ...] = (),
    **options: Any,
) -> RoMATrainer:
    common: dict[str, Any] = {
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False,
        "disable_tqdm": True, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4,
    }  # fmt: skip
    return RoMATrainer(
        Gates(model() if of is None else of, LAYERS),
        RoMAArguments(output_dir=str(folder), **(common | options)),
        questions(),
        targets() if towards is None else towards,
        pad_id=0,
        where=where,
        count=count,
        callbacks=callbacks,
    )


def gate_weights(made: RoMATrainer) -> list[Tensor]:
    return [weight.detach().clone() for weight in made.gates.parameters()]


def plain_loss(gates: Gates, asked: list[Encoded], towards: Targets, weight: float) -> Tensor:
    """Eq. (9) from one plain forward pass a question, written as in the paper."""
    losses = []
    for row, question in enumerate(asked):
        ids = torch.tensor([[*question.prompt, *question.answers[question.right]]])
        start = len(question.prompt)
        with gates.reading() as tap:
            logits = gates.model(ids).logits[0]
            r_i = tap.routing(torch.tensor([start - 1]))[0].flatten()
        log_probabilities = logits[start - 1 : -1].log_softmax(-1)
        cross_entropy = -sum(log_probabilities[at, token] for at, token in enumerate(ids[0, start:])) / (
            ids.shape[1] - start
        )
        manifold = sum(
            w * (r_i - towards.table[j, 0]).square().sum()
            for w, j in zip(towards.weight[row], towards.index[row], strict=True)
        )
        losses.append(cross_entropy + weight * manifold)
    return torch.stack(losses).mean()


def test_the_manifold_term_worked_by_hand() -> None:
    """One question, two experts in one layer, r = (0.6, 0.4); neighbours (1, 0) of weight 3/4 and (0.5, 0.5) of 1/4:
    3/4 (0.16 + 0.16) + 1/4 (0.01 + 0.01) = 0.245. A second question without neighbours has 0.
    """
    routing = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    neighbours = torch.tensor([[1.0, 0.0], [0.5, 0.5]])[:, None]  # [k, T = 1, D]
    found = alignment(routing, torch.stack([neighbours, neighbours]), torch.tensor([[0.75, 0.25], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.245, 0.0]))


def test_several_tokens_are_aligned_each_with_its_own_and_averaged() -> None:
    """Tokens (1, 0) and (0, 1) towards one neighbour's (1, 0) and (1, 0): (0 + 2) / 2."""
    found = alignment(torch.eye(2), torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), torch.ones(1, 1))
    torch.testing.assert_close(found, torch.tensor([1.0]))


def test_the_answers_loss_worked_by_hand() -> None:
    """Probabilities 1/2 and 1/4 of the two answer tokens: (ln 2 + ln 4) / 2 = 1.5 ln 2; padding counts for nothing."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))], [9.0, 0.0]]])
    found = answer_loss(logits, torch.tensor([[1, 0, -100]]))
    torch.testing.assert_close(found, 1.5 * torch.tensor([2.0]).log())


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_a_batch_gives_what_plain_passes_give(family: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, of=model(family), weight=0.7)
    loss = made.compute_loss(made.model, made.data_collator(range(COUNT)))
    expected = plain_loss(made.gates, questions(), targets(), 0.7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    mine = torch.autograd.grad(loss, made.gates.parameters())
    theirs = torch.autograd.grad(expected, made.gates.parameters())
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_logits_are_made_of_the_answers_columns_alone(family: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, of=model(family), weight=0.0)
    batch = made.data_collator(range(COUNT))
    labels = batch["labels"]
    with torch.no_grad():
        loss, outputs = made.compute_loss(made.model, batch, return_outputs=True)
        whole = made.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = {len(each.prompt) - 1 + at for each in questions() for at in range(len(each.answers[each.right]))}
    assert outputs.logits.shape[1] == len(wanted) < labels.shape[1]
    assert loss.item() == pytest.approx(answer_loss(whole, labels).mean().item(), abs=1e-6)


def test_what_stands_beside_the_answer_takes_no_part() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = logits[1, 2] = torch.nan
    logits.requires_grad_(True)
    answer_loss(logits, torch.tensor([[-100, 1, 2], [3, 4, -100]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].eq(0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_gradients_equal_finite_differences(family: str, tmp_path: Path) -> None:
    """Along directions and not entry by entry: norms and gates compute in float32 even in a float64 model."""
    lm = model(family).double()
    lm.set_experts_implementation("eager")
    made = trainer(tmp_path, of=lm, weight=20.0)
    batch = made.data_collator(range(COUNT))
    made.compute_loss(made.model, batch).backward()
    generator, step = torch.Generator().manual_seed(0), 3e-4
    for weight in made.gates.parameters():
        assert weight.grad is not None
        random = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        for direction in (weight.grad / weight.grad.norm(), random / random.norm() + weight.grad / weight.grad.norm()):
            around = []
            for sign in (1, -1):
                weight.data += sign * step * direction
                around.append(made.compute_loss(made.model, batch).item())
                weight.data -= sign * step * direction
            slope = (weight.grad * direction).sum().item()
            assert slope == pytest.approx((around[0] - around[1]) / (2 * step), rel=3e-3)


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_nothing_but_the_chosen_gates_can_move(family: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, of=model(family), max_steps=2, learning_rate=0.1)
    before = {name: each.clone() for name, each in made.model.state_dict().items()}
    chosen = {f"{gate.name}.weight" for gate in made.gates.gates}
    assert len(chosen) == LAYERS
    assert {name for name, each in made.model.named_parameters() if each.requires_grad} == chosen
    made.train()
    after = made.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == chosen


def test_the_backward_pass_ends_at_the_first_chosen_gate(tmp_path: Path) -> None:
    made, entering = trainer(tmp_path), dict[int, bool]()

    def note(at: int) -> Callable[..., None]:
        return lambda module, inputs, output: entering.update({at: inputs[0].requires_grad})

    for at, layer in enumerate(made.model.model.layers):
        layer.register_forward_hook(note(at))
    made.compute_loss(made.model, made.data_collator(range(4)))
    assert entering == {0: False, 1: False, 2: False, 3: True}  # of four layers the last two have trained gates


def test_without_weight_no_graph_matters_to_the_last_bit(tmp_path: Path) -> None:
    tuned = []
    broken = Targets(torch.full((COUNT, 1, LAYERS * tiny_moe.EXPERTS), 1e30), targets().index, targets().weight)
    for towards in (targets(0), targets(5, k=1), broken):
        made = trainer(tmp_path, towards=towards, weight=0.0)
        made.train()
        tuned.append(gate_weights(made))
    for other in tuned[1:]:
        assert all(torch.equal(one, two) for one, two in zip(tuned[0], other, strict=True))


def test_without_weight_it_is_plain_router_tuning(tmp_path: Path) -> None:
    """The judge is a loop of torch's own AdamW over the same batches."""
    made = trainer(tmp_path, weight=0.0, weight_decay=0.0, max_grad_norm=0.0, optim="adamw_torch")
    order: list[list[int]] = []
    inner = made.data_collator

    def noting(rows: list[int]) -> Any:
        order.append(list(rows))
        return inner(rows)

    made.data_collator = noting
    made.train()
    gates = Gates(model().requires_grad_(False), LAYERS)
    for weight in gates.parameters():
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(gates.parameters(), lr=1e-3, weight_decay=0.0)
    assert sorted(row for rows in order for row in rows) == list(range(COUNT))
    for rows in order:
        optimiser.zero_grad()
        asked = [questions()[row] for row in rows]
        plain_loss(gates, asked, targets(), 0.0).backward()
        optimiser.step()
    for one, other in zip(made.gates.parameters(), gates.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not any(
        torch.equal(a, b) for a, b in zip(gate_weights(made), Gates(model(), LAYERS).parameters(), strict=True)
    )


def test_one_batch_of_four_is_four_of_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", per_device_train_batch_size=4)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for made in (whole, parts):
        made.train()
    logs = [[log for log in made.state.log_history if "loss" in log] for made in (whole, parts)]
    assert len(logs[0]) == len(logs[1]) == COUNT / 4
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(one["task_loss"] + one["manifold_loss"], rel=1e-5)
        for key in ("loss", "task_loss", "manifold_loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
    for one, other in zip(gate_weights(whole), gate_weights(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_uninterrupted(dtype: torch.dtype, tmp_path: Path) -> None:
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "learning_rate": 1e-3}
    whole = trainer(tmp_path / "whole", of=model().to(dtype), **common)
    whole.train()
    first = trainer(tmp_path / "parts", of=model().to(dtype), callbacks=(Interrupt(at=3),), **common)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        first.train()
    kept = last_checkpoint(tmp_path / "parts")
    assert kept is not None
    assert kept.name == "checkpoint-3"
    assert {path.name for path in kept.iterdir()} >= {"gates.safetensors", "trainer_state.json"}
    assert not (kept / "model.safetensors").exists()
    second = trainer(tmp_path / "parts", of=model().to(dtype), **common)
    second.train(resume_from_checkpoint=str(kept))
    assert all(torch.equal(a, b) for a, b in zip(gate_weights(whole), gate_weights(second), strict=True))
    assert whole.gates.parameters()[0].dtype == dtype


def test_small_steps_add_up_in_half_precision() -> None:
    """Steps of 1e-4 at a weight of 1 vanish in bfloat16; ten thousand of them would still be nothing."""
    live, exact = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16)), torch.nn.Parameter(torch.ones(1))
    masters, plain = MasterAdamW([live], lr=1e-4, weight_decay=0), torch.optim.AdamW([exact], lr=1e-4, weight_decay=0)
    for _ in range(100):
        for weight, optimiser in ((live, masters), (exact, plain)):
            weight.grad = torch.ones_like(weight)
            optimiser.step()
            optimiser.zero_grad()
        assert live.grad is None
    assert exact.item() == pytest.approx(0.99, abs=1e-4)
    assert live.item() == exact.to(torch.bfloat16).item() < 1
    assert live.dtype == torch.bfloat16


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    tuned = []
    for is_on in (False, True):
        lm = model()
        if is_on:
            lm.activation_checkpointing_enable({"use_reentrant": False})
        made = trainer(tmp_path, of=lm, max_steps=2, weight=3.0)
        made.train()
        tuned.append(gate_weights(made))
    for one, other in zip(*tuned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_routing_without_gradient_is_refused(tmp_path: Path) -> None:
    """Reentrant checkpointing recomputes the layers behind the hooks' backs."""
    lm = model()
    lm.activation_checkpointing_enable({"use_reentrant": True})
    made = trainer(tmp_path, of=lm, max_steps=1)
    with pytest.raises(FusionRouteError, match=r"the routing has no gradient.*not reentrant"):
        made.train()


def test_logits_that_overflow_are_refused(tmp_path: Path) -> None:
    lm = model().half()
    with torch.no_grad():
        Gates(lm, LAYERS).parameters()[0].fill_(6e4)
    made = trainer(tmp_path, of=lm)
    with pytest.raises(ModelOutputError, match=r"layers\.2\.mlp\.gate.*float16.*bfloat16 or float32"):
        made.compute_loss(made.model, made.data_collator(range(4)))


def test_numbers_that_are_not_finite_stop_training(tmp_path: Path) -> None:
    towards = targets()
    towards.weight[5] = float("inf")
    made = trainer(tmp_path, towards=towards, save_strategy="steps", save_steps=1)
    with pytest.raises(FusionRouteError, match=r"the loss is not finite at step \d, with questions 6; the checkpoints"):
        made.train()
    assert all(torch.isfinite(weight).all() for weight in gate_weights(made))


def test_the_load_balancing_loss_stays_out(tmp_path: Path) -> None:
    usual = trainer(tmp_path, of=model())
    batch = usual.data_collator(range(COUNT))
    balanced = trainer(tmp_path, of=model(output_router_logits=True, router_aux_loss_coef=1.0))
    assert balanced.compute_loss(balanced.model, batch).item() == usual.compute_loss(usual.model, batch).item()


@pytest.mark.parametrize(
    ("where", "count", "positions"),
    [("first", 2, [0, 1]), ("middle", 1, [2]), ("middle", 3, [1, 2, 3]), ("last", 1, [5]), ("last", 3, [3, 4, 5])],
)
def test_which_tokens_are_aligned(where: Any, count: int, positions: list[int]) -> None:
    assert list(chosen_tokens(6, where, count)) == positions


def test_other_tokens_are_aligned_with_their_own_targets(tmp_path: Path) -> None:
    """At three tokens: the mean over the tokens of what each would give alone."""
    towards = targets(tokens=3)
    made = trainer(tmp_path, towards=towards, where="first", count=3)
    task = trainer(tmp_path, weight=0.0)
    without = task.compute_loss(task.model, task.data_collator(range(COUNT))).item()
    with made.gates.reading() as tap:
        alone = []
        for row, question in enumerate(questions()):
            made.model(torch.tensor([question.prompt]))
            distances = (
                (tap.routing(torch.arange(3)).flatten(1)[None] - towards.table[towards.index[row]]).square().sum(-1)
            )
            alone.append((towards.weight[row] @ distances).mean())
    loss = made.compute_loss(made.model, made.data_collator(range(COUNT))).item()
    assert loss - without == pytest.approx(torch.stack(alone).mean().item(), rel=1e-3)


def test_a_prompt_that_is_too_short_is_named() -> None:
    with pytest.raises(DataError, match=r"question \d+ has a prompt of 3 tokens, and the routing of 4"):
        Collator(questions(), targets(), pad_id=0, where="last", count=4)
