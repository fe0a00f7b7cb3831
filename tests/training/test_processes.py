from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionroute.training.processes import join_processes, own_device


def test_one_process_is_the_main_one_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    processes = join_processes("cpu")
    assert (processes.process_index, processes.num_processes, processes.is_main_process) == (0, 1, True)
    processes.wait_for_everyone()
    assert not torch.distributed.is_initialized()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("num_processes", "asked", "expected"),
    [(1, None, None), (1, "cpu", "cpu"), (2, None, "cuda:1"), (2, "cpu", "cpu")],
)
def test_each_of_several_processes_has_its_own_device(num_processes: int, asked: str | None, expected: Any) -> None:
    processes: Any = SimpleNamespace(num_processes=num_processes, device=torch.device("cuda:1"))
    assert own_device(processes, asked) == expected
