"""`Ensemble`: the library's front door for models with different tokenizers."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fusionroute as fr
import tiny_ensemble
from fusionroute.config import GenerationSettings
from fusionroute.engine.reference import UncachedRunner, reference
from fusionroute.errors import ModelOutputError, PromptError, SettingsError, VocabularyError
from fusionroute.methods.averaging import AveragingAcross
from fusionroute.methods.safe import Safe

PROMPTS = ["hello", "the <eos> world </s>", "naïve 🙂 שלום"]
NAMES = tuple(tiny_ensemble.WORDS)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return tiny_ensemble.write_file(folder, tiny_ensemble.save(folder), device="cpu")


@pytest.fixture(scope="module")
def ensemble(file: Path) -> fr.Ensemble:
    return fr.Ensemble.from_file(file)


def member(name: str, **options: object) -> fr.Member:
    made = tiny_ensemble.known(name, **options)
    return fr.Member.of(name, made.member.model, made.tokenizer, "chat_template")


def by_hand(method: Any, ensemble: fr.Ensemble, prompt: Any, limit: int) -> list[int]:
    """The same answer through the reference: no cache, no batch, no front door."""
    from fusionroute.engine.engine import Engine

    ids = ensemble.drafter.prompt.encode(prompt)
    settings = GenerationSettings(max_new_tokens=limit)
    return reference(method, Engine(method, ensemble.tokenizer).sequence(ids, settings, prompt)).token_ids


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"host": "unite"}, Safe),
        ({"host": "gac", "draft_length": 3, "weights": {"bytes": 2, "pieces": 1, "other": 1}}, Safe),
        ({"method": "averaging"}, AveragingAcross),
        ({"method": "averaging", "host": "gac", "gate": 0.3, "drafter": "pieces"}, AveragingAcross),
    ],
)
def test_every_option_arrives(file: Path, options: dict[str, Any], kind: type) -> None:
    ensemble = fr.Ensemble.from_file(file, changes=options)
    keywords = {"drafter": "bytes", "host": "unite"} | {k: v for k, v in options.items() if k != "method"}
    method = kind(list(ensemble.members)[::-1], make_runner=UncachedRunner, **keywords)
    found = ensemble.generate(PROMPTS, max_new_tokens=8)
    assert [completion.token_ids for completion in found] == [by_hand(method, ensemble, p, 8) for p in PROMPTS]
    assert ensemble.expert_names[0] == ensemble.drafter.name == keywords["drafter"]
    assert set(ensemble.expert_names) == set(NAMES)
    for completion in found:
        assert {record.expert for record in completion.trace} <= set(NAMES)
        assert all(record.verdict for record in completion.trace)


def test_live_models_are_as_good_as_a_file(ensemble: fr.Ensemble) -> None:
    live = fr.Ensemble([member(name) for name in ("other", "bytes", "pieces")], drafter="bytes")
    assert live.expert_names == ("bytes", "other", "pieces")
    same = fr.Ensemble(ensemble.members, drafter="bytes", method="safe", host="unite", draft_length=5)
    (first,), (second,) = (each.generate(["hello"], max_new_tokens=6) for each in (same, ensemble))
    assert first == second
    assert live.generate(["hello"], max_new_tokens=6)[0].token_ids == first.token_ids


def test_messages_are_put_to_each_model_in_its_own_format(ensemble: fr.Ensemble) -> None:
    messages = [{"role": "user", "content": "hello"}]
    found = ensemble.generate(["hello", messages], max_new_tokens=6)
    assert found[0].token_ids == found[1].token_ids
    assert ensemble.prompt == "chat_template"


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "temperature": 1.5}, {"stop": ["e", " "]}])
@pytest.mark.parametrize("method", ["safe", "averaging"])
def test_a_joined_stream_is_the_completion(file: Path, method: str, options: dict[str, Any]) -> None:
    ensemble = fr.Ensemble.from_file(file, changes={"method": method})
    for prompt in PROMPTS[1:]:
        (wanted,) = ensemble.generate([prompt], max_new_tokens=10, **options)
        tokens = list(ensemble.stream(prompt, max_new_tokens=10, **options))
        assert "".join(token.text for token in tokens) == wanted.text
        assert [token.token_id for token in tokens] == wanted.token_ids
        assert [(token.verdict, token.support) for token in tokens] == [(r.verdict, r.support) for r in wanted.trace]
        assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [wanted.finish_reason]


@pytest.mark.parametrize("prompts", [[[5, 6]], ["fine", [5]], [torch.tensor([5, 6]).tolist()]])
def test_token_ids_speak_to_one_model_alone(ensemble: fr.Ensemble, prompts: list[Any]) -> None:
    with pytest.raises(PromptError, match="token ids speaks to one tokenizer alone"):
        ensemble.generate(prompts)
    with pytest.raises(PromptError, match="token ids"):
        ensemble.stream(prompts[-1])


@pytest.mark.parametrize("prompts", ["hi", [1, 2, 3], [{"role": "user", "content": "hi"}]])
def test_one_prompt_is_not_a_list_of_prompts(ensemble: fr.Ensemble, prompts: Any) -> None:
    with pytest.raises(PromptError, match=r"write \[prompt\]"):
        ensemble.generate(prompts)


def test_bad_prompts_stop_the_call_before_any_work(ensemble: fr.Ensemble) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        ensemble.generate(["fine", ""])
    with pytest.raises(PromptError, match="context"):
        ensemble.stream("x" * 200)
    with pytest.raises(PromptError, match="'role' and 'content'"):
        ensemble.generate([[{"content": "hi"}]])
    with pytest.raises(PromptError, match=r"prompt 2 is no valid text: '\\ud83d' at character 3 is half a character"):
        ensemble.generate(["fine", "hi\ud83d"])
    with pytest.raises(PromptError, match=r"the prompt is no valid text: '\\udcff' at character 1"):
        ensemble.stream([{"role": "user", "content": "\udcff"}])
    assert ensemble.generate([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "elsewhere.yaml"}, "unknown option 'path'"),
        ({"device": "tpu"}, "device: there is no 'tpu' on this machine; there is cpu"),
        ({"models.pieces.device": "cuda:77"}, "there is no 'cuda:77' on this machine; there is cpu"),
        ({"dtype": "flaot32"}, "did you mean 'float32'"),
    ],
)
def test_changes_of_a_file_may_have_any_name(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        fr.Ensemble.from_file(file, changes=changes)


def test_messages_need_a_format(file: Path) -> None:
    plain = fr.Ensemble.from_file(file, changes={"prompt": None})
    assert plain.generate(["hello"], max_new_tokens=3)[0].token_ids
    with pytest.raises(PromptError, match="need a prompt format"):
        plain.generate([[{"role": "user", "content": "hi"}]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "did you mean 'max_new_tokens'"),
        ({"temperature": 0.5}, "does nothing without do_sample=True"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
        ({"complement": False}, "unknown option 'complement'"),
    ],
)
def test_bad_options_of_an_answer(ensemble: fr.Ensemble, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ensemble.generate(["hi"], **options)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("bytes",), {"drafter": "bytes"}, "at least two members, each with a name of its own; got bytes"),
        ((), {"drafter": "bytes"}, "got none"),
        (("bytes", "bytes"), {"drafter": "bytes"}, "got bytes, bytes"),
        (("bytes", "pieces"), {}, "drafter is missing; name the model that does best alone, one of bytes, pieces"),
        (("bytes", "pieces"), {"drafter": "piece"}, "drafter: unknown option 'piece'; did you mean 'pieces'"),
        (("bytes", "pieces"), {"drafter": "bytes", "hots": "gac"}, "did you mean 'host'"),
        (("bytes", "pieces"), {"drafter": "bytes", "weights": {"bytes": 1}}, "'pieces' has none"),
    ],
)
def test_members_that_make_no_ensemble(names: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        fr.Ensemble([member(name) for name in names], **options)


def test_a_file_without_a_drafter_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    models = {"one": "/no/such/one", "two": "/no/such/two"}
    path = tiny_ensemble.write_file(tmp_path, models, drafter="left out")
    with pytest.raises(SettingsError, match="fusionroute calibrate"):
        fr.Ensemble.from_file(path)


def test_vocabularies_are_told_before_weights(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bytes"
    made = tiny_ensemble.known("bytes")
    made.member.model.config.vocab_size = 10
    made.member.model.config.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    path = tiny_ensemble.write_file(tmp_path, {"bytes": str(folder), "other": str(file.parent / "other")})
    with pytest.raises(VocabularyError, match=r"'bytes' has ids up to .* but the model only 10"):
        fr.Ensemble.from_file(path)


def test_a_model_that_breaks_is_named() -> None:
    broken = member("pieces")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    ensemble = fr.Ensemble([member("bytes"), broken], drafter="bytes", method="averaging")
    (completion,) = ensemble.generate(["hello"], max_new_tokens=4)
    assert completion.finish_reason == "error"
    assert "model 'pieces' returned NaN" in str(completion.error)
    with pytest.raises(ModelOutputError, match="model 'pieces' returned NaN"):
        list(ensemble.stream("hello", max_new_tokens=4))
