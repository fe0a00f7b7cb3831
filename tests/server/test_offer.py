"""Which model ids a team and an ensemble give, on which weights; and that any thread may prepare requests for them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
import tiny_ensemble
import tiny_server
from fusionroute import Ensemble, Team
from fusionroute.config import GenerationSettings
from fusionroute.errors import CheckpointError, PromptError, SettingsError
from fusionroute.server.offer import Offer
from tiny_server import NAME, ask, running, sequences

CHAT = [{"role": "user", "content": "<eos> hello <user> world"}]  # quoted controls: the longest way through a format


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team(prompt="chat_template")


@pytest.fixture(scope="module")
def offer(team: Team) -> Offer:
    return tiny_server.offer(team)


@pytest.fixture(scope="module")
def ensemble_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return tiny_ensemble.write_file(folder, tiny_ensemble.save(folder), weights={"bytes": 2, "pieces": 1, "other": 0})


def test_a_team_offers_its_ways_of_writing_the_whole_first(offer: Offer) -> None:
    ids = ["", "/no-complement", "/router", "/average", "/math", "/code", "/chat"]
    assert list(offer) == [NAME + what for what in ids]
    assert all(offered.id == id and "\n" not in offered.description for id, offered in offer.items())
    assert len({offered.description for offered in offer.values()}) == len(offer)


def test_one_runner_for_each_model_and_one_scheduler(offer: Offer, team: Team) -> None:
    runners = [runner for offered in offer.values() for runner in offered.engine.method.runners]
    assert len(runners) > len(team.models)
    assert {id(runner) for runner in runners} == {id(runner) for runner in offer.runners}
    assert {id(runner.model) for runner in offer.runners} == {id(model) for model in team.models.values()}
    assert len(offer.runners) == len(team.models)
    assert {id(offered.engine.scheduler) for offered in offer.values()} == {id(offer.scheduler)}


def test_what_is_said_of_an_id_holds_for_its_trace(offer: Offer) -> None:
    with running(offer) as worker:
        for id, offered in offer.items():
            asked = ask(worker, "hi", model=id, max_new_tokens=8, ignore_eos=True).wait()
            records = [record for update in asked.of(0) for record, _ in update.written]
            assert len(records) == 8
            assert {record.expert for record in records} <= set(offered.writers)
            assert {len(record.weights) for record in records} == {len(offered.weighted)}
            assert offered.takes_token_ids
            assert offered.context_length == tiny.CONTEXT


@pytest.mark.parametrize("options", [{}, {"prompt_logprobs": 2}])
def test_ids_that_claim_to_score_prompts_do(offer: Offer, options: dict) -> None:
    with running(offer) as worker:
        for id, offered in offer.items():
            assert offered.scores_prompts
            asked = ask(worker, "hi", model=id, max_new_tokens=1, **options).wait()
            length = len(offered.prompt_format.encode("hi"))
            found = [update.prompt_logprobs for update in asked.updates]
            assert [each and len(each) for each in found] == [length if options else None]


def test_a_folder_gives_the_name_unless_one_is_given(team: Team, tmp_path: Path) -> None:
    team.save_pretrained(tmp_path / "my team", save_experts=True)
    opened = Offer.open(tmp_path / "my team", max_batch=3, cache_limit="8MiB", prefix_reuse=False, prefill_chunk=5)
    assert next(iter(opened)) == "my-team"
    assert opened.scheduler.max_batch == 3
    assert {offered.engine.prefill_chunk for offered in opened.values()} == {5}
    assert {runner.prefixes for runner in opened.runners} == {None}
    assert list(Offer.open(tmp_path / "my team", "other"))[-1] == "other/chat"


def test_bad_names_limits_and_places_are_told(team: Team, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a model id is letters"):
        Offer.of_team(team, "a/b")
    with pytest.raises(SettingsError, match="max_batch must be at least 1; got 0"):
        Offer.of_team(team, NAME, max_batch=0)
    with pytest.raises(SettingsError, match="cache_limit"):
        Offer.of_team(team, NAME, cache_limit="much")
    with pytest.raises(CheckpointError, match="no team folder"):
        Offer.open(tmp_path / "nothing here")


def test_an_expert_called_like_a_way_keeps_its_id() -> None:
    offer = tiny_server.offer(tiny.team(names=("average", "code")))
    assert list(offer) == [NAME + what for what in ("", "/no-complement", "/router", "/average", "/code")]
    assert offer[f"{NAME}/average"].writers == ("average",)
    assert not offer[f"{NAME}/average"].weighted


def test_one_expert_has_no_average() -> None:
    assert f"{NAME}/average" not in tiny_server.offer(tiny.team(names=("code",)))


def test_an_ensemble_offers_its_method_and_each_member(ensemble_file: Path) -> None:
    offer = Offer.open(ensemble_file, max_batch=4)
    assert list(offer) == ["ensemble", "ensemble/bytes", "ensemble/pieces", "ensemble/other"]
    whole, *alone = offer.values()
    assert whole.writers == whole.weighted == ("bytes", "pieces")  # weight 0 is never asked, but may write alone
    assert not whole.takes_token_ids
    assert not whole.scores_prompts
    assert all(each.takes_token_ids and each.scores_prompts and not each.weighted for each in alone)
    assert len(offer.runners) == len({id(runner.model) for runner in offer.runners}) == 3
    assert len({id(each.tokenizer) for each in alone}) == 3
    with pytest.raises(PromptError, match="speaks to one model only"):
        whole.engine.sequence([5, 6], GenerationSettings())


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5, "seed": 4}])
def test_an_ensemble_s_answers_are_those_of_the_library(ensemble_file: Path, options: dict) -> None:
    ensemble = Ensemble.from_file(ensemble_file)
    prompts = [CHAT, [{"role": "user", "content": "the world"}]]
    (first, second) = ensemble.generate(prompts, max_new_tokens=16, **options)
    with running(Offer.of_ensemble(ensemble, "pair")) as worker:
        asked = ask(worker, *prompts, model="pair", max_new_tokens=16, **options)
        alone = ask(worker, CHAT, model="pair/pieces", max_new_tokens=16, **options)
        asked.wait(), alone.wait()
    assert [(asked.ids(at), asked.text(at), asked.reason(at)) for at in (0, 1)] == [
        (each.token_ids, each.text, each.finish_reason) for each in (first, second)
    ]
    assert alone.ids()
    assert {record.expert for each in alone.updates for record, _ in each.written} == {"pieces"}


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    failed: list[BaseException] = []

    def run(at: int) -> None:
        try:
            work(at)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_the_worker_and_others_use_no_tokenizer_together(offer: Offer, team: Team, ensemble_file: Path) -> None:
    ensemble = Ensemble.from_file(ensemble_file)
    originals = {id(team.tokenizer), *(id(member.pieces.tokenizer) for member in ensemble.members)}
    for offered in [*offer.values(), *Offer.of_ensemble(ensemble, "pair").values()]:
        sequence = offered.engine.sequence(offered.prompt_format.encode(CHAT), GenerationSettings(), CHAT)
        assert id(sequence.tokenizer) in originals  # what the worker decodes with
        assert id(offered.tokenizer) not in originals


def test_a_prompt_format_is_the_original_s_on_either_side(offer: Offer, team: Team) -> None:
    offered = offer[NAME]
    for prompt in ("hi", CHAT, [7, 8]):
        assert offered.prompt_format.encode(prompt) == team.prompt_format.encode(prompt)
    assert offered.prompt_format.lead == team.prompt_format.lead
    assert not offered.prompt_format.refuses(CHAT)
    assert offered.prompt_format.name == "chat_template"


def test_the_worker_does_not_wait_for_whoever_encodes() -> None:
    offer = tiny_server.offer()
    prompt_format, found = offer[NAME].prompt_format, []

    def work() -> None:
        offer.claim()
        found.append(prompt_format.encode("hi"))

    wanted = prompt_format.encode("hi")
    with prompt_format._turn:  # as somebody's prompt of megabytes holds it
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(tiny_server.PATIENCE)
    assert found == [wanted]


def test_saved_truncation_does_not_reach_the_copy() -> None:
    team = tiny.team()
    team.tokenizer.backend_tokenizer.enable_truncation(4)  # as some tokenizer.json have it
    copied = tiny_server.offer(team)[NAME].tokenizer
    assert copied.backend_tokenizer.truncation is None
    assert len(copied.backend_tokenizer.encode("0123456789").ids) == 10


@pytest.mark.parametrize("kind", ["team", "ensemble"])
def test_many_threads_prepare_requests_while_the_worker_writes(kind: str, offer: Offer, ensemble_file: Path) -> None:
    offer = offer if kind == "team" else Offer.open(ensemble_file, "pair")
    whole = next(iter(offer))
    texts = [[{"role": "user", "content": f"<eos>{'hello wörld ' * at}"}] for at in range(1, 5)]
    with running(offer, max_waiting=1000) as worker:
        wanted = [ask(worker, text, model=whole, max_new_tokens=12).wait() for text in texts]
        ids = [offer[whole].prompt_format.encode(text) for text in texts]

        def hammer(at: int) -> None:
            text = texts[at % len(texts)]
            for round in range(20):
                assert offer[whole].prompt_format.encode(text) == ids[at % len(texts)]
                assert offer[whole].tokenizer.decode(ids[at % len(texts)])
                sequences(worker, [text], whole, max_new_tokens=12)
                if round % 10 == 0:
                    found = ask(worker, text, model=whole, max_new_tokens=12).wait()
                    assert found.ids() == wanted[at % len(texts)].ids()
                    assert found.text() == wanted[at % len(texts)].text()

        assert in_threads(8, hammer) == []
