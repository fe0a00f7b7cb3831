"""An ensemble file as lm-eval's model ``fusionroute``."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

import fusionroute as fr
import tiny_ensemble
from fusionroute.errors import CheckpointError, PromptError, SettingsError
from fusionroute.evaluation.harness import FusionRouteLM
from fusionroute.evaluation.harness.answer_log import AnswerLog
from fusionroute.evaluation.harness.method_lm import MethodLM
from fusionroute.methods.averaging import AveragingAcross
from fusionroute.methods.safe import Safe
from fusionroute.methods.single import Single
from fusionroute.models.loading import load_tokenizer
from fusionroute.models.member import Member
from tiny_members import scripted

QUESTIONS = ["hello", "the <eos> worlds", "🙂"]
OPTIONS = {"until": [], "max_gen_toks": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return tiny_ensemble.write_file(folder, tiny_ensemble.save(folder), device="cpu")


def write(lm: FusionRouteLM, *contexts: str) -> list[str]:
    asked = [Instance("generate_until", {}, arguments=(each, OPTIONS), idx=at) for at, each in enumerate(contexts)]
    return list(lm.generate_until(asked))


def rendered(lm: FusionRouteLM, *questions: str) -> list[str]:
    return [lm.apply_chat_template([{"role": "user", "content": question}]) for question in questions]


def test_its_answers_are_those_of_the_ensemble(file: Path) -> None:
    lm = FusionRouteLM(team=str(file), batch_size="auto")
    answers = write(lm, *rendered(lm, *QUESTIONS))
    expected = fr.Ensemble.from_file(file).generate(QUESTIONS, max_new_tokens=8)
    tokenizer = load_tokenizer(file.parent / "bytes")
    assert answers == [tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in expected]
    assert lm.chat_template(True) == tiny_ensemble.TEMPLATES["bytes"]


def test_spellings_of_control_tokens_are_text_to_all_of_them(file: Path) -> None:
    lm: Any = FusionRouteLM(team=str(file), batch_size="auto")
    (sequence,) = lm._sequences([(rendered(lm, "a <eos> b")[0], lm._decoding(OPTIONS))])
    assert not lm.method.eos_ids & set(sequence.token_ids)
    for reader in lm.method.readers:
        assert not reader.pieces.end_ids & set(reader.prompt_ids(sequence))


def test_the_file_says_the_method_and_arguments_come_before_it(file: Path, tmp_path: Path) -> None:
    models = {name: str(file.parent / name) for name in ("bytes", "pieces")}
    path = tiny_ensemble.write_file(tmp_path, models, method="averaging", host="gac", drafter="pieces")
    lm = FusionRouteLM(team=str(path), device="cpu", dtype="bfloat16", prompt="alpaca", batch_size=2)
    assert isinstance(lm.method, AveragingAcross)
    assert [member.name for member in lm.method.members] == ["pieces", "bytes"]
    assert {str(member.model.dtype) for member in lm.method.members} == {"torch.bfloat16"}
    assert {member.prompt.name for member in lm.method.members} == {"alpaca"}


def test_one_of_its_models_alone_has_its_own_tokenizer(file: Path) -> None:
    lm = FusionRouteLM(team=str(file), expert="pieces", batch_size="auto")
    assert isinstance(lm.method, Single)
    assert lm.method.runner.name == "pieces"
    assert lm.tokenizer.eos_token == "</s>"
    assert len(write(lm, *rendered(lm, "hello"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert": "piece"}, "model_args: expert: .*did you mean 'pieces'"),
        ({"complement": False}, "complement is of teams"),
        ({"revision": "main"}, "revision is of teams"),
        ({"prompt": "alpca"}, "did you mean 'alpaca'"),
    ],
)
def test_arguments_that_mean_nothing_to_it(file: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FusionRouteLM(team=str(file), **arguments)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        FusionRouteLM(team=str(tmp_path / "none.yaml"))
    models = {"bytes": "/no/such/one", "pieces": "/no/such/two"}
    with pytest.raises(CheckpointError, match="/no/such/one"):
        FusionRouteLM(team=str(tiny_ensemble.write_file(tmp_path, models)))


def test_text_as_it_is_needs_models_that_read_text_as_it_is(file: Path, tmp_path: Path) -> None:
    lm = FusionRouteLM(team=str(file), batch_size="auto")
    with pytest.raises(SettingsError, match="apply_chat_template=True"):
        write(lm, "hello")
    models = {name: str(file.parent / name) for name in ("bytes", "pieces")}
    bare = FusionRouteLM(team=str(tiny_ensemble.write_file(tmp_path, models, prompt=None)), batch_size="auto")
    expected = fr.Ensemble.from_file(tmp_path / "ensemble.yaml").generate(["hello"], max_new_tokens=8)[0]
    assert write(bare, "hello") == [bare.tokenizer.decode(expected.token_ids, skip_special_tokens=True)]


def test_a_context_that_does_not_fit_is_refused_not_cut(file: Path) -> None:
    lm = FusionRouteLM(team=str(file), batch_size="auto")
    with pytest.raises(PromptError, match="others would still read"):
        write(lm, *rendered(lm, "x" * 200))


ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture
def wordy() -> list[Member]:
    """A drafter that writes " world" for ever, and one that reads along: to it the same is several tokens."""
    says = {b" world": 1.0}
    drafter = scripted(tiny_ensemble.known("bytes"), {b":": says, b" world": says})
    made = {"bytes": drafter, "other": tiny_ensemble.known("other")}
    return [Member.of(name, each.member.model, each.tokenizer, "chat_template") for name, each in made.items()]


def wordy_lm(members: list[Member], room: int) -> MethodLM:
    """With so much room in the second one's context for the answer to `ASKED`."""
    drafter, reader = members
    reader.model.config.max_position_embeddings = len(reader.prompt.encode(ASKED)) + room
    return MethodLM(Safe(members, weights=[99, 1]), drafter.pieces.tokenizer, prompt=drafter.prompt)


def test_every_models_context_has_room_for_question_and_answer(wordy: list[Member]) -> None:
    lm = wordy_lm(wordy, room=7)
    with pytest.raises(PromptError, match=r"tokens for 'other' where \d+ fit beside 8 new ones"):
        write(lm, lm.apply_chat_template(ASKED))
    wordy[1].model.config.max_position_embeddings = 8
    lm = MethodLM(lm.method, lm.tokenizer, prompt=lm.prompt)
    with pytest.raises(SettingsError, match="the smallest context of the models is 8"):
        write(lm, lm.apply_chat_template(ASKED))


def test_answers_that_another_models_context_ends_are_counted(
    wordy: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    lm = wordy_lm(wordy, room=100)
    assert write(lm, lm.apply_chat_template(ASKED)) == [" world" * 8]
    assert "end early" not in caplog.text
    lm = wordy_lm(wordy, room=8)
    (answer,) = write(lm, lm.apply_chat_template(ASKED))
    assert len(answer) < len(" world" * 8)
    assert "1 of 1 answers end early" in caplog.text
    assert f"reads along ('other': {wordy[1].context_length})" in caplog.text


def test_a_system_message_that_one_model_cannot_read_is_left_out_for_all(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tiny_ensemble.known("other")
    made.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tiny_ensemble.TEMPLATES["other"]
    )
    made.member.model.save_pretrained(tmp_path / "strict")
    made.tokenizer.save_pretrained(tmp_path / "strict")
    models = {"bytes": str(file.parent / "bytes"), "strict": str(tmp_path / "strict")}
    path = tiny_ensemble.write_file(tmp_path, models, device="cpu")
    lm: Any = FusionRouteLM(team=str(path), batch_size="auto")
    asked = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": q}] for q in ("hello", "the")]
    contexts = [lm.apply_chat_template(messages) for messages in asked]
    assert contexts == rendered(lm, "hello", "the")
    assert len(write(lm, *contexts)) == 2
    assert caplog.text.count("template of 'strict' refuses the system message; it is left out for all models") == 1
    begun = [*asked[0], {"role": "assistant", "content": "the worlds"}]
    assert "Be kind." not in lm.apply_chat_template(begun, add_generation_prompt=False)
    plain: Any = FusionRouteLM(team=str(file), batch_size="auto")
    assert "Be kind." in plain.apply_chat_template(asked[0])


def test_a_task_that_begins_answers_needs_templates_that_put_nothing_before_them(file: Path, tmp_path: Path) -> None:
    begun = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the worlds"}]
    lm = FusionRouteLM(team=str(file), batch_size="auto")
    (answer,) = write(lm, lm.apply_chat_template(begun, add_generation_prompt=False))
    assert answer
    made = tiny_ensemble.known("other")
    made.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% else %}"
        "{{ ' ' + m['content'] }}{% endif %}{% endfor %}"
    )
    made.member.model.save_pretrained(tmp_path / "leads")
    made.tokenizer.save_pretrained(tmp_path / "leads")
    models = {"bytes": str(file.parent / "bytes"), "leads": str(tmp_path / "leads")}
    lm = FusionRouteLM(team=str(tiny_ensemble.write_file(tmp_path, models)), batch_size="auto")
    with pytest.raises(SettingsError, match=r"gen_prefix.*chat template of 'leads' writes ' '"):
        write(lm, lm.apply_chat_template(begun, add_generation_prompt=False))
    assert write(lm, *rendered(lm, "hello"))


def test_likelihoods_are_refused_with_the_reason(file: Path) -> None:
    lm = FusionRouteLM(team=str(file), batch_size="auto")
    (context,) = rendered(lm, "hello")
    asked = [Instance("loglikelihood", {}, arguments=(context, " world"), idx=0)]
    with pytest.raises(SettingsError, match="Safe has no distribution of the next token"):
        lm.loglikelihood(asked)


def test_a_log_gives_back_what_it_was_given(file: Path, tmp_path: Path) -> None:
    (answer,) = fr.Ensemble.from_file(file).generate(["hello"], max_new_tokens=8)
    with AnswerLog(tmp_path / "log.jsonl", {}) as log:
        log.add("key", answer)
    with AnswerLog(tmp_path / "log.jsonl", {}) as log:
        assert log.known["key"] == answer
