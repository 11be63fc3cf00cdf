"""What a server lets nobody do: without the key, beyond the limits, from a web page; started by our own command."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server, serve_command, start_server

KEY = "only-for-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
NAME = "org/nld:8b"
ORIGIN = "https://allowed.example"
TIMEOUT_S = 5.0
MAX_OUTPUT = 3600
SETTINGS = {
    "DLM_API_KEY": KEY,
    "DLM_SERVED_MODEL_NAME": NAME,
    "DLM_MAX_RUNNING_REQUESTS": "1",
    "DLM_MAX_QUEUED_REQUESTS": "1",
    "DLM_MAX_CONCURRENT_REQUESTS_PER_KEY": "4",
    "DLM_MAX_REQUEST_BYTES": "4096",
    "DLM_MAX_PROMPT_TOKENS": "64",
    "DLM_MAX_OUTPUT_TOKENS": str(MAX_OUTPUT),
    "DLM_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
    "DLM_CORS_ORIGINS": f"{ORIGIN}, https://other.example",
    "DLM_PLAYGROUND": "false",
}
CANARY = "Zanzibar-7391"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": f"Say {CANARY}."}], "max_tokens": 4, "temperature": 0}
# Longer than the request timeout allows.
ENDLESS: dict[str, Any] = {**CHAT, "max_tokens": MAX_OUTPUT, "ignore_eos": True, "generation_mode": "autoregressive"}
ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/invocations"),
    ("POST", "/generate"),
    ("PUT", "/generate"),
    ("POST", "/v1/messages"),
    ("POST", "/api/chat"),
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{NAME}:diffusion"),
    ("GET", "/openapi.json"),
    ("GET", "/playground"),
)


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log_file = tmp_path_factory.mktemp("guarded-server") / "server.log"
    flags = ["--", "--max-total-tokens", "20000"]
    server = start_server(checkpoint, log_file, flags, SETTINGS, serve_command)
    try:
        yield server
        assert server.alarms() == []
    finally:
        server.stop()


def ask(server: Server, body: object, path: str = "/v1/chat/completions", **kwargs: Any) -> httpx.Response:
    return server.post(path, body, headers=BEARER, **kwargs)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"])
def test_no_route_answers_without_the_key(guarded: Server, key: str) -> None:
    headers = {"Authorization": key} if key else {}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as client:
        for method, path in ROUTES:
            response = client.request(method, path, json={**CHAT, "block_length": 99})
            assert response.status_code == 401, (method, path, response.text)
            assert NAME not in response.text


def test_with_the_key_the_name_with_a_colon_and_its_modes_are_served(guarded: Server) -> None:
    models = guarded.get("/v1/models", headers=BEARER).json()["data"]
    assert [card["id"] for card in models][:2] == [NAME, f"{NAME}:autoregressive"]
    for name, mode in ((NAME, "self_speculation"), (f"{NAME}:diffusion", "diffusion")):
        answer = ask(guarded, {**CHAT, "model": name})
        assert answer.json()["dlm"]["generation_mode"] == mode
        assert answer.json()["model"] == NAME


def test_a_body_above_the_limit_is_413_whether_its_length_is_told_or_not(guarded: Server) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(16):
            yield b"x" * 512
        yield b'"}'

    headers = {**BEARER, "content-type": "application/json"}
    for path in ("/v1/chat/completions", "/generate", "/v1/messages", "/v1/embeddings"):
        for content in (b"x" * 5000, pieces()):
            response = httpx.post(guarded.url + path, content=content, headers=headers)
            assert response.status_code == 413, path
            assert error_of(response)["code"] == "request-too-large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_above_the_limit_is_a_400_that_says_both_numbers(guarded: Server, stream: bool) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "1 " * 200}], "stream": stream}
    error = error_of(ask(guarded, body))
    assert (error["code"], error["param"]) == ("prompt-too-long", "messages")
    assert "at most 64 tokens" in error["message"]
    native = ask(guarded, {"input_ids": [300] * 65, "sampling_params": {"max_new_tokens": 1}}, "/generate")
    assert native.status_code == 400
    assert ask(guarded, {"input_ids": [300] * 64, "sampling_params": {"max_new_tokens": 1}}, "/generate").is_success


def test_more_output_than_the_limit_is_refused_on_every_route(guarded: Server) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        error = error_of(ask(guarded, {**CHAT, field: MAX_OUTPUT + 1}))
        assert (error["code"], error["param"]) == ("parameter-out-of-range", field)
    native = {"text": "a", "sampling_params": {"max_new_tokens": MAX_OUTPUT + 1}}
    assert ask(guarded, native, "/generate").status_code == 400
    anthropic = {"model": NAME, "messages": CHAT["messages"], "max_tokens": MAX_OUTPUT + 1}
    assert ask(guarded, anthropic, "/v1/messages").status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_ends_when_its_time_is_up_and_frees_its_place(guarded: Server, stream: bool) -> None:
    begin = time.monotonic()
    response = ask(guarded, {**ENDLESS, "stream": stream, "n": 1})
    assert TIMEOUT_S - 0.1 < time.monotonic() - begin < TIMEOUT_S + 5
    if stream:
        assert response.status_code == 200
        *_, error, done = response.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request-timeout"
        assert done == "data: [DONE]"
    else:
        assert response.status_code == 504
        assert error_of(response)["code"] == "request-timeout"
    idle(guarded)
    assert ask(guarded, CHAT).is_success


def idle(server: Server) -> None:
    """The place is free far sooner than the tokens would take."""
    until_load(server, num_running_reqs=0, num_waiting_reqs=0, num_used_tokens=0)


def until_load(server: Server, **wanted: int) -> None:
    for _ in range(200):
        load = httpx.get(f"{server.url}/v1/loads?include=all", headers=BEARER).json()["loads"][0]
        if all(load[name] == value for name, value in wanted.items()):
            return
        time.sleep(0.02)
    pytest.fail(f"the load never was {wanted}: {load}")


@pytest.mark.parametrize("stream", [False, True])
def test_overload_is_503_or_429_with_retry_after_and_passes(guarded: Server, stream: bool) -> None:
    """One runs, one waits, the next are 503; of one key, four may be open, the fifth is 429."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asks = [pool.submit(ask, guarded, {**ENDLESS, "max_tokens": 200, "stream": stream}) for _ in range(8)]
        answers = [one.result() for one in asks]
    refused = [answer for answer in answers if not answer.is_success]
    assert {answer.status_code for answer in refused} <= {429, 503}
    assert len(refused) >= 4
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        code = {429: "too-many-requests", 503: "server-overloaded"}[answer.status_code]
        assert error_of(answer)["code"] == code
    idle(guarded)
    assert ask(guarded, CHAT).is_success


def test_a_full_queue_is_503_on_generate_too(guarded: Server) -> None:
    """One runs and one waits until their time is up; whoever comes meanwhile finds the queue full."""
    native = {"input_ids": [300], "sampling_params": {"max_new_tokens": 4}}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, guarded, ENDLESS) for _ in range(2)]
        until_load(guarded, num_running_reqs=1, num_waiting_reqs=1)
        full = ask(guarded, native, "/generate")
        assert [one.result().status_code for one in held] == [504, 504]
    assert full.status_code == 503, full.text
    assert int(full.headers["retry-after"]) >= 1
    assert error_of(full)["code"] == "server-overloaded"
    idle(guarded)
    assert ask(guarded, native, "/generate").is_success


NUMBERS = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "repetition_penalty", "stop_token_ids")
OPENAI_NUMBERS = (*NUMBERS, "seed", "max_tokens", "min_tokens", "top_logprobs", "priority", "max_thinking_tokens")
NATIVE_NUMBERS = (*NUMBERS, "sampling_seed", "max_new_tokens", "min_new_tokens")
HOSTILE = (2**31, -(2**31) - 1, 2**32, 2**63, -(2**63), 2**64 - 1, 2**64, 10**40, 1e308, 1e-320, -1, -2, 0)


def test_no_number_ends_the_server(front_server: Server) -> None:
    """Whatever a number is too large for, it is the request that ends."""
    body = {**CHAT, "max_tokens": 3, "logprobs": True}
    for name in OPENAI_NUMBERS:
        for value in HOSTILE:
            sent = {**body, name: [value] if name == "stop_token_ids" else value}
            status = front_server.post("/v1/chat/completions", sent).status_code
            assert status in (200, 400), (name, value)
            sent["logprobs"] = False
            assert front_server.post("/v1/chat/completions", sent).status_code in (200, 400), (name, value)
    for name in NATIVE_NUMBERS:
        for value in HOSTILE:
            sampling = {"max_new_tokens": 3, name: [value] if name == "stop_token_ids" else value}
            sent = {"text": "Sort 3, 1.", "sampling_params": sampling}
            assert front_server.post("/generate", sent).status_code in (200, 400), (name, value)
    for name in ("logprob_start_len", "top_logprobs_num"):
        for value in HOSTILE:
            sent = {"text": ["Sort 3, 1.", "\u0080"], "return_logprob": True, name: value}
            sent["sampling_params"] = {"max_new_tokens": 3}
            assert front_server.post("/generate", sent).status_code in (200, 400), (name, value)
    front_server.wait_idle()
    assert front_server.get("/health_generate").status_code == 200


def test_a_web_page_is_let_in_only_from_the_origins_that_are_named(guarded: Server, front_server: Server) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = "access-control-allow-origin"
    path = "/v1/chat/completions"
    for origin, answer in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
        headers = {**preflight, "Origin": origin}
        assert httpx.options(guarded.url + path, headers=headers).headers.get(allowed) == answer
        assert ask(guarded, CHAT).is_success
        assert httpx.options(front_server.url + path, headers=headers).headers.get(allowed) is None
        got = front_server.get("/v1/models", headers={"Origin": origin})
        assert got.is_success
        assert allowed not in got.headers


def test_the_playground_can_be_switched_off(guarded: Server, front_server: Server) -> None:
    assert guarded.get("/playground", headers=BEARER).status_code == 404
    assert front_server.get("/playground").status_code == 200


def test_the_log_holds_neither_prompts_nor_the_key(guarded: Server) -> None:
    """Of requests that were served, refused by us, refused by SGLang, and cut short."""
    ask(guarded, CHAT)
    ask(guarded, {**CHAT, "block_length": 99})
    ask(guarded, {**CHAT, "temperature": -1})
    ask(guarded, {**CHAT, "messages": CANARY})
    ask(guarded, {"text": CANARY, "sampling_params": {"temperature": -1}}, "/generate")
    ask(guarded, {"prompt": CANARY, "max_tokens": 2, "stream": True}, "/v1/completions")
    assert CANARY not in guarded.log
    assert KEY not in guarded.log
