"""What the benchmarks share: timing by graph replay, the machine's own copy rate, tables and result files."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
# Inputs are rotated over at least this much, so that no call finds its data in the L2 cache of the one before.
MIN_ROTATED_BYTES = 256 << 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, and the distance of the quartiles.

    `is_graph` is False where the call could not be captured, so that launches are in the time.
    """

    median_ms: float
    spread_ms: float
    is_graph: bool


def time_calls(calls: Sequence[Callable[[], object]], num_replays: int = 15) -> Timing:
    """Time a sequence of calls on different data, replayed as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        replay: Callable[[], object] = graph.replay
        is_graph = True
    except RuntimeError:
        torch.cuda.synchronize()
        is_graph = False

        def replay() -> None:
            for call in calls:
                call()

    samples = []
    for _ in range(num_replays + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / len(calls))
    low, median, high = statistics.quantiles(samples[2:], n=4)
    return Timing(median, high - low, is_graph)


def copy_rate_gb_s() -> float:
    """Bytes read and written per second by a copy of 1 GiB, the roof of every memory-bound kernel."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    timing = time_calls([lambda: target.copy_(source)])
    return 2 * source.nbytes / timing.median_ms / 1e6


def matmul_rate_tflop_s() -> float:
    """Rate of a bf16 8192^3 product on random data."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    timing = time_calls([lambda: left @ right])
    return 2 * 8192**3 / timing.median_ms / 1e9


def environment() -> dict[str, object]:
    """Hardware and versions, for the result line."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def print_table(rows: Iterable[dict[str, object]], columns: Sequence[str]) -> None:
    """Print aligned columns; floats with four significant digits."""
    cells = [list(columns)]
    cells += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def save_result(name: str, rows: Sequence[dict[str, object]], **facts: object) -> Path:
    """Append one JSON line to `results/<name>.jsonl`, and print it."""
    RESULTS.mkdir(exist_ok=True)
    line = json.dumps({"op": name, **environment(), **facts, "rows": rows}, default=str)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    print(line)
    return path


def require_gpu() -> None:
    """Stop where there is no CUDA device: numbers of the interpreter or of a CPU say nothing about the kernels."""
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device found\n\nhint: the kernel benchmarks run on an NVIDIA GPU only")


def timing_fields(timing: Timing) -> dict[str, object]:
    """A timing as fields of a result row."""
    return asdict(timing)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
