"""What tokens mean: do models share a vocabulary, and if not, what do their tokens write, byte for byte?"""

from fusionroute.models.vocabulary.agreement import ROUTER, check_models, check_tokenizers, eos_ids
from fusionroute.models.vocabulary.cached import cache_folder
from fusionroute.models.vocabulary.ends import END_STRINGS, control_tokens, end_ids
from fusionroute.models.vocabulary.pieces import Pieces
from fusionroute.models.vocabulary.union import UnionVocabulary

__all__ = [
    "END_STRINGS",
    "ROUTER",
    "Pieces",
    "UnionVocabulary",
    "cache_folder",
    "check_models",
    "check_tokenizers",
    "control_tokens",
    "end_ids",
    "eos_ids",
]
