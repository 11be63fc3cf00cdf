"""Acceptance against a loop."""

from __future__ import annotations

import torch
from dlm_kernels.ops.accept_prefix import accept_prefix
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 8), st.lists(st.integers(0, 2**31), min_size=1, max_size=5))
def test_reference_equals_a_loop(length: int, seeds: list[int]) -> None:
    drafts, targets, counts = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drafts.append(torch.randint(0, 2, (length,), generator=generator))
        targets.append(torch.randint(0, 2, (length + 1,), generator=generator))
        counts.append(int(torch.randint(0, length + 1, (1,), generator=generator)))
    num_correct, bonus = accept_prefix(torch.stack(drafts), torch.stack(targets), torch.tensor(counts))
    for row, count in enumerate(counts):
        expected = 0
        while expected < count and drafts[row][expected] == targets[row][expected]:
            expected += 1
        assert int(num_correct[row]) == expected
        assert int(bonus[row]) == int(targets[row][expected])
