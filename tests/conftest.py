"""Settings for every test: one torch thread per worker, no network, and nothing written into the home folder."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Before torch and transformers are imported, and inherited by the processes that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "hypothesis")
)
# What fusionroute keeps on disk between runs; before any test file is read, since it may build models as it loads.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    os.environ["FUSIONROUTE_CACHE"] = tempfile.mkdtemp(prefix="fusionroute-tests-")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

if "PYTEST_XDIST_WORKER" not in os.environ:
    atexit.register(shutil.rmtree, os.environ["FUSIONROUTE_CACHE"], ignore_errors=True)
else:
    torch.set_num_threads(1)  # workers already use the cores; more threads only get in each other's way


def pytest_configure() -> None:
    """A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
