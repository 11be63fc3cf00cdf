"""GPUs by name with their datasheet rates, or one described by measured values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlm_sglang.errors import SettingsError

CPU = "cpu"
CUSTOM = "custom"
GIB = 1 << 30
_MIB = 1 << 20
# Shares of the datasheet that one H200 reached: a copy at 4.3 of 4.8 TB/s, of which a kernel keeps 92 %;
# a large GEMM at 780 of 990 TFLOP/s, of which 90 % in a model and 65 % in attention. Used for other GPUs too.
COPY_SHARE, COPY_KEPT = 4.3 / 4.8, 0.92
GEMM_SHARE, GEMM_KEPT, ATTENTION_KEPT = 780 / 990, 0.90, 0.65
SECONDS_PER_LAYER = 6e-6
# What the driver and the communication library take before the first weight is loaded: an estimate.
CONTEXT_BYTES = int(0.6 * GIB)
# KV tokens that our CPU platform allows itself unless told otherwise.
CPU_MAX_TOTAL_TOKENS = 65536


@dataclass(frozen=True)
class Rates:
    """What a roofline needs: bytes/s and FLOP/s, and a fixed time per layer."""

    bytes_s: float
    gemm_flop_s: float
    attention_flop_s: float
    layer_s: float = 0.0


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        memory_bytes: as the driver reports it.
        bytes_s: memory bandwidth; None where it is unknown, and times with it.
        flop_s: dense 16-bit matrix rate.
        is_measured: the rates were measured on the device, not read off a datasheet.
    """

    name: str
    memory_bytes: int
    bytes_s: float | None
    flop_s: float | None
    is_measured: bool = False
    max_total_tokens: int | None = None
    context_bytes: int = CONTEXT_BYTES

    def limit(self) -> Rates | None:
        """The rates as they stand: nothing can be faster."""
        if self.bytes_s is None or self.flop_s is None:
            return None
        return Rates(self.bytes_s, self.flop_s, self.flop_s)

    def attainable(self) -> Rates | None:
        """What a well-written stack reaches of them."""
        limit = self.limit()
        if limit is None:
            return None
        copy = limit.bytes_s * (1.0 if self.is_measured else COPY_SHARE)
        gemm = limit.gemm_flop_s * (1.0 if self.is_measured else GEMM_SHARE)
        return Rates(copy * COPY_KEPT, gemm * GEMM_KEPT, gemm * ATTENTION_KEPT, SECONDS_PER_LAYER)


def _gpu(name: str, memory_mib: int, gb_s: float, tflop_s: float) -> Gpu:
    return Gpu(name, memory_mib * _MIB, gb_s * 1e9, tflop_s * 1e12)


# Memory as the driver lists it; bandwidth and dense bf16 rate from the makers' datasheets.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", 183359, 8000, 2250),
        _gpu("h200", 143771, 4800, 990),
        _gpu("h100", 81559, 3350, 990),
        _gpu("h100-pcie", 81559, 2000, 756),
        _gpu("a100-80gb", 81920, 2039, 312),
        _gpu("a100-40gb", 40960, 1555, 312),
        _gpu("l40s", 46068, 864, 362),
        _gpu("l4", 23034, 300, 121),
        _gpu("a10", 23028, 600, 125),
        _gpu("rtx-4090", 24564, 1008, 165),
    )
}


def find_gpu(
    name: str, memory_gib: float | None = None, bandwidth_gb_s: float | None = None, tflop_s: float | None = None
) -> Gpu:
    """A known GPU, with measured values in place of the datasheet's where they are given.

    Args:
        name: a name of the table, `cpu`, or `custom`.
        memory_gib: memory that is free before the server starts, in GiB.
        bandwidth_gb_s: measured copy rate, read and write counted.
        tflop_s: measured rate of a large 16-bit GEMM.

    Raises:
        SettingsError: the name is unknown, or `custom` lacks a value, or only one rate is given.
    """
    if (bandwidth_gb_s is None) != (tflop_s is None):
        raise SettingsError(
            "a measured bandwidth and a measured GEMM rate go together, got one of them",
            code="gpu-half-measured",
            hint="give both --bandwidth-gb-s and --tflop-s, or neither",
        )
    if name == CPU:
        gpu = Gpu(CPU, _host_memory_bytes(), None, None, max_total_tokens=CPU_MAX_TOTAL_TOKENS, context_bytes=0)
    elif name == CUSTOM:
        if memory_gib is None or bandwidth_gb_s is None:
            raise SettingsError(
                "--gpu custom needs its memory and its measured rates",
                code="gpu-incomplete",
                hint="give --memory-gib, --bandwidth-gb-s and --tflop-s",
            )
        gpu = Gpu(CUSTOM, 0, None, None)
    elif name in GPUS:
        gpu = GPUS[name]
    else:
        raise SettingsError(
            f"unknown GPU {name!r}; known are {', '.join([*GPUS, CPU])}",
            code="gpu-unknown",
            hint="describe it: --gpu custom --memory-gib ... --bandwidth-gb-s ... --tflop-s ...",
        )
    if memory_gib is not None:
        # What is free was measured after the driver took its part.
        gpu = replace(gpu, memory_bytes=int(memory_gib * GIB), context_bytes=0)
    if bandwidth_gb_s is not None and tflop_s is not None:
        gpu = replace(gpu, bytes_s=bandwidth_gb_s * 1e9, flop_s=tflop_s * 1e12, is_measured=True)
    return gpu


def _host_memory_bytes() -> int:
    """Memory that this machine could give to a new process."""
    try:
        import psutil
    except ImportError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return int(psutil.virtual_memory().available)
