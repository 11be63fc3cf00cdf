"""KV slots that a decode round reserves: for whom, how far ahead, and what the host knows of the context's end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dlm_sglang.seams import batch as batch_seam
from dlm_sglang.seams.batch import LOOKAHEAD, ROOMY, DlmRoundState, prepare_decode_round

CONTEXT = 1000
Allocated = list[tuple[list[int], int]]


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> Allocated:
    """What was asked for: rows, and slots ahead of their blocks."""
    calls: Allocated = []

    def record(batch: object, rows: list[tuple[object, int, int]], lookahead: int) -> None:
        calls.append(([row for _, row, _ in rows], lookahead))

    monkeypatch.setattr(batch_seam, "_allocate", record)
    return calls


def _batch(
    rows: list[tuple[int, int]], *, width: int = 16, page_size: int = 1, num_free: int = 10**6, num_evictable: int = 0
) -> Any:
    """A batch whose rows have `(committed, allocated)` tokens."""
    reqs = [
        SimpleNamespace(
            kv=SimpleNamespace(kv_committed_len=committed, kv_allocated_len=allocated),
            dlm=SimpleNamespace(num_pending_tokens=0, launch=lambda: width, context_length=CONTEXT, auto=None),
        )
        for committed, allocated in rows
    ]
    allocator = SimpleNamespace(page_size=page_size, available_size=lambda: num_free)
    cache = SimpleNamespace(evictable_size=lambda: num_evictable)
    return SimpleNamespace(
        spec_info=DlmRoundState(32), reqs=reqs, token_to_kv_pool_allocator=allocator, tree_cache=cache
    )


def test_one_allocation_serves_all_rows_that_have_little_left(allocated: Allocated) -> None:
    batch = _batch([(100, 110), (100, 116), (100, 116 + LOOKAHEAD // 2)])
    prepare_decode_round(None, batch)
    assert allocated == [([0, 1], LOOKAHEAD)]


def test_nothing_is_allocated_while_every_row_has_its_slots(allocated: Allocated) -> None:
    prepare_decode_round(None, _batch([(100, 116), (100, 200)]))
    assert allocated == []


def test_a_pool_without_room_serves_only_rows_that_lack_slots(allocated: Allocated) -> None:
    rows = [(100, 110), (100, 116)]
    prepare_decode_round(None, _batch(rows, num_free=6 + ROOMY * LOOKAHEAD * len(rows) - 1))
    assert allocated == [([0], 0)]


def test_old_prefixes_are_room(allocated: Allocated) -> None:
    rows = [(100, 110), (100, 116)]
    prepare_decode_round(None, _batch(rows, num_free=0, num_evictable=6 + ROOMY * LOOKAHEAD * len(rows)))
    assert allocated == [([0, 1], LOOKAHEAD)]


def test_rows_at_the_contexts_end_ask_for_no_more(allocated: Allocated) -> None:
    prepare_decode_round(None, _batch([(100, 110), (CONTEXT - 3, CONTEXT)]))
    assert allocated == [([0], LOOKAHEAD)]


@pytest.mark.parametrize(("committed", "may_cut"), [(CONTEXT - 16, False), (CONTEXT - 15, True), (CONTEXT - 10, True)])
@pytest.mark.parametrize("page_size", [1, 64])
def test_a_block_past_the_contexts_end_may_be_cut(
    allocated: Allocated, committed: int, may_cut: bool, page_size: int
) -> None:
    # Pages of 64 reach to 1024: slots are there, positions are not.
    batch = _batch([(committed, -(-CONTEXT // page_size) * page_size)], page_size=page_size)
    prepare_decode_round(None, batch)
    assert allocated == []
    assert batch.spec_info.may_cut == may_cut
    assert batch.spec_info.max_kv_len == min(committed + 16, CONTEXT)
