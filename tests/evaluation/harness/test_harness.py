"""Our engine under lm-eval's tasks: one model gives what lm-eval's own ``hf`` model gives; nothing fails silently."""

import json
import pkgutil
import tomllib
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import tiny
from fusionroute import Router, Team
from fusionroute.config import GenerationSettings
from fusionroute.engine.sequence import Completion
from fusionroute.errors import ModelOutputError, PromptError, RequestTooLargeError, SettingsError
from fusionroute.evaluation.harness import FusionRouteLM, MethodLM
from fusionroute.evaluation.harness.likelihoods import Likelihoods, Limits, rows_of
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single
from fusionroute.models.prompt import CHAT_TEMPLATE, PromptFormat
from fusionroute.zoo.build import weights_folder

TASKS = ["writing", "choosing", "reading"]
QUESTION = 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
CLOSE = {"abs": 1e-4}


@pytest.fixture(scope="module")
def zoo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(weights_folder("math"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, zoo_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random Llama under the zoo's tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny.language_model(vocab_size=len(zoo_tokenizer), bos_token_id=None, eos_token_id=1)
    model.save_pretrained(folder)
    zoo_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """One task of each kind: writing, choosing among texts, and reading (perplexity)."""
    folder = tmp_path_factory.mktemp("tasks")
    sums = [(1, 2), (3, 4), (10, 5), (7, 7), (12, 30)]
    documents = [
        {"question": f"{a} + {b}?", "answer": str(a + b), "choices": [str(a + b), str(a + b + 1), f"{a}{b} or so"]}
        for a, b in sums
    ]
    (folder / "documents.jsonl").write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    files = f"{{data_files: {{test: {folder / 'documents.jsonl'}}}}}"
    data = f"dataset_path: json\ndataset_kwargs: {files}\ntest_split: test\n"
    mean = "aggregation: mean, higher_is_better: true"
    kinds = {
        "writing": f'output_type: generate_until\n{QUESTION}doc_to_target: "{{{{answer}}}}"\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false, temperature: 0.0}\n'
        f"metric_list: [{{metric: exact_match, {mean}}}]\n",
        "choosing": f"output_type: multiple_choice\n{QUESTION}doc_to_choice: choices\ndoc_to_target: 0\n"
        f"metric_list: [{{metric: acc, {mean}}}, {{metric: acc_norm, {mean}}}]\n",
        "reading": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}} {{answer}}"\n'
        "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def team_folder(tmp_path_factory: pytest.TempPathFactory, zoo_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Two zoo experts under a router whose head is random."""
    experts = {name: AutoModelForCausalLM.from_pretrained(weights_folder(name)).float() for name in ("math", "code")}
    router = Router(AutoModelForCausalLM.from_pretrained(weights_folder("chat")).float(), 2)
    torch.manual_seed(0)
    torch.nn.init.normal_(router.route_head.weight)
    folder = tmp_path_factory.mktemp("teams") / "team"
    Team(router, experts, zoo_tokenizer, CHAT_TEMPLATE).save_pretrained(folder, save_experts=True)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).float()


def ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> MethodLM:
    return MethodLM(Single(model, "math"), tokenizer, **options)


def theirs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> HFLM:
    return HFLM(model, tokenizer=tokenizer, **options)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments=each, idx=at) for at, each in enumerate(arguments)]


def write(lm: Any, *contexts: str, **options: Any) -> list[str]:
    return list(lm.generate_until(requests("generate_until", *((context, dict(options)) for context in contexts))))


def score(lm: Any, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return list(lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True))


def assert_same_scores(mine: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in expected], **CLOSE)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in expected]


# --- the same as lm-eval's own model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chat", "batch"),
    [("tiny", False, 1), ("tiny", False, 8), ("tiny", True, 1), ("tiny", True, 8), ("math", True, 8)],
)
def test_single_equals_lm_evals_own_model(
    name: str, chat: bool, batch: int, checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase, tasks: TaskManager
) -> None:
    model = loaded(checkpoint if name == "tiny" else weights_folder(name))
    expected = evaluated(theirs(model, zoo_tokenizer, batch_size=batch), tasks, chat)
    mine = evaluated(ours(model, zoo_tokenizer, max_batch=batch), tasks, chat)
    assert metrics(mine) == pytest.approx(metrics(expected), rel=1e-5)
    assert answers_to(mine, "writing") == answers_to(expected, "writing")
    assert any(answers_to(mine, "writing"))
    assert_same_scores(answers_to(mine, "choosing"), answers_to(expected, "choosing"))
    assert answers_to(mine, "reading") == pytest.approx(answers_to(expected, "reading"), **CLOSE)


def evaluated(lm: Any, tasks: TaskManager, chat: bool) -> Any:
    return lm_eval.evaluate(lm, tasks.load(TASKS), bootstrap_iters=0, apply_chat_template=chat)


def metrics(results: Any) -> dict[tuple[str, str], float]:
    found = {
        (task, metric): value
        for task in TASKS
        for metric, value in results["results"][task].items()
        if metric.endswith(",none") and "stderr" not in metric
    }
    assert len(found) == 4
    return found


def answers_to(results: Any, task: str) -> list[Any]:
    return [answer for sample in results["samples"][task] for (answer,) in sample["resps"]]


def test_cut_empty_and_shared_contexts_score_the_same(checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase) -> None:
    model = loaded(checkpoint)
    hf = theirs(model, zoo_tokenizer, max_length=24)
    firsts = [f"Question {number}:" for number in range(12)]
    pairs = [
        *zip(firsts, write(hf, *firsts, max_gen_toks=1, until=[]), strict=True),  # most of them the likeliest
        ("", "no context"),
        ("", "<|end|> begins like the prefix"),  # the zoo has no BOS, so an empty context is <|end|>
        ("<|end|>x", " y"),
        ("trailing space ", "moves over"),
        ("a long context " * 12, "is cut"),
        ("a long context " * 12, "is cut elsewhere"),
        ("cut", " to the last token" * 2),
        *((f"Choose: A or B ({at})", f" {letter}") for at in range(3) for letter in "AB"),
        *(("Choose: several words", text) for text in (" one", " one two", " one two three", " two")),
    ]
    pairs = [pair for pair in pairs if pair[1]]
    expected = score(hf, *pairs)
    assert {greedy for _, greedy in expected} == {True, False}
    for batch in (1, 3, 64):
        assert_same_scores(score(ours(model, zoo_tokenizer, max_length=24, max_batch=batch), *pairs), expected)


def test_long_texts_are_read_in_the_same_windows(checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase) -> None:
    model = loaded(checkpoint)
    texts = [("word " * count,) for count in (0, 1, 7, 8, 9, 40)]
    given = requests("loglikelihood_rolling", *texts)
    expected = theirs(model, zoo_tokenizer, max_length=16).loglikelihood_rolling(given, disable_tqdm=True)
    assert expected[0] == 0
    for batch in (1, 8):
        lm = ours(model, zoo_tokenizer, max_length=16, max_batch=batch)
        assert lm.loglikelihood_rolling(given) == pytest.approx(expected, **CLOSE)


def test_contexts_are_cut_and_answers_end_the_same(checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase) -> None:
    model = loaded(checkpoint)
    hf, mine = theirs(model, zoo_tokenizer, max_length=32, batch_size=3), ours(model, zoo_tokenizer, max_length=32)
    contexts = ["short", "a context that is too long " * 5, "ends with space "]
    whole = write(hf, *contexts, max_gen_toks=16, until=["never met"])
    assert all(len(answer) > 8 for answer in whole)
    assert write(mine, *contexts, max_gen_toks=16) == whole
    stop = whole[1][4:7]
    stopped = write(hf, *contexts, max_gen_toks=16, until=[stop])
    assert stopped[1] == whole[1].split(stop)[0] != whole[1]
    assert write(mine, *contexts, max_gen_toks=16, until=stop) == stopped
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert write(mine, *contexts, **{name: 5}) == write(hf, *contexts, max_gen_toks=5, until=[])
    assert len(mine.written["short"][-1].token_ids) == 5


def test_what_a_generation_config_changes_beside_sampling_is_not_applied_but_warned_of(
    checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    """The known difference to lm-eval's own model: it lets these settings act, on greedy decoding too."""
    contexts = [f"Question {number}:" for number in range(6)]
    plain, penalised = loaded(checkpoint), loaded(checkpoint)
    options = {"max_gen_toks": 16, "until": ["never met"]}
    expected = write(theirs(plain, zoo_tokenizer), *contexts, **options)
    assert write(ours(plain, zoo_tokenizer), *contexts, **options) == expected
    assert "generation_config" not in caplog.text
    assert penalised.generation_config is not None
    penalised.generation_config.repetition_penalty = 1.8
    penalised.generation_config.no_repeat_ngram_size = 2
    assert write(theirs(penalised, zoo_tokenizer), *contexts, **options) != expected
    for _ in range(2):
        assert write(MethodLM(Single(penalised, "penalised"), zoo_tokenizer), *contexts, **options) == expected
    assert caplog.text.count("model 'penalised' sets repetition_penalty=1.8, no_repeat_ngram_size=2, which is not") == 1


def test_a_stop_string_that_is_a_special_token_ends_the_answer(
    checkpoint: Path, zoo_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = loaded(checkpoint)
    (whole,) = ours(model, zoo_tokenizer).engine.generate(
        [zoo_tokenizer.encode("x")], GenerationSettings(max_new_tokens=8)
    )
    token = whole.token_ids[4]
    assert token not in whole.token_ids[:4]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.convert_ids_to_tokens(token)
    tokenizer.add_tokens([text], special_tokens=True)
    lm = ours(model, tokenizer)
    write(lm, "x", until=[text], max_gen_toks=8)
    (completion,) = lm.written["x"]
    assert completion.token_ids == whole.token_ids[:5]
    assert completion.finish_reason == "stop"


# --- prompts ----------------------------------------------------------------------------------------------------------


def adding_bos(template: str = tiny.CHAT_TEMPLATE) -> PreTrainedTokenizerBase:
    tokenizer = tiny.tokenizer()
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair=None, special_tokens=special
    )
    tokenizer.chat_template = template
    return tokenizer


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, "{{ bos_token }}" + tiny.CHAT_TEMPLATE])
def test_bos_is_added_as_lm_evals_own_model_does(template: str) -> None:
    model, tokenizer = tiny.language_model(), adding_bos(template)
    hf, mine = theirs(model, tokenizer), ours(model, tokenizer)
    rendered = mine.apply_chat_template(MESSAGES)
    assert rendered == hf.apply_chat_template(MESSAGES)
    for text in ("plain", rendered, "<bos>has one"):
        assert mine.tok_encode(text) == hf.tok_encode(text)
        assert mine.tok_encode(text).count(tokenizer.bos_token_id) == 1
    contexts = ["plain", "longer than plain"]
    assert write(mine, *contexts, max_gen_toks=9) == write(hf, *contexts, max_gen_toks=9, until=[])
    pairs = [("plain", " text"), ("", "nothing before"), (rendered, "answer"), ("<bos>has", " one")]
    assert_same_scores(score(mine, *pairs), score(hf, *pairs))


@pytest.mark.parametrize("name", [CHAT_TEMPLATE, "alpaca"])
@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
def test_a_teams_prompt_is_rendered_as_it_was_trained(name: str, bos: str) -> None:
    tokenizer = adding_bos(bos + tiny.CHAT_TEMPLATE)
    prompt = PromptFormat(tokenizer, name)
    lm = ours(tiny.language_model(), tokenizer, prompt=prompt)
    assert lm.tok_encode(lm.apply_chat_template(MESSAGES)) == prompt.encode(MESSAGES)


def test_the_named_template_is_the_one_lm_eval_is_told_of() -> None:
    tokenizer = tiny.tokenizer()
    alpaca = ours(tiny.language_model(), tokenizer, prompt=PromptFormat(tokenizer, "alpaca"))
    plain = ours(tiny.language_model(), tokenizer)
    assert "### Instruction" in str(alpaca.chat_template(True))
    assert alpaca.chat_template("alpaca") == alpaca.chat_template(True)
    assert plain.chat_template(True) == tokenizer.chat_template
    assert alpaca.tokenizer_name != plain.tokenizer_name  # they name lm-eval's caches of rendered requests
    prefill = [*MESSAGES, {"role": "assistant", "content": "Sure, "}]
    assert alpaca.apply_chat_template(prefill, add_generation_prompt=False).endswith("### Response:\nSure, ")
    with pytest.raises(SettingsError, match="'alpaca' cannot be chosen here; give prompt=alpaca"):
        plain.chat_template("alpaca")


def test_a_template_without_a_system_role_gets_none(zoo_tokenizer: PreTrainedTokenizerBase) -> None:
    lm = ours(loaded(weights_folder("math")), zoo_tokenizer)
    messages = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    assert lm.apply_chat_template(messages) == "<|user|>hi<|assistant|>"


def test_a_missing_template_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(SettingsError, match="prompt=alpaca"):
        ours(tiny.language_model(), tokenizer).apply_chat_template(MESSAGES)


def test_prompts_outside_their_format_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny.tokenizer()
    lm = ours(tiny.language_model(), tokenizer, prompt=PromptFormat(tokenizer, "alpaca"))
    for _ in range(2):
        write(lm, "bare", max_gen_toks=2)
    assert caplog.text.count("expect prompts in the format 'alpaca'") == 1
    caplog.clear()
    lm = ours(tiny.language_model(), tokenizer, prompt=PromptFormat(tokenizer, "alpaca"))
    write(lm, lm.apply_chat_template(MESSAGES), max_gen_toks=2)
    assert not caplog.text


# --- writing ----------------------------------------------------------------------------------------------------------


def test_repeats_are_drawn_apart_and_alike_in_any_batch() -> None:
    model, tokenizer = tiny.language_model(), tiny.tokenizer()
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.95, "top_k": 0, "max_gen_toks": 12}

    def drawn(**settings: Any) -> list[str]:
        return write(ours(model, tokenizer, **settings), "a", "a", "b", "a", **options)

    answers = drawn()
    assert len(set(answers)) == 4
    assert drawn(max_batch=1) == answers
    assert drawn(seed=1) != answers
    assert len(set(write(ours(model, tokenizer), "a", "a", temperature=0.0, max_gen_toks=12))) == 1


def test_what_was_written_by_whom_is_kept() -> None:
    team = tiny.team()
    done: list[int] = []
    lm = MethodLM(FusionRoute(team), team.tokenizer, prompt=team.prompt_format, max_batch=2, on_finish=done.append)
    answers = write(lm, "a", "b", "a", max_gen_toks=7)
    assert [len(lm.written[context]) for context in "ab"] == [2, 1]
    completion = lm.written["b"][0]
    assert isinstance(completion, Completion)
    assert completion.text == answers[1]
    assert {record.expert for record in completion.trace} <= set(team.expert_names)
    assert done == [1, 1, 1]
    assert lm.tokens_written == sum(len(each.token_ids) for kept in lm.written.values() for each in kept)
    assert lm.seconds > 0
    (same,) = team.generate(["b"], max_new_tokens=7)
    assert (completion.text, completion.token_ids) == (same.text, same.token_ids)
    assert [record.expert for record in completion.trace] == [record.expert for record in same.trace]


def test_finished_requests_go_to_lm_evals_cache() -> None:
    lm = ours(tiny.language_model(), tiny.tokenizer())
    kept: list[tuple[Any, ...]] = []
    lm.cache_hook.add_partial = lambda *entry: kept.append(entry)  # type: ignore[method-assign]
    (answer,) = write(lm, "a", max_gen_toks=3)
    (value,) = score(lm, ("a", "b"))
    (total,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("ab",)))
    write(lm, "a", max_gen_toks=3, do_sample=True, temperature=1.0)  # a drawn one is not to be repeated
    assert kept == [
        ("generate_until", ("a", {"max_gen_toks": 3}), answer),
        ("loglikelihood", ("a", "b"), value),
        ("loglikelihood_rolling", ("ab",), total),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_tok": 5}, "unknown option 'max_gen_tok'; did you mean 'max_gen_toks'"),
        ({"num_beams": 4}, "num_beams=4 is not possible here; only 1 is"),
        ({"do_sample": True}, "do_sample without a temperature"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 7}, "generation_kwargs: top_p"),
        ({"until": [""]}, "an empty stop string would stop every answer at once"),
        ({"max_gen_toks": tiny.CONTEXT}, "leaves no room for a prompt: the smallest context of the models is 160"),
    ],
)
def test_generation_options_are_never_ignored(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        write(ours(tiny.language_model(), tiny.tokenizer()), "a", **options)


def test_options_that_change_nothing_are_accepted() -> None:
    lm = ours(tiny.language_model(), tiny.tokenizer())
    plain = write(lm, "a", max_gen_toks=6)
    assert write(lm, "a", max_gen_toks=6, num_beams=1, do_sample=False, temperature=0.7, top_p=0.9, until=None) == plain


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned() -> MethodLM:
    """A model that returns NaN once it has read a `!`."""
    model, tokenizer = tiny.language_model(), tiny.tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.encode("!")[0]] = torch.nan
    return ours(model, tokenizer)


def test_a_failed_answer_is_no_empty_answer(poisoned: MethodLM) -> None:
    with pytest.raises(ModelOutputError, match="1 of 2 answers failed; the first: model 'math' returned NaN"):
        write(poisoned, "fine", "not!", max_gen_toks=4)
    assert_nothing_kept(poisoned)


def test_a_failed_likelihood_is_no_score(poisoned: MethodLM) -> None:
    with pytest.raises(ModelOutputError, match="model 'math' returned NaN"):
        score(poisoned, ("fine", "x"), ("not!", "x"))
    assert_nothing_kept(poisoned)


def assert_nothing_kept(lm: MethodLM) -> None:
    assert all(not runner.cache.lengths for runner in lm.method.runners)  # type: ignore[union-attr]
    assert lm.engine.is_idle


def test_text_that_cannot_be_scored_is_refused() -> None:
    lm = ours(tiny.language_model(), tiny.tokenizer(), max_length=8)
    with pytest.raises(PromptError, match="empty continuation"):
        score(lm, ("a", ""))
    with pytest.raises(PromptError, match="a continuation has 9 tokens but the smallest context is 8"):
        score(lm, ("a", "x" * 9))
    with pytest.raises(PromptError, match="a continuation of 0 cannot be scored"):
        score(lm, ("", "<bos>"))  # all of it is the prefix


# --- likelihoods ------------------------------------------------------------------------------------------------------

CONTEXT_IDS = list(range(5, 45))
ENDINGS = [[50], [51], [52, 60], [52, 61, 62, 63], [53, 60, 61]]


def scored(method: Single, given: list[tuple[list[int], list[int]]], **limits: Any) -> list[tuple[float, bool]]:
    defaults = {"context": 64, "rows": 8, "cached": 10_000, "vocabulary": tiny.VOCABULARY}
    return Likelihoods(method, Limits(**{**defaults, **limits})).score(given, lambda at, score: None)


@pytest.mark.parametrize("limits", [{"logits": 1}, {"logits": 5 * tiny.VOCABULARY}, {"cached": 70}, {"rows": 1}])
def test_any_limit_gives_the_same_scores(limits: dict[str, int]) -> None:
    model = tiny.language_model()
    given = [(CONTEXT_IDS[:length], ending) for length in (1, 3, 40) for ending in ENDINGS]
    expected = [likelihood(model, *each) for each in given]
    method = Single(model, "math")
    assert_same_scores(scored(method, given, **limits), expected)
    assert not method.runner.cache.lengths  # type: ignore[attr-defined]


def likelihood(model: PreTrainedModel, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """The same by one plain forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([context + ending])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    value = sum(float(row[token]) for row, token in zip(logits, ending, strict=True))
    return value, logits.argmax(-1).tolist() == ending


def test_a_shared_context_is_read_once() -> None:
    method = Single(tiny.language_model(), "math")
    scored(method, [(CONTEXT_IDS, ending) for ending in ENDINGS])
    # the context and, of each ending, all but its last token and the token before it, whose logits are asked for
    assert method.runner.tokens_read <= len(CONTEXT_IDS) + sum(len(ending) for ending in ENDINGS)  # type: ignore[attr-defined]


def test_what_could_never_fit_is_refused() -> None:
    with pytest.raises(RequestTooLargeError, match="raise cache_limit"):
        scored(Single(tiny.language_model(), "math"), [(CONTEXT_IDS, [50])], cached=20)


def test_a_method_that_chooses_among_answers_writes_but_scores_nothing() -> None:
    experts = {name: tiny.language_model(seed=seed) for seed, name in enumerate(("math", "code"))}
    lm = MethodLM(SequenceSelection(experts), tiny.tokenizer())
    assert all(write(lm, "a", "b", max_gen_toks=4))
    for kind, arguments in (("loglikelihood", ("a", "b")), ("loglikelihood_rolling", ("a",))):
        with pytest.raises(SettingsError, match="SequenceSelection has no distribution of the next token"):
            getattr(lm, kind)(requests(kind, arguments))


def test_an_average_is_scored() -> None:
    model, tokenizer = tiny.language_model(), tiny.tokenizer()
    pairs = [("a", "bc"), ("", "def")]
    lm = MethodLM(Averaging({"math": model, "twin": model}), tokenizer)
    assert_same_scores(score(lm, *pairs), score(ours(model, tokenizer), *pairs))


# --- as lm-eval's model "fusionroute" ---------------------------------------------------------------------------------


def test_lm_eval_runs_a_team_by_name(team_folder: Path, tasks: TaskManager) -> None:
    team = Team.from_pretrained(team_folder)

    def answers(**arguments: Any) -> dict[str, str]:
        results = lm_eval.simple_evaluate(
            "fusionroute",
            {"team": str(team_folder), **arguments},
            tasks=["writing"],
            task_manager=tasks,
            batch_size="auto",
            device="cpu",
            apply_chat_template=True,
            bootstrap_iters=0,
        )
        return {sample["arguments"][0][0]: sample["resps"][0][0] for sample in results["samples"]["writing"]}

    for complement in (True, False):
        found = answers(complement=complement, max_batch=2)
        prompts = [team.tokenizer.encode(prompt) for prompt in found]
        expected = team.generate(prompts, complement=complement, max_new_tokens=12, stop="\n")
        assert list(found.values()) == [completion.text for completion in expected]


@pytest.mark.parametrize("name", ["math", "router"])
def test_one_model_of_a_team_writes_alone(name: str, team_folder: Path) -> None:
    team = Team.from_pretrained(team_folder)
    alone = FusionRouteLM(team=str(team_folder), expert=name, device="cpu")
    lm = ours(team.router.lm if name == "router" else team.experts[name], team.tokenizer)
    contexts = [lm.apply_chat_template([{"role": "user", "content": f"{number} + 3?"}]) for number in range(3)]
    assert write(alone, *contexts, max_gen_toks=12) == write(lm, *contexts, max_gen_toks=12)
    assert {record.expert for context in contexts for record in alone.written[context][0].trace} == {name}


def test_a_team_scores_by_its_fused_distribution(team_folder: Path) -> None:
    lm = FusionRouteLM(team=str(team_folder), device="cpu")
    (written,) = lm.engine.generate([lm.tokenizer.encode("12 + 30")], GenerationSettings(max_new_tokens=5, logprobs=1))
    ids = [lm.tokenizer.encode("12 + 30"), written.token_ids]
    ((value, greedy),) = lm._loglikelihood_tokens([(("", ""), *ids)])
    assert greedy
    assert value == pytest.approx(sum(record.logprob or 0 for record in written.trace), **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"complemnt": False}, "model_args: unknown option 'complemnt'; did you mean 'complement'"),
        ({"expert": "maths"}, "the team has no expert 'maths'; it has router, math, code"),
        ({"expert": "math", "complement": False}, "complement=false says nothing of 'math' alone"),
        ({"prompt": "alpacca"}, "did you mean 'alpaca'"),
        ({"batch_size": "many"}, "batch_size is a number or auto; got 'many'"),
        ({"max_batch": 0}, "max_batch must be at least 1; got 0"),
        ({"dtype": "float8"}, "dtype: unknown option 'float8'"),
    ],
)
def test_model_arguments_are_checked(arguments: dict[str, Any], message: str, team_folder: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        FusionRouteLM(team=str(team_folder), **arguments)


def test_later_releases_of_lm_eval_find_the_model_by_its_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    ((name, place),) = project["entry-points"]["lm_eval.models"].items()
    assert name == "fusionroute"
    assert pkgutil.resolve_name(place) is FusionRouteLM
    assert lm_eval.api.registry.get_model("fusionroute") is FusionRouteLM


def test_cut_contexts_share_a_passage_with_continuations_of_their_length_alone() -> None:
    """Cut to four tokens, the first two are 7 7 7 7, of which four or three are the context."""
    requests = [([7] * 6, [7]), ([7] * 6, [7, 7]), ([7] * 6, [8]), ([7] * 6, [7, 8, 7])]
    ((first, second, third),) = rows_of(requests, 4)
    assert [wanted for wanted, _ in first.wanted] == [0, 2]
    assert [first.prompt_length, second.prompt_length, third.prompt_length] == [4, 3, 2]
