"""lm-eval's own API models, unpatched, against a running server: the scores of the adapter inside the process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tenacity", reason="lm-eval's API models need it: pip install 'lm-eval[api]'")

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusionroute import Router, Team
from fusionroute.evaluation.harness import FusionRouteLM
from fusionroute.models.prompt import CHAT_TEMPLATE
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.lm_eval import FOLDER
from served import Server, running_server

LIMIT = 4
CONTEXT = 256
OURS = ["choosing", "reading", "writing"]
WRITING = ["zoo_sums", "zoo_words"]
CLOSE = {"abs": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two zoo experts under a router that mostly takes the math expert; it has learned nothing else."""
    experts = {name: AutoModelForCausalLM.from_pretrained(weights_folder(name)).float() for name in ("math", "chat")}
    router = Router(AutoModelForCausalLM.from_pretrained(weights_folder("chat")).float(), 2)
    torch.manual_seed(0)
    torch.nn.init.normal_(router.route_head.weight)
    folder = tmp_path_factory.mktemp("teams") / "team"
    tokenizer = AutoTokenizer.from_pretrained(weights_folder("math"))
    Team(router, experts, tokenizer, CHAT_TEMPLATE).save_pretrained(folder, save_experts=True)
    return str(folder)


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[Server]:
    with running_server(folder, "--device", "cpu", "--cache-limit", "256MiB") as server:
        yield server


@pytest.fixture(scope="module")
def inside(folder: str) -> dict[str, FusionRouteLM]:
    options: dict[str, Any] = {"team": folder, "device": "cpu", "batch_size": "auto", "max_length": CONTEXT}
    return {"team": FusionRouteLM(**options), "team/math": FusionRouteLM(**options, expert="math")}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, inside: dict[str, FusionRouteLM]) -> TaskManager:
    """The zoo's tasks, and one of each kind of lm-eval's: choosing among texts, reading (perplexity), writing."""
    folder = tmp_path_factory.mktemp("tasks")
    sums = [(1, 2), (3, 4), (10, 5), (12, 30)]
    documents = [
        {
            "question": f"{a} + {b}?",
            "answer": str(a + b),
            # the last two are what the models would write themselves
            "choices": [f" {a + b}", f" {a + b + 1}", f" {a}{b} or so"]
            + [first_token(lm, f"Question: {a} + {b}?\nAnswer:") for lm in inside.values()],
        }
        for a, b in sums
    ]
    (folder / "documents.jsonl").write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    files = f"{{data_files: {{test: {folder / 'documents.jsonl'}}}}}"
    data = f"dataset_path: json\ndataset_kwargs: {files}\ntest_split: test\n"
    question = 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
    mean = "aggregation: mean, higher_is_better: true"
    kinds = {
        "choosing": f"output_type: multiple_choice\n{question}doc_to_choice: choices\ndoc_to_target: 0\n"
        'target_delimiter: ""\n'
        f"metric_list: [{{metric: acc, {mean}}}, {{metric: acc_norm, {mean}}}]\n",
        "reading": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}} {{answer}}"\n'
        "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n",
        "writing": f'output_type: generate_until\n{question}doc_to_target: "{{{{answer}}}}"\n'
        'generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12, do_sample: false, temperature: 0.0}\n'
        f"metric_list: [{{metric: exact_match, {mean}}}]\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return TaskManager(include_path=[str(folder), str(FOLDER)], include_defaults=False)


def first_token(lm: FusionRouteLM, context: str) -> str:
    options = {"until": [], "max_gen_toks": 1}
    (text,) = lm.generate_until([Instance("generate_until", {}, (context, options), 0)])
    return text or " "


def completions(server: Server, folder: str, model: str, **options: Any) -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        model=model,
        base_url=f"http://127.0.0.1:{server.port}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(Path(folder) / "router"),
        # lm-eval takes one off for the token that is written; the adapter counts what it reads
        max_length=CONTEXT + 1,
        max_retries=1,
        **options,
    )


def chat(server: Server, model: str, **options: Any) -> LocalChatCompletion:
    address = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    return LocalChatCompletion(model=model, base_url=address, max_retries=1, eos_string="none", **options)


def evaluated(lm: Any, tasks: TaskManager, names: list[str], *, is_chat: bool) -> Any:
    return lm_eval.evaluate(
        lm, tasks.load(names), limit=LIMIT, bootstrap_iters=0, apply_chat_template=is_chat, log_samples=True
    )


def scores(results: Any) -> dict[tuple[str, str], float]:
    return {
        (task, metric): value
        for task, found in results["results"].items()
        for metric, value in found.items()
        if "," in metric and "stderr" not in metric
    }


def answers(results: Any, task: str) -> list[Any]:
    return [answer for sample in results["samples"][task] for (answer,) in sample["resps"]]


@pytest.mark.parametrize(
    ("model", "options"),
    [("team", {}), ("team", {"num_concurrent": 4, "batch_size": 3}), ("team/math", {})],
    ids=["team, one by one", "team, concurrently", "one expert"],
)
def test_local_completions(
    model: str, options: dict[str, Any], server: Server, folder: str, inside: dict[str, Any], tasks: TaskManager
) -> None:
    names = [*OURS, *WRITING]
    expected = evaluated(inside[model], tasks, names, is_chat=False)
    found = evaluated(completions(server, folder, model, **options), tasks, names, is_chat=False)
    assert_equal(found, expected)
    likelihoods = answers(found, "choosing")
    assert {greedy for _, greedy in likelihoods} == {True, False}, "or nothing is shown of is_greedy"


def test_local_completions_with_the_chat_template(
    server: Server, folder: str, inside: dict[str, Any], tasks: TaskManager
) -> None:
    names = [*OURS[:1], *WRITING]
    expected = evaluated(inside["team/math"], tasks, names, is_chat=True)
    found = evaluated(completions(server, folder, "team/math"), tasks, names, is_chat=True)
    assert_equal(found, expected)
    assert scores(found)["zoo_sums", "correct,checked"] > 0


@pytest.mark.parametrize(
    ("model", "options"), [("team", {"num_concurrent": 4}), ("team/math", {})], ids=["team, concurrently", "one expert"]
)
def test_local_chat_completions(
    model: str, options: dict[str, Any], server: Server, inside: dict[str, Any], tasks: TaskManager
) -> None:
    expected = evaluated(inside[model], tasks, WRITING, is_chat=True)
    found = evaluated(chat(server, model, **options), tasks, WRITING, is_chat=True)
    assert_equal(found, expected)


def assert_equal(found: Any, expected: Any) -> None:
    assert scores(found) == pytest.approx(scores(expected), rel=1e-5)
    assert scores(found)
    for task in found["samples"]:
        mine, theirs = answers(found, task), answers(expected, task)
        assert len(mine) >= LIMIT
        if isinstance(mine[0], str):
            assert mine == theirs
            assert any(mine)
        elif isinstance(mine[0], float):
            assert mine == pytest.approx(theirs, **CLOSE)
        else:
            assert [value for value, _ in mine] == pytest.approx([value for value, _ in theirs], **CLOSE)
            assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
