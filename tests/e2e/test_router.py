"""SGLang's own router in front of two servers: our parameters go through it, and prompts return to their cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from dlm_sglang.measure.server import free_port
from tests.e2e.asks import MODES
from tests.e2e.conftest import SERVER_FLAGS, running
from tests.e2e.faults import CHAT, body
from tests.e2e.server import Server, stop_tree, tail, wait_for

pytest.importorskip("sglang_router", reason="sglang-router is not installed")

START_TIMEOUT_S = 90
# Longer than the prefix at which the router sends a prompt to the server that has it.
LONG_TEXT = "Vienna, Oslo and Lima are cities. " * 24
NUM_TALKS = 4
NUM_TURNS = 3


@pytest.fixture(scope="module")
def replicas(
    server: Server, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    with running(checkpoint, tmp_path_factory, "second-replica", SERVER_FLAGS) as second:
        yield server, second


@pytest.fixture(scope="module")
def router(replicas: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The router, with its log; retries off, so that every answer is the first one."""
    log_file, port = tmp_path_factory.mktemp("router") / "router.log", free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *(replica.url for replica in replicas), "--policy", "cache_aware"]
    command += ["--prometheus-port", str(free_port()), "--disable-retries"]
    with ExitStack() as stack:
        log = stack.enter_context(log_file.open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(stop_tree, process.pid)
        router = Server(process, log_file, f"http://127.0.0.1:{port}")

        def has_both() -> bool:
            assert router.is_alive(), tail(log_file)
            try:
                return len(httpx.get(f"{router.url}/workers", timeout=5).json()["workers"]) == len(replicas)
            except (httpx.TransportError, ValueError, KeyError):
                return False

        wait_for(has_both, START_TIMEOUT_S, lambda: f"the router does not know both servers\n{tail(log_file)}")
        yield router


def events(answer: httpx.Response) -> list[str]:
    return [line for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("mode", MODES)
def test_our_parameters_and_reports_go_through(router: Server, replicas: tuple[Server, Server], mode: str) -> None:
    direct = [replica.post(CHAT, body(mode, 24)).json() for replica in replicas]
    routed = [router.post(CHAT, body(mode, 24)).json() for _ in range(2)]
    for answer in (*direct, *routed):
        assert answer["dlm"] == direct[0]["dlm"]
        assert answer["choices"][0]["message"] == direct[0]["choices"][0]["message"]
    assert routed[0]["dlm"]["generation_mode"] == mode


@pytest.mark.parametrize("mode", MODES)
def test_streams_go_through_with_their_report(router: Server, mode: str) -> None:
    answer = router.post(CHAT, body(mode, 24, stream=True))
    assert answer.status_code == 200
    assert events(answer)[-1] == "data: [DONE]"
    assert f'"generation_mode":"{mode}"' in answer.text


def test_a_mode_in_the_models_name_goes_through(router: Server, replicas: tuple[Server, Server]) -> None:
    name = replicas[0].get("/v1/models").json()["data"][0]["id"]
    sent: dict[str, Any] = {**body("diffusion", 8), "model": f"{name}:diffusion"}
    del sent["generation_mode"]
    answer = router.post(CHAT, sent)
    assert answer.json()["dlm"]["generation_mode"] == "diffusion"


def test_a_refusal_goes_through_as_the_server_wrote_it(router: Server, replicas: tuple[Server, Server]) -> None:
    wrong = {**body("diffusion", 8), "block_length": 999}
    direct, routed = replicas[0].post(CHAT, wrong), router.post(CHAT, wrong)
    assert (routed.status_code, routed.json()) == (direct.status_code, direct.json())
    assert routed.json()["error"]["param"] == "block_length"


def test_generate_goes_through(router: Server) -> None:
    sampling = {"max_new_tokens": 8, "custom_params": {"generation_mode": "diffusion"}}
    answer = router.post("/generate", {"text": "What is 1 + 2?", "sampling_params": sampling})
    assert answer.json()["meta_info"]["dlm"]["generation_mode"] == "diffusion"


def test_a_conversation_returns_to_the_server_that_has_its_prefix(router: Server) -> None:
    """Whatever mode each turn asks for: one prefix cache serves them all."""
    cached = 0
    for talk in range(NUM_TALKS):
        messages = [{"role": "user", "content": f"Talk {talk}. {LONG_TEXT}"}]
        for turn in range(NUM_TURNS):
            sent = {"messages": messages, "max_tokens": 8, "temperature": 0, "generation_mode": MODES[turn % 3]}
            answer = router.post("/v1/chat/completions", sent).json()
            assert "choices" in answer, answer
            messages = [
                *messages,
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "."},
                {"role": "user", "content": "Go on."},
            ]
            details = answer["usage"].get("prompt_tokens_details") or {}
            cached += turn > 0 and details.get("cached_tokens", 0) > 0
    assert cached == NUM_TALKS * (NUM_TURNS - 1)


def test_a_server_that_is_gone_is_left_out(router: Server, replicas: tuple[Server, Server]) -> None:
    """The last test: the second server is stopped."""
    replicas[1].stop()
    statuses = [router.post(CHAT, body(MODES[number % 3], 4, number=number)).status_code for number in range(12)]
    # Without retries the first ones may still be sent to it.
    assert statuses[-3:] == [200] * 3, statuses
