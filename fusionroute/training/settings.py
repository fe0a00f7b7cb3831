"""What a team file may say. Where the paper is silent, the default and its reason stand beside the option."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusionroute.config import ResumableSettings, Settings, nearest
from fusionroute.models.loading import DTYPES, ModelReference
from fusionroute.models.prompt import PromptName
from fusionroute.models.team import Experts


def _known_dtype(name: str | None) -> str | None:
    if name is not None and name not in (*DTYPES, "auto"):
        raise ValueError(nearest(name, [*DTYPES, "auto"]))
    return name


class LoraSettings(Settings):
    """An adapter instead of the whole router; the route head is trained in full beside it."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"  # in peft's words


class RouterSettings(Settings):
    """The router before training."""

    init: str  # hub id or folder; the paper starts from the instruction expert
    revision: str | None = None
    head_bias: bool = False  # spec, decision i
    dtype: str = "float32"  # of the weights while training: steps of 1e-5 are lost in bfloat16's rounding
    lora: LoraSettings | None = None  # None = all weights

    _dtype = field_validator("dtype")(_known_dtype)

    @property
    def reference(self) -> ModelReference:
        return ModelReference(model=self.init, revision=self.revision)


class DataSettings(Settings):
    train: str  # .jsonl or .parquet file, or hub id
    pairs: str | None = None  # preference pairs of stage 2, in the same forms; None = the team's own mistakes
    exclude: str | None = None  # rows whose prompts must not be learned, such as a test set
    max_length: int | None = Field(None, ge=2)  # None = the smallest context of the team
    all_tokens: bool = False  # the formulas cover the answer only
    limit: int | None = Field(None, ge=1)  # so many rows only
    pairs_limit: int | None = Field(None, ge=1)
    draw: Literal["first", "random"] = "first"  # which rows a limit leaves; the paper draws at random


class ScoreSettings(Settings):
    batch_size: int = Field(16, ge=1)
    examples_per_file: int = Field(512, ge=1)  # what a killed run has to do again at most


class RoutingSettings(Settings):
    """The routing loss, the same in both stages (spec, section 12)."""

    weight: float = Field(1 / 3, ge=0)  # λ
    aggregation: Literal["expected_nll", "renormalised"] = "expected_nll"  # the second keeps the experts in memory
    positions: Literal["informative", "all"] = "informative"  # the paper's S, or every answer token


class StageSettings(ResumableSettings):
    """How one stage is optimised. The paper gives learning rate and epochs. A preference pair is one of a batch."""

    learning_rate: float = Field(1e-5, gt=0)
    group_by_length: bool = False  # batches of like length, in random order: less padding
    bf16: bool = False  # bfloat16 arithmetic over the weights as they are


class SFTSettings(StageSettings):
    """Stage 1, Eq. (2)."""


class PairSettings(Settings):
    """Preference pairs made of the team's own mistakes: its greedy answer where something better is known."""

    prompts: str  # .jsonl or .parquet file, or hub id; reference answers ("completion") take part where there are any
    samples: int = Field(4, ge=0)  # drawn per prompt beside the greedy answer
    temperature: float = Field(1.0, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=1)
    margin: float = Field(0.0, ge=0)  # the chosen answer is judged better by more than this
    checker: str | None = None  # package.module:function of (rows, answers) to scores; each row has its prompt
    reward_model: str | None = None  # hub id or folder of a sequence classifier with one output
    judge_url: str | None = None  # an OpenAI-compatible endpoint
    judge_model: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        named = [name for name in ("checker", "reward_model", "judge_url") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"name one of checker, reward_model, judge_url; got {', '.join(named) or 'none'}")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError("judge_url and judge_model belong together")
        return self


class CDPOSettings(StageSettings):
    """Stage 2, Eq. (3) and Algorithm 1. Left out of a team file, training ends with stage 1."""

    beta: float = Field(0.1, ge=0)
    form: Literal["printed", "normalised"] = "printed"  # the second keeps the experts in memory
    sft_examples: int | None = Field(None, ge=0)  # of data.train in the mixture; None = as many as there are pairs


class TrainSettings(Settings):
    """A team file. The order of the experts is that of the route head."""

    experts: Experts
    router: RouterSettings
    prompt: PromptName = None
    data: DataSettings
    score: ScoreSettings = ScoreSettings()
    routing: RoutingSettings = RoutingSettings()
    sft: SFTSettings = SFTSettings()
    pairs: PairSettings | None = None
    cdpo: CDPOSettings | None = None
    method: Literal["fusion_route", "fine_tuned"] = "fusion_route"  # the second: same data and steps, one plain model
    seed: int = Field(0, ge=0)
    dtype: str | None = None  # of the experts while scoring and of the finished router; None = as in their checkpoints
    device: str | None = None

    _dtype = field_validator("dtype")(_known_dtype)

    @property
    def makes_a_team(self) -> bool:
        """Not so the fine-tuned baseline, which knows of no experts."""
        return self.method == "fusion_route"

    @property
    def draw_seed(self) -> int | None:
        """The seed of a random draw of rows, None for the first ones."""
        return self.seed if self.data.draw == "random" else None

    @field_validator("router", mode="before")
    @classmethod
    def _a_router_may_be_a_name(cls, router: Any) -> Any:
        return {"init": router} if isinstance(router, str) else router

    @model_validator(mode="after")
    def _stage_two_has_pairs(self) -> Self:
        sources = [name for name, given in (("data.pairs", self.data.pairs), ("pairs", self.pairs)) if given]
        if self.cdpo and len(sources) != 1:
            raise ValueError(
                "cdpo needs preference pairs: a file or hub id as data.pairs, or a section pairs that makes them of "
                f"the team's own mistakes; got {' and '.join(sources) or 'neither'}"
            )
        if self.pairs and not self.makes_a_team:
            raise ValueError("the fine-tuned baseline learns from given pairs: name those of the team as data.pairs")
        if sources and not self.cdpo:
            raise ValueError(f"{sources[0]} is of use in stage 2 only; add a section cdpo, or leave it out")
        return self
