"""Tasks by name, local data, and the one clear line for each way in which a task can be out of reach."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from fusionroute.errors import DataError, SettingsError
from fusionroute.evaluation.tasks import TaskLibrary, TaskSettings, primary_metric, sample_score, scores
from fusionroute.evaluation.tasks.data import columns, hub_answers, offline
from fusionroute.evaluation.tasks.index import TaskNames

ROWS = [{"question": "1+1?", "answer": "#### 2"}, {"question": "1+2?", "answer": "#### 3"}]
IFEVAL = {"key": 1, "prompt": "Write three sentences.", "kwargs": [{"relation": "at least", "num_sentences": 3}]}


@pytest.fixture(scope="module")
def library() -> TaskLibrary:
    return TaskLibrary()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, rows: Any) -> str:
        lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return str(tmp_path / name)

    return write


def gsm8k(**options: Any) -> TaskSettings:
    return TaskSettings(task="gsm8k", **{"num_fewshot": 0, **options})


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_name_alone_will_do() -> None:
    assert TaskSettings.model_validate("gsm8k") == TaskSettings(task="gsm8k")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "gsm8k", "limits": 3}, "unknown option 'limits'; did you mean 'limit'"),
        ({"task": "gsm8k", "limit": 0}, "limit: Input should be greater than 0"),
        ({"task": "gsm8k", "num_fewshot": -1}, "num_fewshot"),
        ({"task": "gsm8k", "data": "rows.txt"}, r"data files end in .jsonl, .json, .parquet, .csv; got 'rows.txt'"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TaskSettings.parse(values)


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_unknown_task_names_the_nearest(library: TaskLibrary) -> None:
    with pytest.raises(SettingsError, match="unknown task 'gsm8kk'; did you mean 'gsm8k' or"):
        library.load(TaskSettings(task="gsm8kk"))
    with pytest.raises(SettingsError, match="unknown task 'xqzzyqx'; `lm-eval ls tasks` lists"):
        library.load(TaskSettings(task="xqzzyqx"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no folder of tasks at .*nowhere"):
        TaskLibrary([tmp_path / "nowhere"])


@pytest.fixture
def own(tmp_path: Path, write: Any) -> Path:
    """A folder with two tasks of one's own in a group, and a file that is none."""
    data = write("questions.jsonl", [{"q": "Ping?", "a": "pong"}, {"q": "Tick?", "a": "tock"}])
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("mine_one", "mine_two"):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "tag": "mine_tag", **common}))
    (folder / "both.yaml").write_text(json.dumps({"group": "mine", "task": ["mine_one", {"task": "mine_two"}]}))
    (folder / "broken.yaml").write_text("task: [mine_three\n")
    return folder


def test_tasks_of_ones_own_and_groups_of_them(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library = TaskLibrary([own])
    (task,) = library.load(TaskSettings(task="mine_one"))
    assert [task.doc_to_text(doc) for doc in task.eval_docs] == ["Ping?", "Tick?"]
    assert [task.task_name for task in library.load(TaskSettings(task="mine"))] == ["mine_one", "mine_two"]
    with pytest.raises(SettingsError, match="data cannot be given for 'mine', which stands for several tasks"):
        library.load(TaskSettings(task="mine", data="x.jsonl"))
    with pytest.raises(
        SettingsError, match=r"unknown task 'mine_three'; did you mean .*; .*broken.yaml cannot be read"
    ):
        library.load(TaskSettings(task="mine_three"))


def test_a_group_of_ones_own_may_hold_tasks_of_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text(json.dumps({"group": "some", "task": ["gsm8k", "arc_easy"]}))
    entry, registry = TaskNames([tmp_path]).find("some")
    assert entry.name == "some"
    assert {"some", "gsm8k", "arc_easy"} <= set(registry)
    assert len(registry) < 100  # not lm-eval's whole index


# --- local data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_questions(library: TaskLibrary, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix == ".csv":
        path.write_text("question,answer\n1+1?,#### 2\n1+2?,#### 3\n")
    else:
        path.write_text(json.dumps(ROWS) if suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
    (task,) = library.load(gsm8k(data=str(path)))
    assert list(task.eval_docs) == ROWS
    assert task.config.num_fewshot == 0


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({}, [{"question": "1+1?", "text": "2"}], "has no column 'answer'; it needs question, answer"),
        ({}, [{"answer": "2"}], "has no column 'question'"),
        ({}, "", "is empty; it needs one row per question"),
        ({}, '{"question": 1}\n{"question":\n', "jsonl:2 is not valid JSON"),
        ({}, "[1, 2]", "cannot be read: every row must be an object of columns"),
        (
            {"num_fewshot": 2},
            ROWS,
            "takes its 2 examples from the split 'train': add `train: file.jsonl`.*num_fewshot: 0",
        ),
    ],
)
def test_data_that_does_not_fit(library: TaskLibrary, write: Any, options: dict, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        library.load(gsm8k(data={"test": write("rows.jsonl", rows)}, **options))


def test_columns_that_functions_read_are_known(library: TaskLibrary, write: Any) -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl has no column 'solution', which task 'minerva_math500' needs; it has"
    ):
        library.load(TaskSettings(task="minerva_math500", data=write("rows.jsonl", [{"problem": "1", "answer": "1"}])))
    with pytest.raises(DataError, match=r"the data of task 'minerva_math500' \(.*\) does not fit: .*NoneType"):
        library.load(
            TaskSettings(task="minerva_math500", data=write("rows.jsonl", [{"problem": "1", "solution": "1"}]))
        )
    with pytest.raises(DataError, match=r"has no column 'instruction_id_list'"):
        library.load(TaskSettings(task="ifeval", data=write("rows.jsonl", [IFEVAL])))


def test_files_and_splits_that_are_not_there(library: TaskLibrary, write: Any) -> None:
    with pytest.raises(DataError, match=r"no data file at nowhere.jsonl"):
        library.load(gsm8k(data="nowhere.jsonl"))
    with pytest.raises(SettingsError, match="data of task 'gsm8k': unknown option 'tests'; did you mean 'test'"):
        library.load(gsm8k(data={"tests": "x.jsonl"}))
    with pytest.raises(
        DataError, match=r"takes its questions from the split 'test': add `test: file.jsonl` to `data`$"
    ):
        library.load(gsm8k(data={"train": write("rows.jsonl", ROWS)}))


# --- out of reach -----------------------------------------------------------------------------------------------------


def test_data_out_of_reach_says_how_to_make_it_local(library: TaskLibrary) -> None:
    with pytest.raises(DataError) as caught:
        library.load(TaskSettings(task="gsm8k"))
    message = str(caught.value)
    assert "needs the data set openai/gsm8k (config 'main', test and train), which could not be fetched" in message
    assert "`data: {test: test.jsonl, train: train.jsonl}`" in message
    assert message.endswith("with the columns question, answer")
    assert "\n" not in message


def test_a_group_out_of_reach_names_its_first_task() -> None:
    library = TaskLibrary([Path(__file__).parents[3] / "configs" / "paper" / "evaluate" / "tasks"])
    with pytest.raises(
        DataError, match=r"'safe_bbh' needs the data set SaylorTwift/bbh.*one by one \(bbh_cot_fewshot_bool"
    ):
        library.load(TaskSettings(task="safe_bbh"))


def test_without_network_nothing_is_retried(library: TaskLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, within a second or so; left alone, datasets would try six times."""
    tried = []

    def refuse(address: tuple, *_: Any, **__: Any) -> None:
        tried.append(address)
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fusionroute.evaluation.tasks.data.getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    fresh = TaskLibrary()
    for _ in range(2):
        with pytest.raises(DataError, match="openai/gsm8k"):
            fresh.load(gsm8k())
    assert tried == [("huggingface.co", 443)]
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("fusionroute.evaluation.tasks.data.getproxies", dict)
        assert hub_answers()
    assert not hub_answers(seconds=0.2)
    with offline(True):
        assert constants.is_offline_mode()
        assert not hub_answers()


# --- permissions and libraries ----------------------------------------------------------------------------------------


def test_code_needs_permission(library: TaskLibrary) -> None:
    with pytest.raises(SettingsError, match=r"task 'humaneval' runs the code that models write.*--allow-code"):
        library.load(TaskSettings(task="humaneval", data="x.jsonl"))


def test_permission_is_for_the_sandbox_only(library: TaskLibrary, write: Any) -> None:
    rows = write("rows.jsonl", [{"code": "def f(x):\n    return x", "input": "1", "output": "1"}])
    with pytest.raises(SettingsError, match="'cruxeval_output' runs code outside the sandbox"):
        library.load(TaskSettings(task="cruxeval_output", data=rows), allow_code=True)


@pytest.mark.parametrize(
    ("library_name", "task", "extra"), [("math_verify", "minerva_math500", "math"), ("langdetect", "ifeval", "ifeval")]
)
def test_a_missing_library_says_what_to_install(
    library: TaskLibrary, write: Any, monkeypatch: pytest.MonkeyPatch, library_name: str, task: str, extra: str
) -> None:
    data = write("rows.jsonl", [{"problem": "1", "solution": "1"}])
    for name in [
        name for name in sys.modules if name.startswith((f"lm_eval.tasks.{task}", "lm_eval.tasks.minerva_math"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library_name, None)
    with pytest.raises(
        SettingsError, match=rf"task '{task}' needs libraries that are not installed: pip install 'lm-eval\[{extra}\]'"
    ):
        library.load(TaskSettings(task=task, data=data))


@pytest.fixture
def with_function(tmp_path: Path, write: Any) -> Any:
    """Make a task of one's own whose questions come from a Python function, given its file."""

    def make(source: str, name: str = "own_function", folder: str = "own") -> TaskLibrary:
        data = write("questions.jsonl", [{"q": "Ping?", "a": "pong"}])
        config = {
            "task": name,
            "custom_dataset": "!function utils.rows",
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "!function utils.text",
            "doc_to_target": "{{a}}",
        }
        lines = "".join(f"{key}: {value if '!' in value else json.dumps(value)}\n" for key, value in config.items())
        load = f"def rows(**_):\n    return datasets.load_dataset('json', data_files={{'test': {data!r}}})\n"
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(lines)
        (tmp_path / folder / "utils.py").write_text(f"import datasets\n{load}{source}")
        return TaskLibrary([tmp_path / folder])

    return make


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "from json import nope",
            SettingsError,
            "task 'own_function' cannot be imported: ImportError: cannot import name 'nope' from 'json'",
        ),
        ("import json.nope", SettingsError, r"cannot be imported: ModuleNotFoundError: No module named 'json.nope'"),
        ("assert False, 'pip install mine'", SettingsError, "cannot be imported: AssertionError: pip install mine; "),
        (
            "import no_such_library.part",
            SettingsError,
            "'own_function' needs libraries that are not installed: pip install no_such_library$",
        ),
        (
            "def text(doc):\n    return doc['question']",
            DataError,
            r"task 'own_function' cannot be made from its data set \(KeyError: 'question'\)",
        ),
        ("", DataError, "'own_function' cannot be made from its data set .AttributeError: .*has no function 'text'"),
    ],
)
def test_what_is_wrong_in_a_task_of_ones_own_is_told_and_the_task_named(
    with_function: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, error: type, message: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(error, match=message):
        with_function(source).load(TaskSettings(task="own_function"))


def test_a_folder_called_ifeval_needs_no_library_of_ifeval(
    with_function: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "langdetect", None)
    library = with_function("def text(doc):\n    return doc['q']", name="mine_ifeval", folder="ifeval")
    (task,) = library.load(TaskSettings(task="mine_ifeval"))
    assert [task.doc_to_text(doc) for doc in task.eval_docs] == ["Ping?"]


def test_a_library_that_is_too_old_is_named_in_lm_evals_words(with_function: Any) -> None:
    asks = "raise AssertionError('`sympy` is required. Please install via pip install lm-eval[math]')"
    with pytest.raises(SettingsError, match=r"'own_function' needs libraries .*: pip install 'lm-eval\[math\]'"):
        with_function(asks).load(TaskSettings(task="own_function"))


def test_the_sentence_splitter_is_asked_for_only_if_a_question_needs_it(
    library: TaskLibrary, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    plain = IFEVAL | {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    counted = IFEVAL | {"instruction_id_list": ["length_constraints:number_sentences"]}
    data = write("rows.jsonl", [plain, counted])
    assert len(library.load(TaskSettings(task="ifeval", data=data, limit=1))) == 1
    with pytest.raises(DataError, match=r"splits sentences or words for 1 of .*`python -m nltk.downloader punkt_tab`"):
        library.load(TaskSettings(task="ifeval", data=data))


def test_shots_where_there_are_none(library: TaskLibrary) -> None:
    with pytest.raises(SettingsError, match="task 'humaneval' has no examples to show; got num_fewshot=2, use 0"):
        library.load(TaskSettings(task="humaneval", num_fewshot=2), allow_code=True)


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_the_first_metric_a_name_alone_or_both_parts(library: TaskLibrary, write: Any) -> None:
    (task,) = library.load(gsm8k(data=write("rows.jsonl", ROWS)))
    assert primary_metric(task) == primary_metric(task, "exact_match") == "exact_match,strict-match"
    assert primary_metric(task, "exact_match,flexible-extract") == "exact_match,flexible-extract"
    with pytest.raises(SettingsError, match=r"metric of task 'gsm8k': .*did you mean 'exact_match,flexible-extract'"):
        library.load(gsm8k(data=write("rows.jsonl", ROWS), metric="exact_match,flexible"))


MEAN = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}


def with_metrics(folder: Path, output_type: str, metrics: list[dict[str, Any]]) -> TaskLibrary:
    config = {
        "task": "measured",
        "dataset_path": "nowhere",
        "test_split": "test",
        "output_type": output_type,
        "doc_to_text": "{{q}}",
        "doc_to_target": " {{a}}",
        "metric_list": metrics,
    }
    (folder / "measured.yaml").write_text(json.dumps(config))
    return TaskLibrary([folder])


def test_a_task_with_perplexity_first_takes_its_first_mean(tmp_path: Path, write: Any) -> None:
    library = with_metrics(tmp_path, "loglikelihood", [PERPLEXITY, MEAN])
    data = write("rows.jsonl", [{"q": "Ping?", "a": "pong"}])
    (task,) = library.load(TaskSettings(task="measured", data=data))
    assert list(task.aggregation()) == ["perplexity", "acc"]
    assert primary_metric(task) == primary_metric(task, "acc") == "acc,none"
    with pytest.raises(SettingsError, match=r"metric of task 'measured': unknown option 'perplexity'.*'?acc,none"):
        library.load(TaskSettings(task="measured", data=data, metric="perplexity"))
    with pytest.raises(SettingsError, match="acc,none"):
        primary_metric(task, "perplexity,none")


@pytest.mark.parametrize(
    ("output_type", "metrics"),
    [
        ("loglikelihood_rolling", [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]),
        ("loglikelihood", [PERPLEXITY, MEAN | {"aggregation": "median"}]),
        ("loglikelihood", [MEAN | {"higher_is_better": False}]),
    ],
)
def test_a_task_without_a_mean_of_which_more_is_better_is_refused(
    tmp_path: Path, write: Any, output_type: str, metrics: list[dict[str, Any]]
) -> None:
    library = with_metrics(tmp_path, output_type, metrics)
    names = ", ".join(metric["metric"] for metric in metrics)
    with pytest.raises(SettingsError, match=rf"'measured' has no metric that is a mean .*\(it has {names}\)"):
        library.load(TaskSettings(task="measured", data=write("rows.jsonl", [{"q": "Ping?", "a": "pong"}])))


def test_scores_are_those_of_one_filter_in_order() -> None:
    samples = [
        {"doc_id": at, "filter": kind, "metrics": ["acc"], "acc": value}
        for kind, values in (("strict", [0, 1]), ("loose", [True, 1.0]))
        for at, value in reversed(list(enumerate(values)))
    ]
    assert scores(samples, "acc,strict") == [0.0, 1.0]
    assert scores(samples, "acc,loose") == [1.0, 1.0]
    with pytest.raises(SettingsError, match=r"filter of 'acc,lose': .*did you mean 'loose'"):
        scores(samples, "acc,lose")
    with pytest.raises(SettingsError, match=r"metric of a sample: .*did you mean 'acc,strict'"):
        scores(samples, "accc,strict")


def test_parts_are_averaged_and_whole_task_metrics_refused() -> None:
    assert sample_score({"filter": "none", "acc": [True, False, True, True]}, "acc,none") == 0.75
    with pytest.raises(SettingsError, match="'word_perplexity,none' has no value for one question"):
        sample_score({"filter": "none", "word_perplexity": (-3.0, 2)}, "word_perplexity,none")


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_are_read_off_the_templates() -> None:
    config = {
        "doc_to_text": "{% if hint is defined %}{{hint}}{% endif %}{{question.strip()}} {{choices.text[0]}}",
        "doc_to_target": "label",
        "doc_to_choice": ["yes", "no"],
    }
    assert columns(config) == ["choices", "question", "label"]
    assert columns({"dataset_path": "google/IFEval", "doc_to_text": "prompt"})[0] == "key"


def test_open_prompts_come_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    (task,) = TaskLibrary().load(TaskSettings(task="open_prompts", data=str(tmp_path / "prompts.jsonl")))
    (question,) = task.eval_docs
    assert task.doc_to_text(question) == "Why?"
    assert [task.process_results(question, [answer]) for answer in ("Because.", " \n")] == [
        {"answered": 1.0},
        {"answered": 0.0},
    ]


def test_a_group_of_unequal_tasks_that_count_alike_is_named_task_by_task() -> None:
    from fusionroute.zoo.lm_eval import FOLDER

    library = TaskLibrary([FOLDER])
    with pytest.raises(
        SettingsError, match=r"group 'zoo' counts each of its tasks the same.*zoo_sums.*limit .*\(100\)"
    ):
        library.load(TaskSettings(task="zoo"), allow_code=True)
    assert len(library.load(TaskSettings(task="zoo", limit=3), allow_code=True)) == 7
