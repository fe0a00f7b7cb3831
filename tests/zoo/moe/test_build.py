"""The shipped mixtures load, answer, and depend on their routing; a small build works, repeats itself and resumes."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fusionroute.models.gates import Gates
from fusionroute.models.loading import load_model
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions
from fusionroute.zoo.build import WEIGHTS, weights_folder
from fusionroute.zoo.moe import MOE_MODELS
from fusionroute.zoo.moe.batches import as_rows, batch_of
from fusionroute.zoo.moe.build import RECORD, build_moe
from fusionroute.zoo.moe.lessons import Lesson
from fusionroute.zoo.moe.recipe import MoeRecipe
from fusionroute.zoo.moe.roster import experts_of
from fusionroute.zoo.moe.tasks import MOE_TASKS, SEEN, questions

TINY = 0.003
ROUTED = MoeRecipe().network.routed_layers
PAD = 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    build_moe(folder, scale=TINY)
    return folder


@pytest.fixture(scope="module", params=MOE_MODELS)
def shipped(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = weights_folder(request.param)
    return load_model(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    """A few unseen questions of every task that gates have met."""
    return [question for task in SEEN for question in questions(task, "dev", 8)]


def encoded(asked: list[Question], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode_questions(asked, PromptFormat(tokenizer, "chat_template"), 64)


def correct(model: PreTrainedModel, questions_: list[Encoded]) -> float:
    return ask(Gates(model), questions_, batch_size=96).correct.float().mean().item()


def written_by_the_right_experts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Question]
) -> float:
    """The share of answers that are the first choice, token by token, where the right experts are given."""
    rows = as_rows([Lesson(q.text, q.answer, experts_of(MOE_TASKS[q.task].skill)) for q in asked], tokenizer)
    batch, routed = batch_of(rows, PAD), Gates(model, ROUTED)
    routing = batch.routing(torch.full((len(batch.experts),), 0.5))
    with torch.no_grad(), routed.overriding([routing] * routed.count):
        best = model(batch.ids).logits.argmax(-1)[:, :-1]
    return ((best == batch.labels[:, 1:]) | (batch.labels[:, 1:] < 0)).all(1).float().mean().item()


@pytest.mark.parametrize("name", MOE_MODELS)
def test_shipped_models_load(name: str):
    model = AutoModelForCausalLM.from_pretrained(weights_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(weights_folder(name))
    assert model.num_parameters() < 2_000_000
    assert model.dtype == torch.float16
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    gates = Gates(model, "all")
    assert (gates.count, gates.experts, gates.top_k) == (6, 16, 2)
    assert model.config.norm_topk_prob is (name == "qwen3_moe")


def test_shipped_weights_are_small_and_the_recorded_ones():
    record = json.loads((WEIGHTS / RECORD).read_text())
    for name in MOE_MODELS:
        weights = (weights_folder(name) / "model.safetensors").read_bytes()
        assert len(weights) < 4 * 2**20
        assert hashlib.sha256(weights).hexdigest() == record["sha256"][name]
    assert record["recipe"] == MoeRecipe().as_json(), "the recipe has changed: build again"


def test_experts_know_more_than_the_gates_find(shipped, asked: list[Question]):
    model, tokenizer = shipped
    knows, finds = written_by_the_right_experts(model, tokenizer, asked), correct(model, encoded(asked, tokenizer))
    assert knows > 0.9
    assert 0.4 < finds < knows - 0.1


def test_damaged_gates_cost_accuracy(shipped, asked: list[Question]):
    model, tokenizer = shipped
    questions_, damaged = encoded(asked, tokenizer), []
    for seed in range(3):
        noise, noisy = torch.Generator().manual_seed(seed), copy.deepcopy(model)
        for weight in Gates(noisy).parameters():
            weight.data += 3 * weight.data.std() * torch.randn(weight.shape, generator=noise)
        damaged.append(correct(noisy, questions_))
    assert sum(damaged) / 3 < correct(model, questions_) - 0.05


def test_experts_do_not_stand_in_for_each_other(shipped, asked: list[Question]):
    """Free questions that are given to the experts of some other skill are seldom answered."""
    model, tokenizer = shipped
    free = [question for question in asked if not question.options]
    strangers = [Question(question.text, question.answer, task=_of_another_skill(question.task)) for question in free]
    assert written_by_the_right_experts(model, tokenizer, free) > 0.9
    assert written_by_the_right_experts(model, tokenizer, strangers) < 0.4


def test_the_last_prompt_tokens_routing_repairs_answers(shipped, asked: list[Question]):
    """What RoMA and C3PO change, the routing of one token, is enough to bring out what the experts know."""
    model, tokenizer = shipped
    questions_, right = encoded(asked, tokenizer), torch.zeros(len(asked), ROUTED, Gates(model).experts)
    for row, question in zip(right, asked, strict=True):
        row[:, list(experts_of(MOE_TASKS[question.task].skill))] = 0.5
    repaired = ask(Gates(model, ROUTED), questions_, batch_size=96, routing=right).correct.float().mean().item()
    assert repaired > correct(model, questions_) + 0.1


def _of_another_skill(task: str) -> str:
    places = range(SEEN.index(task), SEEN.index(task) + len(SEEN))
    others = (SEEN[place % len(SEEN)] for place in places)
    return next(other for other in others if MOE_TASKS[other].skill != MOE_TASKS[task].skill)


def test_a_small_build_writes_both(built: Path):
    assert {path.name for path in built.iterdir()} == {*MOE_MODELS, RECORD}
    assert set(json.loads((built / RECORD).read_text())["sha256"]) == set(MOE_MODELS)


def test_building_again_gives_the_same_weights_and_an_interrupted_build_goes_on(built: Path, tmp_path: Path):
    def stop_at_the_second(name: str, step: int, steps: int) -> None:
        if name == MOE_MODELS[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_moe(tmp_path, scale=TINY, progress=stop_at_the_second)
    assert not (tmp_path / MOE_MODELS[1]).exists()
    resumed: list[tuple[str, int, int]] = []
    build_moe(tmp_path, scale=TINY, progress=lambda *step: resumed.append(step))
    assert {name for name, _, _ in resumed} == {MOE_MODELS[1]}
    assert [step for _, step, _ in resumed] == list(range(1, resumed[0][2] + 1))
    assert (tmp_path / RECORD).read_text() == (built / RECORD).read_text()


def test_a_folder_in_use_is_refused(built: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=f"is not empty and holds no {RECORD}"):
        build_moe(tmp_path, scale=TINY)
    with pytest.raises(ValueError, match="other settings"):
        build_moe(built, scale=TINY, seed=1)
