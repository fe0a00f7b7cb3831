"""Who is compared: from a method's entry in a compare file to a method that can write.

A method's name becomes a class through `ENTRIES`; adding one is one entry here beside its own file.
"""

from typing import Any

from fusionroute.evaluation.compare.lineup.across import EveryTokenEntry, SafeEntry
from fusionroute.evaluation.compare.lineup.entry import SEED, Contestant, Entry, filled
from fusionroute.evaluation.compare.lineup.joint import AveragingEntry, CollabEntry, SequenceSelectionEntry
from fusionroute.evaluation.compare.lineup.merged import MergeEntry
from fusionroute.evaluation.compare.lineup.routed import C3POEntry
from fusionroute.evaluation.compare.lineup.shared import ScorerSettings, Shared
from fusionroute.evaluation.compare.lineup.single import SingleEntry
from fusionroute.evaluation.compare.lineup.team import FusionRouteEntry
from fusionroute.models.fingerprint import model_fingerprint, text_fingerprint

__all__ = [
    "ENTRIES",
    "SEED",
    "Contestant",
    "Entry",
    "ScorerSettings",
    "Shared",
    "SingleEntry",
    "filled",
    "fingerprints",
]

ENTRIES: dict[str, type[Entry]] = {
    "single": SingleEntry,
    "sequence_selection": SequenceSelectionEntry,
    "collab": CollabEntry,
    "averaging": AveragingEntry,
    "unite": EveryTokenEntry,
    "gac": EveryTokenEntry,
    "safe": SafeEntry,
    "task_arithmetic": MergeEntry,
    "ties": MergeEntry,
    "dare": MergeEntry,
    "fusion_route": FusionRouteEntry,
    "c3po": C3POEntry,
}


def fingerprints(entry: Entry, shared: Shared) -> dict[str, Any]:
    """Which models an entry stands for, by their content. Raises `CheckpointError` for one that is not there."""
    return {
        # a folder may have been renamed, so its name says nothing
        name: model_fingerprint(reference, shared.dtype) | {"model": None, "text": text_fingerprint(reference)}
        for name, reference in entry.models(shared).items()
    }
