"""Compiled variants beside the committed record."""

from __future__ import annotations

import pytest
from dlm_kernels.offline import OfflineKernel
from dlm_kernels.testing.shipped_variant import ShippedVariant
from dlm_kernels.testing.variant_record import COMMAND, load


def assert_as_recorded(variant: ShippedVariant, kernel: OfflineKernel) -> None:
    """What was compiled just now has the recorded numbers; skips under another compiler than the record's."""
    import triton

    record = load()
    assert record is not None, f"run `{COMMAND}`"
    # A GPU host runs the Triton of its own stack, whose numbers are others; that the record is of the pinned one is a
    # test by itself.
    if triton.__version__ != record.triton:
        pytest.skip(f"the record is of Triton {record.triton}")
    assert variant.measure(kernel) == record.measured(variant), f"run `{COMMAND}`"
