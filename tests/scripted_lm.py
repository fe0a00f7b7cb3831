"""A model of lm-eval that answers from a script: the first entry whose key stands in the question."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class ScriptedLM(LM):
    """Attributes: contexts: what it was asked, in order; options: how, likewise."""

    def __init__(self, script: Mapping[str, str]) -> None:
        super().__init__()
        self.script = script
        self.contexts: list[str] = []
        self.options: list[dict[str, Any]] = []

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        self.contexts += [request.args[0] for request in requests]
        self.options += [request.args[1] for request in requests]
        return [next(answer for key, answer in self.script.items() if key in context) for context in self.contexts]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        raise NotImplementedError
