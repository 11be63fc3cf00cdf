"""Servers with several HTTP workers, and how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.metrics import expected_of, grown, scrape
from tests.e2e.server import Server, start_server, wait_for

NUM_HTTP_WORKERS = 2
# Enough requests that the kernel gives some to each worker.
NUM_ASKS = 24
EXIT_TIMEOUT_S = 30
# An HTTP worker imports SGLang before it answers its first health check; within SGLang's 10 s on a busy machine it
# does not, and the server gives up.
PATIENCE = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "120"}
CHAT = {"messages": [{"role": "user", "content": "What is 12 + 30?"}], "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def many_workers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--max-total-tokens", "4000", "--tokenizer-worker-num", str(NUM_HTTP_WORKERS), "--enable-metrics"]
    server = start_server(checkpoint, tmp_path_factory.mktemp("many-workers") / "server.log", flags, PATIENCE)
    try:
        # The first worker answers while the next one still imports SGLang.
        started = "Started server process"
        wait_for(lambda: server.log.count(started) == NUM_HTTP_WORKERS, 120, lambda: "not every HTTP worker started")
        yield server
    finally:
        server.stop()


def test_every_http_worker_takes_and_checks_our_parameters(many_workers: Server) -> None:
    assert many_workers.log.count("Started server process") == NUM_HTTP_WORKERS
    for _ in range(NUM_ASKS):
        answer = many_workers.post("/v1/chat/completions", {**CHAT, "generation_mode": "diffusion"})
        assert answer.json()["dlm"]["generation_mode"] == "diffusion"
        refused = many_workers.post("/v1/chat/completions", {**CHAT, "block_length": 999})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "block_length"


def test_metrics_are_those_of_all_http_workers_together(many_workers: Server) -> None:
    before = scrape(many_workers)
    answers = []
    for _ in range(NUM_ASKS):
        body = many_workers.post("/v1/chat/completions", {**CHAT, "model": "x", "generation_mode": "diffusion"}).json()
        answers.append((body["dlm"], body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]))
    # Whichever worker answers the scrape tells of both.
    for _ in range(4):
        changes, expected = grown(before, scrape(many_workers)), expected_of(answers)
        assert changes.keys() == expected.keys()
        assert changes == pytest.approx(expected, abs=1e-2)


def test_server_ends_on_sigterm_after_streams_of_several_choices(checkpoint: Path, tmp_path: Path) -> None:
    server = start_server(checkpoint, tmp_path / "server.log", ["--max-total-tokens", "4000"])
    try:
        family = psutil.Process(server.process.pid).children(recursive=True)
        answer = server.post("/v1/chat/completions", {**CHAT, "n": 2, "stream": True})
        assert answer.text.count('"dlm":') == 2
        server.wait_idle()
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while server.is_alive():
            assert time.monotonic() < deadline, "the server waits for requests that ended long ago"
            time.sleep(0.1)
        _, left = psutil.wait_procs(family, timeout=5)
        assert left == []
    finally:
        server.stop()
