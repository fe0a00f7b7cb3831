"""What a file for ``fusionroute roma`` may say. RoMA's paper gives few values; what is our choice says so beside it."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusionroute.config import ResumableSettings, Settings, nearest
from fusionroute.models.loading import DTYPES, ModelReference
from fusionroute.models.prompt import PromptName


class SourceSettings(Settings):
    """Questions from one place."""

    source: str  # .jsonl or .parquet file
    limit: int | None = Field(None, ge=1)  # the first ones only
    task: str | None = None  # what they are counted under; None = as their rows say


class QuestionSettings(Settings):
    """What is learned, what chooses λ, and what must not be learned."""

    train: tuple[SourceSettings, ...] = Field(min_length=1)
    dev: tuple[SourceSettings, ...] = ()  # on which a sweep chooses λ
    evaluation: tuple[SourceSettings, ...] = ()  # the test sets: only looked at for what overlaps with them
    limit: int | None = Field(None, ge=1)  # of the training questions: the first ones of the first sources
    max_length: int | None = Field(None, ge=2)  # tokens; None = the model's context

    @field_validator("train", "dev", "evaluation", mode="before")
    @classmethod
    def _a_source_may_be_a_name(cls, value: Any) -> Any:
        several = [value] if isinstance(value, (str, dict)) else list(value or ())
        return tuple({"source": each} if isinstance(each, str) else each for each in several)


class TokenSettings(Settings):
    """At which tokens of the prompt the routing is aligned; the paper's best is the last one."""

    where: Literal["first", "middle", "last"] = "last"
    count: int = Field(1, ge=1)


class NeighbourSettings(Settings):
    """Towards whose routing a question is pulled, Eqs. (3) to (6)."""

    kind: Literal["nearest", "random"] = "nearest"  # the second is the control
    k: int = Field(3, ge=1)
    epsilon: float | None = Field(None, gt=0, le=1)  # instead of k: everybody at least so similar, Eq. (4)
    sigma: float | None = Field(None, gt=0)  # the paper gives none; None = the median distance to the k nearest, ours

    @model_validator(mode="after")
    def _random_ones_have_no_distance(self) -> Self:
        if self.kind == "random" and (self.epsilon is not None or self.sigma is not None):
            raise ValueError("random neighbours are as many as k says and weigh the same; drop epsilon and sigma")
        return self


class DescentSettings(Settings):
    """Descent on the routing itself, for ``target: oracle``; see `fusionroute.moe.optimise`."""

    steps: int = Field(10, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    final: float = Field(1e-5, ge=0)
    core: int = Field(20, ge=1)


class LeakageSettings(Settings):
    """Whether what is learned may also be asked later."""

    threshold: float = Field(0.95, gt=0, le=1)  # C3PO's: questions so similar count as the same
    allow_overlap: bool = False


class RoMASettings(Settings):
    """A file for ``fusionroute roma train``: Routing Manifold Alignment, Eqs. (1) to (10)."""

    model: ModelReference
    prompt: PromptName = None
    data: QuestionSettings
    layers: int | Literal["all"] | tuple[int, ...] = 5  # the last five MoE layers, or which ones by their place
    tokens: TokenSettings = TokenSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    embedder: str = "self"  # or a sentence-transformers id or folder; the paper names none, so the default is ours
    weight: float = Field(1.0, ge=0)  # λ, which the paper does not give: ours; 0 = plain router tuning
    sweep: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)  # of `roma sweep`, beside 0, which is always there; ours
    target: Literal["manifold", "oracle"] = "manifold"  # oracle: each question's own best routing, found by descent
    descent: DescentSettings = DescentSettings()
    optimiser: ResumableSettings = ResumableSettings()  # the paper names no optimiser and no value of it
    leakage: LeakageSettings = LeakageSettings()
    batch_size: int = Field(32, ge=1)  # of passes without gradient: recording, asking
    save: Literal["model", "delta"] = "model"  # a whole checkpoint, or the routers alone
    seed: int = Field(0, ge=0)
    dtype: str | None = None  # while training; None = as in the checkpoint, whose dtypes the result always has
    device: str | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _a_model_may_be_a_name(cls, model: Any) -> Any:
        return {"model": model} if isinstance(model, str) else model

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, name: str | None) -> str | None:
        if name is not None and name not in (*DTYPES, "auto"):
            raise ValueError(nearest(name, [*DTYPES, "auto"]))
        return name

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: Any) -> Any:
        if layers == () or (isinstance(layers, int) and layers < 1):
            raise ValueError("give at least one layer: how many of the last ones, a list of places, or all")
        return layers

    @field_validator("sweep")
    @classmethod
    def _no_negative_weights(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if any(weight < 0 for weight in weights):
            raise ValueError("a weight λ is at least 0")
        return weights

    @model_validator(mode="after")
    def _an_oracle_knows_the_last_token(self) -> Self:
        if self.target == "oracle" and (self.tokens.where, self.tokens.count) != ("last", 1):
            raise ValueError(
                "target oracle has a routing for the last prompt token alone; leave tokens at their default"
            )
        return self
