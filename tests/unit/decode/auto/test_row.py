"""What the host knows of a row whose block length changes; tests of the tokens are in `test_changing_lengths.py`."""

from __future__ import annotations

import pytest

from dlm_sglang.decode.auto.row import AutoRow, allowed_lengths


def _row(length: int) -> AutoRow:
    row = AutoRow((1, 8, 16, 32))
    row.restart()
    if length > 1:
        row.retarget(length)
    return row


def test_lengths_are_1_and_the_standard_ones_that_fit() -> None:
    assert allowed_lengths(32) == (1, 8, 16, 32)
    assert allowed_lengths(31) == (1, 8, 16)
    assert allowed_lengths(8) == (1, 8)
    assert allowed_lengths(5) == (1, 5)
    assert allowed_lengths(64) == (1, 8, 16, 32)


def test_a_block_of_one_position_is_resized_at_once() -> None:
    row = _row(1)
    assert row.is_new
    assert row.reason == "none"
    assert row.retarget(16)
    assert row.is_settled
    assert row.launch() == 16
    assert not row.is_new


@pytest.mark.parametrize(
    ("before", "after", "widths"), [(32, 8, [32, 32, 8]), (8, 32, [32, 32, 32]), (32, 1, [32, 32, 1])]
)
def test_a_block_under_way_keeps_its_place_for_two_rounds(before: int, after: int, widths: list[int]) -> None:
    row = _row(before)
    row.launch()
    assert not row.retarget(after)
    assert not row.is_settled
    assert [row.launch() for _ in range(3)] == widths
    assert row.is_settled


def test_verified_blocks_are_counted_by_their_own_length_however_late_they_are_processed() -> None:
    row = _row(16)
    row.launch()  # drafts 16
    row.launch()  # verifies 16
    assert not row.retarget(8)
    row.launch()  # drafts the block that began before the change or after it
    assert row.processed(is_denoise=True) == (16, 0)
    assert row.processed(is_denoise=False) == (16, 16)
    assert row.processed(is_denoise=True) == (16, 0)
    row.launch()
    assert row.processed(is_denoise=False) == (16, 16)
    row.launch()
    assert row.processed(is_denoise=True) == (8, 0)
    assert row.blocks == {16: 2}


def test_a_resized_block_is_counted_by_its_new_length() -> None:
    row = _row(1)
    row.launch()
    row.retarget(8)
    row.launch()
    row.launch()
    assert [row.processed(is_denoise=flag) for flag in (False, True, False)] == [(1, 1), (8, 0), (8, 8)]
    assert row.blocks == {1: 1, 8: 1}


def test_a_retracted_request_begins_again_with_nothing_on_its_way() -> None:
    row = _row(32)
    row.launch()
    row.retarget(8)
    row.restart()
    assert row.is_new
    assert row.is_settled
    assert row.launch() == 1
    assert row.processed(is_denoise=False) == (1, 1)
