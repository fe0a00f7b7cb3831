"""Ways of writing an answer, one file each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionroute.engine.members import OfMembers
    from fusionroute.models.ensemble import EnsembleOptions
    from fusionroute.models.member import Member


def ensemble_method(members: Sequence["Member"], options: "EnsembleOptions") -> "OfMembers":
    """The method that an ensemble file names, over ``members``.

    Raises:
        SettingsError, VocabularyError: as the method does.
    """
    from fusionroute.methods.averaging.every_token import AveragingAcross
    from fusionroute.methods.safe import Safe

    methods = {"safe": Safe, "averaging": AveragingAcross}
    return methods[options.method](members, **options.keywords())
