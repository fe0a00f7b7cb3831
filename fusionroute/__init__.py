"""Several language models write one answer together, token by token."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionroute.answering import StreamedToken
    from fusionroute.calibration import choose_drafter
    from fusionroute.config import GenerationSettings
    from fusionroute.engine.sequence import Completion, TraceRecord
    from fusionroute.ensemble import Ensemble
    from fusionroute.errors import FusionRouteError
    from fusionroute.models.member import Member
    from fusionroute.models.router import Router
    from fusionroute.team import Team

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Ensemble",
    "FusionRouteError",
    "GenerationSettings",
    "Member",
    "Router",
    "StreamedToken",
    "Team",
    "TraceRecord",
    "choose_drafter",
]
# Loaded when first asked for: torch takes seconds, and `fusionroute --help` needs none of it.
HOMES = {
    "Completion": "engine.sequence",
    "Ensemble": "ensemble",
    "FusionRouteError": "errors",
    "GenerationSettings": "config",
    "Member": "models.member",
    "Router": "models.router",
    "StreamedToken": "answering",
    "Team": "team",
    "TraceRecord": "engine.sequence",
    "choose_drafter": "calibration",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
