"""SGLang's token allocator behind the constructor that an out-of-tree platform is asked for."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator


class CpuTokenAllocator(TokenToKVPoolAllocator):
    """Page size 1 on CPU: SGLang's paged allocator needs Triton kernels that only a GPU runs."""

    def __init__(
        self, size: int, page_size: int, dtype: torch.dtype, device: str, kvcache: Any, need_sort: bool
    ) -> None:
        if page_size != 1:
            raise ValueError(f"page_size must be 1 on the CPU platform, got {page_size}; leave --page-size out")
        super().__init__(size, dtype, device, kvcache, need_sort)
