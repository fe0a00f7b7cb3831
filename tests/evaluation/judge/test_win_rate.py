"""End to end against a real server: every request and every byte on disk is real, only pauses are short."""

import hashlib
import json
import signal
import threading
import time
from email.utils import formatdate
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

    def __call__(
        self, *, at_once: int = 3, timeout: float | None = None, pause: float = 0.001, **settings: Any
    ) -> Tally:
        return win_rate(
            self.a, self.b, JudgeSettings.parse({"judge_model": "rule", **settings}), self.output,
            judge_url=self.server.url, at_once=at_once, timeout=timeout, pause=pause, confirm=self.costs.append,
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
    assert (result["a"]["name"], result["b"]["file"], result["items"]) == ("fused", "tuned.jsonl", 6)
    assert result["a"]["sha256"] == hashlib.sha256(contest.a.read_bytes()).hexdigest()
    assert result["judge_url"] == contest.server.url
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
        "p1": [late(3)],
    }
    assert contest(timeout=1.5).n == 6
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


def test_other_settings_are_another_judging(contest: Contest) -> None:
    contest()
    for settings, message in {
        "order": "order was 'random', is now 'both'",
        "judge_model": "judge_model was 'rule', is now 'both'",
    }.items():
        with pytest.raises(OutputExistsError, match=f"holds another judging .*{message}"):
            contest(**{settings: "both"})
    assert contest(ties="half").win_rate.value == 3.5 / 6  # type: ignore[union-attr]
    assert contest.result["settings"]["ties"] == "half"
    assert len(contest.server.asked) == 6
    (contest.output / "settings.json").unlink()
    with pytest.raises(OutputExistsError, match=r"no settings\.json of a judging"):
        contest()


def test_verdicts_belong_to_their_answers(contest: Contest) -> None:
    """A prompt less, and another answer: what was paid for is used again, and what is no longer asked left out."""
    contest()
    write_answers(contest.a, {prompt: worth for prompt, worth in A.items() if prompt != "p0"})
    write_answers(contest.b, {prompt: worth for prompt, worth in {**B, "p5": "1"}.items() if prompt != "p0"}, "answer")
    contest.server.asked.clear()
    tally = contest()
    assert contest.server.prompts() == ["p5"]
    assert (tally.wins, tally.losses, tally.ties, tally.n) == (3, 1, 1, 5)
    assert tally.prompt_tokens == 500
    assert len(contest.verdicts) == 7


@pytest.mark.parametrize("code", [400, 413, 422])
def test_what_the_judge_refuses_is_counted_and_the_rest_judged(code: int, contest: Contest) -> None:
    contest.server.faults = {prompt: [status(code, "too long")] * 5 for prompt in ("p0", "p1", "p5")}
    tally = contest(at_once=1)
    assert (tally.refused, tally.wins, tally.losses, tally.ties, tally.n) == (3, 1, 1, 1, 3)
    assert "not counted: 3 refused" in str(tally)
    assert contest.result["refused"] == 3
    assert {each["prompt"] for each in contest.verdicts if each["problem"] == "refused"} == {"p0", "p1", "p5"}
    assert all("too long" in each["reply"] for each in contest.verdicts if each["problem"] == "refused")
    assert contest() == tally  # and is not asked again
    assert len(contest.server.asked) == 6


def test_one_refused_order_leaves_the_item_out(contest: Contest) -> None:
    contest.server.faults = {"p0": [status(400)]}
    tally = contest(order="both", at_once=1)
    assert (tally.refused, tally.n) == (1, 5)
    assert len(contest.server.asked) == 12


def test_a_judge_that_refuses_from_the_beginning_is_not_asked_on(contest: Contest) -> None:
    contest.server.faults = {prompt: [status(400, "no such parameter")] for prompt in A}
    with pytest.raises(SettingsError, match=r"the first 3 questions are all refused: .*no such parameter.*0 of 6"):
        contest(at_once=1)
    assert contest.verdicts == []
    assert len(contest.server.asked) == 3
    contest.server.faults.clear()
    assert contest().n == 6


def test_the_only_prompts_refused_are_an_error_but_the_last_ones_are_not(contest: Contest) -> None:
    def ask_about(*prompts: str) -> Tally:
        for path, worth in ((contest.a, A), (contest.b, B)):
            write_answers(path, {prompt: worth[prompt] for prompt in prompts})
        return contest()

    contest.server.faults = {prompt: [status(400)] * 2 for prompt in ("p0", "p1")}
    with pytest.raises(SettingsError, match=r"HTTP 400: .*0 of 2 verdicts"):
        ask_about("p0", "p1")
    assert contest.verdicts == []
    assert ask_about("p2", "p3").n == 2
    tally = ask_about("p0", "p1", "p2", "p3")
    assert (tally.refused, tally.n) == (2, 2)


def test_verdicts_that_came_after_refusals_make_the_same_command_go_on(contest: Contest) -> None:
    """The first three are refused while the fourth is being judged: with its verdict theirs are kept."""
    reply = contest.server.reply
    contest.server.faults = {prompt: [status(400)] * 2 for prompt in ("p0", "p1", "p2")}

    fourth_is_asked, others_may_go_on = threading.Event(), threading.Event()

    def fourth_is_slow(asked: Any) -> Any:
        if asked.prompt == "p3":
            fourth_is_asked.set()
            time.sleep(1.5)
            others_may_go_on.set()
        elif asked.prompt in ("p0", "p1", "p2"):
            fourth_is_asked.wait(10)  # so that it is under way when they are refused
        else:
            others_may_go_on.wait(10)  # whatever follows them gives no verdict before that
        return reply(asked)

    contest.server.reply = fourth_is_slow  # type: ignore[method-assign]
    with pytest.raises(SettingsError, match="the first 3 questions are all refused"):
        contest(at_once=4)
    assert {"p0", "p1", "p2", "p3"} <= {verdict["prompt"] for verdict in contest.verdicts}
    tally = contest(at_once=1)
    assert (tally.refused, tally.n) == (3, 3)


def test_a_refusal_of_a_later_prompt_waits_for_the_first_ones(contest: Contest) -> None:
    """Refusals come faster than answers: three of them before the first answer say nothing yet."""
    refused, reply = threading.Semaphore(0), contest.server.reply
    contest.server.faults = {prompt: [status(400)] for prompt in ("p1", "p2", "p3")}

    def refusals_first(asked: Any) -> Any:
        if asked.prompt in ("p1", "p2", "p3"):
            refused.release()
        else:
            for _ in range(3):
                refused.acquire(timeout=5)
            refused.release(3)
            time.sleep(0.05)
        return reply(asked)

    contest.server.reply = refusals_first  # type: ignore[method-assign]
    tally = contest(at_once=6)
    assert (tally.refused, tally.n) == (3, 3)


def test_a_cells_repeated_questions_are_judged_each(contest: Contest) -> None:
    for name, worths in (("a", ["9", "2", "9"]), ("b", ["1", "3", "1"])):
        examples = [{"prompt": "p", "answer": f"worth {worth}"} for worth in worths]
        record = {"method": name, "task": "chat", "seed": 1, "examples": examples}
        (contest.output.parent / f"{name}.json").write_text(json.dumps(record))
    contest.a, contest.b = contest.output.parent / "a.json", contest.output.parent / "b.json"
    tally = contest()
    assert (tally.wins, tally.losses, tally.n) == (2, 1, 3)
    assert len(contest.server.asked) == 2  # the first and the last are the same question
    assert contest.result["a"]["name"] == "a, seed 1"


def test_a_judge_that_refuses_a_temperature_is_asked_without(
    contest: Contest, caplog: pytest.LogCaptureFixture
) -> None:
    reply = contest.server.reply

    def picky(asked: Any) -> Any:
        return status(400, "Unsupported value: 'temperature'")() if "temperature" in asked.body else reply(asked)

    contest.server.reply = picky  # type: ignore[method-assign]
    assert contest(at_once=1).n == 6
    with_one = [asked for asked in contest.server.asked if "temperature" in asked.body]
    assert (len(with_one), len(contest.server.asked)) == (1, 7)
    assert caplog.text.count("rule refuses temperature 0") == 1


def test_a_refusal_that_only_quotes_the_word_temperature_stays_one(contest: Contest) -> None:
    contest.server.faults = {"p1": [status(400, "too long: 'What is the temperature'")] * 2}
    tally = contest(at_once=1)
    assert (tally.refused, tally.n) == (1, 5)
    assert all("temperature" in asked.body for asked in contest.server.asked if asked.prompt != "p1")


def test_a_date_to_come_back_is_waited_for(contest: Contest) -> None:
    contest.server.faults = {
        "p0": [status(503, Retry_After=formatdate(time.time() + 2, usegmt=True))],
        "p1": [status(503, Retry_After=formatdate(time.time() - 100, usegmt=True))],
        "p2": [status(503, Retry_After="soon")],
    }
    began = time.monotonic()
    assert contest().n == 6
    assert 0.9 < time.monotonic() - began < 30


def interrupt() -> None:
    """Ctrl-C, which reaches the main thread wherever it waits."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_ctrl_c_waits_for_one_timeout_and_not_for_all_attempts(contest: Contest) -> None:
    """A server that hangs: after Ctrl-C no attempt follows the one under way, and no pause is waited out."""
    hang, reply = threading.Event(), contest.server.reply

    def hangs(asked: Any) -> Any:
        hang.wait(20)
        return reply(asked)

    contest.server.reply = hangs  # type: ignore[method-assign]
    began = time.monotonic()
    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        contest(timeout=1.0, pause=30.0)
    took = time.monotonic() - began
    hang.set()
    timer.join()
    assert took < 15
    assert len(contest.server.asked) == 3


def test_ctrl_c_ends_a_pause(contest: Contest) -> None:
    contest.server.faults = {prompt: [status(503, Retry_After="50")] for prompt in A}
    timer = threading.Timer(0.5, interrupt)
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        contest()
    timer.join()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(401), "refuses: HTTP 401"),
        (status(403), "refuses: HTTP 403"),
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
    for address in ("http://user:secret@host/v1", "http://host/v1?key=secret"):
        contest.server.url = address
        with pytest.raises(SettingsError, match=r"judge_url is an address alone.*give http://host/v1, and") as caught:
            contest()
        assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="at_once must be at least 1"):
        contest(at_once=0)
