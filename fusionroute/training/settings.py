"""What a team file may say. Where the paper is silent, the default and its reason stand beside the option."""

from typing import Any, Literal

from pydantic import Field, field_validator

from fusionroute.config import Settings, nearest
from fusionroute.models.loading import DTYPES, ModelReference
from fusionroute.models.prompt import CHAT_TEMPLATE, TEMPLATES
from fusionroute.models.team import check_names


def _known_dtype(name: str | None) -> str | None:
    if name is not None and name not in (*DTYPES, "auto"):
        raise ValueError(nearest(name, [*DTYPES, "auto"]))
    return name


class RouterSettings(Settings):
    """The router before training."""

    init: str  # hub id or folder; the paper starts from the instruction expert
    revision: str | None = None
    head_bias: bool = False  # spec, decision i
    dtype: str = "float32"  # of the weights while training: steps of 1e-5 are lost in bfloat16's rounding

    _dtype = field_validator("dtype")(_known_dtype)

    @property
    def reference(self) -> ModelReference:
        return ModelReference(model=self.init, revision=self.revision)


class DataSettings(Settings):
    train: str  # .jsonl or .parquet file, or hub id
    max_length: int | None = Field(None, ge=2)  # None = the smallest context of the team
    all_tokens: bool = False  # the formulas cover the answer only
    limit: int | None = Field(None, ge=1)  # the first rows only


class ScoreSettings(Settings):
    batch_size: int = Field(16, ge=1)


class SFTSettings(Settings):
    """Stage 1. The paper gives learning rate, epochs and λ; the rest are customary values for fine-tuning."""

    learning_rate: float = Field(1e-5, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    accumulation: int = Field(1, ge=1)  # batches per step; losses are means over the whole step
    routing_weight: float = Field(1 / 3, ge=0)  # λ
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)  # 0 = no clipping
    max_steps: int | None = Field(None, ge=1)  # None = as the epochs say
    save_steps: int = Field(500, ge=1)
    logging_steps: int = Field(10, ge=1)
    gradient_checkpointing: bool = False
    bf16: bool = False  # bfloat16 arithmetic over the weights as they are


class TrainSettings(Settings):
    """A team file. The order of the experts is that of the route head."""

    experts: dict[str, ModelReference]
    router: RouterSettings
    prompt: str | None = None
    data: DataSettings
    score: ScoreSettings = ScoreSettings()
    sft: SFTSettings = SFTSettings()
    seed: int = Field(0, ge=0)
    dtype: str | None = None  # of the experts while scoring and of the finished router; None = as in their checkpoints
    device: str | None = None

    _dtype = field_validator("dtype")(_known_dtype)

    @field_validator("experts", mode="before")
    @classmethod
    def _names_come_first(cls, experts: Any) -> Any:
        if not isinstance(experts, dict):
            raise ValueError("experts map names to models, such as {math: owner/name}")
        check_names(list(experts))
        return {name: {"model": value} if isinstance(value, str) else value for name, value in experts.items()}

    @field_validator("router", mode="before")
    @classmethod
    def _a_router_may_be_a_name(cls, router: Any) -> Any:
        return {"init": router} if isinstance(router, str) else router

    @field_validator("prompt")
    @classmethod
    def _prompt_is_known(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt not in (CHAT_TEMPLATE, *TEMPLATES):
            raise ValueError(nearest(prompt, [CHAT_TEMPLATE, *TEMPLATES]))
        return prompt
