"""Compile every shipped variant of every kernel for sm_90, without a GPU, and record what each needs.

    python kernels/benchmarks/compile_variants.py [--filter TEXT] [--processes N]

Variants whose kernel has not changed since they were recorded are kept, so a run that was cut off goes on where it was.
Exits with 1 where a variant breaks a gate. `tests/kernels/test_variant_record.py` holds the record against the sources.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import triton
from dlm_kernels.testing.gates import Measured
from dlm_kernels.testing.shipped_variant import ShippedVariant
from dlm_kernels.testing.shipped_variants import shipped_variants
from dlm_kernels.testing.variant_record import RECORD, Entry, Record, each_variant, load, reusable, save

SECONDS_BETWEEN_SAVES = 15.0


def compiled(variant: ShippedVariant) -> tuple[Measured, float]:
    """What a variant compiles to, and the CPU seconds of this process and its children that it took."""
    begin = _cpu_seconds()
    # A cache of its own: the record is of the compiler's work, and 1 MB a variant does not stay behind.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        measured = variant.measure(variant.spec.compile())
    return measured, _cpu_seconds() - begin


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def compile_all(
    todo: list[tuple[str, str, ShippedVariant]], record: Record, num_processes: int
) -> tuple[float, list[str]]:
    """Compile variants (module, name, variant) into a record; CPU seconds, and the compiler's errors."""
    cpu_seconds, errors = 0.0, []
    saved = time.monotonic()
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        futures = {pool.submit(compiled, variant): (module, name, variant) for module, name, variant in todo}
        for done, future in enumerate(as_completed(futures), 1):
            module, name, variant = futures[future]
            try:
                measured, seconds = future.result()
            # Whatever the compiler raised, the other variants are still worth recording.
            except Exception as error:
                errors.append(f"{module} {name}: {type(error).__name__}: {error}")
                continue
            cpu_seconds += seconds
            record.modules[module].variants[name] = Entry(variant.spec.digest(), measured)
            print(f"{done}/{len(todo)} {seconds:.1f} s {module} {name} {measured}", flush=True)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save(record)
                saved = time.monotonic()
    return cpu_seconds, errors


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="of the missing variants, compile those whose name contains this")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    arguments = parser.parse_args()
    shipped = shipped_variants()
    record = reusable(load(), shipped, triton.__version__)
    missing = [
        (module, name, variant)
        for module, name, variant in each_variant(shipped)
        if name not in record.modules[module].variants
    ]
    todo = [each for each in missing if arguments.filter in f"{each[0]} {each[1]}"]
    num_shipped = sum(len(variants) for variants in shipped.values())
    print(f"{num_shipped} variants, {num_shipped - len(missing)} unchanged, {len(todo)} to compile", flush=True)
    begin = time.monotonic()
    try:
        cpu_seconds, failures = compile_all(todo, record, arguments.processes)
    finally:
        save(record)
    failures += record.failures(shipped)
    print(f"{RECORD.name}: {time.monotonic() - begin:.0f} s, {cpu_seconds:.0f} s of CPU; {len(failures)} failures")
    print("".join(f"FAILED {failure}\n" for failure in failures), end="")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
