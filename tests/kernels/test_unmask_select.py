"""Which masks a step fills, against a loop."""

from __future__ import annotations

import math

import torch
from dlm_kernels.ops.unmask_select import unmask_select
from hypothesis import given
from hypothesis import strategies as st

ROW = st.tuples(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.25, 0.5, 0.5, 0.9, 1.0])), min_size=6, max_size=6),
    st.one_of(st.none(), st.sampled_from([0.05, 0.5, 0.9, 1.0])),
    st.integers(0, 7),
    st.booleans(),
)


def _loop(cells: list[tuple[bool, float]], threshold: float | None, quota: int, fill_all: bool) -> list[bool]:
    masked = [index for index, (is_masked, _) in enumerate(cells) if is_masked]
    ranked = sorted(masked, key=lambda index: (-cells[index][1], index))
    if fill_all:
        chosen = masked
    elif threshold is None:
        chosen = ranked[:quota]
    else:
        chosen = [index for index in masked if cells[index][1] >= threshold] + ranked[:1]
    return [index in chosen for index in range(len(cells))]


@given(st.lists(ROW, min_size=1, max_size=6))
def test_reference_equals_a_loop(
    rows: list[tuple[list[tuple[bool, float]], float | None, int, bool]],
) -> None:
    got = unmask_select(
        torch.tensor([[is_masked for is_masked, _ in cells] for cells, *_ in rows]),
        torch.tensor([[value for _, value in cells] for cells, *_ in rows]),
        torch.tensor([math.nan if threshold is None else threshold for _, threshold, _, _ in rows]),
        torch.tensor([quota for *_, quota, _ in rows]),
        torch.tensor([fill_all for *_, fill_all in rows]),
    )
    assert got.tolist() == [_loop(*row) for row in rows]
