"""Reading the server's Prometheus series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import Server

# Set, not counted: what was learnt last.
LEARNT = ("dlm_auto_round_seconds", "dlm_auto_expected_tokens_per_second")

Sample = tuple[str, tuple[tuple[str, str], ...]]


def scrape(server: Server) -> Counter[Sample]:
    """Our samples by name and labels; buckets left out."""
    response = server.get("/metrics/")
    response.raise_for_status()
    found: Counter[Sample] = Counter()
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name.startswith("dlm_") and not sample.name.endswith("_bucket"):
                found[sample.name, tuple(sorted(sample.labels.items()))] += sample.value  # type: ignore[assignment]
    return found


def grown(before: Mapping[Sample, float], after: Mapping[Sample, float]) -> dict[Sample, float]:
    """What the counters grew by between two scrapes."""
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if value != before.get(key, 0) and key[0] not in LEARNT
    }


def expected_of(answers: Iterable[tuple[dict[str, Any], str, int]]) -> dict[Sample, float]:
    """What the counters must grow by for answers given as `dlm` object, finish reason and completion tokens."""
    sums: Counter[Sample] = Counter()

    def add(name: str, value: float, **labels: str) -> None:
        if value:
            sums[name, tuple(sorted(labels.items()))] += value  # type: ignore[assignment]

    for stats, finish_reason, num_tokens in answers:
        mode = stats["generation_mode"]
        add("dlm_requests_total", 1, mode=mode, finish_reason=finish_reason)
        add("dlm_output_tokens_total", num_tokens, mode=mode)
        add("dlm_blocks_total", stats["num_blocks"], mode=mode)
        for kind in ("denoise", "commit"):
            add("dlm_forwards_total", stats[f"num_{kind}_forwards"], mode=mode, kind=kind)
        auto = stats.get("auto", {})
        for length, count in auto.get("blocks", {}).items():
            add("dlm_auto_blocks_total", count, block_length=length)
        if auto:
            add("dlm_auto_choices_total", 1, reason=auto["reason"])
        for name, value in (
            ("dlm_tokens_per_forward", stats["tokens_per_forward"]),
            ("dlm_accept_length", stats["mean_accept_length"]),
            ("dlm_denoising_steps_per_block", stats["num_denoise_forwards"] / max(stats["num_blocks"], 1)),
        ):
            add(f"{name}_count", 1, mode=mode)
            add(f"{name}_sum", value, mode=mode)
    return dict(sums)
