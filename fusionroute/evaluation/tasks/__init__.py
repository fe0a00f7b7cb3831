"""Benchmarks: lm-eval's tasks and your own, with local data where you say so. Knows nothing of models or methods."""

from fusionroute.evaluation.tasks.library import TaskLibrary, TaskSettings, primary_metric, sample_score, scores

__all__ = ["TaskLibrary", "TaskSettings", "primary_metric", "sample_score", "scores"]
