"""The vLLM plugin against our own engine, in the environment of ``make test-vllm``; elsewhere there is nothing here.

Engines run in this process: one that starts processes of its own takes a minute instead of seconds.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


@contextmanager
def running(folder: Path | str, **options: Any) -> Iterator[Any]:
    """A ``vllm.LLM`` over a folder, in float32; gone, with its caches, when the block ends."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 64, "seed": 0, **options}
    llm = LLM(str(folder), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


@pytest.fixture
def vllm_running() -> Callable[..., Any]:
    return running
