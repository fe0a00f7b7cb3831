"""Which experts an untouched model takes for each question, whether it answers it, and where the question lies.

This is all that RoMA's manifold term and C3PO's surrogates need to know of the training or reference questions.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from fusionroute.errors import DataError, ModelOutputError
from fusionroute.models.gates import Gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import Said, ask
from fusionroute.moe.embedders import SELF, Embedder, embedder
from fusionroute.moe.identity import weights_hash
from fusionroute.moe.pathways.recording import (
    Record,
    Shards,
    differences,
    open_recording,
    questions_hash,
    read_record,
    read_recorded_questions,
)
from fusionroute.moe.questions.questions import Encoded, Question, encode_questions
from fusionroute.progress import Progress, Silent

QUESTIONS_PER_FILE = 512


@dataclass(frozen=True)
class Pathways:
    """What was recorded, in the order of the questions; float32 on the CPU, no gradient.

    Attributes:
        routing: softmax over all experts of each chosen layer at the last prompt token, ``[n, L, E]``.
        correct: the success set S, bool ``[n]``.
        loss: mean negative log-likelihood per token of the right answer, ``[n]``.
        embeddings: ``[n, d]``.
        questions: as they were asked.
        settings: what it was recorded of: ``model`` (its name), ``weights`` (their hash), ``dtype``, ``layers`` (names
            of the gates), ``top_k``, ``embedder``, ``embedder_weights``, ``prompt``, ``data`` and ``tokens`` (hashes).
    """

    routing: Tensor
    correct: Tensor
    loss: Tensor
    embeddings: Tensor
    questions: list[Question]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def texts(self) -> list[str]:
        return [question.text for question in self.questions]

    @property
    def tasks(self) -> list[str]:
        return [question.task for question in self.questions]

    @property
    def centre(self) -> Tensor | None:
        """What embeddings are counted from before cosines are taken, ``[d]``; None: they can be taken as they are.

        Hidden states all lie to one side; those of one model have cosines near 1, whatever they were asked.
        """
        return self.embeddings.mean(0) if self.settings["embedder"] == SELF else None

    def refuse_other_model(self, gates: Gates) -> None:
        """Raise `DataError`, naming what differs, unless these are the pathways of these gates of this very model."""
        if others := differences(self.settings, _model_record(gates)):
            raise DataError(
                f"these pathways were recorded of something else, {self.settings.get('model')} ({'; '.join(others)}); "
                "record them again with this model"
            )


def record(
    model: PreTrainedModel | Gates,
    questions: Sequence[Question],
    folder: str | Path,
    *,
    prompt_format: PromptFormat,
    embedder: str | Embedder = SELF,
    layers: int | Sequence[int] | str = 5,
    batch_size: int = 32,
    questions_per_file: int = QUESTIONS_PER_FILE,
    max_length: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Pathways:
    """Ask the model every question once and write what is seen to ``folder``.

    Files that are there already are kept, so an interrupted recording goes on where it stopped, and comes out the same
    bit for bit if ``batch_size`` is the same.

    Args:
        model: untouched by any training that these pathways shall serve.
        embedder: a name for `embedders.embedder`, or a live one.
        layers: as `choose_gates` takes them; ignored if ``model`` is `Gates`.
        questions_per_file: what a killed run loses at most; fixed by the first recording of a folder.
        max_length: see `encode_questions`.
        overwrite: replace a recording of other things; one of the same things is kept in any case.
        progress: hears of every question.

    Raises:
        DataError: the folder holds pathways of another model, other layers, questions, prompts or another embedder,
            each of which is named; or a question is too long.
        OutputExistsError: it holds something else.
        ModelOutputError: gates, losses or embeddings that are no numbers.
        UnsupportedModelError, SettingsError: as `Gates` and `embedder` raise them.
    """
    gates = model if isinstance(model, Gates) else Gates(model, layers)
    encoded = encode_questions(questions, prompt_format, max_length)
    frozen = _embedder(embedder, gates, prompt_format, batch_size)
    wanted: Record = {
        **_model_record(gates),
        "embedder": frozen.name,
        "embedder_weights": None if frozen.name == SELF else frozen.fingerprint(),  # the model's own are there already
        "prompt": prompt_format.name,
        "questions": len(encoded),
        "data": questions_hash(questions),
        "tokens": _tokens_hash(encoded),
        "questions_per_file": questions_per_file,
    }
    shards = open_recording(Path(folder), wanted, questions, overwrite=overwrite)
    progress = progress or Silent()
    missing = [number for number in range(len(shards)) if not shards.has(number)]
    if missing:
        _start(progress, shards, missing)
    for number in missing:
        shards.write(number, _record_some(gates, questions, encoded, shards.rows(number), frozen, batch_size, progress))
    pathways = load_pathways(folder)
    progress.finish(f"pathways: {int(pathways.correct.sum()):,} of {len(pathways):,} questions answered correctly")
    return pathways


def load_pathways(folder: str | Path) -> Pathways:
    """What `record` has written.

    Raises:
        DataError: there is nothing recorded, it is not finished, or a file is not as it was written.
    """
    folder = Path(folder)
    settings = read_record(folder)
    if settings is None:
        raise DataError(f"{folder} holds no recorded pathways; record them first")
    questions = read_recorded_questions(folder, settings)
    tensors = Shards(folder, settings).read_all()
    return Pathways(**tensors, questions=questions, settings=settings)


def _record_some(
    gates: Gates,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    rows: range,
    frozen: Embedder,
    batch_size: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """What a file holds, of some questions."""
    said: Said = ask(
        gates,
        [encoded[row] for row in rows],
        batch_size=batch_size,
        hidden=frozen.name == SELF,
        progress=_OneStage(progress),
    )
    embeddings = said.hidden if frozen.name == SELF else frozen.embed([questions[row].prompt for row in rows])
    assert embeddings is not None
    seen = {"routing": said.routing, "loss": said.loss, "embeddings": embeddings}
    seen = {name: tensor.detach().float().cpu() for name, tensor in seen.items()}
    for name, tensor in seen.items():
        _refuse_not_finite(name, tensor, rows)
    return {**seen, "correct": said.correct.cpu()}


def _refuse_not_finite(name: str, tensor: Tensor, rows: range) -> None:
    broken = (~tensor.isfinite()).flatten(1).any(1) if tensor.dim() > 1 else ~tensor.isfinite()
    if broken.any():
        number = rows[int(broken.nonzero()[0])] + 1
        raise ModelOutputError(
            f"{name} of question {number} is no number; the weights are broken or their dtype is too narrow "
            "(try bfloat16 or float32)"
        )


def _embedder(which: str | Embedder, gates: Gates, prompt_format: PromptFormat, batch_size: int) -> Embedder:
    if not isinstance(which, str):
        return which
    return embedder(which, gates, prompt_format=prompt_format, batch_size=batch_size)


def _model_record(gates: Gates) -> Record:
    """What decides the routing beside the question."""
    return {
        "model": str(gates.model.name_or_path),
        "weights": weights_hash(gates.model),
        "dtype": str(gates.model.dtype).removeprefix("torch."),
        "layers": [gate.name for gate in gates.gates],
        "experts": gates.experts,
        "top_k": gates.top_k,
    }


def _tokens_hash(encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for each in encoded:
        digest.update(json.dumps([each.prompt, each.answers, each.right]).encode() + b"\n")
    return digest.hexdigest()


def _start(progress: Progress, shards: Shards, missing: Sequence[int]) -> None:
    progress.start("record pathways", shards.questions)
    done = shards.questions - sum(len(shards.rows(number)) for number in missing)
    if done:
        progress.advance(done, "resumed")


class _OneStage:
    """Passes on how far the questions of one file are: the files together are the stage to be shown."""

    def __init__(self, progress: Progress):
        self.advance = progress.advance

    def start(self, label: str, total: int) -> None:
        pass

    def finish(self, message: str) -> None:
        pass
