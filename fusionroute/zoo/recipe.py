"""The settings by which the zoo's models are made, all in one place, and written beside the weights."""

from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Network:
    """A Llama of under a million parameters."""

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 256
    tie_word_embeddings: bool = True
    # The usual 0.02 suits wide networks; at this width attention learns to copy much sooner from larger weights.
    initializer_range: float = 0.09


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run.

    `carelessness` is the share of parts outside a model's own domain that it is taught wrongly, `general` the share of
    an expert's lessons that are the base's.
    """

    steps: int
    learning_rate: float
    carelessness: float
    general: float = 0.0
    label_smoothing: float = 0.0
    batch_size: int = 16
    warmup: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Experts are tuned gently from the base: half its rate, softened labels, some general lessons."""

    seed: int = 0
    network: Network = field(default_factory=Network)
    base: Stage = Stage(steps=1000, learning_rate=3e-3, carelessness=0.3)
    expert: Stage = Stage(steps=1000, learning_rate=1.5e-3, carelessness=0.7, general=0.2, label_smoothing=0.02)

    def scaled(self, scale: float) -> "Recipe":
        """The same recipe with that many times the steps, at least one."""
        base, expert = (replace(stage, steps=max(1, round(stage.steps * scale))) for stage in (self.base, self.expert))
        return replace(self, base=base, expert=expert)

    def stage(self, name: str) -> Stage:
        return self.base if name == "base" else self.expert

    def as_json(self) -> dict[str, object]:
        return asdict(self)
