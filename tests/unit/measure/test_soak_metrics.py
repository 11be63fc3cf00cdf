"""What a soak reads of a server's metrics."""

from __future__ import annotations

import pytest

from dlm_sglang.measure.soak.run import sum_of

NAME = "sglang_num_retracted_requests_total"
TEXT = """# HELP sglang:num_retracted_requests_total Total number of retracted requests.
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{tp_rank="0"} 3.0
sglang:num_retracted_requests_total{tp_rank="1"} 4.0
sglang:num_retracted_requests_total_created{tp_rank="0"} 1e9
"""


@pytest.mark.parametrize("separator", [":", "_"])
def test_a_metric_is_summed_over_its_labels_by_either_name(separator: str) -> None:
    assert sum_of(TEXT.replace("sglang:", f"sglang{separator}"), NAME) == 7.0


def test_what_was_never_counted_is_zero() -> None:
    assert sum_of("", NAME) == 0.0
