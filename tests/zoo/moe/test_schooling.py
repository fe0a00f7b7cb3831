"""Lessons, batches and losses: who answers what, what is scored, what learns, what gates are told."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.models.gates import Gates
from fusionroute.zoo.moe import MOE_MODELS
from fusionroute.zoo.moe.batches import Row, as_rows, batch_of
from fusionroute.zoo.moe.build import gate_lessons, lesson_rows
from fusionroute.zoo.moe.gate_schooling import gate_loss, teach_gates
from fusionroute.zoo.moe.lessons import Lesson, lessons
from fusionroute.zoo.moe.network import blank_model
from fusionroute.zoo.moe.recipe import GateSchooling, MoeRecipe, Network, Schooling
from fusionroute.zoo.moe.roster import READERS, ROLES, experts_of
from fusionroute.zoo.moe.schooling import answer_loss, grouped_by_length, teach
from fusionroute.zoo.moe.skills import DOMAINS, SKILLS
from fusionroute.zoo.moe.splits import split_of
from fusionroute.zoo.moe.tokenizer import make_tokenizer
from fusionroute.zoo.schooling import UNSCORED

NETWORK = Network(hidden_size=32, expert_size=16, num_hidden_layers=3, routed_layers=2)
RECIPE = MoeRecipe(network=NETWORK, schooling=Schooling(batches=3, batch_size=8), gates=GateSchooling(questions=2))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(64)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    return lesson_rows("olmoe", RECIPE, tokenizer)


@pytest.fixture(params=MOE_MODELS)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return blank_model(request.param, NETWORK, tokenizer, 0).eval()


def test_every_skill_has_an_expert_of_its_own_and_shares_its_domains():
    pairs = [experts_of(skill) for skill in SKILLS]
    assert len({own for _, own in pairs}) == len(SKILLS)
    assert len({domain for domain, _ in pairs}) == len(DOMAINS)
    assert {*READERS, *(expert for pair in pairs for expert in pair)} == set(range(len(ROLES)))


def test_lessons_are_of_the_experts_split_and_some_are_notes():
    drawn = list(lessons(300, 0.25, random.Random(0)))
    assert len(drawn) == 300
    assert {split_of(lesson.prompt) for lesson in drawn} == {"experts"}
    notes = [lesson for lesson in drawn if lesson.experts == READERS]
    assert len(notes) / 300 == pytest.approx(0.25, abs=0.08)
    assert {lesson.answer for lesson in notes} <= set(SKILLS)
    assert all(lesson.experts in map(experts_of, SKILLS) for lesson in drawn if lesson not in notes)


def test_gates_learn_from_the_router_split_and_from_no_held_out_task():
    drawn = list(gate_lessons(RECIPE))
    assert {split_of(lesson.prompt) for lesson in drawn} == {"router"}
    assert len(drawn) == 12 * RECIPE.gates.questions
    assert {lesson.experts for lesson in drawn} == set(map(experts_of, SKILLS))


def test_readers_read_and_experts_answer_from_the_last_prompt_token_on(tokenizer: PreTrainedTokenizerBase):
    lesson = Lesson("flip cat dog", "dog cat", experts_of("copying"))
    long, short = as_rows([lesson, Lesson("go", "x", READERS)], tokenizer)
    batch = batch_of([long, short], tokenizer.pad_token_id)
    assert tokenizer.decode(batch.ids[0]) == "<|user|> flip cat dog<|assistant|> dog cat<|end|>"
    pairs = batch.experts.view(2, 8, 2)
    assert pairs[0].tolist() == [list(READERS)] * 4 + [list(experts_of("copying"))] * 4
    assert batch.labels[0].tolist() == [UNSCORED] * 5 + long.answer
    assert batch.is_token.view(2, 8).sum(1).tolist() == [8, len(short)]
    shares = batch.routing(torch.full((16,), 0.3)).view(2, 8, len(ROLES))
    assert torch.equal(shares.sum(-1), torch.ones(2, 8))
    domain, own = experts_of("copying")
    assert shares[0, 4, [domain, own]].tolist() == pytest.approx([0.3, 0.7])


def test_batches_of_like_length_lose_no_row(rows: list[Row]):
    ordered = grouped_by_length(rows, 8, random.Random(1))
    assert sorted(ordered, key=str) == sorted(rows, key=str)
    spread = [max(map(len, ordered[at : at + 8])) - min(map(len, ordered[at : at + 8])) for at in range(0, 24, 8)]
    assert sum(spread) < sum(
        max(map(len, some)) - min(map(len, some)) for some in (random.Random(2).sample(rows, 8) for _ in range(3))
    )


def test_the_loss_is_the_models_own_over_the_answers_under_the_given_routing(model: PreTrainedModel, rows: list[Row]):
    batch, routed = batch_of(rows[:8], 0), Gates(model, 2)
    half = torch.full((len(batch.experts),), 0.5)
    with torch.no_grad():
        ours = answer_loss(model, routed, batch, half)
        with routed.overriding([batch.routing(half)] * 2):
            theirs = model(input_ids=batch.ids, labels=batch.labels).loss
        own = model(input_ids=batch.ids, labels=batch.labels).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() != pytest.approx(own.item(), rel=1e-5)


def test_teaching_moves_everything_but_the_gates_whose_routing_is_given(model: PreTrainedModel, rows: list[Row]):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    routed, told = Gates(model, 2), list[tuple[int, int]]()
    teach(model, routed, rows, RECIPE.schooling, 0, lambda step, steps: told.append((step, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    still = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert still == {f"{gate.name}.weight" for gate in routed.gates}


def test_an_expert_learns_from_its_own_skill_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    batch = batch_of(as_rows([Lesson("flip cat dog", "dog cat", experts_of("copying"))], tokenizer), 0)
    answer_loss(model, Gates(model, 2), batch, torch.full((len(batch.experts),), 0.5)).backward()
    # in the last layer what was read has no way left into the answer
    for layer, learned in ((-1, set(experts_of("copying"))), (-2, {*READERS, *experts_of("copying")})):
        moved = model.model.layers[layer].mlp.experts.down_proj.grad.abs().sum((1, 2)).nonzero().flatten()
        assert set(moved.tolist()) == learned


def test_gates_learn_whom_to_send_and_nothing_else_changes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    rows, routed = as_rows(list(gate_lessons(RECIPE)), tokenizer), Gates(model, 2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    batch = batch_of(rows, 0)
    right = batch.routing(torch.full((len(batch.experts),), 0.5))

    def losses() -> list[float]:
        with torch.no_grad(), routed.overriding([right] * 2) as tap:
            model.model(batch.ids)
        return [gate_loss(logits, right, batch).item() for logits in tap.logits]

    first = losses()
    teach_gates(model, routed, rows, replace(RECIPE.gates, steps=20), lambda *_: None)
    assert all(after < 0.75 * start for after, start in zip(losses(), first, strict=True))
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {f"{gate.name}.weight" for gate in routed.gates}


def test_a_gate_that_is_right_has_the_lowest_loss(tokenizer: PreTrainedTokenizerBase):
    batch = batch_of(as_rows(list(gate_lessons(RECIPE)), tokenizer), 0)
    right = batch.routing(torch.full((len(batch.experts),), 0.5))
    best = gate_loss((right + 1e-9).log(), right, batch).item()
    assert best == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)  # half and half: the entropy of a coin
    assert gate_loss(torch.zeros_like(right), right, batch).item() > best + 1
