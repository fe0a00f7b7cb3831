"""An engine that nobody holds any more frees its caches at once: they are gigabytes, and wait for no collection."""

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import tiny
import tiny_members
from fusionroute.config import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.engine.method import Method
from fusionroute.engine.runner import Runner
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.methods.averaging import Averaging
from fusionroute.methods.fusion_route import FusionRoute
from fusionroute.methods.safe import Safe

TEAM = tiny.team()


def drafting(drafter: str) -> FusionRoute:
    model = {"model": "a model"} if drafter == "model" else {}
    settings = SpeculationSettings.parse({"drafter": drafter, **model})
    return FusionRoute(TEAM, speculation=settings, draft_model=tiny.language_model(seed=7) if model else None)


def ensemble() -> Safe:
    return Safe([tiny_members.byte_level(name, [" the", "ing"], seed=at).member for at, name in enumerate("ab")])


MAKERS = {
    "fusion_route": partial(FusionRoute, TEAM),
    **{f"drafted by {drafter}": partial(drafting, drafter) for drafter in ("router", "ngram", "model")},
    "averaging": partial(Averaging, tiny.experts()),
    "safe": ensemble,
}


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_caches_go_with_their_engine(make: Callable[[], Method], no_collection: None) -> None:
    method = make()
    engine, settings = Engine(method), GenerationSettings(max_new_tokens=8, ignore_eos=True)
    engine.generate([tiny.prompts(1)[0] * 3] * 2, settings, unrendered=["one two"] * 2)
    caches = [weakref.ref(runner.cache) for runner in method.runners if isinstance(runner, Runner)]
    assert caches
    del method, engine
    assert all(cache() is None for cache in caches)
