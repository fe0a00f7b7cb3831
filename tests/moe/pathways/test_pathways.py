"""Recording pathways: what is seen, resumed after any end, and never mistaken for a recording of something else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import tiny_moe
from fusionroute.errors import DataError, ModelOutputError, OutputExistsError, SettingsError
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import ask
from fusionroute.moe.neighbours import neighbours
from fusionroute.moe.pathways.pathways import Pathways, load_pathways, record
from fusionroute.moe.questions.questions import Question, encode_questions
from tiny_embedder import WIDTH, save_embedder
from tiny_training import Recorder

TENSORS = ("routing", "correct", "loss", "embeddings")


def made_up(n: int = 20, seed: int = 0) -> list[Question]:
    """Of mixed lengths and kinds; a random model has about half of the options right."""
    generator = torch.Generator().manual_seed(seed)
    texts = ["".join(chr(97 + int(letter) % 26) for letter in ids) for ids in tiny.prompts(n, seed)]
    right = torch.randint(2, (n,), generator=generator).tolist()
    return [
        Question(text, "free", task="free")
        if at % 5 == 4
        else Question(text, ("yes", "no")[right[at]], ("yes", "no"), "options")
        for at, text in enumerate(texts)
    ]


QUESTIONS = made_up()


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates(tiny_moe.mixture(), 3)


def recorded(gates: Gates, folder: Path, questions: list[Question] = QUESTIONS, **options: Any) -> Pathways:
    values: dict[str, Any] = {"batch_size": 3, "questions_per_file": 6, "prompt_format": prompt_format()}
    return record(gates, questions, folder, **values | options)


def prompt_format(name: str | None = "chat_template") -> PromptFormat:
    return PromptFormat(tiny.tokenizer(), name)


@pytest.fixture(scope="module")
def at_once(gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Pathways:
    return recorded(gates, tmp_path_factory.mktemp("at_once"))


def assert_same(one: Pathways, other: Pathways) -> None:
    """Bit for bit."""
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.questions == other.questions
    assert one.settings == other.settings


def test_what_is_recorded_is_what_the_model_says(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    said = ask(gates, encode_questions(QUESTIONS, prompt_format()), hidden=True)
    assert at_once.correct.tolist() == said.correct.tolist()
    assert 3 < at_once.correct.sum() < 17
    for ours, theirs in ((at_once.routing, said.routing), (at_once.loss, said.loss), (at_once.embeddings, said.hidden)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert at_once.routing.shape == (20, 3, tiny_moe.EXPERTS)
    torch.testing.assert_close(at_once.routing.sum(-1), torch.ones(20, 3))
    assert at_once.texts == [question.text for question in QUESTIONS]
    assert at_once.tasks == [question.task for question in QUESTIONS]
    assert at_once.settings["layers"] == [f"model.layers.{at}.mlp.gate" for at in (1, 2, 3)]
    torch.testing.assert_close(at_once.centre, at_once.embeddings.mean(0))


def test_routing_of_the_last_prompt_token_by_a_plain_pass(gates: Gates, at_once: Pathways) -> None:
    for at in (0, 7):
        ids = torch.tensor([prompt_format().encode(QUESTIONS[at].prompt)])
        with torch.no_grad(), gates.reading() as tap:
            gates.model(ids)
        torch.testing.assert_close(at_once.routing[at], tap.routing()[-1], rtol=1e-4, atol=1e-6)


def test_what_was_recorded_is_loaded(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    made = recorded(gates, tmp_path / "p")
    assert_same(made, load_pathways(tmp_path / "p"))
    assert_same(made, at_once)
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == [*(f"0000{n}.safetensors" for n in range(4)), "pathways.json", "questions.jsonl"]
    found = neighbours(made.embeddings, made.embeddings, made.correct, exclude_self=True)
    assert made.correct[found.index].all()


def test_a_model_and_layers_do_as_well_as_gates(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    made = record(
        gates.model,
        QUESTIONS,
        tmp_path / "p",
        prompt_format=prompt_format(),
        layers=3,
        batch_size=3,
        questions_per_file=6,
    )
    assert_same(made, at_once)


class Stops(Recorder):
    """Is interrupted once so many questions were seen."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def advance(self, n: int, note: str = "") -> None:
        super().advance(n, note)
        if sum(n for n, _ in self.advanced) >= self.after:
            raise KeyboardInterrupt


def count_passes(gates: Gates) -> tuple[list[int], Any]:
    rows: list[int] = []
    return rows, gates.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )


def test_an_interrupted_recording_goes_on_and_comes_out_the_same(
    gates: Gates, at_once: Pathways, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        recorded(gates, folder, progress=Stops(after=15))  # in the third file
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["00000.safetensors", "00001.safetensors"]
    with pytest.raises(DataError, match=r"lacks 2 of its 4 files \(first 00002\.safetensors\); record again"):
        load_pathways(folder)
    # what a kill may leave besides: half a file under a temporary name, and one that was cut off
    (folder / ".00002.safetensors.0123abcd.tmp").write_bytes(b"half")
    cut = folder / "00000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    kept = (folder / "00001.safetensors").stat().st_mtime_ns
    recorder = Recorder()
    rows, handle = count_passes(gates)
    made = recorded(gates, folder, progress=recorder, questions_per_file=2)  # does not change what is there
    handle.remove()
    assert_same(made, at_once)
    assert (folder / "00001.safetensors").stat().st_mtime_ns == kept
    assert not list(folder.glob(".*"))
    assert recorder.started == [("record pathways", 20)]
    assert recorder.advanced[0] == (6, "resumed")
    assert sum(n for n, _ in recorder.advanced) == 20
    assert recorder.finished == [f"pathways: {int(at_once.correct.sum())} of 20 questions answered correctly"]

    rows, handle = count_passes(gates)
    assert_same(recorded(gates, folder, overwrite=True), at_once)  # the same things: nothing to overwrite
    handle.remove()
    assert rows == []


KILLED = """
import os, signal
from pathlib import Path
import tiny_moe, tiny_training
from fusionroute.models.gates import Gates
from test_pathways import recorded

class Killed(tiny_training.Recorder):
    def advance(self, n, note=""):
        super().advance(n, note)
        if sum(n for n, _ in self.advanced) >= 15:
            os.kill(os.getpid(), signal.SIGKILL)

recorded(Gates(tiny_moe.mixture(), 3), Path({folder!r}), progress=Killed())
"""


@pytest.mark.slow
def test_a_killed_recording_goes_on(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    program = KILLED.format(folder=str(tmp_path / "p"))
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "p").glob("0*.safetensors"))) == 2
    rows, handle = count_passes(gates)
    assert_same(recorded(gates, tmp_path / "p"), at_once)
    handle.remove()
    assert rows


def changed_model() -> Gates:
    model = tiny_moe.mixture()
    with torch.no_grad():
        model.model.layers[3].mlp.gate.weight += 1e-3
    return Gates(model, 3)


def test_a_recording_of_something_else_is_refused_by_name(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    recorded(gates, folder)

    def refused(message: str, *, by: Gates = gates, questions: list[Question] = QUESTIONS, **options: Any) -> None:
        with pytest.raises(
            DataError, match=rf"holds pathways of something else \(.*{message}.*\); choose another folder"
        ):
            recorded(by, folder, questions, **options)

    refused(r"weights was .{8}…, is now .{8}…", by=changed_model())
    refused("dtype was float32, is now float64", by=Gates(tiny_moe.mixture().double(), 3))
    refused(
        r"layers was 3 \(model\.layers\.1\.mlp\.gate to model\.layers\.3\.mlp\.gate\), is now 2 \(model\.layers\.2",
        by=Gates(gates.model, 2),
    )
    refused("questions was 20, is now 19; data was", questions=QUESTIONS[:-1])
    refused("data was .{8}…, is now", questions=[*QUESTIONS[:-1], Question("else", "free", task="free")])
    refused("prompt was chat_template, is now alpaca; tokens was", prompt_format=prompt_format("alpaca"))
    assert_same(load_pathways(folder), at_once)


def test_other_embedders_are_told_apart(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers (the extra moe) is missing")
    folder, minilm = tmp_path / "p", save_embedder(tmp_path / "minilm")
    made = recorded(gates, folder, embedder=str(minilm))
    assert made.embeddings.shape == (20, WIDTH)
    torch.testing.assert_close(made.embeddings.norm(dim=1), torch.ones(20))
    assert made.centre is None
    assert torch.equal(made.routing, at_once.routing)
    with pytest.raises(DataError, match=r"embedder was .*minilm, is now self"):
        recorded(gates, folder)
    save_embedder(tmp_path / "minilm", seed=1)
    with pytest.raises(DataError, match=r"embedder_weights was .{8}…, is now .{8}…"):
        recorded(gates, folder, embedder=str(minilm))


def test_another_recording_is_overwritten_if_asked(gates: Gates, at_once: Pathways, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    recorded(changed_model(), folder, questions_per_file=1)
    (folder / "mine.txt").write_text("kept")
    assert_same(recorded(gates, folder, overwrite=True), at_once)
    assert len(list(folder.glob("*.safetensors"))) == 4
    assert (folder / "mine.txt").read_text() == "kept"


def test_other_folders_are_left_alone(gates: Gates, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="holds something that is no recording of pathways"):
            recorded(gates, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputExistsError, match="holds something that is no recording"):
        recorded(gates, tmp_path / "thesis.txt")


def test_a_recording_killed_before_its_record_stands_begins_again(
    gates: Gates, at_once: Pathways, tmp_path: Path
) -> None:
    (tmp_path / "questions.jsonl").write_text("{}\n")
    (tmp_path / ".pathways.json.0123abcd.tmp").write_text("{")
    assert_same(recorded(gates, tmp_path), at_once)


def test_changed_files_are_noticed(
    gates: Gates, at_once: Pathways, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(gates, tmp_path)
    path = tmp_path / "00001.safetensors"
    other = (tmp_path / "00002.safetensors").read_bytes()
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"00001\.safetensors was changed since it was recorded"):
        load_pathways(tmp_path)
    save_file(load_file(path), path)
    with pytest.raises(DataError, match=r"00001\.safetensors was recorded of something else"):
        load_pathways(tmp_path)
    path.write_bytes(other)
    with pytest.raises(DataError, match=r"00001\.safetensors was recorded of something else"):
        load_pathways(tmp_path)
    assert_same(recorded(gates, tmp_path), at_once)
    assert "00001.safetensors was recorded of something else" in caplog.text
    questions = tmp_path / "questions.jsonl"
    questions.write_text(questions.read_text().replace('"free"', '"three"'))
    with pytest.raises(DataError, match=r"questions\.jsonl was changed since it was recorded"):
        load_pathways(tmp_path)
    (tmp_path / "pathways.json").write_text(json.dumps({"questions": 0, "questions_per_file": 3}))
    with pytest.raises(DataError, match=r"pathways\.json is not the record of pathways"):
        load_pathways(tmp_path)


def test_folders_without_a_recording(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no recorded pathways; record them first"):
        load_pathways(tmp_path)


def test_pathways_of_another_model_are_refused(gates: Gates, at_once: Pathways) -> None:
    at_once.refuse_other_model(gates)
    at_once.refuse_other_model(Gates(tiny_moe.mixture(), 3))
    with pytest.raises(DataError, match=r"these pathways were recorded of something else, .*\(weights was .{8}…"):
        at_once.refuse_other_model(changed_model())
    with pytest.raises(DataError, match=r"\(layers was 3 "):
        at_once.refuse_other_model(Gates(gates.model, 1))


def test_questions_that_do_not_fit_and_models_that_are_broken(gates: Gates, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="questions do not fit into 12 tokens"):
        recorded(gates, tmp_path / "p", max_length=12)
    broken = tiny_moe.mixture()
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(ModelOutputError, match="is no finite number"):
        recorded(Gates(broken, 3), tmp_path / "p")
    assert not list((tmp_path / "p").glob("*.safetensors"))


def test_an_embedder_of_nonsense_is_named(gates: Gates, tmp_path: Path) -> None:
    class Nonsense:
        name = "nonsense"

        def embed(self, prompts: Any) -> torch.Tensor:
            made = torch.ones(len(prompts), 2)
            made[1] = torch.inf
            return made

        def fingerprint(self) -> str:
            return "0"

    with pytest.raises(ModelOutputError, match="embeddings of question 2 is no number"):
        recorded(gates, tmp_path / "p", embedder=Nonsense())
    with pytest.raises(SettingsError, match="5 of the last MoE layers; the model has 4"):
        record(gates.model, QUESTIONS, tmp_path / "q", prompt_format=prompt_format())
