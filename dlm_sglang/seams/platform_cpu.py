"""SGLang platform for machines without a GPU: the whole stack on plain torch.

SGLang's own CPU engine needs a compiled kernel package that is not on the registries, so this is an
out-of-tree platform: torch-native operators, SGLang's own KV pool and allocator classes, our attention.
"""

from __future__ import annotations

import os

PLATFORM_CLASS = "dlm_sglang.seams.platform_cpu_impl:DlmCpuPlatform"


def activate() -> str | None:
    """Name the platform class where no accelerator is found, else None (SGLang picks its own)."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    import torch

    if torch.cuda.is_available() or torch.xpu.is_available():
        return None
    return PLATFORM_CLASS
