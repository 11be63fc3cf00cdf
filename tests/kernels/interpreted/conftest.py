"""Kernels in Triton's interpreter: only in a process that `test_interpreted.py` starts for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The interpreter turns one-element arrays into loop bounds, which NumPy deprecates.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(autouse=True, scope="session")
def poisoned_empty() -> Iterator[None]:
    """Uninitialised memory holds NaN or a wild index, so that reading it shows."""
    original = torch.empty

    def empty(*shape: object, **options: object) -> torch.Tensor:
        tensor = original(*shape, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -123456789)

    torch.empty = empty
    yield
    torch.empty = original
