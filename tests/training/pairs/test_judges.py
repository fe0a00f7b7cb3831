import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tiny
from fusionroute.errors import FusionRouteError, SettingsError
from fusionroute.models import endpoint as models_endpoint
from fusionroute.training.pairs import endpoint
from fusionroute.training.pairs.endpoint import Endpoint, read_score
from fusionroute.training.pairs.judges import Checker, RewardJudge, make_judge
from fusionroute.training.settings import PairSettings
from tiny_reward import read_alone, save_reward_model

HELLO = [{"role": "user", "content": "hello"}]
ROWS = [{"prompt": "1+1="}, {"prompt": HELLO}, {"prompt": "1+1="}, {"prompt": "a"}]
ANSWERS = ["2", "good day to you", "3, or so they say", ""]


# --- a function -------------------------------------------------------------------------------------------------------

CHECKS = """
def longer(rows, answers):
    return [len(answer) > len(row["prompt"]) for row, answer in zip(rows, answers)]

def one(rows, answers):
    return [1.0]

def nothing(rows, answers):
    return None

def words(rows, answers):
    return ["good"] * len(answers)

def odd(rows, answers):
    return [float("nan")] * len(answers)

table = {}
"""


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working folder, as a user has it."""
    (tmp_path / "tiny_checks.py").write_text(CHECKS)
    (tmp_path / "tiny_broken_checks.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("checks")
def test_a_checker_is_a_function_by_name() -> None:
    judge = make_judge(PairSettings(prompts="p", checker="tiny_checks:longer"))
    assert judge(ROWS, ANSWERS) == [0.0, 1.0, 1.0, 0.0]
    assert all(type(score) is float for score in judge(ROWS, ANSWERS))


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_checks", "checker is package.module:function; got 'tiny_checks'"),
        ("tiny_checks:", "checker is package.module:function"),
        ("no.such:function", "no.such cannot be imported .*No module named 'no'"),
        ("tiny_broken_checks:f", "tiny_broken_checks cannot be imported .*No module named 'no_such_library'"),
        ("tiny_checks:lnoger", "tiny_checks has no 'lnoger'"),
        ("tiny_checks:table", "tiny_checks has 'table', which is no function"),
    ],
)
def test_a_checker_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Checker(name)


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", "returned 1 scores for 4 answers"),
        ("nothing", "must return a number per answer"),
        ("words", "must return a number per answer"),
        ("odd", "gives '2' the score nan"),
    ],
)
def test_a_checker_that_gives_no_scores(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Checker(f"tiny_checks:{name}")(ROWS, ANSWERS)


# --- a reward model ---------------------------------------------------------------------------------------------------


def test_a_reward_model_reads_the_rows_prompt(tmp_path: Path) -> None:
    settings = PairSettings(prompts="p", reward_model=save_reward_model(tmp_path))
    judge = make_judge(settings, device="cpu")
    assert isinstance(judge, RewardJudge)
    chats = ["<user>1+1=<assistant>2<eos>", "<user>hello<assistant>good day to you<eos>"]
    expected = [read_alone(judge.model.model, chat) for chat in chats]
    assert judge(ROWS[:2], ANSWERS[:2]) == pytest.approx(expected, abs=1e-5)
    assert judge(ROWS[:1], ["x" * tiny.CONTEXT]) == [None]


# --- an endpoint ------------------------------------------------------------------------------------------------------

Reply = tuple[int, Any, dict[str, str]]  # status, body, headers


class Served:
    """What a real server was asked, and what it shall reply to an answer, one reply after another."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.replies: dict[str, list[Reply]] = {}
        self.url = ""

    def reply(self, body: dict[str, Any]) -> Reply:
        question = body["messages"][-1]["content"]
        answer = question.partition("<answer>\n")[2].partition("\n</answer>")[0]
        left = self.replies[answer]
        return left.pop(0) if len(left) > 1 else left[0]

    def count(self, answer: str) -> int:
        return sum(f"<answer>\n{answer}\n</answer>" in body["messages"][-1]["content"] for _, body, _ in self.requests)


def says(text: str | None, status: int = 200, **headers: str) -> Reply:
    return status, {"choices": [{"message": {"content": text}}]}, headers


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server on this machine, for real."""
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, body, self.headers["Authorization"]))
            status, said, headers = state.reply(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)  # who asked may have left by then
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited."""
    waited: list[float] = []

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr(endpoint, "Event", Recorded)
    return waited


def test_an_endpoint_is_asked_for_a_score_each(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.replies = {"2": [says("9.75\nRight.")], "good day": [says("6.5")], "3": [says("\n1\nWrong.")]}
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    judge = make_judge(PairSettings(prompts="p", judge_url=served.url + "/", judge_model="judge-1"))
    assert judge(ROWS[:3], ["2", "good day", "3"]) == [9.75, 6.5, 1.0]
    assert judge([], []) == []
    assert {path for path, _, _ in served.requests} == {"/v1/chat/completions"}
    assert {key for _, _, key in served.requests} == {"Bearer abc"}
    bodies = {body["messages"][1]["content"]: body for _, body, _ in served.requests}
    body = bodies["<question>\nhello\n</question>\n\n<answer>\ngood day\n</answer>"]
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    assert "from 1 to 10 in steps of 0.25" in body["messages"][0]["content"]


def test_without_a_key_none_is_sent(served: Served) -> None:
    served.replies = {"2": [says("9")]}
    assert Endpoint(served.url, "m")(ROWS[:1], ["2"]) == [9.0]
    assert served.requests[0][2] is None


def test_what_passes_is_waited_for(served: Served, pauses: list[float]) -> None:
    served.replies = {"2": [says("", 429), says("", 503), says("", 429, Retry_After="7"), says("8")]}
    assert Endpoint(served.url, "m", pause=0.5)(ROWS[:1], ["2"]) == [8.0]
    assert pauses == [0.5, 1.0, 7.0]


def test_what_does_not_pass_is_said(served: Served, pauses: list[float]) -> None:
    served.replies = {"2": [says("busy", 503)]}
    with pytest.raises(FusionRouteError, match=r"failed 5 times, the last time by HTTP 503: .*busy"):
        Endpoint(served.url, "m")(ROWS[:1], ["2"])
    assert served.count("2") == 5
    assert pauses == [1, 2, 4, 8]


def test_when_one_question_ends_it_the_others_ask_no_more(served: Served) -> None:
    """A refusal ends the judging; whoever waits for a busy endpoint does not wait on."""
    served.replies = {"2": [says("busy", 503, Retry_After="60")], "3": [says("no", 401)]}
    began = time.monotonic()
    with pytest.raises(SettingsError, match="401"):
        Endpoint(served.url, "m")([*ROWS[:1], *ROWS[1:2]], ["3", "2"])
    assert time.monotonic() - began < 20


def test_nobody_there_is_said(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_port
    with pytest.raises(FusionRouteError, match=r"failed 5 times, the last time by URLError: .*refused"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "m")(ROWS[:1], ["2"])


def test_no_answer_in_time_is_tried_again(served: Served, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    late, reply = threading.Event(), served.reply
    served.replies = {"2": [says("8")]}

    def first_one_late(body: dict[str, Any]) -> Reply:
        if len(served.requests) == 1:
            late.wait(5)
        return reply(body)

    monkeypatch.setattr(served, "reply", first_one_late)
    monkeypatch.setattr(models_endpoint, "TIMEOUT", 1.0)
    assert Endpoint(served.url, "m")(ROWS[:1], ["2"]) == [8.0]
    late.set()
    assert len(served.requests) == 2
    assert pauses == [1.0]


def test_a_reply_without_a_score_gives_none(served: Served, pauses: list[float]) -> None:
    served.replies = {"2": [says("I would rather not")], "3": [says(None), says("4.25")]}
    assert Endpoint(served.url, "m")(ROWS[:2], ["2", "3"]) == [None, 4.25]
    assert served.count("2") == 5
    assert served.count("3") == 2
    assert pauses == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (says("no such model", 404), "refuses: HTTP 404: .*no such model.*judge_model"),
        (says("", 302, Location="http://127.0.0.1:9/elsewhere"), "refuses: HTTP 302"),
        ((200, b"<html>", {}), "no chat completion: b'<html>'"),
        ((200, {"error": "x"}, {}), "no chat completion"),
    ],
)
def test_what_cannot_work_is_not_tried_again(served: Served, reply: Reply, message: str) -> None:
    served.replies = {"2": [reply]}
    with pytest.raises(SettingsError, match=message):
        Endpoint(served.url, "m")(ROWS[:1], ["2"])
    assert len(served.requests) == 1


def test_several_are_asked_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    together, reply = threading.Barrier(3), served.reply
    served.replies = {answer: [says(answer)] for answer in "123"}

    def all_or_none(body: dict[str, Any]) -> Reply:
        together.wait(5)
        return reply(body)

    monkeypatch.setattr(served, "reply", all_or_none)
    assert Endpoint(served.url, "m", at_once=3)(ROWS[:3], ["1", "2", "3"]) == [1.0, 2.0, 3.0]


def test_an_address_that_is_none() -> None:
    with pytest.raises(SettingsError, match="judge_url starts with http"):
        Endpoint("file:///etc/passwd", "m")


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7.0),
        ("7.25", 7.25),
        ("  **7.25** \nbecause", 7.25),
        ("Score: 7.5/10", 7.5),
        ("`10`", 10.0),
        ("10.25", None),
        ("0.75", None),
        ("-3", None),
        ("7 out of ten", None),
        ("because\n7", None),
        ("7.25 8.5", None),
        ("", None),
    ],
)
def test_the_score_stands_alone_on_the_first_line(reply: str, score: float | None) -> None:
    assert read_score(reply) == score
