"""C3PO in the engine: what it forces, where, and that it forces nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import tiny_moe
import tiny_rerouting
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import TeacherForced
from fusionroute.engine.sequence import Sequence as Written
from fusionroute.errors import SettingsError
from fusionroute.methods.single import Single
from fusionroute.models.gates import Gates
from fusionroute.moe.asking import Asked
from fusionroute.moe.c3po.c3po import C3POSettings, Rerouting
from fusionroute.moe.c3po.method import C3PO
from fusionroute.moe.c3po.references import References
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Encoded

NEW = 6
PROMPT = [*range(90, 102)]
OWN = {"surrogate": "kernel", "alpha": 1.0}  # forces what the model would do anyway
FAR = {"surrogate": "kernel", "alpha": 0.0}


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture("olmoe"), tiny_rerouting.LAYERS)


@pytest.fixture(scope="module")
def pathways(gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Pathways:
    return tiny_rerouting.recorded(gates.model, tmp_path_factory.mktemp("recorded") / "pathways")


def method(gates: Gates, pathways: Pathways, **options: object) -> C3PO:
    settings = C3POSettings.parse(options)
    return C3PO(Rerouting.of(gates.model, pathways, tiny_rerouting.prompt_format(), settings), "moe")


def written(prompt: list[int], answer: Sequence[int] = ()) -> Written:
    sequence = Written(prompt, GenerationSettings(max_new_tokens=40))
    sequence.token_ids = [*prompt, *answer]
    return sequence


def tokens(method: C3PO | Single, prompts: list[list[int]], **options: int) -> list[list[int]]:
    settings = GenerationSettings(max_new_tokens=NEW, ignore_eos=True)
    return [each.token_ids for each in Engine(method, **options).generate(prompts, settings)]  # type: ignore[arg-type]


@dataclass
class Pass:
    """One pass of one chosen layer: the weights of experts as its gate gave them, and as they reached the experts.

    Each is ``[rows, E]``, 0 for experts that were not chosen.
    """

    own: Tensor
    used: Tensor

    @property
    def forced(self) -> list[int]:
        """Rows that were not the gate's own."""
        return (self.own != self.used).any(1).nonzero().flatten().tolist()


@contextmanager
def spying(gates: Gates) -> Iterator[list[list[Pass]]]:
    """The passes of each chosen layer. Hooks run in the order of their registration, so the gate's comes first."""
    seen: list[list[Pass]] = [[] for _ in gates.gates]

    def watch_gate(at: int):
        return lambda _module, _inputs, output: seen[at].append(Pass(spread(output[2], output[1]), torch.empty(0)))

    def watch_experts(at: int):
        def watch(_module, inputs) -> None:
            seen[at][-1].used = spread(inputs[1], inputs[2])

        return watch

    handles = []
    for at, gate in enumerate(gates.gates):
        experts = gates.model.get_submodule(gate.name.removesuffix(".gate")).experts
        handles += [
            gate.module.register_forward_hook(watch_gate(at)),
            experts.register_forward_pre_hook(watch_experts(at)),
        ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def spread(index: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros(len(index), tiny_moe.EXPERTS).scatter(1, index, weights)


def test_the_models_own_routing_forced_changes_no_token(gates: Gates, pathways: Pathways) -> None:
    prompts = tiny.prompts(7, seed=1)
    assert min(map(len, prompts)) < max(map(len, prompts)), "ragged"
    assert tokens(method(gates, pathways, **OWN), prompts) == tokens(Single(gates.model, "moe"), prompts)


def test_the_models_own_routing_forced_changes_no_likelihood(gates: Gates, pathways: Pathways) -> None:
    rows = [
        (prompt, tiny.prompts(1, seed=at + 5)[0][:4])
        for at, prompt in enumerate(tiny.prompts(4, seed=6))
        if len(prompt) > 1
    ]
    single, forced = Single(gates.model, "moe"), method(gates, pathways, **OWN)
    assert isinstance(forced, TeacherForced)
    found, wanted = (
        [each.log_probabilities([written(*row)], len(row[1])) for row in rows] for each in (forced, single)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_another_routing_is_forced_on_the_last_prompt_token_alone(gates: Gates, pathways: Pathways) -> None:
    for prompt in tiny.prompts(5, seed=2):
        forced = method(gates, pathways, **FAR)
        with spying(gates) as seen:
            tokens(forced, [prompt])
        (routing,) = forced.rerouting.adapt_prompts([prompt])
        for layer, gate in enumerate(gates.gates):
            reading, *writing = seen[layer][-NEW:]  # the passes before belong to adapting
            weights, index = gate.scoring(routing[layer][None])
            torch.testing.assert_close(reading.used[-1:], spread(index, weights), atol=1e-6, rtol=0)
            assert reading.forced == [len(prompt) - 1]
            assert [each.forced for each in writing] == [[]] * (NEW - 1)


def test_in_a_ragged_batch_one_token_of_each_is_forced(gates: Gates, pathways: Pathways) -> None:
    prompts = tiny.prompts(6, seed=2)
    forced = method(gates, pathways, **FAR)
    engine = Engine(forced)
    for prompt in prompts:
        engine.submit(prompt, GenerationSettings(max_new_tokens=3, ignore_eos=True))
    forced._adapt([*engine.scheduler.waiting])  # before the spy looks
    with spying(gates) as seen:
        engine.step()
        forced_rows = [[row for each in layer for row in each.forced] for layer in seen]
        for layer in seen:
            layer.clear()
        engine.step()
    assert [len(rows) for rows in forced_rows] == [len(prompts)] * gates.count
    assert not any(each.forced for layer in seen for each in layer)


@pytest.mark.parametrize("options", [{"steps": 4, "learning_rate": 0.05}, FAR, {"surrogate": "mode", "alpha": 0.1}])
def test_answers_in_a_batch_are_those_of_one_at_a_time(
    gates: Gates, pathways: Pathways, options: dict[str, object]
) -> None:
    prompts = tiny.prompts(6, seed=3)
    together = tokens(method(gates, pathways, **options), prompts, max_batch=4)
    assert together == [tokens(method(gates, pathways, **options), [prompt])[0] for prompt in prompts]


def test_long_prompts_are_read_in_pieces(gates: Gates, pathways: Pathways, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [PROMPT, PROMPT[:9], PROMPT[:8], [70, 71]]
    wanted = tokens(method(gates, pathways, **FAR), prompts)
    monkeypatch.setattr("fusionroute.engine.runner.PREFILL_CHUNK", 4)
    in_pieces = method(gates, pathways, **FAR)
    assert tokens(in_pieces, prompts) == wanted
    assert in_pieces.runner.passes > NEW + 1  # type: ignore[attr-defined]


def test_another_routing_gives_other_answers(gates: Gates, pathways: Pathways) -> None:
    prompts = tiny.prompts(8, seed=4)
    assert tokens(method(gates, pathways, **FAR), prompts) != tokens(Single(gates.model, "moe"), prompts)


def test_likelihoods_are_those_of_asking_under_the_same_routing(gates: Gates, pathways: Pathways) -> None:
    """Two engines of the same meaning: a runner's cache with left padding, and a kept prefix with right padding."""
    questions = tiny_rerouting.encoded(5, 7)
    forced = method(gates, pathways, steps=3, learning_rate=0.05)
    rows = [(each.prompt, each.answers[each.right]) for each in questions]
    last = max(len(answer) for _, answer in rows)
    found = forced.log_probabilities([written(prompt, answer[:-1]) for prompt, answer in rows], last)
    routing = forced.rerouting.adapt(questions)
    wanted = Asked(gates, questions).say(routing, only_right=True).loss
    for row, (_, answer) in enumerate(rows):
        said = found[row, -len(answer) :].gather(-1, torch.tensor(answer)[:, None])
        assert float(-said.mean()) == pytest.approx(float(wanted[row]), abs=1e-5)


def test_cut_back_into_its_prompt_a_sequence_is_forced_again(gates: Gates, pathways: Pathways) -> None:
    prompt, answer = PROMPT, [60, 61]
    fresh = method(gates, pathways, **FAR).log_probabilities([written(prompt, answer)], 3)
    cut = method(gates, pathways, **FAR)
    sequence = written(prompt, answer)
    for length in (len(prompt) + 1, len(prompt), len(prompt) - 1, 3, 0):
        cut.log_probabilities([sequence], 1)
        cut.rollback(sequence, length)
        torch.testing.assert_close(cut.log_probabilities([sequence], 3), fresh, atol=1e-5, rtol=0)
    untouched = Single(gates.model, "moe").log_probabilities([written(prompt, answer)], 3)
    assert float((fresh - untouched).abs().max()) > 1e-2


def test_a_sequence_that_gets_another_prompt_gets_another_route(gates: Gates, pathways: Pathways) -> None:
    """Likelihoods read several passages on one sequence, of which the longer ones are cut on the left."""
    prompt = PROMPT
    for shorter, longer in ((5, 9), (9, 5)):
        sequence = written(prompt[:shorter], prompt[shorter:])
        used = method(gates, pathways, **FAR)
        used.log_probabilities([sequence], 2)
        sequence.prompt_length = longer
        wanted = method(gates, pathways, **FAR).log_probabilities([written(prompt[:longer], prompt[longer:])], 2)
        torch.testing.assert_close(used.log_probabilities([sequence], 2), wanted, atol=1e-5, rtol=0)


def test_a_prompt_of_one_token_can_be_answered_but_not_scored(gates: Gates, pathways: Pathways) -> None:
    """Whole texts come in windows that begin with a single token: no question, so nothing to adapt to."""
    forced = method(gates, pathways, **OWN)
    assert tokens(forced, [[70]]) == tokens(Single(gates.model, "moe"), [[70]])
    with pytest.raises(SettingsError, match="single token"):
        forced.log_probabilities([written([70], [71, 72])], 2)


def test_only_the_sequence_fails_on_whose_prompt_the_model_fails(tmp_path: Path) -> None:
    model, poison = tiny_moe.mixture("olmoe"), 77
    pathways = tiny_rerouting.recorded(model, tmp_path / "recorded")
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    known = References(pathways, tiny_rerouting.encoded(24, 50))
    gates = Gates(model, tiny_rerouting.LAYERS)
    forced = C3PO(Rerouting(gates, known, C3POSettings.parse(FAR)), "moe")
    prompts = [[60, 61, 62], [60, poison, 62], [63, 64]]
    found = Engine(forced).generate(prompts, GenerationSettings(max_new_tokens=NEW))
    assert [each.finish_reason == "error" for each in found] == [False, True, False]
    assert "model 'moe'" in str(found[1].error)


def test_what_was_read_for_the_routing_counts_as_read(gates: Gates, pathways: Pathways) -> None:
    prompts = tiny.prompts(3, seed=8)
    single, forced = Single(gates.model, "moe"), method(gates, pathways, steps=2)
    tokens(single, prompts), tokens(forced, prompts)
    cost = forced.rerouting.cost
    assert cost.tokens > 0
    assert forced.runner.tokens_read == single.runner.tokens_read + cost.tokens  # type: ignore[attr-defined]
    assert cost.question == sum(map(len, prompts)), "each prompt is adapted to once, however long its answer"


def test_nothing_is_kept_of_sequences_that_have_left(gates: Gates, pathways: Pathways) -> None:
    forced = method(gates, pathways, **OWN)
    tokens(forced, tiny.prompts(3, seed=9))
    assert not forced._routes


def test_an_embedder_of_text_gets_the_question_or_its_tokens_decoded(gates: Gates, pathways: Pathways) -> None:
    heard: list[str] = []

    def embed(texts: Sequence[str]) -> Tensor:
        heard.extend(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    known = References(pathways, tiny_rerouting.encoded(24, 50), sigma=1.0, duplicate=None)
    known.embeddings = embed([""] * len(known))
    heard.clear()
    rerouting = Rerouting(gates, known, C3POSettings.parse(FAR), embed=embed)
    engine = Engine(C3PO(rerouting, "moe", tokenizer=tiny.tokenizer()))
    ids = tiny_rerouting.prompt_format().encode("a cat?")
    settings = GenerationSettings(max_new_tokens=1)
    message, answer = ({"role": role, "content": f"said by {role}"} for role in ("user", "assistant"))
    asked = ["as it was", [message], [message, answer, message], None, ids]
    engine.run([engine.submit([*ids, tiny.EOS], settings, prompt) for prompt in asked])
    wanted = "user: said by user\n\nassistant: said by assistant\n\nuser: said by user"
    assert heard == ["as it was", "said by user", wanted, "a cat?", "a cat?"]
    with pytest.raises(SettingsError, match="give the method a tokenizer"):
        Engine(C3PO(rerouting, "moe")).generate([ids], settings)


def test_encoded_inputs_need_no_answers(gates: Gates, pathways: Pathways) -> None:
    forced = method(gates, pathways, **FAR)
    prompt = tiny.prompts(1, seed=10)[0]
    assert torch.equal(
        forced.rerouting.adapt_prompts([prompt]), forced.rerouting.adapt([Encoded(prompt, ([9, 2],), 0)])
    )
