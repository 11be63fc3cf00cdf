"""The CPU platform class; imported only after `platform_cpu.activate()` named it."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from dlm_sglang.seams.names import ATTENTION_BACKEND

logger = logging.getLogger(__name__)

# Defaults of a machine without a GPU; --max-total-tokens and --max-running-requests override them.
MAX_TOTAL_TOKENS = 65536
MAX_RUNNING_REQUESTS = 64


class DlmCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang on plain torch CPU operators; what GPU-only kernels do is done by torch references."""

    _enum = PlatformEnum.OOT
    device_name = "dlm_cpu"
    device_type = "cpu"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Set what only a GPU can do to off."""
        server_args.device = "cpu"
        # SGLang presets its own CPU engine's backend, which this platform is there to replace.
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = ATTENTION_BACKEND
        server_args.disable_cuda_graph = True
        server_args.disable_piecewise_cuda_graph = True
        server_args.sampling_backend = "pytorch"
        # An idle scheduler polls in a loop; without a GPU those are the cores that others compute on.
        server_args.sleep_on_idle = True
        # Host memory is everybody's: SGLang would take most of what is free for the KV pool.
        if server_args.max_total_tokens is None:
            server_args.max_total_tokens = MAX_TOTAL_TOKENS
        if server_args.max_running_requests is None:
            server_args.max_running_requests = MAX_RUNNING_REQUESTS

    def get_device(self, local_rank: int = 0) -> Any:
        """SGLang's argument parser splits this like a string."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_paged_allocator_cls(self) -> type:
        from dlm_sglang.seams.allocator_cpu import CpuTokenAllocator

        return CpuTokenAllocator
