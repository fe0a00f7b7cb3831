"""End to end against a real server: every request and every byte on disk is real, only pauses are short."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fusionroute.errors import DataError, FusionRouteError, OutputExistsError, SettingsError
from fusionroute.evaluation.judge.cost import Cost
from fusionroute.evaluation.judge.tally import Tally
from fusionroute.evaluation.judge.win_rate import JudgeSettings, win_rate
from fusionroute.evaluation.statistics import wilson
from judge_server import JudgeServer, body, late, status, write_answers

A = {"p0": "9", "p1": "8.25", "p2": "3", "p3": "7", "p4": "6.5", "p5": "2"}
B = {"p5": "3", "p4": "6", "p3": "7", "p2": "4.75", "p1": "8", "p0": "1"}  # a wins 0, 1, 4; loses 2, 5; 3 is a tie


class Contest:
    """Two files of answers and a folder, judged by the server."""

    def __init__(self, server: JudgeServer, folder: Path):
        self.server = server
        self.a = write_answers(folder / "fused.jsonl", A)
        self.b = write_answers(folder / "tuned.jsonl", B, key="answer")
        self.output = folder / "judged"
        self.costs: list[Cost] = []

    def __call__(self, *, at_once: int = 3, timeout: float | None = None, **settings: Any) -> Tally:
        return win_rate(
            self.a, self.b, JudgeSettings.parse({"judge_model": "rule", **settings}), self.output,
            judge_url=self.server.url, at_once=at_once, timeout=timeout, pause=0.001, confirm=self.costs.append,
        )  # fmt: skip

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "verdicts.jsonl").read_text().split("\n")[:-1]]

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "win_rate.json").read_text()))


@pytest.fixture
def contest(served: JudgeServer, tmp_path: Path) -> Contest:
    return Contest(served, tmp_path)


def test_a_judging_from_end_to_end(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    tally = contest()
    assert (tally.wins, tally.losses, tally.ties, tally.n) == (3, 2, 1, 6)
    assert tally.win_rate == wilson(3, 6)
    assert sorted(contest.server.prompts()) == sorted(A)
    for asked in contest.server.asked:
        assert (asked.path, asked.key) == ("/v1/chat/completions", "Bearer abc")
        assert (asked.body["model"], asked.body["temperature"]) == ("rule", 0)
    for verdict in contest.verdicts:
        assert (verdict["score_a"], verdict["score_b"]) == (float(A[verdict["prompt"]]), float(B[verdict["prompt"]]))
        (asked,) = (each for each in contest.server.asked if each.prompt == verdict["prompt"])
        assert verdict["a_first"] is ("(fused)" in asked.first)
        assert verdict["reply"].endswith("better than the other.")
    assert {verdict["a_first"] for verdict in contest.verdicts} == {True, False}
    result = contest.result
    assert (result["a"], result["b"], result["items"]) == ("fused.jsonl", "tuned.jsonl", 6)
    assert result["win_rate"]["value"] == 0.5
    assert result["settings"] == {"judge_model": "rule", "order": "random", "ties": "forbid", "seed": 0}
    assert result["answered_as"] == ["rule-2026"]
    assert (result["prompt_tokens"], result["completion_tokens"]) == (600, 60)
    assert "torch" in result["versions"]
    (cost,) = contest.costs
    assert cost.calls == 6
    sent = [message["content"] for asked in contest.server.asked for message in asked.body["messages"]]
    assert cost.characters == sum(map(len, sent))


def test_the_orders(contest: Contest) -> None:
    contest(order="first")
    assert all("(fused)" in asked.first and "(tuned)" in asked.second for asked in contest.server.asked)
    assert contest.result["first_preferred"] is None

    contest.output = contest.output.with_name("both")
    contest.server.asked.clear()
    tally = contest(order="both")
    shown = {(asked.prompt, "(fused)" in asked.first) for asked in contest.server.asked}
    assert len(contest.server.asked) == len(shown) == 12
    assert (tally.wins, tally.losses, tally.ties, tally.n) == (3, 2, 1, 6)
    assert tally.first_preferred == wilson(5, 10)  # this judge is fair

    first = {}
    for seed in (0, 1):
        contest.output = contest.output.with_name(f"random{seed}")
        contest.server.asked.clear()
        contest(order="random", seed=seed)
        first[seed] = {asked.prompt: "(fused)" in asked.first for asked in contest.server.asked}
    assert first[0] != first[1]


def test_a_judge_that_goes_by_the_order_is_found_out(contest: Contest) -> None:
    contest.server.say = dict.fromkeys(A, "9 4\nThe first.")
    tally = contest(order="both")
    assert (tally.wins, tally.losses, tally.ties) == (0, 0, 6)  # summed over both orders it says nothing
    assert tally.first_preferred == wilson(12, 12)
    assert tally.by_order["a_first"]["wins"] == tally.by_order["b_first"]["losses"] == 6


def test_nonsense_is_counted_and_left_out(contest: Contest) -> None:
    contest.server.say = {"p0": "The first one, clearly.", "p1": "8.3 8", "p2": ""}
    tally = contest()
    assert (tally.unparsable, tally.off_step, tally.n) == (2, 1, 3)
    assert (tally.wins, tally.losses, tally.ties) == (1, 1, 1)
    assert tally.win_rate == wilson(1, 3)
    assert len(contest.server.asked) == 6  # asked once: another draw is another judge
    kept = {verdict["prompt"]: verdict for verdict in contest.verdicts}
    assert (kept["p0"]["problem"], kept["p0"]["reply"]) == ("unparsable", "The first one, clearly.")
    assert (kept["p1"]["problem"], kept["p1"]["score_a"]) == ("off_step", None)
    assert contest().unparsable == 2
    assert len(contest.server.asked) == 6


def test_nothing_but_nonsense(contest: Contest) -> None:
    contest.server.say = dict.fromkeys(A, "no")
    assert contest().win_rate is None
    assert contest.result["win_rate"] is None


def test_what_passes_is_waited_for(contest: Contest) -> None:
    contest.server.faults = {
        "p0": [status(500), status(429, Retry_After="0"), status(503)],
        "p1": [late(0.6)],
    }
    assert contest(timeout=0.3).n == 6
    assert contest.server.prompts().count("p0") == 4
    assert contest.server.prompts().count("p1") == 2


def test_interrupted_and_gone_on_with(contest: Contest) -> None:
    """The judge goes down on one prompt; nothing that it said before is asked again."""
    contest.server.faults = {"p3": [status(503)] * 5}
    message = r"failed 5 times, the last time by HTTP 503: .*; \d of 6 verdicts are kept: the same command goes on"
    with pytest.raises(FusionRouteError, match=message):
        contest(at_once=2)
    kept = {verdict["prompt"] for verdict in contest.verdicts}
    assert {"p0", "p1", "p2"} <= kept < set(A)
    assert not (contest.output / "win_rate.json").exists()
    contest.server.asked.clear()
    tally = contest(at_once=2)
    assert sorted(contest.server.prompts()) == sorted(set(A) - kept)
    assert [cost.calls for cost in contest.costs] == [6, 6 - len(kept)]
    assert (tally.wins, tally.losses, tally.ties) == (3, 2, 1)
    assert contest() == tally  # all is there: nobody is asked, nothing is to be confirmed
    assert len(contest.server.asked) == 6 - len(kept)
    assert len(contest.costs) == 2


def test_timeouts_end_in_a_clear_error(contest: Contest) -> None:
    contest.server.faults = {prompt: [late(0.25)] * 5 for prompt in A}
    with pytest.raises(FusionRouteError, match=r"failed 5 times, the last time by .*timed out; 0 of 6 verdicts"):
        contest(timeout=0.05, at_once=6)


def test_ctrl_c_keeps_what_is_under_way(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first verdict is there and two others are being written when Ctrl-C comes: they are paid for."""
    from fusionroute.evaluation.judge.verdicts import VerdictFolder

    append, together, reply = VerdictFolder.append, threading.Event(), contest.server.reply

    def append_and_interrupt(self: VerdictFolder, *arguments: Any) -> None:
        append(self, *arguments)
        if len(self.verdicts) == 1:
            threading.Timer(0.1, together.set).start()  # by then nothing more is asked
            raise KeyboardInterrupt

    def hold(asked: Any) -> Any:
        if asked is not contest.server.asked[0]:
            together.wait(5)
        return reply(asked)

    with monkeypatch.context() as patch:
        patch.setattr(VerdictFolder, "append", append_and_interrupt)
        patch.setattr(contest.server, "reply", hold)
        with pytest.raises(KeyboardInterrupt):
            contest(at_once=3)
    asked = set(contest.server.prompts())
    assert {verdict["prompt"] for verdict in contest.verdicts} == asked
    assert 3 <= len(asked) < 6
    contest()
    assert sorted(contest.server.prompts()) == sorted(A)


def test_a_line_that_was_cut_off_is_asked_for_again(contest: Contest) -> None:
    tally = contest()
    path = contest.output / "verdicts.jsonl"
    last = contest.verdicts[-1]["prompt"]
    path.write_bytes(path.read_bytes()[:-20])  # as a killed process leaves it
    contest.server.asked.clear()
    assert contest() == tally
    assert contest.server.prompts() == [last]
    assert len(contest.verdicts) == 6
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match=r"verdicts\.jsonl:1 is no verdict .* remove that line"):
        contest()


def test_other_settings_or_answers_are_another_judging(contest: Contest) -> None:
    contest()
    for settings, message in {
        "order": "order was 'random', is now 'both'",
        "judge_model": "judge_model was 'rule', is now 'both'",
    }.items():
        with pytest.raises(OutputExistsError, match=f"holds another judging .*{message}"):
            contest(**{settings: "both"})
    assert contest(ties="half").win_rate.value == 3.5 / 6  # type: ignore[union-attr]
    assert contest.result["settings"]["ties"] == "half"
    write_answers(contest.b, {**B, "p5": "4"})
    with pytest.raises(OutputExistsError, match="answers was"):
        contest()
    assert len(contest.server.asked) == 6
    (contest.output / "settings.json").unlink()
    with pytest.raises(OutputExistsError, match=r"no settings\.json of a judging"):
        contest()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(404), r"refuses: HTTP 404: .*check judge_url, judge_model .*asked about 'p\d'"),
        (status(302, Location="http://127.0.0.1:9/"), "refuses: HTTP 302"),
        (body(b"<html>"), "no chat completion: b'<html>'"),
        (body(b"[]"), "no chat completion"),
    ],
)
def test_what_cannot_work_is_not_tried_again(contest: Contest, fault: Any, message: str) -> None:
    contest.server.faults = {prompt: [fault] * 5 for prompt in A}
    with pytest.raises(SettingsError, match=message):
        contest(at_once=1)
    assert len(contest.server.prompts()) == len(set(contest.server.prompts())) < 6


def test_nothing_is_written_or_asked_without_consent(contest: Contest) -> None:
    def decline(cost: Cost) -> None:
        raise SettingsError("no")

    with pytest.raises(SettingsError, match="no"):
        win_rate(
            contest.a, contest.b, JudgeSettings(judge_model="rule"), contest.output, judge_url=contest.server.url,
            confirm=decline,
        )  # fmt: skip
    assert not contest.output.exists()
    assert contest.server.asked == []


def test_several_are_asked_at_once(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    together, reply = threading.Barrier(6), contest.server.reply

    def all_or_none(asked: Any) -> Any:
        together.wait(5)
        return reply(asked)

    monkeypatch.setattr(contest.server, "reply", all_or_none)
    assert contest(at_once=6).n == 6


def test_odd_characters_survive(contest: Contest) -> None:
    contest.server.say = {"p0": "9 1\nGewiß: \ud83d\u2028é"}  # half a surrogate pair, which JSON may hold
    contest()
    kept = {verdict["prompt"]: verdict["reply"] for verdict in contest.verdicts}
    assert kept["p0"] == "9 1\nGewiß: \ud83d\u2028é"
    assert contest().n == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "second"}, "order: .*'first', 'random' or 'both'"),
        ({"ties": "win"}, "ties: .*'forbid' or 'half'"),
        ({"judge_model": ""}, "judge_model"),
        ({"oder": "both"}, "did you mean 'order'"),
    ],
)
def test_settings_that_are_none(contest: Contest, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        contest(**settings)


def test_an_address_that_is_none(contest: Contest) -> None:
    contest.server.url = "host:8000"
    with pytest.raises(SettingsError, match="judge_url starts with http"):
        contest()
    with pytest.raises(SettingsError, match="at_once must be at least 1"):
        contest(at_once=0)
