"""Faster than one pass per token: someone drafts a few tokens, and one pass of each model says which of them stand."""

from fusionroute.engine.speculation.model import ModelDrafter
from fusionroute.engine.speculation.pace import Pace
from fusionroute.engine.speculation.settings import SpeculationSettings, about_draft_model
from fusionroute.engine.speculation.speculation import Speculation, new_pace

__all__ = ["ModelDrafter", "Pace", "Speculation", "SpeculationSettings", "about_draft_model", "new_pace"]
