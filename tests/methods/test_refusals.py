"""Settings that mean nothing to a method are refused by name, before anything is queued."""

import pytest

import tiny
from fusionroute.config import GenerationSettings
from fusionroute.engine.method import Method
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging import Averaging, AveragingAcross
from fusionroute.methods.collab import Collab
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.safe import Safe
from fusionroute.methods.sequence_selection import SequenceSelection
from fusionroute.methods.single import Single
from fusionroute.team import Team
from tiny_members import byte_level, with_fallback

NEEDS_ONE = [{"presence_penalty": 0.5}, {"frequency_penalty": -0.5}, {"candidates": 0}, {"candidates": 5}]
ALL = [*NEEDS_ONE, {"prompt_logprobs": 0}]


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team()


def refusing(team: Team, name: str) -> Method:
    members = [byte_level("a", [" the"], seed=1).member, with_fallback("b", [" an"], seed=2).member]
    methods = {
        "Safe": lambda: Safe(members),
        "AveragingAcross": lambda: AveragingAcross(members),
        "Collab": lambda: Collab(team.experts),
        "SequenceSelection": lambda: SequenceSelection(team.experts),
    }
    return methods[name]()


@pytest.mark.parametrize("name", ["Safe", "AveragingAcross", "Collab", "SequenceSelection"])
def test_what_has_no_one_distribution_refuses(team: Team, name: str) -> None:
    method = refusing(team, name)
    method.check(GenerationSettings(presence_penalty=0, frequency_penalty=0))
    for settings in ALL:
        (option, value) = next(iter(settings.items()))
        with pytest.raises(SettingsError, match=rf"{name}.*{option}={value}|{name}.*drop {option}={value}"):
            method.check(GenerationSettings(**settings))


def test_what_has_one_takes_all_of_them(team: Team) -> None:
    for method in (FusionRoute(team), Averaging(team.experts), Single(team.experts["math"], "math")):
        for settings in ALL:
            method.check(GenerationSettings(**settings))


def test_what_writes_greedily_still_refuses_to_sample(team: Team) -> None:
    with pytest.raises(SettingsError, match="Collab writes greedily"):
        Collab(team.experts).check(GenerationSettings(do_sample=True))
