"""C3PO (arXiv 2504.07964): the routing of a question, moved towards what serves similar questions with known answers.

Letters in shapes: n inputs, k neighbours, L layers, E experts. Knows nothing of the engine.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from fusionroute.config import Settings
from fusionroute.errors import DataError
from fusionroute.models.gates import Gates, find_gates
from fusionroute.models.prompt import PromptFormat
from fusionroute.moe.asking import Asked, ask
from fusionroute.moe.c3po.references import References
from fusionroute.moe.embedders import SELF, embedder
from fusionroute.moe.neighbours import Neighbours
from fusionroute.moe.optimise import Descent, descend
from fusionroute.moe.pathways.pathways import Pathways
from fusionroute.moe.questions.questions import Encoded, encode_questions

logger = logging.getLogger(__name__)

GRID = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of the own routing that `kernel` tries; of equals the first is taken
MODE_ALPHA = 0.5


class C3POSettings(Settings):
    """Which surrogate replaces the unknown label, and how it is followed. Values are C3PO's, or said to be ours."""

    surrogate: Literal["ngd", "kernel", "mode"] = "ngd"
    k: int = Field(3, ge=1)
    epsilon: float | None = Field(None, gt=0, le=1)  # instead of k: every reference at least so similar
    sigma: float | None = Field(None, gt=0)  # bandwidth; None = the median neighbour distance of the references, ours
    duplicate: float | None = Field(0.95, gt=0, le=1)  # references more alike than this are left out; None = none are
    alpha: float | None = Field(None, ge=0, le=1)  # share of the own routing; None: `kernel` chooses, `mode` 0.5, ours
    steps: int = Field(10, ge=0)
    learning_rate: float = Field(1e-2, gt=0)
    final: float = Field(1e-5, ge=0)
    core: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _options_mean_something_to_the_surrogate(self) -> Self:
        idle = {"alpha"} if self.surrogate == "ngd" else {"steps", "learning_rate", "final", "core"}
        if given := sorted(idle & self.model_fields_set):
            raise ValueError(f"{given[0]} means nothing to the surrogate {self.surrogate}; drop it")
        if self.final > self.learning_rate:
            raise ValueError(f"the learning rate falls from {self.learning_rate} to final, so {self.final} is too much")
        return self

    @property
    def descent(self) -> Descent:
        return Descent(self.steps, self.learning_rate, self.final, self.core)


@dataclass
class Cost:
    """Tokens that the model read so far for the sake of routing.

    Attributes:
        question: one plain read of every input.
        plain: without gradient, those reads among them.
        gradient: in passes that were also gone through backwards, which costs about as much again or twice that.
        inputs: how many were adapted.
        alone: inputs that had no neighbours, so that their routing stayed as it was.
    """

    question: int = 0
    plain: int = 0
    gradient: int = 0
    inputs: int = 0
    alone: int = 0

    @property
    def tokens(self) -> int:
        return self.plain + self.gradient

    @property
    def forwards(self) -> float:
        """Tokens read, in units of one plain read of the question; reading it once more to answer is not in it."""
        return self.tokens / self.question if self.question else 0.0


class NeighbourLoss:
    """The surrogate of ``ngd``: L(ω) = Σ_i K(x_i, x) ℓ(f(x_i, ω), y_i) / Σ_i K(x_i, x), each input's own.

    ℓ is the mean negative log-likelihood per token of the right answer (our choice). Prompts of neighbours are read up
    to their last token once, however often the loss is asked for.

    Args:
        found: neighbours of n inputs, in places of ``references``.
        together: pairs of an input and a neighbour in one pass.
    """

    def __init__(self, gates: Gates, references: References, found: Neighbours, *, together: int, cost: Cost):
        rows, columns = (found.weight > 0).nonzero(as_tuple=True)
        places, weights = found.index[rows, columns].tolist(), found.weight[rows, columns]
        self.n = len(found.weight)
        self.cost = cost
        self.parts: list[tuple[Tensor, Tensor, Asked]] = []
        for at in range(0, len(places), together):
            part = slice(at, at + together)
            asked = Asked(gates, [references.encoded[place] for place in places[part]])
            self.parts.append((rows[part], weights[part], asked))
            cost.plain += asked.tokens_read

    def __call__(self, routing: Tensor, *, grad: bool = False) -> Tensor:
        """L of each input ``[n]``, for a routing ``[n, L, E]``."""
        total = routing.new_zeros(self.n)
        for rows, weights, asked in self.parts:
            before = asked.tokens_read
            loss = asked.say(routing[rows], only_right=True, grad=grad).loss
            total = total.index_add(0, rows.to(total.device), weights.to(total) * loss.to(total))
            read = asked.tokens_read - before
            self.cost.gradient, self.cost.plain = self.cost.gradient + grad * read, self.cost.plain + (not grad) * read
        return total

    def with_gradient(self, routing: Tensor) -> Tensor:
        return self(routing, grad=True)


def regression(found: Neighbours, routing: Tensor) -> Tensor:
    """ω̂ = Σ_i K_i ω_i / Σ_i K_i of the references' ``routing [m, L, E]``; also one step of mean shift, ω̄."""
    return torch.einsum("nk,nkle->nle", found.weight, routing[found.index])


def blend(own: Tensor, estimate: Tensor, alpha: float | Tensor) -> Tensor:
    """α ω + (1 − α) ω̂ of ``[n, L, E]``, with one α or one of each input ``[n]``."""
    share = alpha[:, None, None] if isinstance(alpha, Tensor) else alpha
    return share * own + (1 - share) * estimate


def best_alpha(loss: Callable[[Tensor], Tensor], own: Tensor, estimate: Tensor) -> Tensor:
    """α of the lowest surrogate loss on `GRID` for each input ``[n]``; of equals the one nearest to the own routing."""
    losses = torch.stack([loss(blend(own, estimate, alpha)) for alpha in GRID])
    return torch.tensor(GRID, device=own.device, dtype=own.dtype)[losses.argmin(0).to(own.device)]


class Rerouting:
    """Adapts the routing of the last prompt token to each input, by C3PO.

    An input's result does not depend on its batch. One without neighbours keeps its own routing, and is counted.

    Args:
        gates: of the model, for the layers that were recorded.
        references: see `References`, which says who is a neighbour.
        embed: texts to embeddings, for references embedded by another model; None where the model does so itself.
        batch_size: questions in one pass.
    """

    def __init__(
        self,
        gates: Gates,
        references: References,
        settings: C3POSettings,
        *,
        embed: Callable[[Sequence[str]], Tensor] | None = None,
        batch_size: int = 32,
    ):
        layers, experts = references.routing.shape[1:]
        if (layers, experts) != (gates.count, gates.experts):
            raise DataError(
                f"the recording has {layers} layers of {experts} experts but the chosen gates are {gates.count} of "
                f"{gates.experts}; choose the layers that were recorded"
            )
        self.gates = gates
        self.references = references
        self.settings = settings
        self.embed = embed
        self.batch_size = batch_size
        self.cost = Cost()

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        pathways: Pathways,
        prompt_format: PromptFormat,
        settings: C3POSettings | None = None,
        *,
        batch_size: int = 32,
        device: str | None = None,
    ) -> Self:
        """Of a model and what was recorded of it: its layers, its questions, its embedder.

        Args:
            device: of an embedder that is another model.

        Raises:
            DataError: recorded of another model, another embedder or another prompt format.
            SettingsError, CheckpointError, UnsupportedModelError: as `embedder` and `Gates` raise them.
        """
        settings, recorded = settings or C3POSettings(), pathways.settings
        places = [at for at, gate in enumerate(find_gates(model)) if gate.name in recorded["layers"]]
        gates = Gates(model, places or "all")
        pathways.refuse_other_model(gates)
        if recorded["prompt"] != prompt_format.name:
            raise DataError(
                f"the references were recorded with prompt {recorded['prompt']!r} but questions are put by "
                f"{prompt_format.name!r}; give both the same"
            )
        encoded = encode_questions(pathways.questions, prompt_format)
        options = settings.model_dump(include={"k", "epsilon", "sigma", "duplicate"})
        references = References(pathways, encoded, **options)
        return cls(gates, references, settings, embed=_embed(recorded, device), batch_size=batch_size)

    @property
    def reads_text(self) -> bool:
        """Whether inputs must come with their texts."""
        return self.embed is not None

    def adapt_prompts(self, prompts: Sequence[list[int]], texts: Sequence[str] | None = None) -> Tensor:
        """As `adapt`, of prompts without answers, which C3PO does not look at."""
        return self.adapt([Encoded(prompt, ([0],), 0) for prompt in prompts], texts)

    def adapt(self, inputs: Sequence[Encoded], texts: Sequence[str] | None = None) -> Tensor:
        """The routing ``[n, L, E]`` of each input's last prompt token, float32, to be forced when it is read.

        Args:
            texts: the inputs' questions, if `reads_text`.

        Raises:
            ModelOutputError: routing or losses that are not finite.
        """
        assert (texts is not None) or not self.reads_text, "an embedder reads texts"
        with torch.inference_mode(False), torch.no_grad():  # whoever asks may be inside inference mode
            own, embeddings = self._read(inputs, texts)
            each = max(1, self.batch_size // self.settings.k)
            parts = [self._adapt(own[at : at + each], embeddings[at : at + each]) for at in range(0, len(own), each)]
        self.cost.inputs += len(inputs)
        return torch.cat(parts)

    def _read(self, inputs: Sequence[Encoded], texts: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """The inputs' own routing and their embeddings, from one plain read."""
        prompts = [Encoded(each.prompt, ([0],), 0) for each in inputs]  # of answers nothing may be known
        said = ask(self.gates, prompts, batch_size=self.batch_size, hidden=self.embed is None)
        read = sum(len(each.prompt) for each in prompts)
        self.cost.question, self.cost.plain = self.cost.question + read, self.cost.plain + read
        return said.routing, said.hidden if self.embed is None else self.embed(list(texts or ()))

    def _adapt(self, own: Tensor, embeddings: Tensor) -> Tensor:
        found = self._neighbours(own, embeddings)
        has_any = (found.weight.sum(1) > 0).to(own.device)
        self._count_alone(int((~has_any).sum()))
        if not bool(has_any.any()):
            return own
        adapted = own.clone()
        rows = has_any.cpu()
        found = Neighbours(found.index[rows], found.weight[rows], found.sigma)
        adapted[has_any] = self._follow(own[has_any], found)
        return adapted

    def _neighbours(self, own: Tensor, embeddings: Tensor) -> Neighbours:
        if self.settings.surrogate == "mode":
            return self.references.by_routing(own.cpu(), embeddings.cpu())
        return self.references.by_question(embeddings.cpu())

    def _follow(self, own: Tensor, found: Neighbours) -> Tensor:
        settings = self.settings
        if settings.surrogate == "ngd":
            return descend(self._loss(found).with_gradient, own, settings.descent)
        estimate = regression(found, self.references.routing).to(own)
        if settings.surrogate == "mode":
            return blend(own, estimate, MODE_ALPHA if settings.alpha is None else settings.alpha)
        alpha = best_alpha(self._loss(found), own, estimate) if settings.alpha is None else settings.alpha
        return blend(own, estimate, alpha)

    def _loss(self, found: Neighbours) -> NeighbourLoss:
        return NeighbourLoss(self.gates, self.references, found, together=self.batch_size, cost=self.cost)

    def _count_alone(self, count: int) -> None:
        if count and not self.cost.alone:
            logger.warning(
                "a question has no neighbours among %d references, so its routing stays as it is; all were left out as "
                "duplicates (see duplicate), or none was similar enough (see epsilon)",
                len(self.references),
            )
        self.cost.alone += count


def _embed(recorded: Mapping[str, Any], device: str | None) -> Callable[[Sequence[str]], Tensor] | None:
    """The embedder that the references were recorded with; None for the model itself."""
    if recorded["embedder"] == SELF:
        return None
    frozen = embedder(recorded["embedder"], device=device)
    if frozen.fingerprint() != recorded["embedder_weights"]:
        raise DataError(
            f"the references were embedded by another {recorded['embedder']} than the one that is there now; record "
            "them again"
        )
    return frozen.embed
