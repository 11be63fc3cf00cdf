"""What all tiers share: marks by folder, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from dlm_sglang.cli.devices import num_cuda_devices

TIER_BY_FOLDER = {"unit": "unit", "kernels": "unit", "contract": "contract", "e2e": "e2e", "gpu": "gpu"}

# Small models on a shared machine: a second thread mostly waits for the first, in the servers that tests start too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Everything that tests load is in the repository; a look-up on a hub would only hide that something is missing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Machines that run the tests are shared; a slow example is no failure.
settings.register_profile("dlm", deadline=None)
settings.load_profile("dlm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the tier of its folder, and skip the GPU tier where there is no GPU."""
    tests_folder = Path(__file__).parent
    without_gpu = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    has_gpu = num_cuda_devices() > 0
    for item in items:
        tier = TIER_BY_FOLDER.get(item.path.relative_to(tests_folder).parts[0])
        if tier:
            item.add_marker(tier)
        if not has_gpu and item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)
