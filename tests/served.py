"""``fusionroute serve`` in a process of its own, and raw connections to it: those of the benchmarks.

A new process spends seconds on importing torch and transformers. Here it is forked from one that has imported them and
has done nothing else; from there on it runs the command, with signals and exit codes of its own.
"""

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType

import torch

import tiny
from fusionroute import Router, Team
from fusionroute.cli import main

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A script of ``benchmarks/`` as a module; those that it imports are found beside it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serving_clients = benchmark("serving_clients")
Connection, Reply, Server = serving_clients.Connection, serving_clients.Reply, serving_clients.Server
running_command = serving_clients.running_server  # the same from nothing

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["served", "fusionroute.server.run", "fusionroute.cli.serve"])


class Forked:
    """A forked process that is asked as `subprocess.Popen` is."""

    def __init__(self, process: ForkServerProcess):
        assert process.pid is not None, "it has been started"
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} s")
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def running_server(location: str, *options: str, log: Path | None = None, ends_with: int = 0) -> Iterator[Server]:
    """`running_command` without its imports."""
    port = serving_clients.free_port()
    arguments = ["serve", location, "--port", str(port), *options]
    process = FORKING.Process(target=_command, args=(arguments, str(log or os.devnull)), daemon=True)
    process.start()
    with serving_clients.stopped_in_the_end(Server(port, Forked(process)), ends_with) as server:
        yield server


def _command(arguments: list[str], log: str) -> None:
    """`fusionroute`, in the forked process."""
    stdout, stderr = os.open(os.devnull, os.O_WRONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stdout, sys.stdout.fileno())
    os.dup2(stderr, sys.stderr.fileno())
    torch.set_num_threads(1)
    sys.argv = ["fusionroute", *arguments]
    main()


def endless_team(context: int = 4096) -> Team:
    """A tiny team that writes for as long as it is let: no token ends its answers."""
    options = {"max_position_embeddings": context, "eos_token_id": None}
    experts = {name: tiny.language_model(seed=at, **options) for at, name in enumerate(("math", "code", "chat"))}
    router = Router(tiny.language_model(seed=100, **options), len(experts))
    torch.manual_seed(100)
    torch.nn.init.normal_(router.route_head.weight)
    return Team(router.eval(), experts, tiny.tokenizer(), "chat_template")


def saved(team: Team, folder: Path) -> str:
    team.save_pretrained(folder, save_experts=True)
    return str(folder)
