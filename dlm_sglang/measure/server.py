"""A server of our own for the time of a measurement."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlm_sglang.errors import DlmError

START_TIMEOUT_S = 300.0
LOG_TAIL_LINES = 25


@contextlib.contextmanager
def running_server(arguments: Sequence[str], name: str) -> Iterator[str]:
    """Start `python -m sglang.launch_server` with `arguments` on a free port; yields its base URL.

    Raises:
        DlmError: it did not come up; the message ends with its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with (
        ended_in_order(),
        tempfile.NamedTemporaryFile("w+", prefix=f"dlm-{name}-", suffix=".log", delete=False) as log,
    ):
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(process, url, name, Path(log.name))
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    Path(log.name).unlink(missing_ok=True)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let a SIGTERM end this process as Ctrl-C does, through every `finally`: a server left over would run for ever."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait_until_up(process: subprocess.Popen[bytes], url: str, name: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health_generate", timeout=10) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise DlmError(f"the {name} server did not come up within {START_TIMEOUT_S:.0f} s; its log ends with\n{tail}")


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands to outgoing connections."""
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise DlmError("no free port found in 20000..31999", hint="end servers that are left over")
