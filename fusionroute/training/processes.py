"""Several processes, each with a share of the work and a device of its own; one alone has all of it.

torchrun or accelerate launch starts them. When one fails, the others wait for it until the launcher, which watches all
of them, ends them too.
"""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from fusionroute.models.loading import default_device

PATIENCE = timedelta(days=1)  # a slower process, or the only one that still has work, may keep the others for hours


def join_processes(device: str | None = None) -> PartialState:
    """Meet the other processes of this launch, if there are any; later calls give the same state.

    Args:
        device: where models will run; None is the accelerator if there is one. On CPU the processes talk over gloo.
    """
    return PartialState(cpu=runs_on_cpu(device), timeout=PATIENCE)


def runs_on_cpu(device: str | None) -> bool:
    """Whether models run there: as asked, because there is no accelerator, or because the launcher says so."""
    return torch.device(device or default_device()).type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")


def own_device(processes: PartialState, device: str | None) -> str | None:
    """What was asked for, else this process's own of several; None leaves the choice to whoever loads a model."""
    return str(processes.device) if device is None and processes.num_processes > 1 else device
