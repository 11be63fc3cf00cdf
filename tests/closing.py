"""Lines that stand at the end of a run's report, of whichever process they come from."""

from __future__ import annotations

from typing import Any

import pytest

_LINES = pytest.StashKey[list[str]]()
_NAME = "closing_lines"


def tell(config: Any, line: str) -> None:
    """Keep a line for the end; one process of several has no report and hands it to the one that has."""
    told = getattr(config, "workeroutput", None)
    if told is None:
        config.stash.setdefault(_LINES, []).append(line)
    else:
        told.setdefault(_NAME, []).append(line)


def take_over(node: Any) -> None:
    """Keep what another process told; one that crashed told nothing."""
    for line in getattr(node, "workeroutput", {}).get(_NAME, []):
        tell(node.config, line)


def lines(config: pytest.Config) -> list[str]:
    """What was told so far."""
    return config.stash.get(_LINES, [])
