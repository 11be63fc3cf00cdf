"""The audit fails for a vulnerable pin and for nothing else; secrets are found by the scan that `make check` runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
KNOWN = {"name": "requests", "version": "1.0", "vulns": []}
BAD = {"name": "torch", "version": "2.0", "vulns": [{"id": "X-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "requests", "skip_reason": "Dependency not found"}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_setup_audit", ROOT / "deploy" / "setup" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "installed", lambda folder: folder)
    return module


def answers(monkeypatch: pytest.MonkeyPatch, audit: ModuleType, *rounds: list[dict[str, Any]]) -> list[int]:
    left, asked = list(rounds), []

    def looked_up(_tool: Path, pins: list[str]) -> list[dict[str, Any]]:
        asked.append(len(pins))
        return left.pop(0)

    monkeypatch.setattr(audit, "looked_up", looked_up)
    return asked


def test_pins_without_flaws_pass_and_all_are_asked_for(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answers(monkeypatch, audit, [KNOWN], [KNOWN, UNKNOWN])
    assert audit.main([]) == 0
    assert asked == [1, len(audit.pinned())]
    assert f"1 of {len(audit.pinned())} packages looked up, 0 known" in capsys.readouterr().out


def test_a_vulnerable_pin_fails_and_says_what_fixes_it(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, audit, [KNOWN], [KNOWN, BAD])
    assert audit.main([]) == 1
    assert "torch 2.0: X-1, fixed in 2.1" in capsys.readouterr().out


@pytest.mark.parametrize("known_as", ["X-1", "CVE-1"])
def test_an_accepted_flaw_passes(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, known_as: str) -> None:
    answers(monkeypatch, audit, [KNOWN], [BAD])
    monkeypatch.setattr(audit, "ACCEPTED", {known_as: "not reachable from here"})
    assert audit.main([]) == 0


def test_a_service_that_does_not_know_our_pins_is_asked_once(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answers(monkeypatch, audit, [UNKNOWN]) == []
    assert audit.main([]) == 0
    assert "skipped: the service knows nothing of requests" in capsys.readouterr().out


def test_without_an_answer_it_is_skipped_with_the_reason(audit: ModuleType, tmp_path: Path) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'connection refused' >&2; exit 1\n")
    tool.chmod(0o755)
    with pytest.raises(audit.SkippedError, match="not reached: connection refused"):
        audit.looked_up(tool, ["requests==1.0"])


def scan_command() -> list[str]:
    """The scan as the Makefile runs it."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"\$\(BIN\)/(detect-secrets-hook .*?) \$\$\(git ls-files\)", text)
    assert found is not None
    return found[1].split()[1:]


def test_secret_scan_finds_a_key_and_passes_what_is_none(tmp_path: Path) -> None:
    pytest.importorskip("detect_secrets")
    for name, text, status in (
        ("bad.py", 'aws = "AKIA' + "IOSFODNN7" + 'EXAMPLE"\n', 1),
        ("pem.txt", "-----BEGIN RSA " + "PRIVATE KEY-----\n", 1),
        ("fine.py", 'KEY = "only-for-tests"\ndigest = "0123456789abcdef0123456789abcdef"\n', 0),
    ):
        file = tmp_path / name
        file.write_text(text)
        program = "import sys; from detect_secrets.pre_commit_hook import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, *scan_command(), str(file)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == status, (name, done.stdout, done.stderr)
