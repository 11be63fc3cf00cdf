"""The benchmarks run through on small sizes, in the interpreter and without a clock."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "kernels" / "benchmarks"
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("bench_choose_token", {"VOCAB": 300, "QUICK_ROWS": (2,)}), ("bench_unmask_select", {"QUICK_REQUESTS": (2,)})],
)
def test_a_quick_run_measures_every_implementation(
    name: str, sizes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    bench, harness = importlib.import_module(name), importlib.import_module("harness")

    def time_calls(calls: Sequence[Callable[[], object]]) -> object:
        calls[0]()
        return harness.Timing(1.0, 0.0, True)

    saved: list[object] = []
    sizes = {**sizes, "DEVICE": "cpu", "time_calls": time_calls, "MIN_ROTATED_BYTES": 1}
    sizes["save_result"] = lambda _, rows, **facts: saved.append((rows, facts))
    if hasattr(bench, "copy_rate_gb_s"):
        sizes["copy_rate_gb_s"] = lambda: 1.0
    for key, value in sizes.items():
        monkeypatch.setattr(bench, key, value, raising=False)
    # Tensors of the CPU would go to the reference; here the kernels are meant.
    for op in ("choose_token", "unmask_block", "accept_prefix", "advance_rows"):
        if hasattr(bench, op):
            package = "unmask_select" if op == "unmask_block" else op
            launch = importlib.import_module(f"dlm_kernels.ops.{package}.launch")
            monkeypatch.setattr(bench, op, getattr(launch, op))
    rows = bench.run(quick=True)
    assert saved
    assert {"ours", "chain", "sglang"} <= {row["impl"] for row in rows}
    assert all("note" not in row and row["median_ms"] == 1.0 for row in rows)
    assert str(FOLDER) in sys.path
