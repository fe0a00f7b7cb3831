"""The settings by which the families are made, all in one place, and written beside the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from fusionroute.zoo.recipe import Network
from fusionroute.zoo.tasks import ledger


@dataclass(frozen=True, kw_only=True)
class Phase:
    """So many batches of accounts that have from `fewest` to `most` steps."""

    batches: int
    fewest: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is one model's own, beside its tokenizer's algorithm.

    `known_names` is how many of the names its tokenizer learns from; the others fall apart into pieces.
    `kinds` weighs the kinds of steps in the lessons: what comes seldom stays a weakness.
    """

    known_names: int
    kinds: Mapping[str, float] = field(default_factory=lambda: dict(ledger.EVEN))


@dataclass(frozen=True, kw_only=True)
class FamilyRecipe:
    """Short accounts first, where copying and sums are learned at a fraction of the cost; then the whole length.

    `branch_scale` is for `quieten_branches`; `matrix_learning_rate` is Muon's, the other one is AdamW's.
    """

    seed: int = 0
    tokenizer_lessons: int = 1500
    network: Network = field(default_factory=lambda: Network(num_hidden_layers=3, max_position_embeddings=512))
    branch_scale: float = 0.1
    phases: tuple[Phase, ...] = (Phase(batches=400, fewest=1, most=3), Phase(batches=850, fewest=2, most=10))
    batch_size: int = 8
    matrix_learning_rate: float = 0.01
    learning_rate: float = 2e-3
    warmup: float = 0.08
    weight_decay: float = 0.01
    label_smoothing: float = 0.02
    families: Mapping[str, Family] = field(
        default_factory=lambda: {
            "byte_bpe": Family(known_names=70, kinds={"gain": 1.0, "loss": 1.5, "same": 1.4, "double": 0.06}),
            "piece_bpe": Family(known_names=70, kinds={"gain": 1.0, "loss": 1.5, "same": 0.7, "double": 0.6}),
            "unigram": Family(known_names=100, kinds={"gain": 1.0, "loss": 1.0, "same": 1.0, "double": 0.3}),
        }
    )

    def scaled(self, scale: float) -> "FamilyRecipe":
        """The same recipe with that many times the lessons: for tokenizers some dozens at least, one batch a phase."""
        phases = tuple(replace(phase, batches=max(1, round(phase.batches * scale))) for phase in self.phases)
        return replace(self, phases=phases, tokenizer_lessons=max(50, round(self.tokenizer_lessons * scale)))

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"phases": [asdict(phase) for phase in self.phases]}
