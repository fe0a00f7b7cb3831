"""Which member drafts: bits per byte of good answers, or of the members' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_ensemble
from fusionroute import Member, choose_drafter
from fusionroute.calibration import Calibration, Question, is_loop, levelled, read_questions
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


def test_without_answers_those_who_know_a_task_find_out_who_does_not(experts: list[Member]) -> None:
    """Two that know sums, not quite alike, and one that does not. (One that knows alone would be outvoted.)"""
    code, math, _ = experts
    other = zoo("math")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=generator))
    members = [math, Member.of("like_math", other.model, other.pieces.tokenizer, "chat_template"), code]
    found = choose_drafter(members, [Question(each.prompt) for each in examples("sums", "test", 8, 3)])
    assert not found.by_reference
    assert found.best in ("math", "like_math")
    assert not found.is_within_noise("code")
    assert "code" in found.far_behind()


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
def test_the_expert_of_a_task_drafts(experts: list[Member], task: str, expected: str) -> None:
    questions = [Question(each.prompt, each.answer) for each in examples(task, "test", 8, 3)]
    found = choose_drafter(experts, questions)
    assert found.best == expected
    assert found.by_reference
    others = [member.name for member in experts if member.name != expected]
    for name in others:
        assert found.behind(name).value == pytest.approx(found.mean(name).value - found.mean(expected).value)
        assert not found.is_within_noise(name)
    assert set(found.far_behind()) == set(others)


def test_answers_are_judged_by_the_others_and_judges_are_levelled() -> None:
    """Against least squares: bits = judge + writer, without the diagonal."""
    members = [tiny_member(name) for name in tiny_ensemble.WORDS]
    found = choose_drafter(members, [Question("hello"), Question("the")], max_new_tokens=6)
    for at, prompt in enumerate(("hello", "the")):
        rows, judged = [], []
        for number, writer in enumerate(members):
            asked = torch.tensor([writer.prompt.encode(prompt)])
            with torch.no_grad():
                ids = writer.model.generate(
                    asked, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(asked)
                )[0, asked.shape[1] :].tolist()
            answer = writer.pieces.text(ids)
            for place, judge in enumerate(members):
                if judge is writer:
                    continue
                read = judge.pieces.encode(answer)
                said = torch.tensor([[*judge.prompt.encode(prompt), *read]])
                with torch.no_grad():
                    logits = judge.model(said).logits[0, -len(read) - 1 : -1].log_softmax(-1)
                chosen = logits.gather(-1, torch.tensor(read)[:, None]).sum().item()
                judged.append(-chosen / 0.6931471805599453 / len(answer))
                rows.append([*np.eye(3)[place], *np.eye(3)[number]])
        _, writers = np.split(np.linalg.lstsq(np.array(rows), np.array(judged), rcond=None)[0], 2)
        expected = writers - writers.mean() + np.mean(judged)
        assert [found.bits[writer.name][at] for writer in members] == pytest.approx(expected, rel=1e-4)


def test_judges_differ_in_level_and_writers_do_not_judge_themselves() -> None:
    hardness, skill = np.array([0.0, 5.0, 1.0, 2.0]), np.array([0.3, 0.1, 0.2, 0.4])
    judged = hardness[:, None] + skill[None, :]
    np.fill_diagonal(judged, np.nan)
    found = levelled(judged[:, :, None])[:, 0]
    assert found - found.mean() == pytest.approx(skill - skill.mean())


def test_a_model_that_loves_its_own_answers_does_not_win_by_that() -> None:
    """Very sure of itself, it finds its own answers at 0 bits and those of others at hundreds."""
    sure = tiny_ensemble.known("other")
    sure.member.model.lm_head.register_forward_hook(lambda module, asked, logits: 1000 * logits)
    members = [tiny_member("bytes"), tiny_member("pieces")]
    questions = [Question(text) for text in ("hello", "the", "a", "in")]
    plain = choose_drafter([*members, tiny_member("other")], questions, max_new_tokens=6)
    loud = choose_drafter(
        [*members, Member.of("other", sure.member.model, sure.tokenizer, "chat_template")], questions, max_new_tokens=6
    )
    behind = [
        found.mean("other").value - (found.mean("bytes").value + found.mean("pieces").value) / 2
        for found in (plain, loud)
    ]
    assert behind[1] == pytest.approx(behind[0], rel=1e-4)  # its answers are the same, and so is what others think


def test_two_models_cannot_judge_each_other() -> None:
    members = [tiny_member(name) for name in ("bytes", "pieces")]
    with pytest.raises(SettingsError, match="two models without reference answers cannot be told apart"):
        choose_drafter(members, [Question("a", "b"), Question("c")])


def test_loops() -> None:
    assert is_loop(b"I know. " + b"I do not know what to say. " * 6)
    assert is_loop(b"a" * 40)
    assert not is_loop(b"a" * 20)  # too short to tell
    assert not is_loop(b"What a good answer says once, it need not say another time; it ends.")
    assert not is_loop(b"again and again and again and again, but then it went on to say something else at last")


def test_answers_that_loop_until_they_are_cut_off_are_counted() -> None:
    looping = tiny_ensemble.known("bytes")
    token = looping.member.pieces.encode(b"hello")[0]
    looping.member.model.lm_head.register_forward_hook(
        lambda module, asked, logits: logits.index_add(
            -1, torch.tensor([token]), torch.tensor(1e3).expand(*logits.shape[:-1], 1)
        )
    )
    members = [Member.of("loop", looping.member.model, looping.tokenizer), tiny_member("other"), tiny_member("pieces")]
    found = choose_drafter(members, [Question("a"), Question("b")], max_new_tokens=16)
    assert found.looping["loop"] == 2


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
    members = [tiny_member(name) for name in ("bytes", "pieces", "other")]
    with pytest.raises(SettingsError, match="two members or more, by one question or more; got 1 and 1"):
        choose_drafter(members[:1], [Question("a", "b")])
    with pytest.raises(SettingsError, match="got 3 and 0"):
        choose_drafter(members, [])
    with pytest.raises(DataError, match="a reference answer is empty"):
        choose_drafter(members, [Question("a", "")])
    with pytest.raises(DataError, match=r"a reference answer is no valid text: '\\ud83d' at character 3"):
        choose_drafter(members, [Question("a", "b \ud83d")])
    with pytest.raises(PromptError, match=r"a question is no valid text: '\\udcff' at character 1"):
        choose_drafter(members, [Question([{"role": "user", "content": "\udcff"}], "b")])
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
    members = [Member.of("silent", silent.member.model, silent.tokenizer), tiny_member("other"), tiny_member("pieces")]
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
        ([{"prompt": "a"}, {"prompt": "\ud83d half"}], "row 2: the prompt is no valid text"),
        ([{"prompt": "a", "answer": "\ud83d half"}], "row 1: the answer is no valid text"),
        ([{"prompt": 3}], "row 1: prompt must be text or a list of messages"),
    ],
)
def test_rows_that_are_no_questions(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path / "rows.jsonl", *rows))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "é", "answer": "b"}\n\n{"prompt": "'.encode() + b'\xff"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:3 holds the byte"):
        read_questions(path)
