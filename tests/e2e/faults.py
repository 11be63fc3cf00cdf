"""What the fault tests share: a clock that a test moves, raw connections, clients that are cut off."""

from __future__ import annotations

import concurrent.futures
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.asks import MODES
from tests.e2e.server import Server, wait_for

CHAT = "/v1/chat/completions"
JSON_HEADER = b"content-type: application/json\r\n"
# Imported by Python at start, in every process of the server.
MOVED_CLOCK = """
import os
import time

_real_time, _file = time.time, os.environ["DLM_TEST_CLOCK"]


def moved_time():
    with open(_file) as opened:
        return _real_time() + float(opened.read() or 0)


time.time = moved_time
"""


def with_moved_clock(folder: Path) -> tuple[Path, dict[str, str]]:
    """A file of seconds that `time.time` of the server's processes is ahead, and the environment that does it."""
    (folder / "sitecustomize.py").write_text(MOVED_CLOCK)
    clock = folder / "clock"
    clock.write_text("0")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return clock, {"PYTHONPATH": path, "DLM_TEST_CLOCK": str(clock)}


def body(mode: str, num_tokens: int, *, stream: bool = False, number: int = 7) -> dict[str, Any]:
    """A request that gets just so many tokens."""
    return {
        "messages": [{"role": "user", "content": f"What is {number} + 30?"}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "generation_mode": mode,
        "stream": stream,
    }


def texts(server: Server) -> list[str]:
    """What the server answers to one question in each mode."""
    answers = [server.post(CHAT, body(mode, 24)) for mode in MODES]
    assert [answer.status_code for answer in answers] == [200] * len(MODES)
    return [answer.json()["choices"][0]["message"]["content"] for answer in answers]


def send_raw(port: int, payload: bytes, path: str = CHAT, headers: bytes = JSON_HEADER) -> socket.socket:
    """A connection on which a POST was sent and nothing read, with a small buffer for what comes back."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.settimeout(60)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(payload)}\r\n".encode()
    connection.sendall(head + headers + b"\r\n" + payload)
    return connection


def received(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the one response on a connection."""
    parts = []
    with connection:
        while part := connection.recv(65536):
            parts.append(part)
    head, _, rest = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


@dataclass(frozen=True)
class Outcome:
    """How a request ended for its client.

    Attributes:
        status: 0 where the connection was lost before one came.
        finish_reason: None where the answer never got to its end.
        seconds: until the client knew.
    """

    mode: str
    stream: bool
    status: int
    finish_reason: str | None
    is_lost: bool
    seconds: float
    code: str | None = None


def follow(url: str, mode: str, num_tokens: int, *, stream: bool, number: int) -> Outcome:
    """Send one request and tell how it ended, whatever happens to the server meanwhile."""
    begin = time.monotonic()
    status, reason, code, is_lost = 0, None, None, False
    try:
        sent = body(mode, num_tokens, stream=stream, number=number)
        with httpx.stream("POST", url + CHAT, json=sent, timeout=120) as response:
            status = response.status_code
            text = response.read().decode()
        if status != 200:
            code = json.loads(text)["error"]["code"]
        elif stream:
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            reasons = [choice["finish_reason"] for event in events for choice in event.get("choices", [])]
            reason = next((one for one in reasons if one), None)
            is_lost = not text.rstrip().endswith("data: [DONE]")
        else:
            reason = json.loads(text)["choices"][0]["finish_reason"]
    except httpx.TransportError:
        is_lost = True
    return Outcome(mode, stream, status, reason, is_lost, time.monotonic() - begin, code)


class Clients:
    """Clients in threads, every other one streaming; `outcomes` waits for all of them.

    Args:
        server: what they ask; it has them all when this returns.
        asks: mode and number of tokens of each.
    """

    def __init__(self, server: Server, asks: Sequence[tuple[str, int]]) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(len(asks))
        self._futures = [
            self._pool.submit(follow, server.url, mode, tokens, stream=number % 2 == 0, number=number)
            for number, (mode, tokens) in enumerate(asks)
        ]

        def are_there() -> bool:
            load = server.load()
            num_open = load["num_running_reqs"] + load["num_waiting_reqs"]
            return num_open >= sum(not future.done() for future in self._futures) and load["num_running_reqs"] > 0

        wait_for(are_there, 60, lambda: "the requests never ran")

    def outcomes(self) -> list[Outcome]:
        found = [future.result() for future in self._futures]
        self._pool.shutdown()
        return found


def family_of(server: Server) -> dict[str, psutil.Process]:
    """The server's processes by what they are: http, scheduler, detokenizer."""
    root = psutil.Process(server.process.pid)
    found = {"http": root}
    for child in root.children(recursive=True):
        name = " ".join(child.cmdline()) + child.name()
        for part in ("scheduler", "detokenizer"):
            if part in name:
                found[part] = child
    return found


def gone(server: Server, family: dict[str, psutil.Process], timeout_s: float) -> float:
    """Seconds until none of the server's processes is left."""
    begin = time.monotonic()
    # First, or psutil takes its exit status away.
    server.process.wait(timeout_s)
    _, left = psutil.wait_procs(
        [member for part, member in family.items() if part != "http"], timeout=timeout_s - (time.monotonic() - begin)
    )
    assert left == [], f"{left} did not end within {timeout_s} s"
    return time.monotonic() - begin
