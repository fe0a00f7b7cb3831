"""A team inside vLLM: ``vllm serve`` finds this through the entry point ``vllm.general_plugins``.

It runs in every process of every vLLM, so it imports little, and whatever it finds, other models are served as before.
"""

import logging

from fusionroute.models.export.format import ARCHITECTURE, MODEL_TYPE

SUPPORTED = ("0.32",)  # series whose internals this plugin was tested with

logger = logging.getLogger("vllm.fusionroute")  # below vLLM's own, so that its handlers print it


def register() -> None:
    """Tell vLLM how to read and run an exported team; a version that was not tested gives one line and no more."""
    import vllm

    problem = unsupported(vllm.__version__)
    if problem is None:
        _register()
    else:
        logger.warning(problem)


def unsupported(version: str) -> str | None:
    """What to tell somebody who runs this version of vLLM; None if it is one of those that work."""
    if version.startswith(tuple(f"{series}." for series in SUPPORTED)):
        return None
    series = ", ".join(f"{each}.x" for each in SUPPORTED)
    return (
        f"fusionroute: vLLM {version} cannot serve exported teams, {series} can: "
        f"pip install 'vllm=={SUPPORTED[-1]}.*'; other models are served as ever"
    )


def _register() -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from fusionroute.vllm_plugin.checks import TeamChecks
    from fusionroute.vllm_plugin.config import FusionRouteConfig

    AutoConfig.register(MODEL_TYPE, FusionRouteConfig, exist_ok=True)
    MODELS_CONFIG_MAP[ARCHITECTURE] = TeamChecks
    # By name: vLLM looks at a model's class in a process of its own, before a device is touched
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
