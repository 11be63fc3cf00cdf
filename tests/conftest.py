"""What all tiers share: marks by folder, and no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from dlm_sglang.cli.devices import num_cuda_devices
from tests import closing

E2E = "e2e"
TIER_BY_FOLDER = {"unit": "unit", "kernels": "unit", "contract": "contract", E2E: E2E, "gpu": "gpu"}

# The tests that start servers of their own; all other end-to-end tests share a few, started once.
OWN_SERVERS = f"{E2E}/own_servers"

# Whether this process has given way to the other one.
GAVE_WAY = pytest.StashKey[bool]()

IS_BESIDE_ANOTHER = "PYTEST_XDIST_WORKER" in os.environ

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
    if IS_BESIDE_ANOTHER:
        # The longest first: those that share servers, then those with servers of their own.
        first = [E2E, OWN_SERVERS]
        items.sort(key=lambda item: first.index(group) if (group := _group(item.nodeid)) in first else len(first))


class _ByServer(LoadScopeScheduling):
    """Each process begins with a half of the end-to-end tests; then it takes other files, each as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def _group(nodeid: str) -> str:
    """Which tests go to one process together: those that share servers, those with servers of their own, or a file."""
    file = nodeid.partition("::")[0]
    return next((group for group in (OWN_SERVERS, E2E) if f"/{group}/" in file), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByServer:
    """What `make test` spreads the tests over two processes with."""
    return _ByServer(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A process that is past its end-to-end tests gives way: those of the other one wait for servers with deadlines."""
    stash = item.config.stash
    if IS_BESIDE_ANOTHER and GAVE_WAY not in stash and not item.get_closest_marker(E2E):
        stash[GAVE_WAY] = True
        os.nice(19)


def pytest_testnodedown(node: Any, error: object) -> None:
    closing.take_over(node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in closing.lines(config):
        terminalreporter.write_line(line)
