"""What is measured of a running server, in the text format of Prometheus."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

import prometheus_client as prometheus
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

Reading = Callable[[], float]

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters, histograms and gauges of one server, in a registry of their own. From any thread.

    Labels are names of the offer and what the code says, never what a client sent: a client that invents model names
    would otherwise fill the memory.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: frozenset[str] = frozenset()

        def counter(name: str, help: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(f"fusionroute_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, buckets: Iterable[float]) -> prometheus.Histogram:
            return prometheus.Histogram(
                f"fusionroute_{name}", help, ("model",), buckets=tuple(buckets), registry=self.registry
            )

        self._requests = counter("requests", "HTTP requests that were answered.", "endpoint", "model", "status")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were queued.", "model")
        self._generated = counter("generated_tokens", "Tokens written, by who wrote them.", "model", "expert")
        self._finished = counter("finished", "Answers that ended, by why.", "model", "reason")
        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival in the queue to its first token.", FIRST_TOKEN
        )
        self._between = histogram(
            "time_between_tokens_seconds",
            "From one token of an answer to its next; of several that were written at once each gets its share.",
            BETWEEN_TOKENS,
        )
        self._seconds = histogram("request_seconds", "From a request's first byte to the reply's last.", REQUEST)
        # looked up for every token; the labels are names of the offer, so there are few
        self._generated_by, self._between_of = cache(self._generated.labels), cache(self._between.labels)

    def watch(
        self,
        models: Iterable[str],
        cache_rows: Mapping[str, Reading],
        counts: Mapping[str, tuple[str, Mapping[str, Reading]]],
        **gauges: tuple[str, Reading],
    ) -> None:
        """Read these whenever metrics are asked for.

        Args:
            models: the ids on offer.
            cache_rows: of each loaded model, how many rows its cache holds.
            counts: by name, what each means and how many there were so far, by model.
            gauges: by name, what each means and its value.
        """
        self._models = frozenset(models)
        for name, (help, reading) in gauges.items():
            prometheus.Gauge(f"fusionroute_{name}", help, registry=self.registry).set_function(reading)
        rows = prometheus.Gauge(
            "fusionroute_cache_rows", "Rows in use in each model's cache.", ("model",), registry=self.registry
        )
        for model, reading in cache_rows.items():
            rows.labels(model).set_function(reading)
        self.registry.register(_Counts(counts))

    def count_request(self, endpoint: str, model: str | None, status: int, seconds: float) -> None:
        """One answered HTTP request.

        Args:
            endpoint: the route as the code names it, not the path as it came.
            model: as it was asked for; one that is not offered counts as none.
        """
        known = model if model in self._models else ""
        self._requests.labels(endpoint, known, str(status)).inc()
        if known:
            self._seconds.labels(known).observe(seconds)

    def count_prompt(self, model: str, tokens: int) -> None:
        """A sequence was queued."""
        self._prompt_tokens.labels(model).inc(tokens)

    def count_first_token(self, model: str, seconds: float) -> None:
        """A sequence got its first token, so long after its request came."""
        self._first_token.labels(model).observe(seconds)

    def count_wait(self, model: str, seconds: float, tokens: int) -> None:
        """A sequence got so many more tokens, so long after the one before."""
        between = self._between_of(model)
        for _ in range(tokens):
            between.observe(seconds / tokens)

    def count_written(self, model: str, experts: Iterable[str]) -> None:
        """One round's tokens, each given by who wrote it."""
        for expert in experts:
            self._generated_by(model, expert).inc()

    def count_finished(self, model: str, reason: str) -> None:
        """A sequence ended: "stop", "length", "cancelled", "timeout", "shutdown" or "error"."""
        self._finished.labels(model, reason).inc()

    def render(self) -> tuple[bytes, str]:
        """What ``/metrics`` answers, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Counts(Collector):
    """Counters that somebody else keeps, by model."""

    def __init__(self, counts: Mapping[str, tuple[str, Mapping[str, Reading]]]):
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, (help, readings) in self._counts.items():
            family = CounterMetricFamily(f"fusionroute_{name}", help, labels=["model"])
            for model, reading in readings.items():
                family.add_metric([model], reading())
            yield family
