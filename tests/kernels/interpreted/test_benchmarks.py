"""The benchmark and the GPU runner as far as they go without a GPU: time on one is too short for typing errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from dlm_kernels.testing import block_attention_gpu
from dlm_kernels.testing.block_attention import Case, Row

BENCHMARKS = Path(__file__).parents[3] / "kernels" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    module = importlib.import_module("bench_block_attention")

    def time_calls(calls: Sequence[Callable[[], object]], num_replays: int = 1) -> object:
        calls[0]()
        return importlib.import_module("harness").Timing(2.0, 0.1, False)

    monkeypatch.setattr(module, "time_calls", time_calls)
    monkeypatch.setattr(module, "MIN_ROTATED_BYTES", 1)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "DTYPE", torch.float16)
    return module


@pytest.mark.parametrize(("block", "page"), [(1, 1), (4, 16)])
def test_every_baseline_is_timed_or_says_why_not(benchmark: ModuleType, block: int, page: int) -> None:
    rows = benchmark.measure_point(2, block, 20, page, 1000.0, skip=("flex", "sglang-extend", "sglang-decode"))
    by_name = {row["impl"]: row for row in rows}
    assert set(by_name) == {
        "ours",
        "ours-deterministic",
        "plan",
        "sdpa",
        "sdpa+gather",
        "varlen",
        "varlen-paged",
        "flashinfer",
    }
    for name in ("ours", "ours-deterministic", "sdpa", "sdpa+gather"):
        assert by_name[name]["note"] == "" and by_name[name]["share_of_copy"] > 0
    for name in ("varlen", "varlen-paged", "flashinfer"):
        assert by_name[name]["note"].startswith(("unavailable: ", "failed: "))


def test_useful_bytes_count_everything_once(benchmark: ModuleType) -> None:
    (inputs, _) = benchmark.layers_at(2, 4, 20, 1)
    assert benchmark.useful_bytes(inputs) == 2 * 24 * 2 * 8 * 128 * 2 + 2 * 8 * 32 * 128 * 2


def test_candidates_are_timed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "CANDIDATES", {16: benchmark.CANDIDATES[16][:1]})
    monkeypatch.setattr(benchmark, "TUNED_BLOCKS", (1,))
    monkeypatch.setattr(benchmark, "TUNED_REQUESTS_AND_PREFIXES", ((1, 70),))
    shipped = benchmark.plan.tile_config
    rows = benchmark.tune(1000.0)
    assert [row["page"] for row in rows] == [1, 64] and benchmark.plan.tile_config is shipped


def test_the_grid_is_smaller_when_quick(benchmark: ModuleType) -> None:
    assert len(list(benchmark.grid(True))) == 32
    assert set(benchmark.grid(True)) < set(benchmark.grid(False))


def test_the_runner_does_not_time_what_fails_its_check(benchmark: ModuleType, capsys: pytest.CaptureFixture) -> None:
    runner = importlib.import_module("run_gpu")
    assert [module.__name__ for module in runner.modules("block_attention")] == ["bench_block_attention"]
    fake = SimpleNamespace(__name__="fake", check=lambda: [{"case": "one", "passed": False}], run=None)
    assert runner.run_module(fake, quick=True)["note"] == "not timed: the check failed"
    row = {"impl": "ours", "median_ms": 1.0, "share_of_copy": 0.5}
    fake = SimpleNamespace(__name__="fake", run=lambda quick: [row])
    assert runner.run_module(fake, quick=True) | {"seconds": 0} == {
        "module": "fake",
        "checks": 0,
        "failed": 0,
        "rows": 1,
        "best_share_of_copy": 0.5,
        "seconds": 0,
    }
    assert "case" in capsys.readouterr().out


def test_the_cases_for_the_gpu_pass_here(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([Row(8, 70, "bidirectional"), Row(1, 130)], dtype=torch.float16)
    assert block_attention_gpu.check_case(case, deterministic=False, device="cpu")["passed"]
    rows = block_attention_gpu.check_cases(["one head"])
    assert [row["passed"] for row in rows] == [False, False] and "note" in rows[0]
