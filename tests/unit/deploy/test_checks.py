"""The health check and the smoke test follow what a server answers; that the real one passes is shown in tests/e2e."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dlm_sglang.param_table import GenerationMode

DEPLOY = Path(__file__).parents[3] / "deploy"
MODES = sorted(GenerationMode)
OVERLOADED = (503, {"error": {"code": "server-overloaded"}})
SERIES = "".join(f'dlm_output_tokens_total{{mode="{mode}"}} 4.0\n' for mode in MODES)


@dataclass
class Played:
    """A server of which a test decides what it answers.

    Attributes:
        by_mode: status and body for a mode that does not work.
        seen: modes and keys that were asked for, in order.
    """

    by_mode: dict[str, tuple[int, Any]] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    hangs_on: str | None = None
    num_waiting: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        if path == "/v1/loads":
            return 200, {"loads": [{"num_waiting_reqs": self.num_waiting}]}
        if path == "/metrics/":
            return 200, SERIES
        if path == "/health":
            return 200, ""
        sampling = body.get("sampling_params", {}).get("custom_params", body)
        mode = sampling["generation_mode"]
        self.seen.append((mode, key))
        if mode not in MODES:
            return 400, {"error": {"param": "generation_mode"}}
        if mode == self.hangs_on:
            self.released.wait(30)
        if mode in self.by_mode:
            return self.by_mode[mode]
        stats = {"generation_mode": mode, "num_forwards": 2}
        if path == "/generate":
            return 200, {"meta_info": {"completion_tokens": 4, "dlm": stats}}
        told = {"choices": [{"message": {"content": "84"}}], "dlm": stats}
        return 200, f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n" if body.get("stream") else told


@pytest.fixture
def played() -> Iterator[tuple[Played, int]]:
    play = Played()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = play.answer(self.path, json.loads(body or b"{}"), self.headers.get("Authorization"))
            text = answer[1] if isinstance(answer[1], str) else json.dumps(answer[1])
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield play, server.server_port
    play.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def run_health_check(port: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", DEPLOY / "healthcheck.py", *arguments],
        env={"DLM_PORT": str(port), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_smoke(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEPLOY / "smoke.sh", f"http://127.0.0.1:{port}"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_health_check_asks_in_every_mode_with_the_key(played: tuple[Played, int]) -> None:
    play, port = played
    assert run_health_check(port, DLM_API_KEY="k").returncode == 0
    assert sorted(play.seen) == [(mode, "Bearer k") for mode in MODES]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": {"code": None}}),
        (503, {"error": {"code": "server-draining"}}),
        (200, "not json"),
        (200, {"meta_info": {"completion_tokens": 0, "dlm": {}}}),
    ],
    ids=["500", "draining", "no-json", "no-tokens"],
)
def test_health_check_fails_when_one_mode_does_not_work(
    played: tuple[Played, int], mode: str, answer: tuple[int, Any]
) -> None:
    play, port = played
    play.by_mode[mode] = answer
    done = run_health_check(port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"unhealthy: {mode}: ")


def test_a_full_server_is_healthy(played: tuple[Played, int]) -> None:
    play, port = played
    play.by_mode = dict.fromkeys(MODES, OVERLOADED)
    assert run_health_check(port).returncode == 0


@pytest.mark.parametrize(("num_waiting", "exit_status"), [(3, 0), (0, 1)])
def test_a_mode_that_hangs_is_unhealthy_unless_others_wait_too(
    played: tuple[Played, int], num_waiting: int, exit_status: int
) -> None:
    play, port = played
    play.hangs_on, play.num_waiting = MODES[0], num_waiting
    assert run_health_check(port, "3").returncode == exit_status


def test_health_check_says_that_nobody_listens() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as unused:
        port = unused.server_port
    done = run_health_check(port)
    assert done.returncode == 1
    assert f"http://127.0.0.1:{port}: " in done.stderr


def test_smoke_passes_where_every_mode_works(played: tuple[Played, int]) -> None:
    play, port = played
    done = run_smoke(port, DLM_API_KEY="k")
    assert done.returncode == 0, done.stdout
    assert {key for _, key in play.seen} == {"Bearer k"}


@pytest.mark.parametrize("mode", MODES)
def test_smoke_fails_when_one_mode_does_not_work(played: tuple[Played, int], mode: str) -> None:
    play, port = played
    play.by_mode[mode] = (500, {"error": {"message": "broken"}})
    done = run_smoke(port)
    assert done.returncode == 1
    assert f"FAILED  {mode}: " in done.stdout
    assert f"FAILED  {mode}, streamed: " in done.stdout
    assert "broken" in done.stdout
