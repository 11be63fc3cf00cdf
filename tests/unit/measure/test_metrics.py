"""Numbers against independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dlm_sglang.measure.client import Record
from dlm_sglang.measure.metrics import Targets, cost, paired_loss, percentile, spread, summary, token_gap_s, wilson


def record(**changes: object) -> Record:
    base: dict[str, object] = {
        "sent_s": 0.0, "ttft_s": 0.1, "latency_s": 0.5, "gaps_s": [0.2, 0.2], "prompt_tokens": 3,
        "output_tokens": 5, "finish_reason": "stop", "text": "",
    }  # fmt: skip
    return Record(**{**base, **changes})  # type: ignore[arg-type]


counts = st.integers(0, 400)


@given(st.lists(st.tuples(counts, counts, st.integers(0, 50), st.integers(0, 3000)), min_size=1, max_size=8))
def test_costs_are_sums_over_sums(rows: list[tuple[int, int, int, int]]) -> None:
    records = []
    for denoise, commit, blocks, tokens in rows:
        one = record()
        forwards = denoise + commit
        one.add_cost(
            {
                "num_forwards": forwards,
                "num_denoise_forwards": denoise,
                "num_commit_forwards": commit,
                "num_blocks": blocks,
                # As the server rounds it: still exact.
                "tokens_per_forward": round(tokens / forwards, 4) if forwards else 0.0,
            }
        )
        records.append(one)
    found = cost(records)
    tokens = sum(row[3] for row in rows if row[0] + row[1])
    forwards = sum(row[0] + row[1] for row in rows)
    assert found["tpf"] == (tokens / forwards if forwards else None)
    denoise = sum(row[0] for row in rows)
    assert found["tpf_denoise"] == (tokens / denoise if denoise else None)


@given(total=st.integers(1, 500), data=st.data())
def test_wilson_is_the_interval_of_the_score_test(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    low, high = wilson(hits, total)
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(total=st.integers(1, 400), data=st.data())
def test_a_paired_loss_lies_in_its_interval_and_mirrors(total: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, total))
    second = data.draw(st.integers(0, total - first))
    loss, low, high = paired_loss(first, second, total)
    assert low <= high
    assert -1 <= loss <= 1
    mirrored = paired_loss(second, first, total)
    assert mirrored == pytest.approx((-loss, -high, -low))


def test_equal_answers_on_more_prompts_bound_the_loss_closer() -> None:
    highs = [paired_loss(0, 0, n)[2] for n in (30, 100, 300)]
    assert highs == sorted(highs, reverse=True)
    assert highs[2] < 0.01 < highs[1]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, share)), rel=1e-9, abs=1e-9)


def test_a_summary_counts_tokens_times_and_goodput() -> None:
    slow = record(latency_s=2.0, ttft_s=1.0)
    found = summary([record(), slow], 2.0, Targets(ttft_ms=500))
    assert (found["output_tokens"], found["tok_s"], found["requests"]) == (10, 5.0, 2)
    assert found["user_tok_s"] == pytest.approx((10 + 2.5) / 2)
    assert found["ttft_ms_p50"] == pytest.approx(550)
    assert found["chunk_gap_ms_p50"] == pytest.approx(200)
    assert found["tokens_per_chunk"] == pytest.approx(10 / 6)
    assert (found["goodput_s"], found["good_share"]) == (0.5, 0.5)
    assert found["tpf"] is None
    assert "goodput_s" not in summary([record()], 1.0)


def test_a_single_token_has_no_gap() -> None:
    assert token_gap_s(record(output_tokens=1)) is None
    assert token_gap_s(record(gaps_s=[])) is None
    gap = token_gap_s(record())
    assert gap is not None
    assert math.isclose(gap, 0.1)


def test_spread_is_median_and_range_of_what_was_measured() -> None:
    assert spread([{"a": 3.0}, {"a": None}, {"a": 1.0}, {}], "a") == (2.0, 1.0, 3.0)
    assert spread([{}], "a") is None
