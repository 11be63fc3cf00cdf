"""What all tiers share: marks by folder, and no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from dlm_sglang.cli.devices import num_cuda_devices

E2E = "e2e"
TIER_BY_FOLDER = {"unit": "unit", "kernels": "unit", "contract": "contract", E2E: E2E, "gpu": "gpu"}

# Whether this process has begun with its tests.
IS_PLACED = pytest.StashKey[bool]()

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


class _ByServer(LoadScopeScheduling):
    """One process takes all end-to-end tests, which share servers; other files go as a whole, each to any process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return E2E if f"/{E2E}/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByServer:
    """What `make test` spreads the tests over two processes with."""
    return _ByServer(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Of two processes the one without the end-to-end tests gives way: those wait for servers with deadlines."""
    config = item.config
    if IS_PLACED in config.stash:
        return
    config.stash[IS_PLACED] = True
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker(E2E):
        os.nice(19)
