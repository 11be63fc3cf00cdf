"""The roofline against worked tables: NLD on an H200, decode forwards of B requests with q query tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.measure.plan.gpu import find_gpu
from dlm_sglang.measure.plan.roofline import AUTOREGRESSIVE, Way, Yield, crossover_rows, forward_s, tok_s, ways
from dlm_sglang.measure.plan.shape import PUBLISHED, load_shape

H200 = find_gpu("h200")
LIMIT, ATTAINABLE = H200.limit(), H200.attainable()
assert LIMIT is not None
assert ATTAINABLE is not None
# Milliseconds, limit and attainable: model, prefix, then B = 1 (q = 1 and 32), 4, 8, 32, 128 (q = 1 and 32 each).
FORWARD_MS = [
    ("nld-3b", 1024, [(1, 1, 1.5, 1.9), (4, 32, 1.6, 2.1), (8, 32, 2.1, 3.0), (32, 32, 8.3, 11.7), (128, 32, 33, 46)]),
    ("nld-3b", 8192, [(4, 1, 2.2, 2.8), (8, 32, 3.4, 4.6), (32, 1, 7.3, 9.0), (32, 32, 13.4, 17.8), (128, 1, 25, 30)]),
    (
        "nld-8b",
        1024,
        [(1, 1, 3.3, 4.3), (8, 32, 4.6, 6.6), (32, 1, 4.3, 5.4), (32, 32, 18.3, 25.6), (128, 32, 73, 102)],
    ),
    ("nld-8b", 8192, [(1, 1, 3.6, 4.5), (8, 32, 6.2, 8.6), (32, 1, 10.9, 13.5), (32, 32, 25, 34), (128, 1, 34, 41)]),
    ("nld-14b", 1024, [(1, 1, 5.4, 6.8), (8, 32, 7.2, 10.3), (32, 1, 6.5, 8.1), (32, 32, 29, 40), (128, 32, 115, 161)]),
    ("nld-14b", 8192, [(1, 32, 5.7, 7.1), (8, 32, 9.2, 12.7), (32, 32, 37, 50), (128, 1, 41, 50), (128, 32, 147, 199)]),
]
# Attainable tok/s of 8B: AR, diffusion at block 32, self-speculation at 32, 16, 8; at 1k and at 8k tokens.
SPEED_8B = {
    1: ((235, 639, 1388, 1110, 752), (222, 603, 1311, 1048, 710)),
    4: ((915, 2441, 5300, 4281, 2918), (743, 1993, 4329, 3487, 2373)),
    8: ((1770, 3417, 7278, 8177, 5610), (1223, 2599, 5563, 5699, 3893)),
    16: ((3321, 3514, 7393, 11099, 10416), (1807, 2655, 5630, 6980, 5727)),
    32: ((5915, 3543, 7452, 11267, 13850), (2373, 2672, 5664, 7046, 6631)),
    64: ((9702, 3558, 7481, 11353, 14043), (2814, 2680, 5682, 7079, 6675)),
}
# Requests from which AR wins, at 0.5k, 2k and 8k tokens; None where 90 % of 141 GB end before.
CROSSOVERS = [
    ("nld-3b", "diffusion", 32, 2.74, (18, 24, None)),
    ("nld-3b", "self_speculation", 32, 11.92, (43, None, None)),
    ("nld-3b", "self_speculation", 8, 6.42, (117, None, None)),
    ("nld-8b", "diffusion", 32, 2.4, (15, 16, 31)),
    ("nld-8b", "diffusion", 32, 2.74, (17, 19, 51)),
    ("nld-8b", "diffusion", 32, 3.0, (19, 22, 83)),
    ("nld-8b", "diffusion", 32, 7.6, (53, 130, None)),
    ("nld-8b", "self_speculation", 32, 6.82, (20, 25, None)),
    ("nld-8b", "self_speculation", 32, 11.92, (38, 64, None)),
    ("nld-8b", "self_speculation", 16, 9.49, (65, None, None)),
    ("nld-14b", "diffusion", 32, 2.74, (16, 18, 32)),
    ("nld-14b", "self_speculation", 32, 6.82, (20, 23, 59)),
    ("nld-14b", "self_speculation", 16, 9.49, (61, 113, None)),
]


@pytest.mark.parametrize(("model", "prefix", "cells"), FORWARD_MS)
def test_times_per_forward_are_the_worked_ones(
    model: str, prefix: int, cells: list[tuple[int, int, float, float]]
) -> None:
    shape = load_shape(model)
    for rows, query_tokens, limit_ms, attainable_ms in cells:
        assert forward_s(shape, LIMIT, rows, query_tokens, prefix) * 1e3 == pytest.approx(limit_ms, rel=0.02, abs=0.051)
        assert forward_s(shape, ATTAINABLE, rows, query_tokens, prefix) * 1e3 == pytest.approx(
            attainable_ms, rel=0.02, abs=0.051
        )


@pytest.mark.parametrize("rows", SPEED_8B)
@pytest.mark.parametrize(("prefix", "column"), [(1024, 0), (8192, 1)])
def test_speeds_of_the_modes_are_the_worked_ones(rows: int, prefix: int, column: int) -> None:
    shape = load_shape("nld-8b")
    for way, expected in zip(ways([8, 16, 32]), SPEED_8B[rows][column], strict=True):
        assert tok_s(way, shape, ATTAINABLE, rows, prefix, Yield()) == pytest.approx(expected, rel=0.01), way.label


@pytest.mark.parametrize(("model", "mode", "block", "gain", "expected"), CROSSOVERS)
def test_ar_overtakes_where_it_was_worked_out(
    model: str, mode: str, block: int, gain: float, expected: tuple[int | None, ...]
) -> None:
    shape = load_shape(model)
    kv_tokens = (0.9 * 141e9 - 2 * shape.num_params) / shape.kv_bytes_per_token(2)
    assumed = Yield({block: gain}, diffusion_tpf=gain)
    for prefix, requests in zip((512, 2048, 8192), expected, strict=True):
        found = crossover_rows(
            lambda way, rows, prefix=prefix: tok_s(way, shape, ATTAINABLE, rows, prefix, assumed),
            Way(mode, block),
            int(kv_tokens // (prefix + block)),
        )
        assert found == (None if requests is None else pytest.approx(requests, rel=0.03)), prefix


@given(
    model=st.sampled_from(sorted(PUBLISHED)),
    rows=st.integers(1, 256),
    query_tokens=st.integers(1, 64),
    prefix=st.integers(0, 65536),
)
def test_more_work_never_takes_less_time_and_nothing_beats_the_limit(
    model: str, rows: int, query_tokens: int, prefix: int
) -> None:
    shape = load_shape(model)
    seconds = forward_s(shape, LIMIT, rows, query_tokens, prefix)
    assert seconds <= forward_s(shape, LIMIT, rows + 1, query_tokens, prefix)
    assert seconds <= forward_s(shape, LIMIT, rows, query_tokens + 1, prefix)
    assert seconds <= forward_s(shape, LIMIT, rows, query_tokens, prefix + 1)
    assert seconds < forward_s(shape, ATTAINABLE, rows, query_tokens, prefix)


@given(block=st.integers(2, 128))
def test_a_block_accepts_at_most_its_length_and_longer_ones_no_less(block: int) -> None:
    assumed = Yield()
    assert 0 < assumed.accept_length(block) <= block
    assert assumed.accept_length(block) <= assumed.accept_length(block + 1)


def test_a_measured_gain_replaces_the_assumption() -> None:
    shape = load_shape("nld-8b")
    slow = tok_s(Way("self_speculation", 32), shape, ATTAINABLE, 1, 1024, Yield({32: 6.82}))
    assert slow == pytest.approx(794, rel=0.01)
    assert tok_s(AUTOREGRESSIVE, shape, LIMIT, 1, 1024, Yield()) == pytest.approx(299, rel=0.01)


def test_measured_rates_stand_for_themselves() -> None:
    measured = find_gpu("h200", bandwidth_gb_s=4300, tflop_s=780)
    rates = measured.attainable()
    assert rates is not None
    assert rates.bytes_s == pytest.approx(ATTAINABLE.bytes_s)
    assert rates.gemm_flop_s == pytest.approx(ATTAINABLE.gemm_flop_s)
    assert replace(measured, is_measured=False).attainable() != rates
