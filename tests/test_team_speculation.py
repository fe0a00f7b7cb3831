"""Speculation as a caller asks for it: the library and the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from fusionroute import Team
from fusionroute.cli import app
from fusionroute.engine.speculation import SpeculationSettings
from fusionroute.errors import CheckpointError, SettingsError, VocabularyError
from fusionroute.server.offer import Offer
from fusionroute.server.settings import ServerSettings

OPTIONS: dict = {"max_new_tokens": 14, "stop": "q"}
PROMPT = "abcabcabcab"


@pytest.fixture(scope="module")
def team() -> Team:
    return tiny.team()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A draft model on disk."""
    return save(tmp_path_factory.mktemp("small"), num_hidden_layers=1)


def save(folder: Path, **changes) -> str:
    tiny.language_model(seed=100, **changes).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_generate_and_stream_write_the_same(team: Team, small: str) -> None:
    (wanted,) = team.generate([PROMPT], logprobs=1, prompt_logprobs=1, candidates=1, **OPTIONS)
    for speculation in ("router", "ngram", small, {"drafter": "router", "max_draft": 3, "adaptive": False}):
        (found,) = team.generate(
            [PROMPT], speculation=speculation, logprobs=1, prompt_logprobs=1, candidates=1, **OPTIONS
        )
        assert (found.token_ids, found.text) == (wanted.token_ids, wanted.text)
        assert [name for name, _ in found.trace[-1].candidates] == [name for name, _ in wanted.trace[-1].candidates]
        assert found.prompt_logprobs is not None
        assert [token for token, *_ in found.prompt_logprobs] == tiny.tokenizer()(PROMPT).input_ids
        streamed = list(team.stream(PROMPT, speculation=speculation, **OPTIONS))
        assert "".join(token.text for token in streamed) == wanted.text
        assert [token.token_id for token in streamed] == wanted.token_ids
        assert streamed[-1].finish_reason == wanted.finish_reason


def test_an_answer_cancelled_between_rounds_keeps_what_was_written(team: Team) -> None:
    (wanted,) = team.generate([PROMPT], max_new_tokens=12)
    engine = team.engine(speculation={"drafter": "router", "max_draft": 2, "adaptive": False})
    ids = team.prompt_format.encode(PROMPT)
    for sequence in engine.stream(ids, team_settings(12)):
        if sequence.position >= 4:
            break
    assert sequence.completion().finish_reason == "cancelled"
    assert sequence.output_ids == wanted.token_ids[: len(sequence.output_ids)]
    assert not any(runner.cache.lengths for runner in engine.method.runners)


def team_settings(new: int):
    from fusionroute import GenerationSettings

    return GenerationSettings(max_new_tokens=new)


def test_what_one_call_learns_the_next_one_knows(team: Team) -> None:
    first, second = (team.method(speculation="ngram").speculation.pace for _ in range(2))
    assert first is second
    assert team.method(speculation={"drafter": "ngram", "max_draft": 5}).speculation.pace is not first
    assert team.method(speculation="ngram", complement=False).speculation.pace is not first, "experts alone choose else"


def test_a_draft_model_takes_its_share_of_the_memory(team: Team, small: str) -> None:
    plain, drafting = team.engine(cache_limit=2**20), team.engine(cache_limit=2**20, speculation=small)
    assert drafting.scheduler.token_limit < plain.scheduler.token_limit


def test_a_draft_model_of_another_vocabulary_is_refused_by_name(team: Team, tmp_path: Path) -> None:
    folder = save(tmp_path / "stranger")
    stranger = tiny.tokenizer()
    stranger.add_tokens(["one more"])
    stranger.save_pretrained(folder)
    with pytest.raises(VocabularyError, match=f"draft model: the tokenizer of '{folder}' differs from the team's in 1"):
        team.engine(speculation=folder)


def test_a_draft_model_that_is_padded_to_another_size_may_draft(team: Team, tmp_path: Path) -> None:
    folder = save(tmp_path / "padded", vocab_size=tiny.VOCABULARY + 7)
    (wanted,) = team.generate([PROMPT], **OPTIONS)
    settings = {"drafter": "model", "model": folder, "adaptive": False}
    assert team.generate([PROMPT], speculation=settings, **OPTIONS)[0].token_ids == wanted.token_ids


def test_what_cannot_draft_is_refused(team: Team, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        team.generate([PROMPT], speculation={"drafter": "router", "max_draft": 0})
    with pytest.raises(SettingsError, match="did you mean 'ngram'"):
        team.generate([PROMPT], speculation="ngrams")
    with pytest.raises(CheckpointError, match=r"^draft model: no model at .*nowhere"):
        team.generate([PROMPT], speculation=str(tmp_path / "nowhere"))


def cli(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def saved(team: Team, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teams") / "team"
    team.save_pretrained(folder, save_experts=True)
    return str(folder)


def test_the_command_line_drafts_and_says_what_it_cost(saved: str, small: str) -> None:
    common = ("generate", saved, PROMPT, "--max-new-tokens", "14", "--json")
    wanted = json.loads(cli(*common).stdout)
    assert "cost" not in wanted
    for drafter in ("router", "ngram", small):
        found = json.loads(cli(*common, "--speculation", drafter, "--max-draft", "3").stdout)
        assert found["token_ids"] == wanted["token_ids"]
        cost = found["cost"]
        assert 0 <= cost["kept"] <= cost["drafted"]
        assert set(cost["passes"]) == set(cost["tokens_read"]) >= {"router", "math", "code", "chat"}
        assert ("draft model" in cost["passes"]) == (drafter == small)


def test_a_draft_model_is_looked_for_before_the_team_is_loaded(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    result = cli("generate", str(tmp_path / "no team either"), PROMPT, "--speculation", nowhere)
    assert f"draft model: no model at '{nowhere}'" in str(result.exception or "") + result.output
    with pytest.raises(CheckpointError, match="draft model: no model at"):
        Offer.open(tmp_path / "no team either", speculation=SpeculationSettings(drafter="model", model=nowhere))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-draft", "3"), "--max-draft 3 does nothing without --speculation"),
        (("--speculation", "router", "--max-draft", "0"), "at least 1"),
        (("--speculation", "routr"), "did you mean 'router'"),
    ],
)
def test_the_command_line_says_what_is_wrong(saved: str, arguments: tuple[str, ...], told: str) -> None:
    result = cli("generate", saved, PROMPT, *arguments)
    assert result.exit_code != 0
    assert told in str(result.exception or "") + result.output


def test_an_ensemble_is_told_that_it_has_its_own_drafter(tmp_path: Path) -> None:
    file = tmp_path / "safe.yaml"
    file.write_text("models: {a: x/y, b: x/z}\n")
    for command in ("generate", "chat"):
        result = cli(command, str(file), *(("hello",) if command == "generate" else ()), "--speculation", "router")
        assert "an ensemble's drafter is its own" in str(result.exception or "") + result.output


def test_a_server_drafts_for_the_ways_that_route(team: Team, saved: str) -> None:
    settings = ServerSettings(speculation="ngram")
    assert settings.speculation == SpeculationSettings(drafter="ngram")
    offer = Offer.of_team(team, "team", speculation=settings.speculation)
    drafting = {id for id in offer if getattr(offer[id].engine.method, "drafted", None) is not None}
    assert drafting == {"team", "team/no-complement"}
    with pytest.raises(SettingsError, match="at least 1"):
        ServerSettings.parse({"speculation": {"drafter": "router", "max_draft": 0}})
