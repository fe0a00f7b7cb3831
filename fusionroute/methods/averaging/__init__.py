"""Averages of next-token distributions: of one vocabulary, or over the strings of several (GaC, UniTE)."""

from fusionroute.methods.averaging.every_token import AveragingAcross
from fusionroute.methods.averaging.gac import Gac
from fusionroute.methods.averaging.host import Blend, Choice, Host, choice_at, choose, choose_by_chance
from fusionroute.methods.averaging.hosts import Gate, host_of
from fusionroute.methods.averaging.one_vocabulary import Averaging
from fusionroute.methods.averaging.unite import Unite

__all__ = [
    "Averaging",
    "AveragingAcross",
    "Blend",
    "Choice",
    "Gac",
    "Gate",
    "Host",
    "Unite",
    "choice_at",
    "choose",
    "choose_by_chance",
    "host_of",
]
