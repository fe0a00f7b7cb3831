"""``fusionroute serve`` in a process of its own, and raw connections to it: those of the benchmarks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

import tiny
from fusionroute import Router, Team

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
running_server = serving_clients.running_server


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
