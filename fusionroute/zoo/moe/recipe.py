"""The settings by which the mixture-of-experts models are made, all in one place, and written beside the weights."""

from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Network:
    """An OLMoE or a Qwen3-MoE of 1.6 million parameters, of which a token uses under a third.

    The last `routed_layers` have experts of known skills. The layers before them are left to themselves, as the first
    layers of a large model are: there routing follows the word more than what is asked.
    """

    hidden_size: int = 96
    expert_size: int = 48
    num_hidden_layers: int = 6
    routed_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 64
    # The usual 0.02 suits wide networks; at this width attention learns to copy much sooner from larger weights.
    initializer_range: float = 0.09
    # What attention and experts write at first is scaled down, so that the words can still be read behind it.
    branch_scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Schooling:
    """Experts are taught with the routing given.

    `notes` is the share of lessons in which the readers alone name the skill that a request needs, `evenness` how
    equally the two experts of a token share: the smaller share is at least this.
    """

    batches: int = 700
    batch_size: int = 64
    notes: float = 0.15
    evenness: float = 0.35
    matrix_learning_rate: float = 0.01
    learning_rate: float = 3e-3
    warmup: float = 0.08
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class GateSchooling:
    """The gates see few questions, in familiar wordings alone, and for a short while."""

    questions: int = 4
    steps: int = 60
    learning_rate: float = 0.03


@dataclass(frozen=True, kw_only=True)
class MoeRecipe:
    seed: int = 0
    network: Network = field(default_factory=Network)
    schooling: Schooling = field(default_factory=Schooling)
    gates: GateSchooling = field(default_factory=GateSchooling)

    def scaled(self, scale: float) -> "MoeRecipe":
        """The same recipe with that many times the batches and steps, at least one."""
        batches, steps = (max(1, round(count * scale)) for count in (self.schooling.batches, self.gates.steps))
        return replace(self, schooling=replace(self.schooling, batches=batches), gates=replace(self.gates, steps=steps))

    def as_json(self) -> dict[str, object]:
        return asdict(self)
