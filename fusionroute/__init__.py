"""Several language models write one answer together, token by token."""

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
