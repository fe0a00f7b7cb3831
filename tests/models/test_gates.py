import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError as RecomputeError
from transformers import PreTrainedModel

import tiny
import tiny_moe
from fusionroute.errors import ModelOutputError, SettingsError, UnsupportedModelError
from fusionroute.models.gates import Gates, choose_gates, find_gates, rows_of

PROMPTS = tiny.prompts(3, seed=3, longest=9)
IDS, MASK = tiny_moe.padded(PROMPTS)


@pytest.fixture(scope="module")
def olmoe() -> PreTrainedModel:
    return tiny_moe.mixture("olmoe")


def forward(model: PreTrainedModel, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


# which modules are gates


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_gates_are_found_in_every_family(family: str) -> None:
    gates = find_gates(tiny_moe.mixture(family))
    assert len(gates) == tiny_moe.MOE_LAYERS[family]
    layers = {"qwen3_moe": [0, 2, 3], "deepseek_v2": [1, 2, 3]}.get(family, [0, 1, 2, 3])
    assert [gate.layer for gate in gates] == layers
    assert [gate.name for gate in gates] == [f"model.layers.{layer}.mlp.gate" for layer in layers]
    for gate in gates:
        assert (gate.experts, gate.scoring.top_k) == (tiny_moe.EXPERTS, tiny_moe.TOP_K)
        assert gate.scoring.renormalises == (family in tiny_moe.RENORMALISE)
        assert gate.scoring.scale == (2.5 if family == "deepseek_v2" else 1.0)
        assert gate.weight.shape == (tiny_moe.EXPERTS, tiny.COMMON["hidden_size"])


@pytest.mark.parametrize("family", tiny_moe.OTHERS)
def test_other_gates_of_the_same_kind_are_found(family: str) -> None:
    gates = find_gates(tiny_moe.mixture(family))
    assert len(gates) == (2 if family == "jamba" else 4)


@pytest.mark.parametrize("kind", tiny_moe.REFUSED)
def test_other_kinds_are_refused_with_the_reason(kind: str) -> None:
    name, options, reason = tiny_moe.REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        find_gates(tiny_moe.built(name, options))
    assert name in str(refused.value)


def two_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    weights, index = scores.topk(2, dim=-1)
    return weights, index


MADE_UP = {
    "with sigmoids": lambda logits: (logits, *two_of(logits.sigmoid())),
    "probabilities": lambda logits: (logits.softmax(-1), *two_of(logits.softmax(-1))),
    "chooses other experts": lambda logits: (logits, *two_of(logits.softmax(-1) * (1 + torch.arange(8.0)))),
    r"returns \[64, 8\], \[64, 2\], \[64, 2\] instead": lambda logits: (logits, *two_of(logits)[::-1]),
    "does not return": lambda logits: two_of(logits.softmax(-1)),
    r"weights differ by up to": lambda logits: (logits, *two_of(logits.softmax(-1).square())),
    "cannot be asked by itself": lambda logits: logits.view(1, 2, 3),
}


@pytest.mark.parametrize("reason", MADE_UP)
def test_what_was_different_is_said(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_moe.mixture()
    gate = model.model.layers[1].mlp.gate
    monkeypatch.setattr(gate, "forward", lambda hidden: MADE_UP[reason](hidden @ gate.weight.T))
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.gate \(OlmoeTopKRouter\) .*" + reason):
        find_gates(model)


def test_looking_changes_neither_random_numbers_nor_modes(olmoe: PreTrainedModel) -> None:
    olmoe.train()
    before = torch.get_rng_state()
    find_gates(olmoe)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in olmoe.modules())
    olmoe.eval()


@pytest.mark.parametrize("scale", [1.0, 1.8, 16.0, 2**0.5])
def test_the_scale_is_found_to_the_last_bit(scale: float) -> None:
    gate = find_gates(tiny_moe.mixture("deepseek_v2", routed_scaling_factor=scale))[0]
    assert gate.scoring.scale == scale


def test_gates_that_say_nothing_are_refused() -> None:
    model = tiny_moe.mixture()
    gate = find_gates(model)[2]
    torch.nn.init.zeros_(gate.weight)
    with pytest.raises(UnsupportedModelError, match=r"layers\.2\.mlp\.gate .* zero"):
        find_gates(model)
    with torch.device("meta"):
        unloaded = tiny_moe.mixture()
    with pytest.raises(UnsupportedModelError, match="meta device"):
        find_gates(unloaded)


# which of them


def test_the_last_ones_all_or_some(olmoe: PreTrainedModel) -> None:
    gates = find_gates(olmoe)
    assert choose_gates(gates, 3) == gates[-3:]
    assert choose_gates(gates, "all") == gates
    assert choose_gates(gates, [-1, 0]) == [gates[0], gates[3]]
    assert Gates(olmoe, 2).parameters()[1] is olmoe.model.layers[3].mlp.gate.weight


@pytest.mark.parametrize("layers", [5, 0, -1, True, "last", [4], [-5], [], [0, -4], [1.0]])
def test_impossible_choices_are_refused(olmoe: PreTrainedModel, layers) -> None:
    with pytest.raises(SettingsError, match=r"layers"):
        Gates(olmoe, layers)


def test_layers_of_different_sizes_do_not_go_together() -> None:
    model = tiny_moe.mixture()
    model.model.layers[3].mlp.gate.top_k = 3
    with pytest.raises(UnsupportedModelError, match="2 of 8 experts and 3 of 8 experts"):
        Gates(model, 2)
    assert Gates(model, 1).top_k == 3


# rows of tokens


def test_rows_of_tokens_under_either_padding() -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    width = max(lengths)
    left = tiny_moe.padded(PROMPTS, side="left")[1]
    assert rows_of(MASK).tolist() == [b * width + n - 1 for b, n in enumerate(lengths)]
    assert rows_of(left).tolist() == [(b + 1) * width - 1 for b in range(3)]
    assert rows_of(left, 0).tolist() == [(b + 1) * width - n for b, n in enumerate(lengths)]
    several = torch.tensor([[0, -1], [0, -1], [0, 1]])
    ids, left_ids = IDS.flatten(), tiny_moe.padded(PROMPTS, side="left")[0].flatten()
    expected = [PROMPTS[0][0], PROMPTS[0][-1], PROMPTS[1][0], PROMPTS[1][-1], PROMPTS[2][0], PROMPTS[2][1]]
    assert ids[rows_of(MASK, several)].tolist() == expected
    assert left_ids[rows_of(left, several)].tolist() == expected
    assert ids[rows_of(MASK, torch.tensor([0, 1, -2]))].tolist() == [PROMPTS[0][0], PROMPTS[1][1], PROMPTS[2][-2]]


@pytest.mark.parametrize(("mask", "token"), [([[1, 0, 1]], -1), ([[0, 0, 0]], -1), ([[1, 1, 0]], 2), ([[0, 1, 1]], -3)])
def test_tokens_that_do_not_exist(mask: list[list[int]], token: int) -> None:
    with pytest.raises(SettingsError):
        rows_of(torch.tensor(mask), token)


# reading


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_what_is_read_is_what_transformers_reports(family: str) -> None:
    gates = Gates(tiny_moe.mixture(family), "all")
    rows = rows_of(MASK)
    with gates.reading() as tap, torch.no_grad():
        reported = gates.model(input_ids=IDS, attention_mask=MASK, output_router_logits=True).router_logits
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tap.logits, reported, strict=True))
    expected = torch.stack([each[rows].float().softmax(-1) for each in reported], dim=1)
    assert torch.equal(tap.routing(rows), expected)
    assert tap.routing().shape == (IDS.numel(), gates.count, gates.experts)


def test_padding_on_either_side_gives_the_same_routing(olmoe: PreTrainedModel) -> None:
    gates = Gates(olmoe, 3)
    found = []
    for side in ("left", "right"):
        ids, mask = tiny_moe.padded(PROMPTS, side=side)
        with gates.reading() as tap, torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            olmoe(input_ids=ids, attention_mask=mask, position_ids=positions)
        found.append(tap.routing(rows_of(mask)))
    alone = []
    for prompt in PROMPTS:
        with gates.reading() as tap, torch.no_grad():
            olmoe(input_ids=torch.tensor([prompt]))
        alone.append(tap.routing()[-1:])
    for each in found:
        torch.testing.assert_close(each, torch.cat(alone), atol=1e-6, rtol=0)


def test_the_live_routing_has_a_gradient(olmoe: PreTrainedModel) -> None:
    gates = Gates(olmoe, 1)
    with gates.reading() as tap:
        forward(olmoe)
    (gradient,) = torch.autograd.grad(tap.routing(rows_of(MASK)).square().sum(), gates.parameters())
    assert gradient.abs().max() > 0


def test_reading_before_a_pass_says_so(olmoe: PreTrainedModel) -> None:
    with Gates(olmoe, 1).reading() as tap, pytest.raises(SettingsError, match="run the model inside the block"):
        tap.routing()


def test_overflow_in_half_precision_names_layer_and_remedy() -> None:
    model = tiny_moe.mixture().to(torch.float16)
    gates = Gates(model, 2)
    model.model.layers[3].mlp.gate.weight.data.mul_(3e4)
    with gates.reading() as tap, torch.no_grad():
        forward(model)
    with pytest.raises(ModelOutputError, match=r"layers\.3\.mlp\.gate \(layer 3, torch\.float16\).*bfloat16"):
        tap.routing()
    with gates.overriding(tiny_moe.routing(IDS.numel(), 2)), pytest.raises(ModelOutputError, match="layer 3"):
        forward(model)


# overriding


def gate_outputs(gates: Gates, routing: Tensor | None, rows: Tensor | None) -> list[tuple[Tensor, ...]]:
    """What each gate gives to its experts. (A hook that is registered later sees what an earlier one has replaced.)"""
    outputs: list[tuple[Tensor, ...]] = []
    context = gates.reading() if routing is None else gates.overriding(routing, rows)
    with context, torch.no_grad():
        watch = [g.module.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for g in gates.gates]
        forward(gates.model)
    for handle in watch:
        handle.remove()
    return outputs


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_only_the_chosen_tokens_are_forced(family: str) -> None:
    """And they get what is written out here by hand."""
    gates = Gates(tiny_moe.mixture(family), 1)
    rows = rows_of(MASK)[1:]
    forced = torch.tensor([[0.1, 0, 0.2, 0, 0.1, 0, 0.1, 0], [0, 0, 0, 3.0, 0, 0, 0, 6.0]])[:, None]
    ((_, plain_weights, plain_index),) = gate_outputs(gates, None, None)
    ((_, weights, index),) = gate_outputs(gates, forced, rows)
    others = torch.ones(IDS.numel(), dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(weights[others], plain_weights[others])
    assert torch.equal(index[others], plain_index[others])
    dense = torch.zeros(2, 8).scatter(1, index[rows], weights[rows].float())
    scale = {"deepseek_v2": 2.5}.get(family, 1.0)
    assert dense[1].tolist() == pytest.approx([0, 0, 0, scale / 3, 0, 0, 0, 2 * scale / 3])
    largest = 2 / 3 if family in tiny_moe.RENORMALISE else 0.4 * scale  # the other one is one of three equal ones
    assert dense[0].max().item() == dense[0, 2].item() == pytest.approx(largest)
    assert dense[0].sum().item() == pytest.approx(1.5 * largest)


def test_all_forms_of_routing_mean_the_same(olmoe: PreTrainedModel) -> None:
    gates = Gates(olmoe, 2)
    rows, routing = rows_of(MASK), tiny_moe.routing(3, 2)
    said = []
    for form in (routing, routing.flatten(1), list(routing.unbind(1)), 7 * routing, routing.double()):
        with gates.overriding(form, rows), torch.no_grad():
            said.append(forward(olmoe))
    for each in said[1:]:
        torch.testing.assert_close(each, said[0], atol=1e-5, rtol=1e-5)


def test_an_override_reports_the_models_own_choice(olmoe: PreTrainedModel) -> None:
    gates = Gates(olmoe, 2)
    with torch.no_grad():
        with gates.reading() as plain:
            forward(olmoe)
        with gates.reading() as outer, gates.overriding(tiny_moe.routing(IDS.numel(), 2)) as tap:
            forward(olmoe)
    assert torch.equal(tap.logits[0], plain.logits[0])
    assert not torch.equal(tap.logits[1], plain.logits[1])  # reads what the first forced layer has changed
    assert all(map(torch.equal, tap.logits, outer.logits))


def test_generated_tokens_are_routed_by_the_model(olmoe: PreTrainedModel) -> None:
    """By hand: the prompt under the override, then cached steps without. A prompt of one token is no exception."""
    gates = Gates(olmoe, 2)
    for prompt in ([[7], [9]], [[7, 8, 9], [9, 5, 6]]):
        ids = torch.tensor(prompt)
        rows = rows_of(torch.ones_like(ids))
        routing = tiny_moe.routing(2, 2)
        with gates.overriding(routing, rows):
            written = olmoe.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        with torch.no_grad():
            with gates.overriding(routing, rows):
                output = olmoe(ids, use_cache=True)
            expected = [output.logits[:, -1].argmax(-1)]
            for _ in range(4):
                output = olmoe(expected[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
                expected.append(output.logits[:, -1].argmax(-1))
        assert written[:, ids.shape[1] :].tolist() == torch.stack(expected, dim=1).tolist()


def test_overrides_do_not_nest(olmoe: PreTrainedModel) -> None:
    first, second = Gates(olmoe, 1), Gates(olmoe, [0])
    routing = tiny_moe.routing(IDS.numel(), 1)
    with first.overriding(routing):
        with pytest.raises(SettingsError, match="overridden already"), second.overriding(routing):
            pass
        with Gates(tiny_moe.mixture(), 1).overriding(routing):  # another model
            pass


BAD_ROUTING = {
    "experts": torch.ones(3, 2, 7),
    "gates": torch.ones(3, 1, 8),
    "flat": torch.ones(3, 15),
    "integers": torch.ones(3, 2, 8, dtype=torch.long),
    "list": [torch.ones(3, 8)],
    "ragged list": [torch.ones(3, 8), torch.ones(2, 8)],
    "negative": torch.full((3, 2, 8), -1.0),
    "zero": torch.zeros(3, 2, 8),
    "nan": torch.full((3, 2, 8), float("nan")),
}


@pytest.mark.parametrize("kind", BAD_ROUTING)
def test_what_is_no_routing(olmoe: PreTrainedModel, kind: str) -> None:
    with pytest.raises(SettingsError, match="routing"), Gates(olmoe, 2).overriding(BAD_ROUTING[kind], rows_of(MASK)):
        pass


@pytest.mark.parametrize("rows", [[0, 0, 1], [0, 1], [-1, 0, 1], [0, 1, 10_000], None])
def test_rows_that_are_not_in_the_pass(olmoe: PreTrainedModel, rows: list[int] | None) -> None:
    with (
        pytest.raises(SettingsError),
        Gates(olmoe, 1).overriding(tiny_moe.routing(3, 1), None if rows is None else torch.tensor(rows)),
    ):
        forward(olmoe)


# gradients


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_where_gradients_go(family: str) -> None:
    """To every expert through the sum; where the gate divides by the chosen ones' sum, that cancels for the others."""
    routing = tiny_moe.routing(3, 2)
    gates = Gates(tiny_moe.mixture(family), 2)
    rows, forced = rows_of(MASK), routing.clone().requires_grad_()
    with gates.overriding(forced, rows):
        (gradient,) = torch.autograd.grad(forward(gates.model).square().mean(), forced)
    chosen = torch.zeros_like(routing).scatter(-1, routing.topk(2).indices, 1).bool()
    assert (gradient[chosen].abs() > 1e-7).all()
    if family in tiny_moe.RENORMALISE:
        assert gradient[~chosen].abs().max() < 1e-5 * gradient[chosen].abs().max()
    else:
        assert (gradient[~chosen].abs() > 1e-7).all()


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "qwen3_moe_plain"])
def test_gradients_equal_finite_differences(family: str) -> None:
    """One MoE layer by itself: the norms around it compute in float32, whatever the model's dtype."""
    model = tiny_moe.mixture(family).double()
    model.set_experts_implementation("eager")
    gates = Gates(model, 1)
    hidden = torch.randn(1, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def output(routing: Tensor) -> Tensor:
        with gates.overriding(routing, torch.tensor([1, 4])):
            return model.model.layers[3].mlp(hidden)

    routing = tiny_moe.routing(2, 1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(output, (routing,))


def test_gradients_where_the_rows_sum_to_one_all_but(olmoe: PreTrainedModel) -> None:
    """No bit is changed there, but the gradient is that of the division: a row moved along itself does nothing."""
    gates, rows = Gates(olmoe, 2), rows_of(MASK)
    routing = tiny_moe.routing(3, 2).requires_grad_()
    with gates.overriding(routing, rows):
        (gradient,) = torch.autograd.grad(forward(olmoe).square().mean(), routing)
    assert gradient.abs().max() > 1e-3
    assert (gradient * routing).sum(-1).abs().max() < 1e-6


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_checkpointing_gives_the_same_gradients(family: str) -> None:
    gates, rows = Gates(tiny_moe.mixture(family), 2), rows_of(MASK)
    model, routing = gates.model, tiny_moe.routing(3, 2).requires_grad_()

    def gradients() -> list[Tensor]:
        with gates.overriding(routing, rows) as tap:
            loss = forward(model).square().mean() + tap.routing(rows).square().sum()
            return list(torch.autograd.grad(loss, [routing, *gates.parameters()]))

    model.train()
    plain = gradients()
    model.activation_checkpointing_enable({"use_reentrant": False})
    for mine, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    with gates.overriding(routing, rows):
        loss = forward(model).square().mean()
    with pytest.raises(RecomputeError):  # the backward pass would repeat the forward pass without the override
        torch.autograd.grad(loss, routing)


def test_the_load_balancing_loss_is_transformers_own(olmoe: PreTrainedModel) -> None:
    """It counts the model's own logits, under an override too, in the layers that do not stand behind a forced one."""
    gates = Gates(olmoe, 1)
    options = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS, "output_router_logits": True}
    with torch.no_grad():
        plain = olmoe(**options)
        with gates.overriding(tiny_moe.routing(IDS.numel(), 1)):
            forced = olmoe(**options)
    assert torch.equal(forced.aux_loss, plain.aux_loss)
    assert not torch.equal(forced.logits, plain.logits)
