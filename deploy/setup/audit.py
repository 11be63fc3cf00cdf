"""Look the pinned packages up in the public list of known vulnerabilities, with pip-audit.

    python deploy/setup/audit.py [--venv DIR]

pip-audit runs from an environment of its own, made on first use. Where there is no network, or the service knows
nothing of our pins, the look-up is skipped, and that is said. Exit status 1 only where a pin is known to be vulnerable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements"
AUDITED = ("cpu.txt", "sglang.txt", "measure.txt", "dev.txt")
TOOL = "pip-audit==2.10.1"
# One package is asked for first: where the service has no answer to it, it has none to a hundred.
PROBE = "requests"
TIMEOUT_S = 300
# Known and accepted, as `ID: reason`.
ACCEPTED: dict[str, str] = {}


class SkippedError(Exception):
    """The look-up could not be made; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Audit and return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv" / "audit", help="where pip-audit is installed")
    arguments = parser.parse_args(argv)
    pins = pinned()
    try:
        tool = installed(arguments.venv)
        probed = looked_up(tool, [pin for pin in pins if pin.startswith(f"{PROBE}==")])
        if not answered(probed):
            raise SkippedError(f"the service knows nothing of {PROBE} in our version")
        found = looked_up(tool, pins)
    except SkippedError as reason:
        print(f"audit: skipped: {reason}")
        return 0
    bad = vulnerable(found)
    for line in bad:
        print(f"audit: {line}")
    print(f"audit: {len(answered(found))} of {len(pins)} packages looked up, {len(bad)} known vulnerabilities")
    return 1 if bad else 0


def pinned() -> list[str]:
    """Every `name==version` that the set-up installs on the CPU path."""
    lines = [line for name in AUDITED for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def installed(folder: Path) -> Path:
    """The tool, in its own environment.

    Raises:
        SkippedError: it cannot be installed.
    """
    tool = folder / "bin" / "pip-audit"
    if not tool.exists():
        # As a command: imported from here, `venv` would be the script beside this one.
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", TOOL]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise SkippedError("installing pip-audit took too long") from None
        if done.returncode != 0:
            raise SkippedError("pip-audit cannot be installed here (no network?)")
    return tool


def looked_up(tool: Path, pins: Sequence[str]) -> list[dict[str, object]]:
    """What pip-audit says of each pin.

    Raises:
        SkippedError: it could not ask.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        quiet = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "20"]
        command = [str(tool), *quiet, "--format", "json", "--requirement", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise SkippedError("the service takes too long") from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        reason = done.stderr.strip().splitlines()
        raise SkippedError(f"the service was not reached: {reason[-1][:200] if reason else 'no output'}") from None
    return list(told["dependencies"])


def answered(found: Sequence[dict[str, object]]) -> list[str]:
    """The packages that the service knew."""
    return [str(package["name"]) for package in found if "skip_reason" not in package]


def vulnerable(found: Sequence[dict[str, object]]) -> list[str]:
    """One line for each vulnerability that is not accepted."""
    lines = []
    for package in found:
        flaws = package.get("vulns")
        for flaw in flaws if isinstance(flaws, list) else []:
            if flaw["id"] not in ACCEPTED and not set(flaw.get("aliases", ())) & set(ACCEPTED):
                fixed = ", ".join(flaw.get("fix_versions", ())) or "no version"
                lines.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
