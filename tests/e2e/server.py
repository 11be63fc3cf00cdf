"""The real server in a process of its own, and what a test may ask of it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import psutil

from dlm_sglang.measure.server import free_port

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 60
FLAGS = ("--dtype", "float32", "--mem-fraction-static", "0.1", "--host", "127.0.0.1")
# Lines that must never stand in the log of a server that only got well-formed requests.
ALARMS = ("Traceback", "leak detected", "Leak Detected", "double free", "use-after-free", "Scheduler hit an exception")


class ServerDidNotStart(AssertionError):
    """Carries the tail of the log: without it nobody can tell why."""


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    log_file: Path
    url: str

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **kwargs)

    def post(self, path: str, body: object, **kwargs: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)

    def load(self) -> dict[str, Any]:
        """SGLang's own count of running and waiting requests and of KV tokens in use."""
        response = self.get("/v1/loads", params={"include": "all"})
        response.raise_for_status()
        (load,) = response.json()["loads"]
        return dict(load)

    def wait_idle(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The load once nothing runs, waits or holds KV."""
        load: dict[str, Any] = {}

        def is_idle() -> bool:
            nonlocal load
            load = self.load()
            counts = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
            return all(load[name] == 0 for name in counts)

        wait_for(is_idle, timeout_s, lambda: f"the server did not become idle: {load}\n{tail(self.log_file)}")
        return load

    def flush_cache(self) -> None:
        """Empty the prefix cache; SGLang refuses while a request is still on its way out."""
        message = ""

        def is_flushed() -> bool:
            nonlocal message
            response = self.get("/flush_cache", params={"timeout": 30})
            message = response.text
            return response.status_code == 200

        wait_for(is_flushed, 60.0, lambda: f"the prefix cache was not flushed: {message}")

    def alarms(self) -> list[str]:
        """The lines of the log that tell of a crash or a leak."""
        return [line for line in self.log.splitlines() if any(alarm in line for alarm in ALARMS)]

    def stop(self) -> None:
        """End the process and all its children."""
        stop_tree(self.process.pid)
        self.process.wait(STOP_TIMEOUT_S)


def wait_for(condition: Callable[[], bool], timeout_s: float, message: Callable[[], str]) -> None:
    """Poll until the condition holds; fail with the message when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def tail(log_file: Path) -> str:
    """The last lines of a log, for messages."""
    lines = log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"--- end of {log_file} ---", *lines])


def launch_command(checkpoint: Path, port: int, flags: Iterable[str] = ()) -> list[str]:
    """SGLang's own command with our algorithm."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(checkpoint)]
    return [*command, "--speculative-algorithm", "DLM", "--port", str(port), *FLAGS, *flags]


def serve_command(checkpoint: Path, port: int, flags: Iterable[str] = ()) -> list[str]:
    """Our own command, which becomes SGLang's."""
    command = [sys.executable, "-m", "dlm_sglang.cli.main", "serve", "--model-path", str(checkpoint)]
    return [*command, "--port", str(port), "--dtype", "float32", "--mem-fraction-static", "0.1", *flags]


def start_server(
    checkpoint: Path,
    log_file: Path,
    flags: Iterable[str] = (),
    environment: dict[str, str] | None = None,
    command: Callable[[Path, int, Iterable[str]], list[str]] = launch_command,
) -> Server:
    """Start a server and wait until it answers.

    Args:
        checkpoint: the model's folder.
        log_file: where the server's output goes.
        flags: more flags for the command.
        environment: more variables.
        command: `launch_command` or `serve_command`.

    Raises:
        ServerDidNotStart: it ended, or did not answer in time; the message shows the end of its log.
    """
    port = free_port()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command(checkpoint, port, flags),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    server = Server(process, log_file, f"http://127.0.0.1:{port}")
    try:
        _wait_until_it_answers(server)
    except BaseException:
        server.stop()
        raise
    return server


def stop_tree(pid: int) -> None:
    """Terminate a process and its descendants, and kill what does not go."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family = [root, *root.children(recursive=True)]
    for member in family:
        _signal(member, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for member in left:
        _signal(member, signal.SIGKILL)
    psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if not server.is_alive():
            status = server.process.returncode
            raise ServerDidNotStart(f"the server ended with status {status}\n{tail(server.log_file)}")
        if time.monotonic() > deadline:
            raise ServerDidNotStart(f"no answer within {START_TIMEOUT_S:.0f} s\n{tail(server.log_file)}")
        # The warm-up request is SGLang's own; before its end the server refuses. Of several HTTP workers one may answer
        # while another still starts.
        if "The server is fired up" in server.log and server.get("/health_generate").status_code == HTTPStatus.OK:
            return
        time.sleep(0.2)
