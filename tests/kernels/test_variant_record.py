"""The record of all shipped variants, held against the sources without compiling: hashes, completeness and gates.

That the record is true is shown by the tests that compile a sample (`test_block_attention_offline.py`,
`test_unmask_offline.py`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from dlm_kernels.testing.gates import Gates, Measured
from dlm_kernels.testing.kernel_sources import hash_of_sources, kernel_modules, kernels_of
from dlm_kernels.testing.shipped_variants import shipped_variants
from dlm_kernels.testing.variant_record import COMMAND, Entry, Record, each_variant, load, reusable, save

pytest.importorskip("triton")

OUTDATED = f"the record of compiled kernels is not of this source: run `{COMMAND}`"
PINS = Path(__file__).parents[2] / "deploy" / "requirements" / "cpu.txt"
SHIPPED = shipped_variants()
MEASURED = Measured(registers=64, spills=0, stack_bytes=0, shared_bytes=1024, blocks_per_sm=2)


@pytest.fixture(scope="module")
def record() -> Record:
    found = load()
    assert found is not None, OUTDATED
    return found


def test_the_record_is_of_the_present_sources(record: Record) -> None:
    assert {name: module.sources for name, module in record.modules.items()} == {
        name: hash_of_sources([name]) for name in kernel_modules()
    }, OUTDATED
    assert record.sources == hash_of_sources(kernel_modules()), OUTDATED


def test_the_record_is_of_the_pinned_compiler(record: Record) -> None:
    (pinned,) = re.findall(r"^triton==(\S+)$", PINS.read_text(), re.MULTILINE)
    assert record.triton == pinned, OUTDATED


def test_what_is_recorded_is_what_is_shipped(record: Record) -> None:
    recorded = {
        (module, name): entry.spec
        for module, fields in record.modules.items()
        for name, entry in fields.variants.items()
    }
    assert recorded == {(module, name): each.spec.digest() for module, name, each in each_variant(SHIPPED)}, OUTDATED


def test_every_recorded_variant_keeps_to_its_gates(record: Record) -> None:
    assert record.failures(SHIPPED) == []


def test_every_kernel_has_variants() -> None:
    compiled = {each.spec.kernel for _, _, each in each_variant(SHIPPED)}
    assert compiled == {f"{module}.{kernel}" for module in kernel_modules() for kernel in kernels_of(module)}


def test_what_a_kernel_imports_counts_among_its_sources() -> None:
    # The scan takes constants of the sampling kernels, and acceptance takes device functions of both.
    by_module = {module: hash_of_sources([module]) for module in kernel_modules()}
    assert len(set(by_module.values())) == len(by_module)
    assert hash_of_sources(["choose_token.kernel", "sample_token.kernel"]) == by_module["choose_token.kernel"]
    assert hash_of_sources(["block_attention.kernel", "sample_token.kernel"]) != by_module["block_attention.kernel"]


@pytest.mark.parametrize(
    ("gates", "change", "failure"),
    [
        (Gates(), {"spills": 2}, "2 spills"),
        (Gates(), {"stack_bytes": 8}, "8 bytes of local memory"),
        (Gates(), {"shared_bytes": 227 * 1024 + 1}, "bytes of shared memory"),
        (Gates(min_blocks_per_sm=2), {"blocks_per_sm": 1}, "1 blocks per multiprocessor"),
        (Gates(pipeline_buffers=(3, 3)), {"pipeline_buffers": (3, 2)}, "pipeline buffers"),
        (Gates(pipeline_buffers=(3, 3)), {}, "pipeline buffers"),
        (Gates(max_instructions_per_logit=(9.0,)), {"instructions_per_logit": (9.5,)}, "instructions per logit"),
        (Gates(max_instructions_per_logit=(9.0, 13.0)), {"instructions_per_logit": (8.0,)}, "instructions per logit"),
    ],
)
def test_a_broken_gate_is_named(gates: Gates, change: dict[str, int], failure: str) -> None:
    (found,) = gates.failures(replace(MEASURED, **change))
    assert failure in found


def made_up_record() -> Record:
    """Up to date, with the same numbers for every variant."""
    record = reusable(None, SHIPPED, "3.7.1")
    for module, name, variant in each_variant(SHIPPED):
        record.modules[module].variants[name] = Entry(variant.spec.digest(), MEASURED)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = made_up_record()
    save(record, tmp_path / "record.json")
    assert load(tmp_path / "record.json") == record
    assert load(tmp_path / "no.json") is None


def test_only_what_changed_is_compiled_anew() -> None:
    assert reusable(made_up_record(), SHIPPED, "3.7.1") == made_up_record()
    changed = made_up_record()
    scan, merge = (changed.modules[module] for module in ("choose_token.kernel", "choose_token.merge_kernel"))
    scan.sources = "of another time"
    first = next(iter(merge.variants))
    merge.variants[first] = Entry("compiled otherwise", MEASURED)
    kept = reusable(changed, SHIPPED, "3.7.1")
    expected = made_up_record()
    expected.modules["choose_token.kernel"].variants = {}
    del expected.modules["choose_token.merge_kernel"].variants[first]
    assert kept == expected


def test_another_compiler_keeps_nothing() -> None:
    kept = reusable(made_up_record(), SHIPPED, "another version")
    assert not any(module.variants for module in kept.modules.values())
