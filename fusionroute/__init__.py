"""Several language models write one answer together, token by token."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionroute.config import GenerationSettings
    from fusionroute.engine.sequence import Completion, TraceRecord
    from fusionroute.errors import FusionRouteError
    from fusionroute.models.router import Router
    from fusionroute.team import StreamedToken, Team

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "FusionRouteError",
    "GenerationSettings",
    "Router",
    "StreamedToken",
    "Team",
    "TraceRecord",
]
# Loaded when first asked for: torch takes seconds, and `fusionroute --help` needs none of it.
HOMES = {
    "Completion": "engine.sequence",
    "FusionRouteError": "errors",
    "GenerationSettings": "config",
    "Router": "models.router",
    "StreamedToken": "team",
    "Team": "team",
    "TraceRecord": "engine.sequence",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
