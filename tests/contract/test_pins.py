"""The CPU lock is complete and holds to what SGLang pins."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parents[2] / "deploy" / "requirements"
# Installed, but without its own requirements: they are CUDA packages.
WITHOUT_REQUIREMENTS = {"sglang"}


def pins(name: str) -> dict[str, str]:
    """Package to version, of a requirements file."""
    lines = (REQUIREMENTS / name).read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in parsed}


LOCK = pins("cpu.txt") | pins("sglang.txt") | pins("measure.txt") | pins("dev.txt")
needs_cpu_path = pytest.mark.skipif(
    not re.search(r"\+cpu$", distribution("torch").version), reason="the environment is not the CPU lock's"
)


def required_by(name: str) -> list[Requirement]:
    """What an installed package requires here, extras left out."""
    parsed = [Requirement(text) for text in distribution(name).requires or []]
    return [item for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})]


def test_files_pin_every_package_to_one_version() -> None:
    for name in ("cpu.txt", "sglang.txt", "measure.txt", "dev.txt", "gpu.txt"):
        assert all(re.fullmatch(r"[\w.]+", version) for version in pins(name).values()), name
    assert pins("gpu.txt").items() <= LOCK.items()


@needs_cpu_path
def test_environment_is_the_lock() -> None:
    installed = {name: distribution(name).version.removesuffix("+cpu") for name in LOCK}
    assert installed == LOCK


@needs_cpu_path
def test_lock_is_complete() -> None:
    missing = [
        f"{name} requires {item}"
        for name in LOCK.keys() - WITHOUT_REQUIREMENTS
        for item in required_by(name)
        if canonicalize_name(item.name) not in LOCK or not item.specifier.contains(LOCK[canonicalize_name(item.name)])
    ]
    assert missing == []


def test_what_sglang_pins_is_pinned_to_the_same() -> None:
    drift = [
        f"sglang requires {item}, the lock has {LOCK[canonicalize_name(item.name)]}"
        for item in required_by("sglang")
        if canonicalize_name(item.name) in LOCK
        and not item.specifier.contains(LOCK[canonicalize_name(item.name)], prereleases=True)
    ]
    assert drift == []
