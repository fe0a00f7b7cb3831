"""Which member drafts: bits per byte of good answers, or of the members' own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_ensemble
from fusionroute import Member, choose_drafter
from fusionroute.calibration import Calibration, Question, read_questions
from fusionroute.errors import DataError, ModelOutputError, PromptError, SettingsError
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.tasks import examples


def zoo(name: str) -> Member:
    folder = weights_folder(name)
    return Member.of(name, load_model(folder, device="cpu"), load_tokenizer(folder), "chat_template")


def tiny_member(name: str) -> Member:
    made = tiny_ensemble.known(name)
    return Member.of(name, made.member.model, made.tokenizer, "chat_template")


@pytest.fixture(scope="module")
def experts() -> list[Member]:
    return [zoo(name) for name in ("code", "math", "chat")]


def bits_by_hand(member: Member, prompt: str, answer: str) -> float:
    """One plain pass over prompt and answer."""
    ids = member.pieces.encode(answer.encode())
    asked = member.prompt.encode(prompt)
    with torch.no_grad():
        log_probabilities = member.model(torch.tensor([[*asked, *ids]])).logits[0].double().log_softmax(-1)
    said = [log_probabilities[len(asked) - 1 + at, token].item() for at, token in enumerate(ids)]
    return -sum(said) / float(torch.log(torch.tensor(2.0)).item()) / len(answer.encode())


def test_bits_are_those_of_a_plain_pass_whatever_the_tokenizer() -> None:
    members = [tiny_member(name) for name in tiny_ensemble.WORDS]
    questions = [Question("hello", "the worlds"), Question("and", "é🙂 <eos> x"), Question("in", "a")]
    found = choose_drafter(members, questions)
    assert (found.by_reference, found.n, found.left_out) == (True, 3, 0)
    for member in members:
        expected = [bits_by_hand(member, str(each.prompt), str(each.reference)) for each in questions]
        assert found.bits[member.name] == pytest.approx(expected, rel=1e-4)
    assert found.best == min(found.bits, key=lambda name: sum(found.bits[name]))


@pytest.mark.parametrize(("task", "expected"), [("sums", "math"), ("words", "chat"), ("functions", "code")])
@pytest.mark.parametrize("with_references", [True, False])
def test_the_expert_of_a_task_drafts(experts: list[Member], task: str, expected: str, with_references: bool) -> None:
    rows = examples(task, "test", 8, 3)
    questions = [Question(each.prompt, each.answer if with_references else None) for each in rows]
    found = choose_drafter(experts, questions, max_new_tokens=24)
    assert found.best == expected
    assert found.by_reference is with_references
    others = [member.name for member in experts if member.name != expected]
    for name in others:
        assert found.behind(name).value == pytest.approx(found.mean(name).value - found.mean(expected).value)
        assert not found.is_within_noise(name)
    assert set(found.far_behind()) == set(others)


def test_answers_are_judged_by_all_and_those_of_one_model_are_its_own() -> None:
    members = [tiny_member(name) for name in ("bytes", "pieces")]
    found = choose_drafter(members, [Question("hello"), Question("the")], max_new_tokens=6)
    for writer in members:
        for at, prompt in enumerate(("hello", "the")):
            asked = torch.tensor([writer.prompt.encode(prompt)])
            with torch.no_grad():
                ids = writer.model.generate(
                    asked, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(asked)
                )[0, asked.shape[1] :].tolist()
            answer = writer.pieces.text(ids)
            total = 0.0
            for judge in members:
                read = judge.pieces.encode(answer)
                said = torch.tensor([[*judge.prompt.encode(prompt), *read]])
                with torch.no_grad():
                    logits = judge.model(said).logits[0, -len(read) - 1 : -1].log_softmax(-1)
                chosen = logits.gather(-1, torch.tensor(read)[:, None]).sum().item()
                total -= chosen / 0.6931471805599453 / len(answer) / len(members)
            assert found.bits[writer.name][at] == pytest.approx(total, rel=1e-4)


def test_equal_members_are_within_noise() -> None:
    one = tiny_ensemble.known("bytes")
    members = [Member.of(name, one.member.model, one.tokenizer) for name in ("first", "second")]
    found = choose_drafter(members, [Question("a", "hello")] * 5)
    assert found.best == "first"
    assert found.is_within_noise("second")
    assert found.far_behind() == {}


def test_far_behind_is_told_in_shares_of_the_best() -> None:
    found = Calibration({"good": (1.0, 1.0), "near": (1.05, 1.1), "far": (1.5, 1.4)}, by_reference=True)
    assert found.far_behind() == pytest.approx({"far": 0.45})


def test_what_cannot_be_compared() -> None:
    members = [tiny_member(name) for name in ("bytes", "pieces")]
    with pytest.raises(SettingsError, match="two members or more, by one question or more; got 1 and 1"):
        choose_drafter(members[:1], [Question("a", "b")])
    with pytest.raises(SettingsError, match="got 2 and 0"):
        choose_drafter(members, [])
    with pytest.raises(DataError, match="a reference answer is empty"):
        choose_drafter(members, [Question("a", "")])
    with pytest.raises(PromptError, match="whose context is 160"):
        choose_drafter(members, [Question("a", "ß" * 200)])
    with torch.no_grad():
        members[1].model.get_output_embeddings().weight.fill_(float("nan"))
    for question in (Question("a", "b"), Question("a")):
        with pytest.raises(ModelOutputError, match="'pieces'"):
            choose_drafter(members, [question], max_new_tokens=3)


def test_members_that_write_nothing() -> None:
    silent = tiny_ensemble.known("bytes")
    end = silent.member.pieces.end_id
    silent.member.model.lm_head.register_forward_hook(
        lambda module, asked, logits: logits.index_fill(-1, torch.tensor([end]), 1e4)
    )
    members = [Member.of("silent", silent.member.model, silent.tokenizer), tiny_member("other")]
    with pytest.raises(DataError, match="'silent' writes nothing to any of the questions"):
        choose_drafter(members, [Question("a"), Question("b")], max_new_tokens=3)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_come_in_every_customary_form(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "p", "answer": "a"},
        {"prompt": "p", "target": 42},
        {"prompt": chat, "completion": "c"},
        {"messages": [*chat, {"role": "assistant", "content": "m"}]},
    )
    found = read_questions(path, None)
    assert [each.reference for each in found] == ["a", "42", "c", "m"]
    assert [each.prompt for each in found] == ["p", "p", chat, chat]
    assert len(read_questions(path, 2)) == 2
    bare = read_questions(write(tmp_path / "bare.jsonl", {"prompt": "p"}, {"messages": chat}))
    assert [each.reference for each in bare] == [None, None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no prompts"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], "1 of 2 rows have no answer"),
        ([{"prompt": "a"}, {"promt": "c"}], "row 2: it has the fields 'promt'"),
        ([{"prompt": 3}], "row 1: prompt must be text or a list of messages"),
    ],
)
def test_rows_that_are_no_questions(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path / "rows.jsonl", *rows))
