"""What one shipped variant of a kernel is compiled from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module

from dlm_kernels.offline import OfflineKernel, compile_kernel

_OPS = "dlm_kernels.ops"


@dataclass(frozen=True)
class CompileSpec:
    """What decides a variant's machine code, beside the kernel's source and the compiler.

    Attributes:
        kernel: path of the kernel below `dlm_kernels.ops`: `"choose_token.kernel.choose_token_scan_kernel"`.
        signature, constexprs, num_warps, num_stages, aligned, options: see `compile_kernel`.
    """

    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Path of the kernel's module below `dlm_kernels.ops`."""
        return self.kernel.rsplit(".", 1)[0]

    def compile(self) -> OfflineKernel:
        """Compile for sm_90."""
        kernel: object = getattr(import_module(f"{_OPS}.{self.module}"), self.kernel.rsplit(".", 1)[1])
        return compile_kernel(
            kernel,
            self.signature,
            self.constexprs,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            aligned=self.aligned,
            options=self.options,
        )

    def digest(self) -> str:
        """16 hex digits that change when anything here does."""
        # `aligned` is a set of names.
        fields = {**asdict(self), "aligned": None if self.aligned is None else sorted(self.aligned)}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
