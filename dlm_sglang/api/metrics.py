"""Prometheus series of what was decoded; the table is in `metric_table.py`.

`prometheus_client` decides at its import whether several processes share their series, from a variable that
SGLang sets when it starts. So it is imported here when the series are made, not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlm_sglang.api.metric_table import SERIES, Kind, Series

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ABORTED = "abort"
_UNKNOWN = "unknown"


class Metrics:
    """Counts what ended, what runs and what was refused.

    Args:
        registry: where the series are registered; None is the process's own registry.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client

        registry = registry or prometheus_client.REGISTRY
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for series in SERIES:
            self._register(series, registry)

    def ended(self, stats: Mapping[str, object] | None, mode: str, finish_reason: str, num_tokens: int) -> None:
        """Count a choice that ended.

        Args:
            stats: what the worker reported of it; None if it never got to the worker.
            mode: its mode, for when there are no statistics.
            finish_reason: `stop`, `length` or `abort`.
            num_tokens: tokens that it emitted.
        """
        stats = stats or {}
        mode = str(stats.get("generation_mode", mode))
        denoise, commit = _number(stats, "num_denoise_forwards"), _number(stats, "num_commit_forwards")
        blocks = _number(stats, "num_blocks")
        self._counters["dlm_requests_total"].labels(mode, finish_reason).inc()
        self._counters["dlm_output_tokens_total"].labels(mode).inc(num_tokens)
        self._counters["dlm_blocks_total"].labels(mode).inc(blocks)
        self._counters["dlm_forwards_total"].labels(mode, "denoise").inc(denoise)
        self._counters["dlm_forwards_total"].labels(mode, "commit").inc(commit)
        if denoise + commit:
            self._histograms["dlm_tokens_per_forward"].labels(mode).observe(_number(stats, "tokens_per_forward"))
        if blocks:
            self._histograms["dlm_denoising_steps_per_block"].labels(mode).observe(denoise / blocks)
            self._histograms["dlm_accept_length"].labels(mode).observe(_number(stats, "mean_accept_length"))
        auto = stats.get("auto")
        if isinstance(auto, Mapping):
            self._auto(auto)
        if finish_reason == ABORTED:
            self._counters["dlm_aborted_forwards_total"].labels(mode).inc(denoise + commit)
            self._counters["dlm_aborted_output_tokens_total"].labels(mode).inc(num_tokens)

    def _auto(self, told: Mapping[str, object]) -> None:
        """Count what `auto` chose for a choice, and show what it expected last."""
        for length, count in _entries(told, "blocks"):
            self._counters["dlm_auto_blocks_total"].labels(length).inc(count)
        self._counters["dlm_auto_choices_total"].labels(str(told.get("reason", _UNKNOWN))).inc()
        for length, round_ms in _entries(told, "round_ms"):
            self._gauges["dlm_auto_round_seconds"].labels(length).set(round_ms / 1e3)
        for length, tok_s in _entries(told, "tok_s"):
            self._gauges["dlm_auto_expected_tokens_per_second"].labels(length).set(tok_s)

    @contextmanager
    def in_flight(self, mode: str | None) -> Iterator[None]:
        """Count a request as long as the context lasts."""
        gauge = self._gauges["dlm_requests_in_flight"].labels(mode or _UNKNOWN)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def refused(self, code: str) -> None:
        """Count a request that was refused."""
        self._counters["dlm_refused_requests_total"].labels(code).inc()

    def _register(self, series: Series, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        name, meaning, labels = series.name, series.meaning, series.labels
        if series.kind is Kind.COUNTER:
            self._counters[name] = Counter(name, meaning, labels, registry=registry)
        elif series.kind is Kind.HISTOGRAM:
            self._histograms[name] = Histogram(name, meaning, labels, buckets=series.buckets, registry=registry)
        else:
            self._gauges[name] = Gauge(
                name,
                meaning,
                labels,
                registry=registry,
                multiprocess_mode="livesum" if series.sums_processes else "livemostrecent",
            )


def _number(stats: Mapping[str, object], name: str) -> float:
    value = stats.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _entries(told: Mapping[str, object], name: str) -> list[tuple[str, float]]:
    """The numbers of a nested object, by key."""
    values = told.get(name)
    if not isinstance(values, Mapping):
        return []
    return [(str(key), _number(values, key)) for key in values]
