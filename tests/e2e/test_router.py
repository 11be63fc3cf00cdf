"""SGLang's own router in front of two servers: how our parameters go through it, and prompts return to their cache.

Of a chat request the router hands on the fields that it knows; ours go inside `chat_template_kwargs`, which it knows.
"""

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
from dlm_sglang.measure.soak.run import sum_of
from tests.e2e.asks import MODES
from tests.e2e.conftest import FRONT_FLAGS, running
from tests.e2e.faults import CHAT, body
from tests.e2e.server import Server, tail, wait_for

pytest.importorskip("sglang_router", reason="sglang-router is not installed")

START_TIMEOUT_S = 90
# Longer than the prefix at which the router sends a prompt to the server that has it.
LONG_TEXT = "Vienna, Oslo and Lima are cities. " * 24
NUM_TALKS = 4
NUM_TURNS = 3


@pytest.fixture(scope="module")
def replicas(
    front_server: Server, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    with running(checkpoint, tmp_path_factory, "second-replica", FRONT_FLAGS) as second:
        yield front_server, second


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
        router = Server(process, log_file, f"http://127.0.0.1:{port}")
        stack.callback(router.stop)

        def has_both() -> bool:
            assert router.is_alive(), tail(log_file)
            try:
                return len(httpx.get(f"{router.url}/workers", timeout=5).json()["workers"]) == len(replicas)
            except (httpx.TransportError, ValueError, KeyError):
                return False

        wait_for(has_both, START_TIMEOUT_S, lambda: f"the router does not know both servers\n{tail(log_file)}")
        yield router


def routed(mode: str, num_tokens: int, *, stream: bool = False, number: int = 7, **fields: Any) -> dict[str, Any]:
    """A chat request whose parameters come through the router."""
    sent = body(mode, num_tokens, stream=stream, number=number)
    return {**sent, "chat_template_kwargs": {"dlm": {"generation_mode": sent.pop("generation_mode"), **fields}}}


def cached_tokens(replicas: tuple[Server, Server]) -> list[float]:
    """Prompt tokens that each server found in its prefix cache so far."""
    return [sum_of(replica.get("/metrics/").text, "sglang_cached_tokens_total") for replica in replicas]


def events(answer: httpx.Response) -> list[str]:
    return [line for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("mode", MODES)
def test_our_parameters_and_reports_go_through(router: Server, replicas: tuple[Server, Server], mode: str) -> None:
    """The reports are equal too, but for the costs that each server learnt and chose by under `auto`."""
    direct = [replica.post(CHAT, body(mode, 24)).json() for replica in replicas]
    through = [router.post(CHAT, routed(mode, 24)).json() for _ in range(2)]
    for answer in (*direct, *through):
        if mode != "auto":
            assert answer["dlm"] == direct[0]["dlm"]
        assert answer["choices"][0]["message"] == direct[0]["choices"][0]["message"]
    assert through[0]["dlm"]["generation_mode"] == mode


def test_completions_go_through_with_the_fields_in_their_own_places(
    router: Server, replicas: tuple[Server, Server]
) -> None:
    sent = {"model": name_of(replicas), "prompt": "What is 1 + 2?", "max_tokens": 12, "temperature": 0}
    fields = {"generation_mode": "diffusion", "block_length": 8, "confidence_threshold": None, "max_denoising_steps": 3}
    direct = replicas[0].post("/v1/completions", {**sent, **fields}).json()
    through = router.post("/v1/completions", {**sent, **fields}).json()
    assert (through["dlm"], through["choices"][0]["text"]) == (direct["dlm"], direct["choices"][0]["text"])


def name_of(replicas: tuple[Server, Server]) -> str:
    return str(replicas[0].get("/v1/models").json()["data"][0]["id"])


def test_what_the_router_drops_is_what_the_page_says(router: Server) -> None:
    """When this fails, the router has learnt to hand on what it does not know: docs/scaling.md can be shorter."""
    answer = router.post(CHAT, body("diffusion", 8)).json()
    assert answer["dlm"]["generation_mode"] == "self_speculation"


@pytest.mark.parametrize("mode", MODES)
def test_streams_go_through_with_their_report(router: Server, mode: str) -> None:
    answer = router.post(CHAT, routed(mode, 24, stream=True))
    assert answer.status_code == 200
    assert events(answer)[-1] == "data: [DONE]"
    assert f'"generation_mode":"{mode}"' in answer.text


def test_a_mode_in_the_models_name_goes_through(router: Server, replicas: tuple[Server, Server]) -> None:
    sent: dict[str, Any] = {**body("diffusion", 8), "model": f"{name_of(replicas)}:diffusion"}
    del sent["generation_mode"]
    answer = router.post(CHAT, sent)
    assert answer.json()["dlm"]["generation_mode"] == "diffusion"


def test_a_refusal_goes_through_as_the_server_wrote_it(router: Server, replicas: tuple[Server, Server]) -> None:
    direct = replicas[0].post(CHAT, {**body("diffusion", 8), "block_length": 999})
    through = router.post(CHAT, routed("diffusion", 8, block_length=999))
    assert (through.status_code, through.json()) == (direct.status_code, direct.json())
    assert through.json()["error"]["param"] == "block_length"


def test_a_conversation_returns_to_the_server_that_has_its_prefix(
    router: Server, replicas: tuple[Server, Server]
) -> None:
    """Whatever mode each turn asks for: one prefix cache serves them all."""
    for talk in range(NUM_TALKS):
        messages = [{"role": "user", "content": f"Talk {talk}. {LONG_TEXT}"}]
        known = 0
        for turn in range(NUM_TURNS):
            before = sum(cached_tokens(replicas))
            sent = {**routed(MODES[turn % 3], 8), "messages": messages}
            answer = router.post(CHAT, sent).json()
            found = sum(cached_tokens(replicas)) - before
            # All of the turn before but its last few tokens; on the other server nearly nothing.
            assert turn == 0 or found > 0.8 * known, (talk, turn, found)
            known = int(answer["usage"]["prompt_tokens"])
            messages = [
                *messages,
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "."},
                {"role": "user", "content": "Go on."},
            ]


def test_a_server_that_is_gone_is_left_out(router: Server, replicas: tuple[Server, Server]) -> None:
    """The last test: the second server is stopped."""
    replicas[1].stop()
    statuses: list[int] = []

    def is_left_out() -> bool:
        # Without retries those that are still sent to it fail.
        statuses.append(router.post(CHAT, routed(MODES[0], 4, number=len(statuses))).status_code)
        return statuses[-6:] == [200] * 6

    wait_for(is_left_out, 90, lambda: f"the router goes on asking a server that is gone: {statuses}")
