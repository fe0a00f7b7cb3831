import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fusionroute import Completion, Team
from fusionroute.errors import DataError, OutputExistsError, SettingsError
from fusionroute.training.data.preferences import prepare_pairs
from fusionroute.training.pairs.make import PairReport, decoding, make_pairs, select_pairs
from fusionroute.training.pairs.questions import Question, read_questions
from fusionroute.training.pairs.writer import Writer, expert_writer, team_writer
from fusionroute.training.settings import PairSettings
from tiny_training import Recorder, write_rows

HELLO = [{"role": "user", "content": "hello"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1=", "completion": "2"},
    {"prompt": "name a colour"},
    {"messages": [*HELLO, {"role": "assistant", "content": "good day"}], "level": 3},
    {"prompt": HELLO, "completion": None},
    {"prompt": "x" * tiny.CONTEXT},
    {"prompt": "3*3=", "completion": "9"},
    {"messages": [{"role": "user", "content": "so"}]},
    {"prompt": "say nothing", "completion": " "},
    {"prompt": "a b c", "completion": "d"},
]


@pytest.fixture(scope="module")
def team() -> Team:
    """Random models that end most of their answers: a quarter of the bytes ends one."""
    made = tiny.team(prompt="chat_template")
    made.router.lm.generation_config.eos_token_id = [tiny.EOS, *range(5, 261, 4)]
    return made


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write_rows(tmp_path / "prompts.jsonl", ROWS)


def wanted(prompts: str, **options: Any) -> PairSettings:
    values = {"prompts": prompts, "checker": "given:below", "samples": 3, "max_new_tokens": 8, **options}
    return PairSettings.parse(values)


def by_sum(rows: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
    """Arbitrary, but the same for the same answer."""
    return [float(sum(answer.encode()) % 11) for answer in answers]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the rule ---------------------------------------------------------------------------------------------------------


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, [], finish_reason, [])


def select(
    own: Completion, samples: Sequence[Completion], scores: dict[str, float | None], reference: str = "", **options: Any
) -> tuple[list[dict[str, Any]], Counter[str]]:
    question = Question(1, {"prompt": "p", "secret": 7}, [5], reference)

    def judge(rows: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
        assert [row["secret"] for row in rows] == [7] * len(answers)
        assert len(set(answers)) == len(answers), "equal answers are judged once"
        return [scores[answer] for answer in answers]

    return select_pairs([question], [own], [samples], judge, **options)


def test_the_best_other_answer_is_preferred() -> None:
    pairs, counts = select(said("a"), [said("b"), said("c"), said("b"), said("a ")], {"a": 1, "b": 2, "c": 3})
    assert pairs == [
        {
            "prompt": "p",
            "chosen": "c",
            "rejected": "a",
            "judged": {"chosen": 3, "rejected": 1},
            "chosen_from": "sample",
        }
    ]
    assert counts == {"pairs": 1}


@pytest.mark.parametrize(
    ("reference", "samples", "chosen", "source"),
    [("r", "bc", "r", "reference"), ("", "bc", "b", "sample"), ("", "cb", "c", "sample"), ("b", "b", "b", "reference")],
)
def test_of_equally_good_ones_the_reference_comes_first_then_the_earliest(
    reference: str, samples: str, chosen: str, source: str
) -> None:
    drawn = [said(text) for text in samples]
    (pair,), _ = select(said("a"), drawn, {"a": 0, "b": 2, "c": 2, "r": 2}, reference)
    assert (pair["chosen"], pair["chosen_from"]) == (chosen, source)


@pytest.mark.parametrize(
    ("own", "samples", "scores", "margin", "fate"),
    [
        (said("a"), [said("b")], {"a": 1, "b": 1}, 0.0, "right"),
        (said("a"), [said("b")], {"a": 2, "b": 1}, 0.0, "right"),
        (said("a"), [said("b")], {"a": 1, "b": 1.5}, 0.5, "close"),
        (said("a"), [said("b")], {"a": 1, "b": 1.75}, 0.5, "pairs"),
        (said("a"), [said("a"), said(" a\n"), said("")], {}, 0.0, "alone"),
        (said("a"), [said("b", "length"), said("c", "error")], {}, 0.0, "alone"),
        (said("a"), [], {}, 0.0, "alone"),
        (said("a", "length"), [said("b")], {}, 0.0, "cut"),
        (said("a", "error"), [said("b")], {}, 0.0, "failed"),
        (said(" "), [said("b")], {}, 0.0, "empty"),
        (said("a"), [said("b")], {"a": None, "b": 1}, 0.0, "unjudged"),
        (said("a"), [said("b")], {"a": 1, "b": None}, 0.0, "unjudged"),
        (said("a"), [said("b"), said("c")], {"a": 1, "b": None, "c": 2}, 0.0, "pairs"),
    ],
)
def test_every_prompt_has_one_fate(
    own: Completion, samples: list[Completion], scores: dict[str, float | None], margin: float, fate: str
) -> None:
    pairs, counts = select(own, samples, scores, margin=margin)
    assert counts == {fate: 1}
    assert len(pairs) == (fate == "pairs")


def test_the_reference_itself_is_right_at_once() -> None:
    assert select(said(" r\n"), [said("r")], {}, "r") == ([], {"right": 1})
    assert select(said("r"), [said("b")], {"r": 1, "b": 2}, "r")[1] == {"pairs": 1}  # the judge has the last word


def test_the_report_is_one_line_for_people() -> None:
    report = PairReport(max_new_tokens=256, pairs=2, right=1200, cut=3, too_long=1)
    assert report.prompts == 1206
    assert str(report) == (
        "2 pairs of 1,206 prompts; 1,200 right at once; 3 dropped because the answer was cut at 256 tokens; "
        "1 dropped because the prompt leaves no room for an answer"
    )


# --- the whole --------------------------------------------------------------------------------------------------------


def test_pairs_are_the_teams_mistakes(team: Team, prompts: str, tmp_path: Path, recorder: Recorder) -> None:
    output, settings = tmp_path / "pairs.jsonl", wanted(prompts)
    report = make_pairs(team_writer(team), settings, output, judge=by_sum, progress=recorder)
    pairs = read(output)
    assert report.pairs == len(pairs) >= 2
    assert report.prompts == len(ROWS)
    assert report.too_long == 1
    assert recorder.finished == [str(report)]
    assert sum(n for n, _ in recorder.advanced) == recorder.started[0][1] == len(ROWS) * 4
    asked = [row.get("prompt") or [m for m in row["messages"] if m["role"] == "user"] for row in ROWS]
    assert all(pair["prompt"] in asked for pair in pairs)
    greedy = team.generate([pair["prompt"] for pair in pairs], max_new_tokens=8)
    assert [pair["rejected"] for pair in pairs] == [completion.text for completion in greedy]
    for pair in pairs:
        assert [pair["judged"]["chosen"], pair["judged"]["rejected"]] == by_sum([], [pair["chosen"], pair["rejected"]])
        assert pair["judged"]["chosen"] > pair["judged"]["rejected"]
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "pairs.jsonl"}


def test_the_chosen_one_is_the_best_of_all_that_was_written(team: Team, prompts: str, tmp_path: Path) -> None:
    settings = wanted(prompts, top_p=0.9, temperature=0.7, limit=2)
    seen: list[str] = []

    def judge(rows: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
        seen.extend(answer for row, answer in zip(rows, answers, strict=True) if row["prompt"] == "1+1=")
        return [float(answer == "2") for answer in answers]

    make_pairs(team_writer(team), settings, tmp_path / "pairs.jsonl", judge=judge)
    drawn = [
        team.generate(["1+1="], **decoding(settings, 1, sample).model_dump())[0]
        for sample in range(settings.samples + 1)
    ]
    ended = [answer.text for answer in drawn if answer.finish_reason == "stop"]
    assert seen == list(dict.fromkeys([ended[0], "2", *ended[1:]]))
    (pair,) = read(tmp_path / "pairs.jsonl")
    assert (pair["chosen"], pair["chosen_from"]) == ("2", "reference")


def test_pairs_load_as_preference_data(team: Team, prompts: str, tmp_path: Path) -> None:
    report = make_pairs(team_writer(team), wanted(prompts), tmp_path / "pairs.jsonl", judge=by_sum)
    dataset, read_back = prepare_pairs(str(tmp_path / "pairs.jsonl"), team.prompt_format, tiny.CONTEXT)
    assert read_back.kept == report.pairs
    assert len(dataset) == 2 * report.pairs


def test_neither_batches_nor_parts_matter(team: Team, prompts: str, tmp_path: Path) -> None:
    for name, max_batch, per_part in (("a", 64, 256), ("b", 1, 2), ("c", 3, 4)):
        writer = team_writer(team, max_batch=max_batch)
        make_pairs(writer, wanted(prompts), tmp_path / name, judge=by_sum, prompts_per_part=per_part)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == (tmp_path / "c").read_text()


def test_seeds_are_of_prompt_and_sample_alone() -> None:
    settings = wanted("anywhere", samples=2)
    assert decoding(settings, 5, 0).is_greedy
    seeds = {decoding(settings, number, sample).seed for number in (1, 2) for sample in (1, 2)}
    assert len(seeds) == 4
    assert decoding(wanted("elsewhere", samples=9), 1, 1).seed in seeds
    assert decoding(wanted("anywhere", seed=1), 1, 1).seed not in seeds


class Dying(Recorder):
    """The process ends while answers are written, after so many of them."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def advance(self, n: int, note: str = "") -> None:
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


def test_what_was_interrupted_goes_on_and_ends_the_same(
    team: Team, prompts: str, tmp_path: Path, recorder: Recorder
) -> None:
    writer, settings, output = team_writer(team), wanted(prompts), tmp_path / "pairs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make_pairs(writer, settings, output, judge=by_sum, prompts_per_part=2, progress=Dying(after=18))
    assert not output.exists()
    assert len(list((tmp_path / "pairs.jsonl.parts").glob("part-*"))) == 2
    report = make_pairs(team_writer(team), settings, output, judge=by_sum, prompts_per_part=2, progress=recorder)
    assert [note for _, note in recorder.advanced].count("made before") == 2
    assert sum(n for n, _ in recorder.advanced) == len(ROWS) * 4
    at_once = tmp_path / "at_once.jsonl"
    assert make_pairs(writer, settings, at_once, judge=by_sum) == report  # the interrupted writer is as good as new
    assert output.read_bytes() == at_once.read_bytes()
    assert not (tmp_path / "pairs.jsonl.parts").exists()


def test_parts_of_something_else_are_refused(team: Team, prompts: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"

    def attempt(writer: Writer, settings: PairSettings, **options: Any) -> None:
        make_pairs(writer, settings, output, judge=by_sum, prompts_per_part=2, progress=Dying(after=10), **options)

    def refused(message: str, writer: Writer, settings: PairSettings) -> None:
        with pytest.raises(OutputExistsError, match=message):
            attempt(writer, settings)

    with pytest.raises(KeyboardInterrupt):
        attempt(team_writer(team), wanted(prompts))
    refused(r"settings: margin was 0\.0, is now 0\.5", team_writer(team), wanted(prompts, margin=0.5))
    other = tiny.team(prompt="chat_template")
    with torch.no_grad():
        other.router.route_head.weight.mul_(1.01)
    refused(r"\(models: router was \w{8}…, is now \w{8}…\)", team_writer(other), wanted(prompts))
    refused("models: router was .* is now None", expert_writer(team, "math"), wanted(prompts))
    fewer = write_rows(tmp_path / "fewer.jsonl", ROWS[1:])
    refused("prompts: count was 9, is now 8; prompts: hash was", team_writer(team), wanted(fewer))
    elsewhere = write_rows(tmp_path / "elsewhere.jsonl", ROWS)
    made, made_before = tmp_path / "pairs.jsonl.parts/part-000000.json", "kept"
    made.write_text(made_before)
    with pytest.raises(KeyboardInterrupt):  # the same prompts: goes on
        attempt(team_writer(team), wanted(elsewhere))
    assert made.read_text() == made_before
    with pytest.raises(KeyboardInterrupt):  # asked to: starts anew
        attempt(team_writer(team), wanted(prompts, margin=0.5), overwrite=True)
    assert made.read_text() != made_before


def test_what_is_not_ours_is_left_alone(team: Team, prompts: str, tmp_path: Path) -> None:
    output, folder = tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl.parts"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="is left alone"):
        make_pairs(team_writer(team), wanted(prompts), output, judge=by_sum, overwrite=True)
    assert (folder / "thesis.txt").exists()
    shutil.rmtree(folder)
    output.write_text("old")
    with pytest.raises(OutputExistsError, match="exists already"):
        make_pairs(team_writer(team), wanted(prompts), output, judge=by_sum)
    assert output.read_text() == "old"
    make_pairs(team_writer(team), wanted(prompts), output, judge=by_sum, overwrite=True)
    assert read(output)


def test_no_samples_need_references(team: Team, prompts: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    bare = write_rows(tmp_path / "bare.jsonl", [ROWS[1], ROWS[7]])
    with pytest.raises(SettingsError, match=r"samples is 0 and .*bare\.jsonl has no reference answers"):
        make_pairs(team_writer(team), wanted(bare, samples=0), output, judge=by_sum)
    assert not Path(f"{output}.parts").exists()
    references = {"2", "good day", "9", "d"}

    def judge(rows: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
        return [float(answer in references) for answer in answers]

    report = make_pairs(team_writer(team), wanted(prompts, samples=0), output, judge=judge)
    assert {pair["chosen_from"] for pair in read(output)} == {"reference"}
    assert report.prompts == report.pairs + report.cut + report.empty + report.alone + report.too_long == len(ROWS)


def test_what_is_read_of_a_row(team: Team, prompts: str) -> None:
    questions = list(read_questions(wanted(prompts), team.prompt_format))
    assert [question.reference for question in questions] == ["2", "", "good day", "", "", "9", "", " ", "d"]
    assert [question.number for question in questions] == list(range(1, 10))
    assert questions[2].row == {**ROWS[2], "prompt": HELLO}  # whole, for the judge, and with a prompt
    assert questions[2].ids == questions[3].ids == team.prompt_format.encode(HELLO)
    assert questions[6].row["prompt"] == ROWS[6]["messages"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "a"}, r"row 2: it has the fields 'promt'"),
        ({"prompt": ""}, "row 2: the prompt is empty"),
        ({"prompt": "a", "completion": 3}, "row 2: completion must be text"),
        ("text", "row 2: an example is a mapping"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_written(team: Team, row: Any, message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=message):
        make_pairs(team_writer(team), wanted(path), tmp_path / "pairs.jsonl", judge=by_sum)
    assert list(tmp_path.iterdir()) == [tmp_path / "prompts.jsonl"]
    assert make_pairs(team_writer(team), wanted(path, limit=1), tmp_path / "pairs.jsonl", judge=prefer_two).pairs == 1


def prefer_two(rows: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
    return [float(answer == "2") for answer in answers]


def test_no_pair_at_all_is_an_error_that_says_why(team: Team, prompts: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError, match=r"nothing to learn: 0 pairs of 9 prompts; \d right at once"):
        make_pairs(team_writer(team), wanted(prompts), output, judge=lambda rows, answers: [1.0] * len(answers))
    with pytest.raises(DataError, match="holds no rows"):
        make_pairs(team_writer(team), wanted(write_rows(tmp_path / "none.jsonl", [])), output, judge=by_sum)
    assert not output.exists()
    assert not Path(f"{output}.parts").exists()


def test_an_expert_alone_can_be_the_writer(prompts: str, tmp_path: Path) -> None:
    team = tiny.team(prompt="chat_template")
    ends = [tiny.EOS, *range(5, 261, 4)]
    team.experts["code"].generation_config.eos_token_id = ends
    make_pairs(expert_writer(team, "code"), wanted(prompts), tmp_path / "pairs.jsonl", judge=by_sum)
    for pair in read(tmp_path / "pairs.jsonl"):
        ids = torch.tensor([team.prompt_format.encode(pair["prompt"])])
        out = team.experts["code"].generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=0)
        answer = tiny.tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert pair["rejected"] == answer
    with pytest.raises(SettingsError, match="no model 'maths'; it has router, math, code, chat"):
        expert_writer(team, "maths")
    with pytest.raises(SettingsError, match="max_batch must be at least 1"):
        team_writer(team, max_batch=0)


def test_a_model_that_fails_loses_its_answers_and_no_more(
    prompts: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    team = tiny.team(prompt="chat_template")
    torch.nn.init.constant_(team.experts["math"].model.norm.weight, float("nan"))
    with pytest.raises(DataError, match="8 dropped because a model failed"):
        make_pairs(expert_writer(team, "math"), wanted(prompts), tmp_path / "pairs.jsonl", judge=by_sum)
    assert "math" in caplog.text
