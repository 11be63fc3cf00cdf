"""What SGLang would do with a GPU even without one: small Triton helpers, collectives by NCCL."""

from __future__ import annotations

from collections.abc import Callable

import torch


def support_triton(original: Callable[[str], bool], backend: str) -> bool:
    """No backend runs Triton on the CPU platform."""
    return False


def find_nccl_library() -> str:
    """None: torch's default build brings the library, and SGLang would give it the CPU as its device.

    Raises:
        RuntimeError: always; SGLang's communicator then turns itself off, as where the library is missing.
    """
    raise RuntimeError("there is no NCCL without a GPU")


def assign_req_to_token_pool(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Write freshly allocated slots into the request table.

    Args:
        req_pool_indices: `[R]` request slots.
        req_to_token: `[P, context]` int32, changed in place.
        start_offset, end_offset: `[R]` position ranges to fill.
        out_cache_loc: `[sum(end - start)]` slots, in row order.
        batch_size: R.
    """
    # Row by row in numpy: torch's slices cost more to make than to fill.
    table, slots, done = req_to_token.numpy(), out_cache_loc.numpy(), 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        if end > start:
            table[row, start:end] = slots[done : done + end - start]
            done += end - start
