"""Our methods as models of lm-eval: its tasks, its metrics, its command, our engine.

Importing this registers the model ``fusionroute``: ``lm_eval.simple_evaluate(model="fusionroute", model_args=…)``.
"""

from fusionroute.evaluation.harness.model import FusionRouteLM, MethodLM

__all__ = ["FusionRouteLM", "MethodLM"]
