"""Metrics of the fake engine under vLLM's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LABELS = ("model_name", "engine")
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class Meters:
    """One registry; the hot path holds the series themselves, not their names."""

    def __init__(self, model: str) -> None:
        """Make every series at zero, as vLLM shows them before the first request."""
        self._registry = CollectorRegistry()
        self._model = model
        self.running = self._gauge("num_requests_running", "Requests in the running batch.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for a place.")
        self.kv_cache = self._gauge("kv_cache_usage_perc", "KV cache in use, 0 to 1.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.preemptions = self._counter("num_preemptions", "Requests pushed out of the batch.")
        self.prefix_queries = self._counter("prefix_cache_queries", "Tokens looked up.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Tokens found.")
        self.ttft_s = self._histogram("time_to_first_token_seconds", "Time to first token.")
        self.itl_s = self._histogram("inter_token_latency_seconds", "Time between two tokens.")
        self.e2e_s = self._histogram("e2e_request_latency_seconds", "Whole request.")
        success = Counter(
            "vllm:request_success",
            "Requests finished.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self.finished = {
            reason: success.labels(model, "0", reason)
            for reason in ("stop", "length", "abort", "error", "repetition")
        }

    def text(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        family = Gauge(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return family.labels(self._model, "0")

    def _counter(self, name: str, text: str) -> Counter:
        family = Counter(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return family.labels(self._model, "0")

    def _histogram(self, name: str, text: str) -> Histogram:
        family = Histogram(f"vllm:{name}", text, _LABELS, registry=self._registry, buckets=_SECONDS)
        return family.labels(self._model, "0")
