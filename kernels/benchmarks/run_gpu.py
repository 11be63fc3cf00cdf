"""Everything that needs a GPU, in one command on a host with torch and Triton only, in at most ten minutes.

    python kernels/benchmarks/run_gpu.py [--full] [--only NAME]

First correctness, then benchmarks, the short table last. Every `bench_*.py` beside this file takes part with

    def run(quick: bool) -> list[dict[str, object]]      # measure, print, save; rows with "impl" and "median_ms"
    def check() -> list[dict[str, object]]               # optional; rows with "case" and "passed"

An op whose check fails is not timed: a fast wrong kernel has no speed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from harness import copy_rate_gb_s, environment, matmul_rate_tflop_s, print_table, require_gpu  # noqa: E402

# After this long no further module starts, and the table is printed.
MAX_SECONDS = 540
SUMMARY_COLUMNS = ("module", "checks", "failed", "rows", "best_share_of_copy", "seconds", "note")


def modules(only: str | None) -> list[ModuleType]:
    """The `bench_*.py` files beside this one."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    return [importlib.import_module(name) for name in names if only is None or only in name]


def run_module(module: ModuleType, quick: bool) -> dict[str, object]:
    """Check and time one op; its line of the summary."""
    begin = time.monotonic()
    summary: dict[str, object] = {"module": module.__name__}
    try:
        checks = module.check() if hasattr(module, "check") else []
        failed = [row for row in checks if not row["passed"]]
        summary |= {"checks": len(checks), "failed": len(failed)}
        print_table(checks, ("case", "deterministic", "error", "limit", "passed", "note"))
        if failed:
            summary["note"] = "not timed: the check failed"
        else:
            rows = module.run(quick)
            shares = [row["share_of_copy"] for row in rows if row.get("impl") == "ours" and "share_of_copy" in row]
            summary |= {"rows": len(rows), "best_share_of_copy": max(shares, default="")}
    # One op's failure must not cost the others their run.
    except Exception as error:
        summary["note"] = f"{type(error).__name__}: {error}"[:120]
    summary["seconds"] = round(time.monotonic() - begin, 1)
    return summary


def main() -> int:
    """Command line; 1 where a check failed or a module did not finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="whole grids and slow baselines; may take longer")
    parser.add_argument("--only", help="run the modules whose name contains this")
    arguments = parser.parse_args()
    require_gpu()
    begin = time.monotonic()
    print(environment())
    print(f"copy {copy_rate_gb_s():.0f} GB/s, bf16 matmul {matmul_rate_tflop_s():.0f} TFLOP/s")
    summaries: list[dict[str, object]] = []
    for module in modules(arguments.only):
        if time.monotonic() - begin > MAX_SECONDS:
            summaries.append({"module": module.__name__, "note": f"not started: {MAX_SECONDS} s are over"})
        else:
            summaries.append(run_module(module, not arguments.full))
    print()
    print_table(summaries, SUMMARY_COLUMNS)
    return int(any(summary.get("note") for summary in summaries))


if __name__ == "__main__":
    sys.exit(main())
