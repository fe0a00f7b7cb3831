from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
import tiny_moe
from fusionroute.errors import DataError, ModelOutputError, SettingsError
from fusionroute.models.gates import Gates, rows_of
from fusionroute.moe.asking import Asked, Said, ask, keeps_prefix
from fusionroute.moe.questions.questions import Encoded

EVERY = [*tiny_moe.FAMILIES, *tiny_moe.OTHERS]
FULL_READS = ("jamba", "minimax", "windowed_mixtral", "qwen3_next", "mellum")  # states, windows
LAYERS = 2


def questions() -> list[Encoded]:
    """Prompts of 1 to 14 tokens; options of 1 to 4, free answers of 1 and 3; one question twice in a row."""
    ids = torch.randint(len(tiny.SPECIAL), tiny.VOCABULARY, (60,), generator=torch.Generator().manual_seed(5)).tolist()
    first = Encoded(ids[:9], (ids[9:12], ids[12:13], ids[13:15]), 1)
    return [
        first,
        first,
        Encoded(ids[15:16], (ids[16:19],), 0),
        Encoded(ids[19:33], (ids[33:34], ids[34:38]), 1),
        Encoded(ids[38:42], (ids[42:43],), 0),
    ]


QUESTIONS = questions()
FORCED = tiny_moe.routing(len(QUESTIONS), LAYERS, seed=2)


def gates_of(family: str, **options) -> Gates:
    return Gates(tiny_moe.mixture(family, **options), LAYERS)


def plain_nll(gates: Gates, each: Encoded, answer: Sequence[int], forced: Tensor | None) -> tuple[Tensor, Tensor]:
    """One prompt with one answer, read whole and alone: −log π of every answer token, and the model's first choices."""
    ids = torch.tensor([[*each.prompt, *answer]])
    last = torch.tensor([len(each.prompt) - 1])
    with gates.reading() if forced is None else gates.overriding(forced[None], last):
        logits = gates.model(input_ids=ids, use_cache=False).logits[0, len(each.prompt) - 1 : -1]
    return -logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0], logits.argmax(-1)


def plain_says(gates: Gates, encoded: Sequence[Encoded], routing: Tensor | None) -> tuple[Tensor, list[bool]]:
    losses, correct = [], []
    for number, each in enumerate(encoded):
        forced = None if routing is None else routing[number]
        read = [plain_nll(gates, each, answer, forced) for answer in each.answers]
        losses.append(read[each.right][0].mean())
        totals = [float(nll.detach().sum()) for nll, _ in read]
        is_greedy = read[0][1].tolist() == each.answers[0]
        correct.append(totals.index(min(totals)) == each.right if len(totals) > 1 else is_greedy)
    return torch.stack(losses), correct


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("forced", [None, FORCED], ids=["own", "forced"])
@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_it_says_what_plain_passes_say(family: str, forced: Tensor | None, keep: bool) -> None:
    gates = gates_of(family)
    said = Asked(gates, QUESTIONS, keep=keep).say(forced)
    with torch.no_grad():
        loss, correct = plain_says(gates, QUESTIONS, forced)
    torch.testing.assert_close(said.loss, loss, atol=1e-5, rtol=0)
    assert said.correct.tolist() == correct
    assert True in correct
    assert False in correct


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_says_what_padded_passes_say(side: str) -> None:
    gates, right = gates_of("qwen3_moe"), [each.answers[each.right] for each in QUESTIONS]
    whole = [each.prompt + answer for each, answer in zip(QUESTIONS, right, strict=True)]
    ids, mask = tiny_moe.padded(whole, side=side)
    last = torch.tensor([len(each.prompt) - 1 for each in QUESTIONS])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with gates.overriding(FORCED, rows_of(mask, last)), torch.no_grad():
        logits = gates.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.flatten(0, 1)
    expected = []
    for number, answer in enumerate(right):
        start = int(rows_of(mask, last)[number])
        said = logits[start : start + len(answer)].log_softmax(-1)
        expected.append(-said.gather(1, torch.tensor(answer)[:, None]).mean())
    said = Asked(gates, QUESTIONS).say(FORCED)
    torch.testing.assert_close(said.loss, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_gradients_are_those_of_plain_passes(family: str, keep: bool) -> None:
    gates, routing = gates_of(family), FORCED.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain_says(gates, QUESTIONS, routing)[0].sum(), routing)
    asked = Asked(gates, QUESTIONS, keep=keep)
    with torch.no_grad():  # whoever asks decides, wherever that is
        loss = asked.say(routing, grad=True).loss
    (gradient,) = torch.autograd.grad(loss.sum(), routing)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert gradient.abs().amax((1, 2)).min() > 1e-3  # of every question
    assert not asked.say(routing).loss.requires_grad


@pytest.mark.parametrize("family", EVERY)
def test_prompts_are_kept_only_where_that_is_exact(family: str) -> None:
    gates = gates_of(family)
    assert keeps_prefix(gates) == (family not in FULL_READS)
    asked = Asked(gates, QUESTIONS)
    said, again = asked.say(FORCED, only_right=True), asked.say(FORCED, only_right=True)
    with torch.no_grad():
        loss, _ = plain_says(gates, QUESTIONS, FORCED)
    torch.testing.assert_close(said.loss, loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(said.loss, again.loss)


def test_a_cache_that_says_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, not looked up: a model that ignores where it is in the text passes by its config alone."""
    gates = gates_of("olmoe")
    rotary = gates.model.model.rotary_emb
    forward = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda x, ids: forward(x, torch.arange(ids.shape[1])[None] + 0 * ids))
    assert not keeps_prefix(gates)


def test_routing_is_the_models_own_at_the_last_prompt_token() -> None:
    gates = gates_of("olmoe")
    ids, mask = tiny_moe.padded([each.prompt for each in QUESTIONS])
    with gates.reading() as tap, torch.no_grad():
        gates.model(input_ids=ids, attention_mask=mask)
    own = tap.routing(rows_of(mask))
    for keep in (True, False):
        asked = Asked(gates, QUESTIONS, keep=keep)
        torch.testing.assert_close(asked.say().routing, own, atol=1e-6, rtol=0)
        forced = asked.say(FORCED).routing
        torch.testing.assert_close(forced[:, 0], own[:, 0], atol=1e-6, rtol=0)
        assert (forced[:, 1] - own[:, 1]).abs().max() > 1e-3  # the second gate reads what the first forced layer did
        torch.testing.assert_close(asked.say(own).loss, asked.say().loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["deepseek_v2", "jamba"])
def test_hidden_states_are_pooled_over_the_prompt(family: str) -> None:
    gates = gates_of(family)
    expected = []
    for each in QUESTIONS:
        with torch.no_grad():
            output = gates.model(input_ids=torch.tensor([each.prompt]), output_hidden_states=True, use_cache=False)
        expected.append(output.hidden_states[-1][0].mean(0))
    for said in (Asked(gates, QUESTIONS).say(hidden=True), ask(gates, QUESTIONS, batch_size=2, hidden=True)):
        torch.testing.assert_close(said.hidden, torch.stack(expected), atol=1e-5, rtol=0)


def test_a_batch_is_its_questions_one_by_one() -> None:
    gates = gates_of("qwen3_moe")
    together = Asked(gates, QUESTIONS).say(FORCED)
    for number, each in enumerate(QUESTIONS):
        alone = Asked(gates, [each], pad_id=9).say(FORCED[number : number + 1])
        torch.testing.assert_close(alone.loss[0], together.loss[number], atol=1e-5, rtol=0)
        assert alone.correct[0] == together.correct[number]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_asking_all_keeps_their_order(batch_size: int) -> None:
    gates, heard = gates_of("olmoe"), []

    class Hearing:
        def start(self, label: str, total: int) -> None:
            heard.append(total)

        def advance(self, n: int, note: str = "") -> None:
            heard.append(n)

        def finish(self, message: str) -> None:
            heard.append("finished")

    expected = Asked(gates, QUESTIONS).say(FORCED)
    said = ask(gates, QUESTIONS, routing=FORCED, batch_size=batch_size, progress=Hearing())
    torch.testing.assert_close(said.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(said.routing, expected.routing, atol=1e-6, rtol=0)
    assert said.correct.tolist() == expected.correct.tolist()
    assert heard[0] == sum(heard[1:-1]) == 5
    assert heard[-1] == "finished"


def test_a_free_answer_is_correct_to_its_last_token() -> None:
    gates = gates_of("olmoe")
    prompt = QUESTIONS[0].prompt
    with torch.no_grad():
        written = gates.model.generate(
            torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
    wrong = [*written[:3], written[3] + 1 if written[3] < 200 else 5]
    answers = [written, written[:2], wrong, [wrong[3], *written[1:]]]
    said = ask(gates, [Encoded(prompt, (answer,), 0) for answer in answers])
    assert said.correct.tolist() == [True, True, False, False]


def test_what_was_read_is_counted() -> None:
    gates = gates_of("olmoe")
    keeps_prefix(gates)
    asked, whole = Asked(gates, QUESTIONS), Asked(gates, QUESTIONS, keep=False)
    prefixes = sum(len(each.prompt) - 1 for each in QUESTIONS)
    answers = sum(len(answer) for each in QUESTIONS for answer in each.answers)
    right = sum(len(each.answers[each.right]) for each in QUESTIONS)
    assert (asked.passes, asked.tokens_read) == (1, prefixes)
    asked.say()
    assert (asked.passes, asked.tokens_read) == (2, prefixes + answers)
    asked.say(FORCED, only_right=True)
    assert (asked.passes, asked.tokens_read) == (3, prefixes + answers + right)
    whole.say()
    assert (whole.passes, whole.tokens_read) == (1, whole.full_read())
    whole.say(only_right=True)
    assert whole.tokens_read == whole.full_read() + whole.full_read(only_right=True)


def test_the_model_is_left_as_it_was() -> None:
    gates = gates_of("olmoe", attention_dropout=0.5)
    model = gates.model
    expected = Asked(gates, QUESTIONS).say(FORCED).loss
    model.train()
    model.lm_head.eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    learning = [weight.requires_grad for weight in model.parameters()]
    routing = FORCED.clone().requires_grad_()
    said = Asked(gates, QUESTIONS).say(routing, grad=True, hidden=True)
    said.loss.sum().backward()
    torch.testing.assert_close(said.loss.detach(), expected)  # no dropout
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == before
    assert [weight.requires_grad for weight in model.parameters()] == learning
    assert all(weight.grad is None for weight in model.parameters())
    assert routing.grad is not None


def test_what_was_not_read_is_not_told() -> None:
    said = Asked(gates_of("olmoe"), QUESTIONS).say(only_right=True)
    assert isinstance(said, Said)
    with pytest.raises(SettingsError, match="only the right options"):
        said.correct  # noqa: B018
    with pytest.raises(SettingsError, match="hidden=True"):
        said.hidden  # noqa: B018
    free = [each for each in QUESTIONS if len(each.answers) == 1]
    assert Asked(gates_of("olmoe"), free).say(only_right=True).correct.shape == (2,)


@pytest.mark.parametrize(
    "broken", [{"prompt": []}, {"answers": ()}, {"answers": ([5], [])}, {"right": 3}, {"right": -1}]
)
def test_questions_without_tokens_are_refused(broken: dict) -> None:
    with pytest.raises(DataError, match="question 2"):
        Asked(gates_of("olmoe"), [QUESTIONS[0], replace(QUESTIONS[0], **broken)])
    with pytest.raises(DataError, match="no questions"):
        ask(gates_of("olmoe"), [])


def test_routing_for_other_questions_is_refused() -> None:
    gates = gates_of("olmoe")
    with pytest.raises(SettingsError, match="routing for 5 questions, but there are 2"):
        Asked(gates, QUESTIONS[:2]).say(FORCED)
    with pytest.raises(SettingsError, match="routing for 5 questions, but there are 2"):
        ask(gates, QUESTIONS[:2], routing=FORCED)
    with pytest.raises(SettingsError, match="routing is floating point"):
        Asked(gates, QUESTIONS).say(FORCED[:, :1])


def test_losses_that_are_no_numbers_are_an_error() -> None:
    gates = gates_of("olmoe")
    asked = Asked(gates, QUESTIONS)
    torch.nn.init.constant_(gates.model.lm_head.weight, float("nan"))
    with pytest.raises(ModelOutputError, match="question 1"):
        asked.say()


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_in_half_precision_it_is_close(family: str) -> None:
    gates = gates_of(family)
    expected = Asked(gates, QUESTIONS, keep=False).say(FORCED)
    gates.model.to(torch.bfloat16)
    said = Asked(gates, QUESTIONS, keep=True).say(FORCED)
    assert said.loss.dtype == torch.float32
    assert (said.loss / expected.loss - 1).abs().median() < 0.1
