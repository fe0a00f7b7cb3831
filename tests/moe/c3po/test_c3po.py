"""C3PO's surrogates: by hand, against plain forward passes and finite differences, and what they may not look at."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny_moe
import tiny_rerouting
from fusionroute.errors import DataError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.moe.c3po.c3po import (
    GRID,
    C3POSettings,
    Cost,
    NeighbourLoss,
    Rerouting,
    best_alpha,
    blend,
    regression,
)
from fusionroute.moe.c3po.references import References
from fusionroute.moe.neighbours import Neighbours
from fusionroute.moe.optimise import Descent, descend
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Encoded

FAMILY = "olmoe"
OPTIONS: dict[str, dict[str, object]] = {
    "ngd": {"surrogate": "ngd", "steps": 3},
    "kernel": {"surrogate": "kernel"},
    "mode": {"surrogate": "mode"},
}


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture(FAMILY), tiny_rerouting.LAYERS)


@pytest.fixture(scope="module")
def pathways(gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Pathways:
    return tiny_rerouting.recorded(gates.model, tmp_path_factory.mktemp("recorded") / "pathways")


def rerouting(gates: Gates, pathways: Pathways, **options: object) -> Rerouting:
    settings = C3POSettings.parse(options)
    return Rerouting.of(gates.model, pathways, tiny_rerouting.prompt_format(), settings)


def plain_loss(gates: Gates, question: Encoded, routing: Tensor) -> Tensor:
    """ℓ of the right answer by one forward pass of everything, the last prompt token's routing forced."""
    answer = question.answers[question.right]
    with gates.overriding(routing[None], torch.tensor([len(question.prompt) - 1])):
        logits = gates.model(torch.tensor([question.prompt + answer]), use_cache=False).logits[0]
    said = logits[len(question.prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(said, torch.tensor(answer))


# on tensors


def test_regression_by_hand() -> None:
    routing = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]], [[0.2, 0.8], [1.0, 0.0]]])
    found = Neighbours(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]), 1.0)
    wanted = torch.tensor([[[0.4, 0.6], [0.875, 0.125]], [[0.0, 1.0], [0.5, 0.5]]])
    torch.testing.assert_close(regression(found, routing), wanted)


def test_blending_keeps_the_own_share() -> None:
    own, estimate = tiny_moe.routing(2, 3), tiny_moe.routing(2, 3, seed=1)
    assert torch.equal(blend(own, estimate, 1.0), own)
    assert torch.equal(blend(own, estimate, 0.0), estimate)
    mixed = blend(own, estimate, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(mixed[0], 0.25 * own[0] + 0.75 * estimate[0])
    assert torch.equal(mixed[1], own[1])


def test_alpha_is_chosen_for_each_input_by_the_loss() -> None:
    """From own = 0 to estimate = 1, so the share of the estimate is the value itself: 0.45, 1.2 and none at all."""
    own, estimate = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    wanted, slope = torch.tensor([0.45, 1.2, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    alpha = best_alpha(lambda routing: slope * (routing[:, 0, 0] - wanted) ** 2, own, estimate)
    assert alpha.tolist() == [0.5, 0.0, 1.0]
    assert sorted(GRID) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"surrogate": "ngd", "alpha": 0.5}, "alpha means nothing to the surrogate ngd"),
        ({"surrogate": "mode", "steps": 3}, "steps means nothing to the surrogate mode"),
        ({"surrogate": "kernal"}, "surrogate"),
        ({"learning_rate": 1e-3, "final": 1e-2}, "is too much"),
        ({"step": 3}, "did you mean 'steps'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        C3POSettings.parse(options)


# against the model


@pytest.mark.parametrize("together", [2, 32])
def test_the_loss_is_the_neighbours_weighted_mean(gates: Gates, pathways: Pathways, together: int) -> None:
    known = References(pathways, tiny_rerouting.encoded(24, 50), duplicate=None)
    found = known.by_question(pathways.embeddings[:4] + 0.1)
    routing = tiny_moe.routing(4, 2, seed=3)
    loss = NeighbourLoss(gates, known, found, together=together, cost=Cost())
    with torch.no_grad():
        wanted = [
            sum(
                weight * plain_loss(gates, known.encoded[at], routing[row])
                for at, weight in zip(found.index[row].tolist(), found.weight[row], strict=True)
            )
            for row in range(4)
        ]
        torch.testing.assert_close(loss(routing), torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_its_gradient_is_that_of_finite_differences(pathways: Pathways) -> None:
    """In float64, where experts have no fused kernel. Norms and gates round to float32 all the same: hence the step."""
    gates = Gates(tiny_moe.mixture(FAMILY).double(), tiny_rerouting.LAYERS)
    gates.model.set_experts_implementation("eager")
    known = References(pathways, tiny_rerouting.encoded(24, 50), duplicate=None)
    found = known.by_question(pathways.embeddings[:2] + 0.1)
    loss = NeighbourLoss(gates, known, found, together=4, cost=Cost())
    routing = tiny_moe.routing(2, 2, seed=4).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.with_gradient(routing).sum(), routing)
    assert bool((gradient != 0).all()), "divided by their own sum, all weights have a gradient in this family"
    step = 3e-3
    for place in [(0, 0, 1), (0, 1, 5), (1, 0, 7), (1, 1, int(routing[1, 1].argmax()))]:
        moved = torch.zeros_like(routing)
        moved[place] = step
        with torch.no_grad():
            difference = (loss(routing + moved).sum() - loss(routing - moved).sum()) / (2 * step)
        assert float(gradient[place]) == pytest.approx(float(difference), rel=2e-3)


def test_ngd_descends_on_the_neighbours(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(5, 1)
    adapter = rerouting(gates, pathways, steps=6, learning_rate=0.03)
    adapted = adapter.adapt(inputs)
    own, embeddings = adapter._read(inputs, None)
    loss = NeighbourLoss(gates, adapter.references, adapter.references.by_question(embeddings), together=8, cost=Cost())
    torch.testing.assert_close(adapted, descend(loss.with_gradient, own, Descent(6, 0.03)), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert float(loss(adapted).mean()) < float(loss(own).mean()) - 1e-3
    torch.testing.assert_close(adapted.sum(-1), torch.ones(5, 2))
    assert bool((adapted >= 0).all())


def test_kernel_takes_the_neighbours_routing(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(4, 1)
    adapter = rerouting(gates, pathways, surrogate="kernel", alpha=0.25)
    own, embeddings = adapter._read(inputs, None)
    found = adapter.references.by_question(embeddings)
    routing = pathways.routing[pathways.correct]
    estimate = torch.stack(
        [sum(found.weight[row, at] * routing[found.index[row, at]] for at in range(3)) for row in range(4)]
    )
    torch.testing.assert_close(adapter.adapt(inputs), 0.25 * own + 0.75 * estimate)


def test_kernel_chooses_a_share_that_does_no_harm_to_the_neighbours(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(6, 1)
    adapter = rerouting(gates, pathways, surrogate="kernel")
    adapted = adapter.adapt(inputs)
    own, embeddings = adapter._read(inputs, None)
    found = adapter.references.by_question(embeddings)
    loss = NeighbourLoss(gates, adapter.references, found, together=32, cost=Cost())
    estimate = regression(found, adapter.references.routing)
    with torch.no_grad():
        losses = torch.stack([loss(blend(own, estimate, alpha)) for alpha in GRID])
        torch.testing.assert_close(loss(adapted), losses.amin(0), atol=1e-5, rtol=0)
    shares = {round(float(alpha), 2) for alpha in torch.tensor(GRID)[losses.argmin(0)]}
    assert len(shares) > 1, "else the choice was none"


def test_mode_moves_half_way_to_the_mean_of_like_routings(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(4, 1)
    adapter = rerouting(gates, pathways, surrogate="mode", k=2, sigma=0.4)
    own, _ = adapter._read(inputs, None)
    routing = pathways.routing[pathways.correct]
    square = (own[:, None] - routing).square().sum((-2, -1)).topk(2, largest=False)
    weight = (-square.values / (2 * 0.4**2)).softmax(1)
    mean = (weight[..., None, None] * routing[square.indices]).sum(1)
    torch.testing.assert_close(adapter.adapt(inputs), (own + mean) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("surrogate", ["kernel", "mode"])
def test_a_share_of_one_leaves_the_routing_as_it_is(gates: Gates, pathways: Pathways, surrogate: str) -> None:
    inputs = tiny_rerouting.encoded(4, 1)
    adapter = rerouting(gates, pathways, surrogate=surrogate, alpha=1.0)
    assert torch.equal(adapter.adapt(inputs), adapter._read(inputs, None)[0])


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
@pytest.mark.parametrize("surrogate", OPTIONS)
def test_an_input_does_not_depend_on_its_batch(family: str, surrogate: str, tmp_path: Path) -> None:
    """In qwen3_moe the gradient of experts that were not chosen is 0 but for rounding, which depends on the batch."""
    gates = Gates(tiny_moe.mixture(family), tiny_rerouting.LAYERS)
    pathways = tiny_rerouting.recorded(gates.model, tmp_path / "recorded", count=15)
    adapter = rerouting(gates, pathways, **OPTIONS[surrogate])
    inputs = tiny_rerouting.encoded(4, 2)
    together = adapter.adapt(inputs)
    alone = torch.cat([adapter.adapt([each]) for each in inputs])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


def test_the_inputs_own_answers_are_not_looked_at(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(4, 1)
    others = [replace(each, right=(each.right + 1) % 3, answers=each.answers[::-1]) for each in inputs]
    for options in OPTIONS.values():
        adapter = rerouting(gates, pathways, **options)
        adapted = adapter.adapt(inputs)
        assert torch.equal(adapted, adapter.adapt(others))
        assert torch.equal(adapted, adapter.adapt_prompts([each.prompt for each in inputs]))


def test_references_answered_wrongly_change_nothing(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(3, 1)
    wrong = ~pathways.correct
    assert bool(wrong.any())
    spoilt = replace(
        pathways,
        routing=pathways.routing.masked_fill(wrong[:, None, None], 0.125),
        embeddings=pathways.embeddings + 0,
    )
    for options in OPTIONS.values():
        wanted, found = (rerouting(gates, each, **options).adapt(inputs) for each in (pathways, spoilt))
        assert torch.equal(wanted, found)


def test_an_input_without_neighbours_keeps_its_routing_and_is_counted(
    gates: Gates, pathways: Pathways, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = tiny_rerouting.encoded(3, 1)
    with caplog.at_level(logging.WARNING):
        adapter = rerouting(gates, pathways, epsilon=1.0, sigma=1e-3)
        assert torch.equal(adapter.adapt(inputs), adapter._read(inputs, None)[0])
    assert adapter.cost.alone == 3
    assert "has no neighbours" in caplog.text


def test_the_price_in_forwards(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(6, 1)
    tokens = sum(len(each.prompt) for each in inputs)
    costs = {}
    for name, options in {
        "mode": {"surrogate": "mode"},
        "kernel": {"surrogate": "kernel", "alpha": 0.5},
        "chosen": {"surrogate": "kernel"},
        "ngd": {"steps": 1},
        "longer": {"steps": 2},
    }.items():
        adapter = rerouting(gates, pathways, **options)
        adapter.adapt(inputs)
        costs[name] = adapter.cost
        assert (adapter.cost.question, adapter.cost.inputs, adapter.cost.alone) == (tokens, 6, 0)
    assert costs["mode"].forwards == costs["kernel"].forwards == 1
    assert costs["chosen"].gradient == 0 < costs["chosen"].plain - tokens
    assert costs["ngd"].gradient > 0
    assert costs["longer"].gradient == 2 * costs["ngd"].gradient
    assert costs["longer"].plain == costs["ngd"].plain
    assert costs["ngd"].forwards == (costs["ngd"].plain + costs["ngd"].gradient) / tokens > 1


def test_inside_inference_mode_there_are_gradients_all_the_same(gates: Gates, pathways: Pathways) -> None:
    inputs = tiny_rerouting.encoded(2, 1)
    adapter = rerouting(gates, pathways, steps=2)
    wanted = adapter.adapt(inputs)
    with torch.inference_mode():
        torch.testing.assert_close(adapter.adapt(inputs), wanted, atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in gates.model.parameters())


# what does not fit together


def test_a_recording_of_another_model_is_refused(gates: Gates, pathways: Pathways) -> None:
    other = Gates(tiny_moe.mixture(FAMILY, seed=1), tiny_rerouting.LAYERS)
    with pytest.raises(DataError, match="recorded of something else"):
        rerouting(other, pathways)


def test_a_recording_of_another_prompt_format_is_refused(gates: Gates, pathways: Pathways) -> None:
    recorded = replace(pathways, settings=pathways.settings | {"prompt": "alpaca"})
    with pytest.raises(DataError, match="recorded with prompt 'alpaca'"):
        rerouting(gates, recorded)


def test_other_layers_than_the_recorded_ones_are_refused(gates: Gates, pathways: Pathways) -> None:
    known = References(pathways, tiny_rerouting.encoded(24, 50))
    with pytest.raises(DataError, match="2 layers of 8 experts but the chosen gates are 3 of 8"):
        Rerouting(Gates(gates.model, 3), known, C3POSettings())


def test_texts_go_to_the_embedder_of_the_recording(gates: Gates, pathways: Pathways) -> None:
    """An embedder that counts letters: references with the same words are the neighbours."""

    def letters(texts: list[str]) -> Tensor:
        return torch.tensor([[text.count(chr(at)) for at in range(97, 123)] for text in texts]).float()

    recorded = replace(
        pathways, embeddings=letters(pathways.texts), settings=pathways.settings | {"embedder": "letters"}
    )
    known = References(recorded, tiny_rerouting.encoded(24, 50), duplicate=None, k=1)
    adapter = Rerouting(gates, known, C3POSettings(surrogate="kernel", alpha=0.0, duplicate=None, k=1), embed=letters)
    assert adapter.reads_text
    correct = pathways.correct.nonzero().flatten().tolist()
    texts = [pathways.texts[at] for at in correct]
    unique = [
        at
        for at, text in enumerate(texts)
        if [letters([each]).tolist() for each in texts].count(letters([text]).tolist()) == 1
    ]
    assert len(unique) > 3
    adapted = adapter.adapt(tiny_rerouting.encoded(len(unique), 1), [texts[at] for at in unique])
    torch.testing.assert_close(adapted, known.routing[unique])
