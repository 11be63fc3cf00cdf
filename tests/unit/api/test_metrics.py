"""Series from the statistics of ended choices, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dlm_sglang.api import metric_table
from dlm_sglang.api.metric_table import SERIES, Kind
from dlm_sglang.api.metrics import ABORTED, Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
STATS: dict[str, object] = {
    "generation_mode": "diffusion",
    "num_blocks": 2,
    "num_forwards": 6,
    "num_denoise_forwards": 4,
    "num_commit_forwards": 2,
    "tokens_per_forward": 2.5,
    "mean_accept_length": 7.5,
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_an_ended_choice_adds_what_its_response_says(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for _ in range(2):
        metrics.ended(STATS, "ignored", "stop", 15)
    told = {"mode": "diffusion"}
    assert value(registry, "dlm_requests_total", **told, finish_reason="stop") == 2
    assert value(registry, "dlm_output_tokens_total", **told) == 30
    assert value(registry, "dlm_blocks_total", **told) == 4
    assert value(registry, "dlm_forwards_total", **told, kind="denoise") == 8
    assert value(registry, "dlm_forwards_total", **told, kind="commit") == 4
    assert value(registry, "dlm_tokens_per_forward_sum", **told) == 5.0
    assert value(registry, "dlm_accept_length_sum", **told) == 15.0
    assert value(registry, "dlm_denoising_steps_per_block_sum", **told) == 4.0
    assert value(registry, "dlm_aborted_forwards_total", **told) is None


def test_aborted_work_is_counted_apart_too(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.ended(STATS, "diffusion", ABORTED, 3)
    metrics.ended(None, "autoregressive", ABORTED, 0)
    assert value(registry, "dlm_requests_total", mode="diffusion", finish_reason=ABORTED) == 1
    assert value(registry, "dlm_aborted_forwards_total", mode="diffusion") == 6
    assert value(registry, "dlm_aborted_output_tokens_total", mode="diffusion") == 3
    assert value(registry, "dlm_requests_total", mode="autoregressive", finish_reason=ABORTED) == 1
    # A request that never ran has no tokens per forward.
    assert value(registry, "dlm_tokens_per_forward_count", mode="autoregressive") is None


def test_a_request_is_in_flight_until_it_ends_however_it_ends(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    def run() -> None:
        with metrics.in_flight("diffusion"):
            assert value(registry, "dlm_requests_in_flight", mode="diffusion") == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert value(registry, "dlm_requests_in_flight", mode="diffusion") == 0


def test_refusals_are_counted_by_code(registry: CollectorRegistry) -> None:
    Metrics(registry).refused("too-many-requests")
    assert value(registry, "dlm_refused_requests_total", code="too-many-requests") == 1


def test_the_table_names_series_as_prometheus_does() -> None:
    for series in SERIES:
        assert series.name.startswith("dlm_")
        assert series.name.endswith("_total") is (series.kind is Kind.COUNTER)
        assert bool(series.buckets) is (series.kind is Kind.HISTOGRAM)
        assert list(series.buckets) == sorted(series.buckets)


def test_docs_metrics_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == metric_table.markdown(), (
        "run: dlm-sglang params --metrics > docs/metrics.md"
    )
