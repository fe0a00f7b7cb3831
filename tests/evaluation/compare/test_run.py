"""A comparison end to end on the zoo's experts: measured once, kept, resumed, and honest about what failed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from fusionroute.errors import OutputExistsError, SettingsError
from fusionroute.evaluation.compare import run
from fusionroute.evaluation.compare.lineup.joint import AveragingEntry
from fusionroute.evaluation.compare.run import REPORT, RESULTS, compare
from fusionroute.evaluation.compare.settings import CompareSettings
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.judge.win_rate import JudgeSettings, win_rate
from fusionroute.methods.averaging import Averaging
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.reward import RewardModel
from fusionroute.models.router import Router
from fusionroute.models.team import TeamModels
from fusionroute.terminal.progress import RichProgress
from fusionroute.zoo.build import weights_folder
from judge_server import JudgeServer, served
from tiny_reward import save_reward_model

__all__ = ["served"]

EXPERTS = {name: str(weights_folder(name)) for name in ("math", "chat")}
CHOICES = [
    {"question": "Say apple.", "choices": ["apple", "brick"], "answer": 0},
    {"question": "Say brick.", "choices": ["apple", "brick"], "answer": 1},
]
WORDS = [{"question": f"Say {word} twice in capitals with dashes.", "answer": f"{word}-{word}".upper()}
         for word in ("apple", "brick", "camel")]  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows, options in (
        ("words", WORDS, {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "max_gen_toks": 20},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }),
        ("choices", CHOICES, {
            "output_type": "multiple_choice",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }),
    ):  # fmt: skip
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "doc_to_text": "{{question}}", **options,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("team")
    experts = {name: load_model(place, device="cpu") for name, place in EXPERTS.items()}
    torch.manual_seed(0)
    router = Router(load_model(EXPERTS["chat"], device="cpu"), 2)
    for seed in (0, 1):
        torch.nn.init.normal_(router.route_head.weight)
        made = TeamModels(router, experts, load_tokenizer(EXPERTS["chat"]), "chat_template")
        made.save_pretrained(folder / f"team-{seed}")
    return str(folder / "team-{seed}")


@pytest.fixture
def settings(tasks: Path, team: str) -> Callable[..., CompareSettings]:
    def made(**changes: Any) -> CompareSettings:
        values: dict[str, Any] = {
            "experts": EXPERTS,
            "prompt": "chat_template",
            "seeds": [0, 1],
            "methods": {
                "math": {"method": "single", "expert": "math"},
                "chat": {"method": "single", "expert": "chat"},
                "averaging": "averaging",
                "team": {"method": "fusion_route", "team": team},
            },
            "include": [str(tasks)],
            "tasks": ["words"],
            "device": "cpu",
        }
        return CompareSettings.parse(values | changes)

    return made


def measured(settings: CompareSettings, output: Path, **options: Any) -> dict[str, Any]:
    with RichProgress(Console(quiet=True)) as progress:
        return compare(settings, output, progress=progress, **options)


def stamps(output: Path) -> dict[str, int]:
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in output.glob("cells/**/*.json")}


def test_a_missing_library_is_told_before_anything_is_measured(
    settings: Callable[..., CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft.utils", None)
    methods = {"math": {"method": "single", "expert": "math"}, "merged": "ties"}
    with pytest.raises(SettingsError, match="merging needs peft"):
        measured(settings(base=EXPERTS["chat"], methods=methods), tmp_path / "out")
    assert not list(tmp_path.rglob("cells/**/*.json"))


def test_every_answer_is_kept_with_who_wrote_it(settings: Callable[..., CompareSettings], tmp_path: Path) -> None:
    record = measured(settings(tasks=["words", "choices"]), tmp_path)
    assert record["failed"] == []
    assert json.loads((tmp_path / RESULTS).read_text()) == record
    assert (tmp_path / REPORT).stat().st_size > 10_000
    cell = json.loads((tmp_path / "cells/team/words/seed-1.json").read_text())
    assert [each["prompt"] for each in cell["examples"]] == [row["question"] for row in WORDS]
    assert all(each["context"] != each["prompt"] for each in cell["examples"])  # in the models' format
    for each in cell["examples"]:
        assert each["score"] == float(each["answer"] == each["target"])
        assert "".join(each["tokens"]["text"]) == each["answer"]
        assert set(each["tokens"]["expert"]) <= {"math", "chat"}
    assert cell["value"] == sum(each["score"] for each in cell["examples"]) / 3
    assert cell["cost"]["tokens_read"]["router"] >= cell["cost"]["tokens_written"] > 0
    assert cell["cost"]["peak_memory"]["weights"] > 1e6
    assert {"commit", "versions", "machine", "identity", "date"} <= cell.keys()
    choice = json.loads((tmp_path / "cells/averaging/choices/any-seed.json").read_text())
    assert next(each["answer"].strip() for each in choice["examples"]) in CHOICES[0]["choices"]
    assert choice["examples"][0]["tokens"] is None
    assert record["accuracy"]["chat"]["words"]["value"] > record["accuracy"]["math"]["words"]["value"]
    assert record["accuracy"]["oracle per prompt"]["words"]["value"] >= record["accuracy"]["chat"]["words"]["value"]


def test_finished_cells_are_kept_and_only_missing_ones_measured(
    settings: Callable[..., CompareSettings], tmp_path: Path
) -> None:
    first = measured(settings(), tmp_path)
    before = stamps(tmp_path)
    assert len(before) == 3 + 2
    (tmp_path / "cells/team/words/seed-0.json").unlink()
    again = measured(
        settings(title="Another title", methods={"math": {"method": "single", "expert": "math"}}), tmp_path
    )
    assert again["methods"] == ["math"]
    assert stamps(tmp_path).keys() == before.keys() - {"cells/team/words/seed-0.json"}
    whole = measured(settings(), tmp_path)
    after = stamps(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {"cells/team/words/seed-0.json"}
    assert whole["accuracy"] == first["accuracy"]


def test_other_conditions_are_refused_until_asked_for(settings: Callable[..., CompareSettings], tmp_path: Path) -> None:
    measured(settings(), tmp_path)
    before = stamps(tmp_path)
    longer = settings(generation={"max_new_tokens": 5})
    with pytest.raises(OutputExistsError, match=r"generation.max_new_tokens was None, is now 5"):
        measured(longer, tmp_path)
    assert stamps(tmp_path) == before
    measured(longer, tmp_path, overwrite=True)
    assert all(before[path] != after for path, after in stamps(tmp_path).items())


def test_nobody_elses_folder_is_written_to(settings: Callable[..., CompareSettings], tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"already holds results.json"):
            measured(settings(), tmp_path, overwrite=overwrite)
    assert (tmp_path / RESULTS).read_text() == "mine"


def test_an_interruption_loses_no_finished_cell(
    settings: Callable[..., CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = run.measure, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(run, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(settings(), tmp_path)
    before = stamps(tmp_path)
    assert len(before) == 2
    monkeypatch.setattr(run, "measure", real)
    assert measured(settings(), tmp_path)["failed"] == []
    assert {path: stamps(tmp_path)[path] for path in before} == before


def test_an_interrupted_cell_goes_on_with_the_answers_it_has(
    settings: Callable[..., CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = settings(methods={"chat": {"method": "single", "expert": "chat"}}, max_batch=1)
    whole = measured(alone, tmp_path / "whole")
    real = AnswerLog.add

    def add(log: AnswerLog, key: str, answer: Any) -> None:
        real(log, key, answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerLog, "add", add)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measured(alone, tmp_path / "again")
    monkeypatch.setattr(AnswerLog, "add", real)
    again = measured(alone, tmp_path / "again")
    cells = [
        json.loads((tmp_path / name / "cells/chat/words/any-seed.json").read_text()) for name in ("whole", "again")
    ]
    assert [cell["cost"]["answers_kept"] for cell in cells] == [0, 2]
    assert cells[0]["examples"] == cells[1]["examples"]
    assert cells[1]["cost"]["tokens_written"] < cells[0]["cost"]["tokens_written"]
    assert whole["accuracy"] == again["accuracy"]
    assert not list((tmp_path / "again").rglob("*.part.jsonl"))


def test_a_method_that_cannot_do_a_task_is_named_and_the_others_go_on(
    settings: Callable[..., CompareSettings], tmp_path: Path
) -> None:
    methods = {"both": {"method": "sequence_selection"}, "math": {"method": "single", "expert": "math"}}
    record = measured(settings(methods=methods, tasks=["choices", "words"]), tmp_path)
    (failed,) = record["failed"]
    assert (failed["method"], failed["task"], failed["seed"]) == ("both", "choices", None)
    assert "generate_until" in failed["error"]
    assert set(record["accuracy"]["both"]) == {"words"}
    assert record["accuracy"]["math"]["average"]


def test_what_cannot_be_is_said_before_anything_is_measured(
    settings: Callable[..., CompareSettings], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="wrds"):
        measured(settings(tasks=["wrds"]), tmp_path)
    with pytest.raises(Exception, match="no/such/model"):
        measured(settings(experts={**EXPERTS, "code": "no/such/model"}), tmp_path)
    assert stamps(tmp_path) == {}


def test_a_team_of_other_experts_or_another_prompt_is_no_fair_comparison(
    settings: Callable[..., CompareSettings], team: str, tmp_path: Path
) -> None:
    only = {"methods": {"team": {"method": "fusion_route", "team": team}}, "seeds": [0]}
    for experts, words in (
        (
            {"math": EXPERTS["math"], "code": EXPERTS["chat"]},
            "has the experts math, chat but the comparison math, code",
        ),
        ({"math": EXPERTS["chat"], "chat": EXPERTS["math"]}, "expert 'math' of team .* is another model"),
    ):
        with pytest.raises(SettingsError, match=words):
            measured(settings(experts=experts, **only), tmp_path)
    with pytest.raises(SettingsError, match="trained with prompt 'chat_template'"):
        measured(settings(prompt=None, **only), tmp_path)
    assert stamps(tmp_path) == {}


def test_experts_of_different_templates_are_not_put_under_one(
    settings: Callable[..., CompareSettings], tmp_path: Path
) -> None:
    copy = tmp_path / "chat"
    load_model(EXPERTS["chat"], device="cpu").save_pretrained(copy)
    tokenizer = load_tokenizer(EXPERTS["chat"])
    tokenizer.chat_template = "{% for m in messages %}Human: {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(copy)
    methods = {"both": {"method": "averaging"}}
    with pytest.raises(SettingsError, match="'math' and 'chat' have different chat templates"):
        measured(settings(experts={**EXPERTS, "chat": str(copy)}, methods=methods), tmp_path / "out")


def test_every_cell_of_a_task_is_asked_the_same(
    settings: Callable[..., CompareSettings], tasks: Path, tmp_path: Path
) -> None:
    """Shots are drawn by lm-eval's own seed, whatever the seed of the method."""
    for name in ("words.jsonl", "words.yaml"):
        (tmp_path / name).write_text((tasks / name).read_text())
    config = yaml.safe_load((tmp_path / "words.yaml").read_text())
    (tmp_path / "words.yaml").write_text(yaml.safe_dump({**config, "task": "shown", "fewshot_split": "test"}))
    shown = [{"task": "shown", "num_fewshot": 2}]
    measured(settings(include=[str(tmp_path)], tasks=shown), tmp_path / "out")
    paths = list((tmp_path / "out" / "cells").rglob("*.json"))
    contexts = {tuple(each["context"] for each in json.loads(path.read_text())["examples"]) for path in paths}
    assert len(paths) == 5
    assert len(contexts) == 1
    assert all(len(context.split("Say ")) == 1 + 3 for context in contexts.pop())


@pytest.mark.parametrize(("part", "call"), [(Averaging, "step"), (AveragingEntry, "build")])
def test_what_no_one_has_foreseen_ends_one_method_alone(
    settings: Callable[..., CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, call: str
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("the accelerator is full")

    monkeypatch.setattr(part, call, full)
    record = measured(settings(), tmp_path)
    (failed,) = record["failed"]
    assert failed == {"method": "averaging", "task": "words", "seed": None, "error": failed["error"]}
    assert "OutOfMemoryError: the accelerator is full" in failed["error"]
    assert {"math", "chat", "team"} <= {name for name, row in record["accuracy"].items() if row}


def test_another_draw_for_every_seed_and_equal_questions_keep_their_own_answers(
    settings: Callable[..., CompareSettings], tasks: Path, tmp_path: Path
) -> None:
    rows = [WORDS[0]] * 8
    data = tmp_path / "same.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampled = {"do_sample": True, "temperature": 1.5}
    methods = {"chat": {"method": "single", "expert": "chat"}}
    asked = [{"task": "words", "data": str(data)}]
    measured(settings(methods=methods, tasks=asked, generation=sampled), tmp_path / "out")
    cells = [json.loads((tmp_path / f"out/cells/chat/words/seed-{seed}.json").read_text()) for seed in (0, 1)]
    answers = [[each["answer"] for each in cell["examples"]] for cell in cells]
    assert answers[0] != answers[1]
    assert len(set(answers[0])) > 1
    for cell in cells:
        assert all(each["score"] == float(each["answer"] == each["target"]) for each in cell["examples"])


def test_a_reward_model_is_part_of_the_cost_and_reads_the_question_as_it_was_asked(
    settings: Callable[..., CompareSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    real = RewardModel.__call__

    def listening(self: RewardModel, prompts: Any, answers: Any) -> Any:
        heard.extend(prompts)
        return real(self, prompts, answers)

    monkeypatch.setattr(RewardModel, "__call__", listening)
    reward = save_reward_model(tmp_path / "reward", max_position_embeddings=512)
    scored = {"method": "sequence_selection", "scorer": {"reward_model": reward}}
    measured(settings(methods={"judged": scored, "alone": "sequence_selection"}), tmp_path / "out")
    cells = {name: json.loads((tmp_path / f"out/cells/{name}/words/any-seed.json").read_text())
             for name in ("judged", "alone")}  # fmt: skip
    assert cells["judged"]["cost"]["tokens_read"]["scorer"] > 0
    assert "scorer" not in cells["alone"]["cost"]["tokens_read"]
    weights = {name: cell["cost"]["peak_memory"]["weights"] for name, cell in cells.items()}
    assert weights["judged"] > weights["alone"]
    assert {messages[-1]["content"] for messages in heard} == {row["question"] for row in WORDS}
    assert {messages[-1]["role"] for messages in heard} == {"user"}


def test_a_retrained_model_is_not_taken_for_the_old_one(
    settings: Callable[..., CompareSettings], tmp_path: Path
) -> None:
    model = load_model(EXPERTS["math"], device="cpu")
    place = tmp_path / "tuned"
    load_tokenizer(EXPERTS["math"]).save_pretrained(place)
    model.save_pretrained(place)
    methods = {"tuned": {"method": "single", "model": str(place)}}
    measured(settings(methods=methods), tmp_path / "out")
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1
    model.save_pretrained(place)
    with pytest.raises(OutputExistsError, match=r"models.model.content was"):
        measured(settings(methods=methods), tmp_path / "out")


def test_open_prompts_are_answered_for_a_judge(
    settings: Callable[..., CompareSettings], tmp_path: Path, served: JudgeServer
) -> None:
    """From prompts without right answers to a win rate: two cells of a comparison, a judge behind a real server."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["question"]}) + "\n" for row in WORDS))
    alone = {name: {"method": "single", "expert": name} for name in EXPERTS}
    asked = [{"task": "open_prompts", "data": str(prompts)}]
    generation = {"max_new_tokens": 20}
    record = measured(settings(methods=alone, tasks=asked, generation=generation), tmp_path / "out")
    assert record["failed"] == []
    served.say = {row["question"]: verdict for row, verdict in zip(WORDS, ("9 2", "3.25 8", "well"), strict=True)}
    cells = [tmp_path / f"out/cells/{name}/open_prompts/any-seed.json" for name in ("chat", "math")]
    judging = JudgeSettings.parse({"judge_model": "rule", "order": "first"})
    tally = win_rate(*cells, judging, tmp_path / "judged", judge_url=served.url, pause=0.001)
    assert (tally.wins, tally.losses, tally.unparsable, tally.n) == (1, 1, 1, 2)
    answers = {each["prompt"]: each["answer"] for each in json.loads(cells[0].read_text())["examples"]}
    assert {each.prompt: each.first for each in served.asked} == answers
