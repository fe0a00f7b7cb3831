"""Batches and loss of the families: padding changes nothing, only answers are scored, every weight learns."""

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from fusionroute.zoo.families.build import make_tokenizer
from fusionroute.zoo.families.recipe import FamilyRecipe
from fusionroute.zoo.families.schooling import answer_loss, lesson_rows, padded, quieten_branches, teach
from fusionroute.zoo.schooling import UNSCORED, Row, blank_model

RECIPE = FamilyRecipe().scaled(0.004)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer("piece_bpe", RECIPE)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    return lesson_rows("piece_bpe", RECIPE, tokenizer)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    return blank_model(RECIPE.network, tokenizer, 0)


def test_lessons_follow_the_phases(rows: list[Row]):
    assert len(rows) == RECIPE.batch_size * sum(phase.batches for phase in RECIPE.phases)
    first = RECIPE.batch_size * RECIPE.phases[0].batches
    lengths = [len(row["input_ids"]) for row in rows]
    assert max(lengths[:first]) < sum(lengths[first:]) / len(lengths[first:])


def test_a_row_is_the_prompt_of_the_template_and_a_scored_answer(rows: list[Row], tokenizer: PreTrainedTokenizerBase):
    row = rows[0]
    start = row["labels"].index(next(label for label in row["labels"] if label != UNSCORED))
    assert tokenizer.decode(row["input_ids"][:start]).startswith("<s>[INST] Start ")
    assert tokenizer.decode(row["input_ids"][:start]).endswith(" [/INST]\n")
    assert row["labels"][start:] == row["input_ids"][start:]
    assert row["labels"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row["labels"][start:-1]).startswith("Start ")


def test_the_loss_is_the_models_own_over_the_answers(rows: list[Row], model: LlamaForCausalLM):
    ids, labels = padded([rows[0], rows[9], rows[17]])
    with torch.no_grad():
        ours, plain = answer_loss(model, ids, labels), model(input_ids=ids, labels=labels).loss
    assert ours.item() == pytest.approx(plain.item(), rel=0.01)  # ours runs in bfloat16


def test_padding_changes_no_loss(rows: list[Row], model: LlamaForCausalLM):
    short, long = sorted([rows[0], rows[17]], key=lambda row: len(row["input_ids"]))
    ids, labels = padded([short, {**long, "labels": [UNSCORED] * len(long["labels"])}])
    with torch.no_grad():
        assert answer_loss(model, ids, labels).item() == pytest.approx(answer_loss(model, *padded([short])).item())


def test_teaching_moves_every_weight_and_tells_how_far_it_is(rows: list[Row], model: LlamaForCausalLM):
    before, told = {name: weight.clone() for name, weight in model.named_parameters()}, list[tuple[int, int]]()
    teach(model, rows[:16], RECIPE, lambda step, steps: told.append((step, steps)))
    assert told == [(1, 2), (2, 2)]
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_quiet_branches_leave_the_words_readable(model: LlamaForCausalLM):
    ids = torch.arange(40)[None] + 300

    def likeness() -> float:
        """Cosine between what the layers add up to and the tokens' own embeddings."""
        with torch.no_grad():
            states = model.model(ids, output_hidden_states=True).hidden_states
            layered = states[-2]  # the last is normalised
            return torch.cosine_similarity(layered, states[0], dim=-1).mean().item()

    loud = likeness()
    quieten_branches(model, RECIPE.branch_scale)
    assert 3 * loud < 0.4 < likeness()
