"""Metrics of the server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime_py.server.admission import Admission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds of the buckets of durations."""


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        """Create counters of 0."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "o2o_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.duration = Histogram(
            "o2o_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "o2o_first_token_seconds",
            "Seconds from a slot to the first token.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("o2o_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self.cached_tokens = Counter(
            "o2o_prompt_tokens_cached",
            "Tokens of prompts that were not computed.",
            ("model",),
            registry=registry,
        )
        self.new_tokens = Counter(
            "o2o_generated_tokens", "Tokens that were generated.", ("model",), registry=registry
        )
        self.cancelled = Counter("o2o_requests_cancelled", "Requests whose client left.", registry=registry)
        self._running = Gauge("o2o_requests_running", "Requests with a slot.", ("model",), registry=registry)
        self._waiting = Gauge("o2o_requests_waiting", "Requests in the queue.", ("model",), registry=registry)

    def watch(self, model: str, admission: Admission) -> None:
        """Show the numbers of requests of a model.

        Args:
            model: The model's name.
            admission: Its slots.
        """
        self._running.labels(model).set_function(lambda: admission.running)
        self._waiting.labels(model).set_function(lambda: admission.waiting)

    def text(self) -> bytes:
        """Write all metrics.

        Returns:
            Prometheus' text format.
        """
        return generate_latest(self.registry)
