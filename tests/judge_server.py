"""A real server on this machine that speaks the chat-completions protocol and judges by a rule."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Fault = Callable[[], tuple[int, Any, dict[str, str]]]
QUESTION = re.compile(
    r"<question>\n(.*)\n</question>\n\n<first_answer>\n(.*)\n</first_answer>\n\n<second_answer>\n(.*)\n</second_answer>",
    re.DOTALL,
)


@dataclass
class Asked:
    """One request: what the judge was shown, and all of the rest."""

    prompt: str
    first: str
    second: str
    body: dict[str, Any]
    path: str
    key: str | None


@dataclass
class JudgeServer:
    """Its rule: an answer that says "worth 7.5" gets 7.5.

    Attributes:
        faults: by prompt, what happens instead, one after another; then the rule again.
        say: by prompt, what it writes instead of the rule's scores.
    """

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    say: dict[str, str] = field(default_factory=dict)

    def reply(self, asked: Asked) -> tuple[int, Any, dict[str, str]]:
        if self.faults.get(asked.prompt):
            return self.faults[asked.prompt].pop(0)()
        text = self.say[asked.prompt] if asked.prompt in self.say else self.rule(asked)
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return 200, {"model": "rule-2026", "choices": [{"message": {"content": text}}], "usage": usage}, {}

    def rule(self, asked: Asked) -> str:
        first, second = (re.findall(r"worth (\S+)", answer)[0] for answer in (asked.first, asked.second))
        return f"{first} {second}\nThe one is better than the other."

    def prompts(self) -> list[str]:
        return [asked.prompt for asked in self.asked]


def status(code: int, says: str | None = None, **headers: str) -> Fault:
    return lambda: (
        code,
        {"error": says or f"status {code}"},
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


def body(content: bytes) -> Fault:
    return lambda: (200, content, {})


def late(seconds: float) -> Fault:
    def sleep() -> tuple[int, Any, dict[str, str]]:
        time.sleep(seconds)
        return 200, b"", {}

    return sleep


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    state = JudgeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = QUESTION.fullmatch(body["messages"][-1]["content"])
            assert found is not None
            asked = Asked(*found.groups(), body, self.path, self.headers["Authorization"])
            state.asked.append(asked)
            code, said, headers = state.reply(asked)
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # who asked may have left by then

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def write_answers(path: Path, answers: dict[str, str], key: str = "text") -> Path:
    """A prompt's answer is worth what the value says."""
    rows = [{"prompt": prompt, key: f"worth {value} ({path.stem})"} for prompt, value in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
